"""A tree with one of everything that a copy has to keep, and all that can be seen of a tree."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import stat
import subprocess
from pathlib import Path
from typing import Any

from tests.support import may_mark_links, pattern

MIB = 1 << 20


def make_tree(top: Path) -> None:
    """Files, links, special files; holes, attributes, ACLs; modes, owners and times."""
    top.mkdir()
    for directory in ("d/e/f", "empty", "locked", "setgid", "n" * 255, "many"):
        (top / directory).mkdir(parents=True)
    for size in (0, 1, 4096, 16384, 100_000, 3 * MIB):
        (top / f"size {size}").write_bytes(pattern(size, size))
    for number in range(30):
        (top / "many" / str(number)).write_bytes(pattern(number * 500, number))
    for name in ("n" * 250, "\udcff\n", "é", ".hidden", "-rf", "a:b"):
        (top / name).write_bytes(os.fsencode(name))
    with (top / "holes").open("wb") as file:
        file.seek(2 * MIB)
        file.write(pattern(MIB))
        file.seek(8 * MIB)
        file.write(b"end")
        file.truncate(10 * MIB)
    with (top / "all hole").open("wb") as file:
        file.truncate(5 * MIB + 1)
    (top / "d" / "inner").write_text("inner")
    os.link(top / "d" / "inner", top / "d" / "e" / "second name")
    os.link(top / "d" / "inner", top / "a third")
    (top / "link").symlink_to("d/inner")
    (top / "dangling").symlink_to("/nowhere/" + "x" * 200)
    (top / "to directory").symlink_to("d")
    os.link(top / "link", top / "d" / "link again", follow_symlinks=False)
    os.mkfifo(top / "fifo", 0o640)
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as made:
        made.bind(str(top / "socket"))
    for name in ("d/inner", "d/e", "size 4096", "locked"):
        os.setxattr(top / name, "user.colour", b"blue")
        os.setxattr(top / name, "user.long" + "x" * 200, pattern(300))
    subprocess.run(["setfacl", "-m", "u:1234:r,g:77:rw", str(top / "size 1")], check=True)
    subprocess.run(["setfacl", "-m", "d:u:1234:rx,u:9:rwx", str(top / "d" / "e")], check=True)
    if os.geteuid() == 0:
        os.chown(top / "size 1", 1234, 77)
        os.chown(top / "d" / "e" / "f", 1000, 1000)
        os.lchown(top / "dangling", 5, 6)
        for name in ("link", "dangling") if may_mark_links() else ():
            os.setxattr(top / name, "trusted.note", os.fsencode(name), follow_symlinks=False)
        with contextlib.suppress(PermissionError):
            os.mknod(top / "device", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    for name, mode in (
        *(("size 0", 0o4755), ("size 1", 0o640), ("size 16384", 0o400), ("size 100000", 0o000)),
        *(("setgid", 0o2775), ("locked", 0o500), ("empty", 0o1777)),
    ):
        (top / name).chmod(mode)
    for place, directories, files in os.walk(top, topdown=False):
        for each in (*files, *directories):
            when = int.from_bytes(hashlib.sha256(os.fsencode(each)).digest()[:4], "little")
            os.utime(
                Path(place, each), ns=(when * 10**9 + 7, when * 10**9 + 123_456_789), follow_symlinks=False
            )


def seen(top: Path, *, owners: bool = True, holes: bool = True) -> dict[str, Any]:
    """All that can be seen of a tree, by path; what must be equal of two copies."""
    found: dict[str, Any] = {}
    first_name: dict[tuple[int, int], str] = {}
    for place, directories, files in os.walk(top):
        for each in sorted((*directories, *files)):
            path = Path(place, each)
            below = os.fsencode(path.relative_to(top)).decode("latin-1")
            found[below] = _of(path, below, first_name, owners=owners, holes=holes)
    return found


def _of(
    path: Path, below: str, first_name: dict[tuple[int, int], str], *, owners: bool, holes: bool
) -> dict[str, Any]:
    st = path.lstat()
    fields: dict[str, Any] = {"mode": oct(st.st_mode), "mtime": st.st_mtime_ns}
    if owners:
        fields["owner"] = (st.st_uid, st.st_gid)
    if not stat.S_ISDIR(st.st_mode):
        fields |= {"links": st.st_nlink, "size": st.st_size}
        fields["same file as"] = first_name.setdefault((st.st_dev, st.st_ino), below)
    fields["attributes"] = {
        name: os.getxattr(path, name, follow_symlinks=False).hex()
        for name in sorted(os.listxattr(path, follow_symlinks=False))
    }
    if stat.S_ISLNK(st.st_mode):
        fields["target"] = os.readlink(path)
        return fields
    if stat.S_ISREG(st.st_mode):
        with path.open("rb") as file:
            fields["content"] = hashlib.file_digest(file, "sha256").hexdigest()
            if holes:
                fields["holes"] = _large_holes(file.fileno(), st.st_size)
    return fields


def _large_holes(fd: int, size: int) -> list[int]:
    """The mebibytes that are holes altogether."""
    holes: list[int] = []
    at = 0
    while at < size:
        try:
            data = os.lseek(fd, at, os.SEEK_DATA)
        except OSError:
            data = size
        holes += range(-(-at // MIB), data // MIB)
        at = os.lseek(fd, data, os.SEEK_HOLE) if data < size else size
    return holes
