"""Differential cases: the same operations on a mount and on a plain directory, and every result compared.

A case is a function that works in the current directory and notes what it sees in a Trace. It is run in an
empty directory on the mount and in one on the filesystem that holds the vault; both traces must be equal.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.e2e.mounting import MountSpec

Record = tuple[str, object]
OUTCOMES = (int, bytes, str, tuple, list, type(None))


class Trace:
    """What a case saw, in order."""

    def __init__(self) -> None:
        self.records: list[Record] = []

    def note(self, label: str, value: object) -> None:
        """Record a value that must be the same on both sides."""
        if isinstance(value, bytes | bytearray) and len(value) > 200:
            value = (len(value), hashlib.blake2b(value, digest_size=16).hexdigest(), bytes(value[:32]))
        self.records.append((label, value))

    def do(self, label: str, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """Call, record the result or the errno, and return the result (None after an error)."""
        try:
            result = function(*arguments, **named)
        except OSError as error:
            self.note(label, errno.errorcode.get(error.errno or 0, str(error.errno)))
            return None
        self.note(label, result if isinstance(result, OUTCOMES) else "ok")
        return result

    def open(self, label: str, path: bytes | str, flags: int, mode: int = 0o644) -> int:
        """os.open; records success or errno; -1 after an error."""
        try:
            fd = os.open(path, flags, mode)
        except OSError as error:
            self.note(label, errno.errorcode[error.errno or 0])
            return -1
        self.note(label, "open")
        return fd

    def stat(self, label: str, path: bytes | str | int, *, mtime: bool = False) -> None:
        """Record the stat fields that a mount must share with a plain directory."""
        try:
            found = os.fstat(path) if isinstance(path, int) else os.lstat(path)
        except OSError as error:
            self.note(label, errno.errorcode[error.errno or 0])
            return
        self.note(label, fields_of(found, mtime=mtime))

    def tree(self, label: str, top: bytes = b".", *, mtime: bool = False) -> None:
        """Record everything below a directory: names, stat fields, contents, targets, hard links."""
        self.note(label, list(walk(top, mtime=mtime)))


def settle() -> None:
    """Wait until the kernel asks again for attributes that another name of the file has changed.

    A known limit of the path API: each name of a file has its own inode in the kernel.
    """
    time.sleep(1.1)


def fields_of(found: os.stat_result, *, mtime: bool = False) -> tuple[object, ...]:
    """Mode and type, nlink, uid, gid, rdev, size (not of directories), mtime if wanted."""
    size = None if stat.S_ISDIR(found.st_mode) else found.st_size
    special = stat.S_ISCHR(found.st_mode) or stat.S_ISBLK(found.st_mode)
    return (
        oct(found.st_mode),
        found.st_nlink,
        found.st_uid,
        found.st_gid,
        found.st_rdev if special else 0,
        size,
        found.st_mtime_ns if mtime else None,
    )


def walk(top: bytes, *, mtime: bool = False) -> Iterator[tuple[object, ...]]:
    """One tuple for every entry below a directory, in the order of the names' bytes."""
    names_of_inode: dict[tuple[int, int], int] = {}
    pending = [top]
    while pending:
        directory = pending.pop()
        for name in sorted(os.listdir(directory)):
            path = directory + b"/" + name
            found = os.lstat(path)
            kind = stat.S_IFMT(found.st_mode)
            content: object = None
            if kind == stat.S_IFDIR:
                pending.append(path)
            elif kind == stat.S_IFLNK:
                content = os.readlink(path)
            elif kind == stat.S_IFREG and found.st_size < 256 << 20:
                content = digest(path)
            same = names_of_inode.setdefault((found.st_dev, found.st_ino), len(names_of_inode))
            group = same if found.st_nlink > 1 and kind != stat.S_IFDIR else None
            relative = path[len(top) :]
            yield relative, fields_of(found, mtime=mtime and kind != stat.S_IFDIR), content, group


def digest(path: bytes | str) -> str:
    """BLAKE2b of a file's content."""
    with open(path, "rb", buffering=0) as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()[:32]


Case = Callable[[Trace], None]


class Cases(list[Case]):
    """The cases of one module: `CASES.add` decorates them, the list goes to pytest.mark.parametrize."""

    def add(self, case: Case) -> Case:
        """Register a case."""
        self.append(case)
        return case


def run_case(case: Case, directory: Path) -> list[Record]:
    """Run a case in a directory and snapshot what it left there."""
    trace = Trace()
    before = Path.cwd()
    umask = os.umask(0o022)
    os.chdir(directory)
    try:
        case(trace)
        trace.tree("left behind")
    finally:
        os.chdir(before)
        os.umask(umask)
    return trace.records


def first_difference(mounted: list[Record], plain: list[Record]) -> str:
    """Where two traces part, for a person to read; '' where they are equal."""
    for index, (ours, theirs) in enumerate(zip(mounted, plain, strict=False)):
        if ours != theirs:
            if isinstance(ours[1], list) and isinstance(theirs[1], list):
                only_ours = [item for item in ours[1] if item not in theirs[1]][:5]
                only_theirs = [item for item in theirs[1] if item not in ours[1]][:5]
                return f"step {index} {ours[0]}:\n  only mount: {only_ours!r}\n  only plain: {only_theirs!r}"
            return f"step {index}:\n  mount: {ours!r}\n  plain: {theirs!r}"
    if len(mounted) != len(plain):
        return f"the mount's trace has {len(mounted)} steps, the plain one {len(plain)}"
    return ""


_NO_HANDLE = "the kernel asks for it without a file handle, and libfuse knows no path of what has no name"

KNOWN_LIMITS: dict[tuple[str, str], str] = {
    ("fusepy", "hard_link_attributes_at_once"): "each name has an inode of its own in the kernel: mode and "
    "nlink follow within a second, the size with the writeback cache only when the inode is dropped",
    ("fusepy", "hard_links_open_before_the_link"): "the page cache of a file opened while it had one name",
    ("fusepy", "fstat_of_a_file_in_a_removed_directory"): _NO_HANDLE,
    ("fusepy", "a_directory_without_a_name"): _NO_HANDLE,
    ("xattrs", "unlinked_open_file"): _NO_HANDLE,
    ("private", "chown_of_a_sticky_set_id_file"): "without default_permissions the kernel hides the sticky "
    "bit from itself, and writes the mode back without it",
}
"""(engine or configuration, case) -> why the path API cannot do better. Each is an xfail, and strict."""


def known_limit(spec: MountSpec, case: str) -> str:
    """The reason why this case must differ on this mount, or ''."""
    names = [spec.engine, *spec.options.split(",")]
    if spec.engine == "fusepy":
        names += [] if "noxattrs" in spec.options else ["xattrs"]
        names += [] if "allow_other" in spec.options else ["private"]
    return next((KNOWN_LIMITS[name, case] for name in names if (name, case) in KNOWN_LIMITS), "")
