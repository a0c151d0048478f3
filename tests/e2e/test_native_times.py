"""Which times move: of an object and of its directory, on success and on failure, and which never do."""

from __future__ import annotations

import mmap
import os
import socket
from collections.abc import Callable

import pytest

from cryptfs.storage.libc import UTIME_NOW, UTIME_OMIT, futimens, utimensat
from tests.e2e.conftest import ENGINES, Pair, require_fuse
from tests.e2e.mounting import MountSpec, mounted
from tests.e2e.posix import ALL_CALLS, MAKING, open_with, write
from tests.e2e.trace import Case, Cases, Trace
from tests.e2e.users import MEMBER, OTHER, OWNER, Target, do_as, moved, stamp, watch

CASES = Cases()
SECOND = 10**9
MANY_TIMES = (
    0,
    1,
    999_999_999,
    SECOND,
    2**31 * SECOND - 1,
    2**31 * SECOND,
    2**32 * SECOND + 7,
    2**33 * SECOND,
)


def make_d() -> None:
    os.mkdir(b"d")
    write(b"d/x", b"content")
    write(b"source", b"source")
    os.mkdir(b"source-directory")


def clear() -> None:
    for top, directories, files in os.walk(b".", topdown=False):
        for name in files:
            os.unlink(os.path.join(top, name))
        for name in directories:
            path = os.path.join(top, name)
            (os.unlink if os.path.islink(path) else os.rmdir)(path)


@CASES.add
def of_the_object_and_its_directory(t: Trace) -> None:
    for name, call in ALL_CALLS.items():
        make_d()
        made = b"d/new" if name in MAKING or name in ("link to", "rename to") else b"d/x"
        about: list[Target] = [b"d", b"source"] if made == b"d/new" else [b"d", b"d/x"]
        watch(t, name, about, call, made)
        clear()


@CASES.add
def of_what_is_made(t: Trace) -> None:
    for name, call in MAKING.items():
        os.mkdir(b"d")
        before = stamp(b"d")
        call(b"d/new")
        found = os.lstat(b"d/new")
        if name != "mkdir":  # see test_native_inherent.py
            t.note(f"{name}: all at once", found.st_mtime_ns == found.st_ctime_ns == found.st_atime_ns)
        t.note(f"{name}: now", found.st_ctime_ns > before.st_ctime_ns)
        t.note(f"{name}: as its directory", abs(os.lstat(b"d").st_mtime_ns - found.st_mtime_ns) < SECOND)
        clear()


def calls_on(fd: int, other: int) -> dict[str, Callable[[], object]]:
    """Calls on one file that is open for both, and as `other` for reading."""
    return {
        "write": lambda: os.pwrite(fd, b"y", 3),
        "write nothing": lambda: os.pwrite(fd, b"", 3),
        "append": lambda: os.pwrite(fd, b"y", os.fstat(fd).st_size),
        "grow": lambda: os.ftruncate(fd, 200_000),
        "same": lambda: os.ftruncate(fd, 200_000),
        "shrink": lambda: os.ftruncate(fd, 100_001),
        "allocate": lambda: os.posix_fallocate(fd, 0, 300_000),
        "fchmod": lambda: os.fchmod(fd, 0o600),
        "fchown": lambda: os.fchown(fd, 1, 1),
        "fsync": lambda: os.fsync(fd),
        "fstat": lambda: bool(os.fstat(fd)),
        "lseek": lambda: os.lseek(fd, 0, os.SEEK_HOLE) > 0,
        "setxattr": lambda: os.setxattr(fd, "user.x", b"y"),
        "getxattr": lambda: os.getxattr(fd, "user.x"),
        "removexattr": lambda: os.removexattr(fd, "user.x"),
        "write of a reader": lambda: os.pwrite(other, b"y", 0),
        "truncate of a reader": lambda: os.ftruncate(other, 0),
        "write at the largest": lambda: os.pwrite(fd, b"y", 2**63 - 1),
    }


@CASES.add
def of_open_files(t: Trace) -> None:
    for size in (0, 7, 5000, 100_000):
        write(b"x", bytes(size))
        fd = os.open(b"x", os.O_RDWR)
        other = os.open(b"x", os.O_RDONLY)
        for label, call in calls_on(fd, other).items():
            watch(t, f"{label} of {size}", [fd, b"."], call)
        os.close(fd)
        os.close(other)


@CASES.add
def first_reads_move_the_time_of_access(t: Trace) -> None:
    for size in (1, 5000, 100_000):
        name = b"read%d" % size
        write(name, bytes(size))
        os.utime(name, ns=(10**18, 10**18))
        fd = os.open(name, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)  # so that the mount is asked
        before = stamp(name)
        os.read(fd, size)
        t.note(f"{size}", moved(name, before))
        os.close(fd)


@CASES.add
def opening_moves_nothing(t: Trace) -> None:
    write(b"x", b"content")
    os.mkdir(b"d")
    os.mkfifo(b"fifo")
    for label, flags in {
        "read": os.O_RDONLY, "write": os.O_WRONLY, "both": os.O_RDWR, "append": os.O_RDWR | os.O_APPEND,
        "create": os.O_RDWR | os.O_CREAT, "path": os.O_PATH, "exclusive": os.O_RDWR | os.O_CREAT | os.O_EXCL,
    }.items():  # fmt: skip
        watch(t, f"open {label}", [b"x", b"."], open_with(flags), b"x")
    watch(t, "directory", [b"d"], open_with(os.O_RDONLY), b"d")
    watch(t, "fifo", [b"fifo"], open_with(os.O_RDONLY), b"fifo")


@CASES.add
def of_empty_files_that_are_truncated(t: Trace) -> None:
    # POSIX: O_TRUNC of an empty file and truncate to the same size mark times for update all the same.
    write(b"x", b"")
    # (truncate(2) by path: see test_native_inherent.py.)
    watch(t, "open", [b"x"], open_with(os.O_WRONLY | os.O_TRUNC), b"x")
    watch(t, "create", [b"x", b"."], open_with(os.O_WRONLY | os.O_CREAT | os.O_TRUNC), b"x")
    fd = os.open(b"x", os.O_RDWR)
    watch(t, "ftruncate", [fd], os.ftruncate, fd, 0)
    os.close(fd)


@CASES.add
def listing_and_links(t: Trace) -> None:
    os.mkdir(b"d")
    write(b"d/x", b"content")
    os.symlink(b"d", b"link")
    watch(t, "listdir", [b"d"], lambda: sorted(os.listdir(b"d")))
    watch(t, "rmdir of a full one", [b"d", b"."], os.rmdir, b"d")
    os.mkdir(b"e")
    watch(t, "rename over a full one", [b"d", b"e", b"."], os.rename, b"e", b"d")
    watch(t, "lookup of what is missing", [b"d"], os.stat, b"d/missing")
    watch(t, "lookup of what is there", [b"d", b"d/x"], lambda: bool(os.stat(b"d/x")))
    watch(t, "lstat", [b"link"], lambda: bool(os.lstat(b"link")))
    with socket.socket(socket.AF_UNIX) as made:
        watch(t, "bind", [b"d"], made.bind, b"d/socket")


@CASES.add
def mappings(t: Trace) -> None:
    write(b"x", bytes(10_000))
    fd = os.open(b"x", os.O_RDWR)
    with mmap.mmap(fd, 10_000) as mapping:

        def change() -> None:
            mapping[5000] = 1
            mapping.flush()

        watch(t, "store and msync", [fd], change)
    os.close(fd)


@CASES.add
def utimens_of_every_kind(t: Trace) -> None:
    makers: dict[str, Callable[[], None]] = {
        "file": lambda: write(b"x"),
        "directory": lambda: os.mkdir(b"x"),
        "fifo": lambda: os.mkfifo(b"x"),
        "link": lambda: os.symlink(b"nowhere", b"x"),
    }
    for kind, make in makers.items():
        make()
        for atime in MANY_TIMES:
            t.do("set", os.utime, b"x", ns=(atime, 2**33 * SECOND - atime), follow_symlinks=False)
            found = os.lstat(b"x")
            t.note(f"{kind} {atime}", (found.st_atime_ns, found.st_mtime_ns))
        t.do("before 1970", os.utime, b"x", ns=(-1, -5 * SECOND - 7), follow_symlinks=False)
        found = os.lstat(b"x")
        t.note(f"{kind} before", (found.st_atime_ns, found.st_mtime_ns))
        for label, times in {
            "omit both": (0, UTIME_OMIT, 0, UTIME_OMIT),
            "now both": (0, UTIME_NOW, 0, UTIME_NOW),
            "atime now": (0, UTIME_NOW, 0, UTIME_OMIT),
            "mtime now": (0, UTIME_OMIT, 0, UTIME_NOW),
            "atime only": (5 * 10**9, 5, 0, UTIME_OMIT),
            "mtime only": (0, UTIME_OMIT, 5 * 10**9, 5),
            "bad": (0, 10**9, 0, 0),
        }.items():
            watch(t, f"{kind} {label}", [b"x", b"."], utimensat, -100, "x", times)
        clear()


@CASES.add
def utimens_by_users(t: Trace) -> None:
    kinds = {
        "now": (0, UTIME_NOW, 0, UTIME_NOW),
        "set": (10**9, 1, 10**9, 1),
        "atime now": (0, UTIME_NOW, 0, UTIME_OMIT),
        "one of each": (0, UTIME_NOW, 10**9, 1),
        "omit": (0, UTIME_OMIT, 0, UTIME_OMIT),
    }
    for mode in (0o600, 0o644, 0o666, 0o446, 0o464):
        for user in (OWNER, MEMBER, OTHER):
            write(b"x")
            os.chown(b"x", OWNER.uid, OWNER.gid)
            os.chmod(b"x", mode)
            for label, times in kinds.items():
                watch(t, f"{label} {mode:o} by {user.name}", [b"x"], utimensat, -100, "x", times, user=user)
            os.unlink(b"x")


@CASES.add
def explicit_times_survive_what_follows(t: Trace) -> None:
    # The writeback cache owns mtime while pages are dirty; a time that was set must win over it.
    for label, size in (("small", 10), ("large", 300_000)):
        name = label.encode()
        fd = os.open(name, os.O_RDWR | os.O_CREAT)
        os.write(fd, bytes(size))
        os.utime(fd, ns=(10**18 + 1, 10**18 + 2))
        t.note("open", os.fstat(fd).st_mtime_ns)
        os.fsync(fd)
        t.note("synced", os.fstat(fd).st_mtime_ns)
        os.close(fd)
        t.note("closed", os.stat(name).st_mtime_ns)
        os.chmod(name, 0o600)
        os.rename(name, name + b"2")
        os.link(name + b"2", name)
        t.note("renamed and linked", os.stat(name).st_mtime_ns)
        fd = os.open(name, os.O_WRONLY)
        os.write(fd, b"x")
        futimens(fd, (0, UTIME_OMIT, 10**9, 9))
        os.close(fd)
        t.note("after a write", os.stat(name).st_mtime_ns)


@CASES.add
def of_what_is_left_of_several_names(t: Trace) -> None:
    write(b"x")
    os.link(b"x", b"y")
    watch(t, "unlink one of two", [b"y", b"."], os.unlink, b"x")
    fd = os.open(b"y", os.O_RDWR)
    watch(t, "unlink the last", [fd, b"."], os.unlink, b"y")
    write(b"a")
    write(b"b")
    held = os.open(b"b", os.O_RDWR)
    watch(t, "replace", [held, b"a", b"."], os.rename, b"a", b"b")
    os.mkdir(b"d")
    inside = os.open(b"d", os.O_RDONLY)
    watch(t, "rmdir", [b"."], os.rmdir, b"d")
    t.stat("removed", inside)
    for opened in (fd, held, inside):
        os.close(opened)


@CASES.add
def failures_of_users_move_nothing(t: Trace) -> None:
    make_d()
    os.chmod(b"d", 0o755)
    before = {path: stamp(path) for path in (b"d", b"d/x", b"source")}
    for name, call in ALL_CALLS.items():
        if not name.startswith(("open", "stat", "lstat", "read", "list", "access", "create")):
            do_as(t, OTHER, name, call, b"d/x")
    t.note("moved", {path: moved(path, then) for path, then in before.items()})


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_times(case: Case, users_pair: Pair) -> None:
    users_pair.check(case)


@pytest.mark.parametrize("engine", ENGINES)
def test_without_the_writeback_cache_a_mapping_moves_the_time_for_good(engine: str) -> None:
    spec = MountSpec(engine, options="nowriteback")
    require_fuse(spec)
    with mounted(spec) as mount:
        path = mount.mountpoint / "file"
        path.write_bytes(bytes(10_000))
        os.utime(path, ns=(10**18, 10**18))
        with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as view:
            view[:3] = b"new"
        moved_to = path.stat().st_mtime_ns
        assert moved_to > 10**18
        mount.remount()
        assert path.stat().st_mtime_ns == moved_to
        assert path.read_bytes()[:4] == b"new\0"
