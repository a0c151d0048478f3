"""Times and numbers that our own work in the vault must not change, and the time that a cached read must."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cryptfs.storage.libc import AT_FDCWD, RENAME_EXCHANGE, renameat2
from tests.e2e.conftest import ENGINES, require_fuse
from tests.e2e.mounting import Mounted, MountSpec, mounted
from tests.support import everything_below

pytestmark = pytest.mark.waits

OLD_NS = 981_173_106_123_456_789


def age(directory: Path) -> None:
    os.utime(directory, ns=(OLD_NS, OLD_NS))


def test_a_link_of_a_symlink_leaves_its_directory_alone(own_mount: Mounted) -> None:
    """As cp -al and rsync --link-dest do: the link is sealed again in its place, for many names."""
    first, second = own_mount.mountpoint / "first", own_mount.mountpoint / "second"
    first.mkdir()
    second.mkdir()
    targets = {"short": "target", "long": "t" * 3000}
    for name, target in targets.items():
        (first / name).symlink_to(target)
    age(first)
    for name in targets:
        os.link(first / name, second / name, follow_symlinks=False)
    own_mount.remount()
    assert first.stat().st_mtime_ns == OLD_NS
    assert second.stat().st_mtime_ns != OLD_NS
    assert {name: os.readlink(second / name) for name in targets} == targets


def test_the_root_keeps_its_time(own_mount: Mounted) -> None:
    """While a session begins and ends: its files are in the vault directory."""
    root = own_mount.mountpoint
    (root / "file").write_bytes(b"x" * 100_000)
    (root / "directory").mkdir()
    age(root)
    with (root / "file").open("r+b") as file:
        file.write(b"overwritten: this begins a journal")
    (root / "directory" / "link").symlink_to("t" * 3000)
    assert root.stat().st_mtime_ns == OLD_NS
    for _ in range(2):
        own_mount.remount()
        assert root.stat().st_mtime_ns == OLD_NS
    with (root / "file").open("r+b") as file:
        file.write(b"again")
        os.fsync(file.fileno())
    own_mount.allow_log("the last session did not end with an unmount", "writing to it was interrupted")
    own_mount.kill()
    own_mount.start()
    assert root.stat().st_mtime_ns == OLD_NS, "after a replay"
    own_mount.remount()
    assert root.stat().st_mtime_ns == OLD_NS, "after the sweep"
    (root / "new").touch()
    assert root.stat().st_mtime_ns != OLD_NS


def test_a_mount_that_changes_nothing_moves_no_ctime(own_mount: Mounted) -> None:
    """It moves once, when cryptfs has finished what a program wrote; then it stays, read or not."""
    top = own_mount.mountpoint
    (top / "d").mkdir()
    (top / "d" / "file").write_bytes(b"x" * 100_000)
    (top / "d" / ("l" * 200)).write_bytes(b"")
    (top / "link").symlink_to("target")
    (top / "long").symlink_to("t" * 3000)
    os.link(top / "link", top / "second", follow_symlinks=False)
    os.mkfifo(top / "fifo")
    own_mount.remount()
    paths = [top, *sorted(everything_below(top))]
    seen = []
    for _ in range(2):
        seen.append({path: (path.lstat().st_ctime_ns, path.lstat().st_mtime_ns) for path in paths})
        assert (top / "d" / "file").read_bytes() == b"x" * 100_000
        own_mount.remount()
    before, after = seen
    assert [path for path in paths if before[path] != after[path]] == []


def read_later(path: Path, flags: int = os.O_RDONLY, *, wait: float = 0.0) -> bool:
    """Whether a read of a file moves its time of access, as relatime does: it is not after mtime.

    Args: wait: until the kernel asks for attributes again.
    """
    before = path.stat().st_atime_ns
    time.sleep(0.02)
    fd = os.open(path, flags)
    os.read(fd, 10)
    os.close(fd)
    time.sleep(wait)
    return path.stat().st_atime_ns != before


def test_a_first_read_from_the_page_cache_moves_atime(own_mount: Mounted) -> None:
    """The kernel asks for no byte of a file that was just written; the disk has relatime."""
    place = own_mount.mountpoint
    for name, size in (("written", 10), ("again", 10), ("quietly", 10), ("large", 1_000_000)):
        (place / name).write_bytes(bytes(size))
    time.sleep(1.1)  # libfuse's engine keeps the time of change ahead for a moment
    wait = 0.0 if own_mount.spec.engine == "native" else 1.1  # libfuse's engine cannot tell the kernel
    assert read_later(place / "again", wait=wait)
    with (place / "again").open("ab") as file:
        file.write(b"more")
    time.sleep(1.1)
    assert read_later(place / "written", wait=wait)
    assert read_later(place / "again", wait=wait)
    assert read_later(place / "large", wait=wait)
    if own_mount.spec.engine == "native":  # libfuse's engine has no pages after a write
        assert not read_later(place / "quietly", os.O_RDONLY | os.O_NOATIME)
    for name in ("written", "again", "large"):
        found = (place / name).stat()
        assert found.st_atime_ns > found.st_mtime_ns
        assert not read_later(place / name), "only the first one moves it"


def test_o_noatime_holds_without_the_page_cache(own_mount: Mounted) -> None:
    """As backup programs open files; and a program that reads the same file beside them moves its time."""
    place, native = own_mount.mountpoint, own_mount.spec.engine == "native"
    (place / "d").mkdir()
    (place / "d" / "file").write_bytes(bytes(100_000))
    own_mount.remount()
    kept = place / "d" / "file"
    assert not read_later(kept, os.O_RDONLY | os.O_NOATIME, wait=1.1)
    before = (place / "d").stat().st_atime_ns
    fd = os.open(place / "d", os.O_RDONLY | os.O_DIRECTORY | os.O_NOATIME)
    assert os.listdir(fd) == ["file"]
    os.close(fd)
    time.sleep(1.1)
    if native:  # libfuse's engine does not hear of the flag of a directory
        assert (place / "d").stat().st_atime_ns == before
    quiet = os.open(kept, os.O_RDONLY | os.O_NOATIME)
    assert read_later(kept, wait=1.1)
    os.close(quiet)


@pytest.mark.parametrize("engine", ENGINES)
def test_noatime_holds_for_cached_reads(engine: str) -> None:
    spec = MountSpec(engine, options="noatime,strictatime,lazytime,silent,quiet")
    require_fuse(spec)
    with mounted(spec) as mount:
        file = mount.mountpoint / "file"
        file.write_bytes(b"content")
        before = file.stat().st_atime_ns
        file.read_bytes()
        file.read_bytes()
        time.sleep(1.1)
        assert file.stat().st_atime_ns == before


def test_nosymfollow_goes_to_the_kernel() -> None:
    """For libfuse, which does not know it, see test_cli_surroundings.py."""
    with mounted(MountSpec("native", options="nosymfollow")) as mount:
        (mount.mountpoint / "file").write_bytes(b"content")
        (mount.mountpoint / "link").symlink_to("file")
        assert os.readlink(mount.mountpoint / "link") == "file"
        with pytest.raises(OSError, match="symbolic"):
            (mount.mountpoint / "link").read_bytes()


@contextlib.contextmanager
def remembered(*paths: Path) -> Iterator[None]:
    """Meanwhile the kernel does not forget these inodes, whoever drops caches on this machine."""
    pins = [os.open(path, os.O_PATH | os.O_NOFOLLOW) for path in paths]
    try:
        yield
    finally:
        for pin in pins:
            os.close(pin)


def listed(directory: Path) -> dict[str, int]:
    """The inode numbers in a listing, as ls -i and find -inum take them."""
    return {entry.name: entry.inode() for entry in os.scandir(directory)}


@pytest.mark.parametrize("target", ["short", "t" * 3000])
def test_all_names_of_a_symlink_show_one_inode_number(own_mount: Mounted, target: str) -> None:
    """A link or a rename seals it again; find -samefile, tar and rsync -H compare the numbers."""
    top = own_mount.mountpoint / str(len(target))
    top.mkdir()
    (top / "first").symlink_to(target)
    number = (top / "first").lstat().st_ino
    with remembered(top / "first"):
        (top / "first").rename(top / "moved")
        assert listed(top) == {"moved": number}
        os.link(top / "moved", top / "second", follow_symlinks=False)
        for wait in (0.0, 1.1):  # until the kernel asks again
            time.sleep(wait)
            assert [(top / name).lstat().st_ino for name in ("moved", "second")] == [number, number]
            assert listed(top) == {"moved": number, "second": number}
        (top / "moved").unlink()
        (top / "second").rename(top / "third")
        time.sleep(1.1)
        assert (top / "third").lstat().st_ino == number
        assert listed(top) == {"third": number}
        assert (top / "third").lstat().st_nlink == 1


def test_a_renamed_symlink_keeps_its_inode_number(own_mount: Mounted) -> None:
    """It is sealed again for its new place, by a new file on the disk."""
    top = own_mount.mountpoint
    (top / "d").mkdir()
    for name in ("a", "b"):
        (top / name).symlink_to(f"target of {name}")
    first, second = ((top / name).lstat().st_ino for name in ("a", "b"))
    with remembered(top / "a", top / "b"):
        (top / "a").rename(top / "c")
        (top / "c").rename(top / "d" / "c")
        assert (top / "d" / "c").lstat().st_ino == first
        renameat2(AT_FDCWD, str(top / "d" / "c"), AT_FDCWD, str(top / "b"), RENAME_EXCHANGE)
        assert ((top / "b").lstat().st_ino, (top / "d" / "c").lstat().st_ino) == (first, second)
        assert (os.readlink(top / "b"), os.readlink(top / "d" / "c")) == ("target of a", "target of b")
        (top / "b").rename(top / "d" / "c")
        assert (top / "d" / "c").lstat().st_ino == first
        time.sleep(1.1)  # the kernel asks again
        assert (top / "d" / "c").lstat().st_ino == first
        (top / "other").symlink_to("x")
        assert (top / "other").lstat().st_ino != first
