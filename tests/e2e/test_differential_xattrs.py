"""Extended attributes on a mount as on a plain directory."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
from pathlib import Path

import pytest

from cryptfs.storage.libc import AT_FDCWD, RENAME_EXCHANGE, renameat2
from tests.crash.blockdevice import loop_device, missing, mounted_disk
from tests.e2e.conftest import ENGINES, Pair, require_fuse
from tests.e2e.mounting import Mounted, MountSpec, mounted
from tests.e2e.trace import Case, Cases, Trace
from tests.e2e.users import OTHER, OWNER, ROOT, as_user

CASES = Cases()


def targets() -> list[str]:
    with open("file", "wb") as file:
        file.write(b"content")
    with open("empty", "wb"):
        pass
    os.mkdir("dir")
    return ["file", "empty", "dir", ".", "n" * 250]


def names_of(path: str) -> list[str]:
    return sorted(name for name in os.listxattr(path) if name.startswith("user."))


@CASES.add
def set_get_list_remove(t: Trace) -> None:
    for path in targets()[:-1]:
        for name, value in (("user.a", b"value"), ("user.empty", b""), ("user.b\u00e9", b"\x00\xff" * 9)):
            t.do(f"{path} get missing", os.getxattr, path, name)
            t.do("set", os.setxattr, path, name, value)
            t.do("get", os.getxattr, path, name)
            t.do("set again", os.setxattr, path, name, value + b"more")
            t.do("get", os.getxattr, path, name)
        t.do("list", names_of, path)
        t.do("remove", os.removexattr, path, "user.a")
        t.do("remove again", os.removexattr, path, "user.a")
        t.do("get removed", os.getxattr, path, "user.a")
        t.do("list", names_of, path)
        t.stat("stat is unchanged", path)
    with open("empty", "rb") as file:
        t.note("still empty", file.read())


@CASES.add
def create_and_replace_flags(t: Trace) -> None:
    for path in targets()[:3]:
        t.do("replace missing", os.setxattr, path, "user.x", b"1", os.XATTR_REPLACE)
        t.do("create", os.setxattr, path, "user.x", b"2", os.XATTR_CREATE)
        t.do("create again", os.setxattr, path, "user.x", b"3", os.XATTR_CREATE)
        t.do("replace", os.setxattr, path, "user.x", b"4", os.XATTR_REPLACE)
        t.do("get", os.getxattr, path, "user.x")


@CASES.add
def names_up_to_255_bytes(t: Trace) -> None:
    targets()
    for length in (6, 7, 100, 150, 160, 180, 200, 249, 254, 255, 256, 300):
        name = "user." + "n" * (length - 5)
        t.do(f"set {length}", os.setxattr, "file", name, b"value of %d" % length)
        t.do("get", os.getxattr, "file", name)
    t.do("list", names_of, "file")
    for length in (100, 255):
        t.do("remove", os.removexattr, "file", "user." + "n" * (length - 5))
    t.do("list", names_of, "file")
    t.do("only a prefix", os.setxattr, "file", "user.", b"x")
    t.do("no namespace", os.setxattr, "file", "plain", b"x")
    t.do("unknown namespace", os.setxattr, "file", "nosuch.name", b"x")


@CASES.add
def values_of_many_sizes(t: Trace) -> None:
    targets()
    for size in (0, 1, 16, 255, 256, 1000, 2000, 3000, 3500):
        value = bytes(index % 251 for index in range(size))
        t.do(f"set {size}", os.setxattr, "file", "user.value", value)
        t.do("get", os.getxattr, "file", "user.value")
    t.do("over 64 KiB", os.setxattr, "file", "user.value", bytes(65_537))


@CASES.add
def large_values(t: Trace) -> None:
    targets()
    for size in (4096, 10_000, 30_000, 60_000):
        t.do(f"set {size}", os.setxattr, "file", "user.large", b"v" * size)
        t.do("get", os.getxattr, "file", "user.large")


@CASES.add
def attributes_follow_the_file(t: Trace) -> None:
    targets()
    for path in ("file", "empty", "dir"):
        os.setxattr(path, "user.tag", path.encode())
        t.do("rename", os.rename, path, path + "2")
        t.do("after rename", os.getxattr, path + "2", "user.tag")
    os.link("file2", "file3")
    t.do("through a hard link", os.getxattr, "file3", "user.tag")
    os.truncate("file2", 0)
    t.do("after truncate", os.getxattr, "file2", "user.tag")
    with open("file2", "wb") as file:
        file.write(b"x" * 50_000)
    t.do("after rewrite", os.getxattr, "file2", "user.tag")
    os.unlink("file2")
    t.do("other name", os.getxattr, "file3", "user.tag")
    os.unlink("file3")


@CASES.add
def descriptors_and_open_files(t: Trace) -> None:
    targets()
    fd = os.open("file", os.O_RDWR)
    t.do("fsetxattr", os.setxattr, fd, "user.f", b"by descriptor")
    t.do("fgetxattr", os.getxattr, fd, "user.f")
    os.pwrite(fd, b"more", 100_000)
    t.do("after a write", os.getxattr, "file", "user.f")
    t.do("fremovexattr", os.removexattr, fd, "user.f")
    t.do("flistxattr", lambda: sorted(name for name in os.listxattr(fd) if name.startswith("user.")))
    os.close(fd)
    fd = os.open("empty", os.O_RDWR)
    t.do("on an open empty file", os.setxattr, fd, "user.e", b"early")
    os.write(fd, b"written after that")
    os.close(fd)
    t.do("both are there", os.getxattr, "empty", "user.e")


@CASES.add
def unlinked_open_file(t: Trace) -> None:
    targets()
    fd = os.open("file", os.O_RDWR)
    os.setxattr(fd, "user.f", b"value")
    os.unlink("file")
    t.do("fgetxattr", os.getxattr, fd, "user.f")
    t.do("fsetxattr", os.setxattr, fd, "user.g", b"value")
    t.do("flistxattr", lambda: sorted(name for name in os.listxattr(fd) if name.startswith("user.")))
    t.do("fremovexattr", os.removexattr, fd, "user.f")
    os.close(fd)


@CASES.add
def on_what_cannot_have_them(t: Trace) -> None:
    os.symlink("nowhere", "link")
    os.mkfifo("fifo")
    t.do("link", os.setxattr, "link", "user.x", b"1", follow_symlinks=False)
    t.do("get of link", os.getxattr, "link", "user.x", follow_symlinks=False)
    t.do("list of link", lambda: [n for n in os.listxattr("link", follow_symlinks=False) if n[:5] == "user."])
    t.do("fifo", os.setxattr, "fifo", "user.x", b"1")
    t.do("get of fifo", os.getxattr, "fifo", "user.x")
    for name in ("link", "fifo"):  # what root has not set there
        t.do("get trusted", os.getxattr, name, "trusted.x", follow_symlinks=False)
        t.do("remove trusted", os.removexattr, name, "trusted.x", follow_symlinks=False)
        t.do("remove user", os.removexattr, name, "user.x", follow_symlinks=False)
    t.do("nothing", os.setxattr, "none", "user.x", b"1")
    t.do("get of nothing", os.getxattr, "none", "user.x")
    t.do("list of nothing", os.listxattr, "none")


def on_links(*names: str) -> list[tuple[str, list[tuple[str, bytes]]]]:
    """Targets and attributes of symlinks."""
    return [
        (
            os.readlink(name),
            [
                (each, os.getxattr(name, each, follow_symlinks=False))
                for each in sorted(os.listxattr(name, follow_symlinks=False))
            ],
        )
        for name in names
    ]


LINK_NAMES = ("trusted.a", "security.a", "trusted." + "n" * 160, "trusted." + "n" * 247)


def marked_link(t: Trace, name: str, target: str = "nowhere") -> None:
    os.symlink(target, name)
    for number, attribute in enumerate(LINK_NAMES):
        t.do("set", os.setxattr, name, attribute, b"%d" % number * 90, follow_symlinks=False)


@CASES.add
def on_symlinks(t: Trace) -> None:
    """Only root has attributes there; others are refused on both sides."""
    for link in ("link", "far"):
        marked_link(t, link, "t" * 3500 if link == "far" else "nowhere")
        t.do("all", on_links, link)
        for name in ("trusted.a", "security.a", "trusted.none", "user.a", "user.none", "nosuch.name"):
            for flags in (os.XATTR_CREATE, os.XATTR_REPLACE, 0):
                t.do(f"set {name} {flags}", os.setxattr, link, name, b"new", flags, follow_symlinks=False)
            t.do(f"get {name}", os.getxattr, link, name, follow_symlinks=False)
            t.do(f"remove {name}", os.removexattr, link, name, follow_symlinks=False)
            t.do(f"again {name}", os.removexattr, link, name, follow_symlinks=False)
        for name in ("trusted.", "trusted." + "n" * 248, "system.x", "system.posix_acl_access"):
            t.do(f"set {name}", os.setxattr, link, name, b"1", follow_symlinks=False)
            t.do(f"get {name}", os.getxattr, link, name, follow_symlinks=False)
        t.do("empty", os.setxattr, link, "trusted.empty", b"", follow_symlinks=False)
        t.do("over 64 KiB", os.setxattr, link, "trusted.a", bytes(65_537), follow_symlinks=False)
        t.do("all", on_links, link)
        t.stat("stat", link)
        t.do("through the link", os.getxattr, link, "trusted.a")


@CASES.add
def symlinks_keep_attributes(t: Trace) -> None:
    os.mkdir("d")
    for target in ("nowhere", "t" * 3500):
        marked_link(t, "link", target)
        os.rename("link", "renamed")
        t.do("renamed", on_links, "renamed")
        os.rename("renamed", "d/" + "l" * 200)
        t.do("moved", on_links, "d/" + "l" * 200)
        os.symlink("elsewhere", "replaced")
        t.do("set", os.setxattr, "replaced", "trusted.gone", b"", follow_symlinks=False)
        os.rename("d/" + "l" * 200, "replaced")
        t.do("over another", on_links, "replaced")
        os.link("replaced", "second", follow_symlinks=False)
        t.do("linked", on_links, "replaced", "second")
        t.do("set", os.setxattr, "second", "trusted.b", b"by its second name", follow_symlinks=False)
        t.do("seen by both", on_links, "replaced", "second")
        os.unlink("replaced")
        os.rename("second", "d/third")
        t.do("third", on_links, "d/third")
        t.do("set its owner", os.chown, "d/third", 0, 0, follow_symlinks=False)
        t.do("its owner was set", on_links, "d/third")
        marked_link(t, "other", "elsewhere")
        t.do("remove", os.removexattr, "other", "trusted.a", follow_symlinks=False)
        with open("file", "w"):
            pass
        for one, two in (("d/third", "other"), ("other", "file")):
            renameat2(AT_FDCWD, one, AT_FDCWD, two, RENAME_EXCHANGE)
        t.do("exchanged", on_links, "d/third", "file")
        for name in ("d/third", "file", "other"):
            os.unlink(name)
    marked_link(t, "stays")


@CASES.add
def symlinks_by_a_descriptor(t: Trace) -> None:
    marked_link(t, "link")
    fd = os.open("link", os.O_PATH | os.O_NOFOLLOW)
    path = f"/proc/self/fd/{fd}"
    t.do("set", os.setxattr, path, "trusted.b", b"by descriptor")
    t.do("get", os.getxattr, path, "trusted.b")
    t.do("list", lambda: sorted(os.listxattr(path)))
    os.rename("link", "renamed")
    t.do("after a rename", lambda: sorted(os.listxattr(path)))
    t.do("set", os.setxattr, path, "trusted.c", b"after a rename")
    t.do("all", on_links, "renamed")
    os.close(fd)


@CASES.add
def many_attributes(t: Trace) -> None:
    targets()
    for number in range(30):
        t.do("set", os.setxattr, "dir", f"user.attribute.{number}", b"%d" % number)
    t.do("list", names_of, "dir")
    t.note("values", [os.getxattr("dir", name) for name in names_of("dir")])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_xattrs(case: Case, pair: Pair) -> None:
    if "noxattrs" in pair.mount.spec.options:
        on_mount, _ = pair.directories(case.__name__)
        with pytest.raises(OSError, match="not supported"):
            os.setxattr(on_mount, "user.x", b"value")
        return
    pair.check(case)


def what_others_see(t: Trace) -> None:
    marked_link(t, "link")
    os.chown("link", OWNER.uid, OWNER.gid, follow_symlinks=False)
    for name in ("file", "link"):
        if name == "file":
            with open(name, "w"):
                pass
            os.setxattr(name, "trusted.a", b"1")
            os.setxattr(name, "user.a", b"1")
            os.chmod(name, 0o666)
        for user in (OWNER, OTHER, ROOT):

            def act(t: Trace, name: str = name) -> None:
                t.do("list", lambda: sorted(os.listxattr(name, follow_symlinks=False)))
                for attribute in ("trusted.a", "security.a", "trusted.none", "security.none"):
                    t.do(f"get {attribute}", os.getxattr, name, attribute, follow_symlinks=False)
                    t.do(f"set {attribute}", os.setxattr, name, attribute, b"2", follow_symlinks=False)
                    t.do(f"remove {attribute}", os.removexattr, name, attribute, follow_symlinks=False)

            as_user(t, user, act)
    os.chown("link", 0, 0, follow_symlinks=False)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to act as other users")
@pytest.mark.parametrize("engine", ENGINES)
def test_only_an_administrator_sees_trusted_attributes(engine: str) -> None:
    spec = MountSpec(engine, options="allow_other")
    require_fuse(spec)
    with mounted(spec) as mount:
        for place in (mount.scratch, mount.mountpoint):
            place.chmod(0o755)
        Pair(mount).check(what_others_see)


@pytest.mark.skipif(bool(missing()), reason=missing() or "-")
@pytest.mark.parametrize("engine", ENGINES)
def test_the_largest_values(engine: str, tmp_path: Path) -> None:
    """ext4 has one block for the attributes of a file, names included. The kernel's limit is 64 KiB."""
    spec = MountSpec(engine)
    require_fuse(spec)
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(16 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-b", "4096", image], check=True)
    with contextlib.ExitStack() as stack:
        device = stack.enter_context(loop_device(image))
        disk = stack.enter_context(mounted_disk(device, tmp_path / "disk"))
        (disk / "plain").touch()
        os.setxattr(disk / "plain", "user.value", b"v" * 4000)
        (disk / "scratch").mkdir()
        mount = Mounted(spec, disk / "scratch")
        stack.callback(mount.abandon)
        mount.create()
        mount.start()
        path = mount.mountpoint / "file"
        path.touch()
        os.setxattr(path, "user.value", b"v" * 3940)
        assert os.getxattr(path, "user.value") == b"v" * 3940
        for size, code in ((4000, errno.ENOSPC), (65_497, errno.E2BIG)):
            with pytest.raises(OSError) as raised:
                os.setxattr(path, "user.value", b"v" * size)
            assert raised.value.errno == code
        assert os.getxattr(path, "user.value") == b"v" * 3940
        mount.unmount()
