"""Every errno that POSIX names, call by call and path by path, as a plain directory gives it."""

from __future__ import annotations

import ctypes
import os
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.conftest import Pair
from tests.e2e.posix import ALL_CALLS, MAKING, PathCall, write
from tests.e2e.trace import Case, Cases, Trace
from tests.e2e.users import OLD_NS, moved, stamp, watch

CASES = Cases()
NAME_MAX, PATH_MAX = 255, 4096


def make_scene() -> None:
    """One of everything."""
    write(b"source", b"the source")
    os.mkdir(b"source-directory")
    write(b"file")
    os.mkdir(b"empty")
    os.mkdir(b"full")
    write(b"full/inner")
    os.mkfifo(b"fifo")
    os.mknod(b"socket", stat.S_IFSOCK | 0o644)
    os.symlink(b"file", b"to-file")
    os.symlink(b"empty", b"to-empty")
    os.symlink(b"nowhere", b"dangling")
    os.symlink(b"loop", b"loop")
    os.symlink(b"loop2", b"loop1")
    os.symlink(b"loop1", b"loop2")


PATHS: dict[str, bytes] = {
    "missing": b"missing",
    "below missing": b"missing/name",
    "file": b"file",
    "below a file": b"file/name",
    "below a fifo": b"fifo/name",
    "below a socket": b"socket/name",
    "empty": b"empty",
    "full": b"full",
    "link": b"to-file",
    "link to directory": b"to-empty",
    "below a link to a file": b"to-file/name",
    "through a link": b"to-empty/name",
    "dangling": b"dangling",
    "below dangling": b"dangling/name",
    "loop": b"loop",
    "below a loop": b"loop/name",
    "loop of two": b"loop1/name",
    "name of 255": b"n" * NAME_MAX,
    "name of 256": b"n" * (NAME_MAX + 1),
    "directory of 256": b"n" * (NAME_MAX + 1) + b"/name",
    "path of 4095": b"./" * 2045 + b"file!",
    "existing by 4094": b"./" * 2045 + b"file",
    "path of 4096": b"./" * 2046 + b"file",
    "no name": b"",
    "dot": b".",
    "dot dot": b"..",
    "empty dot": b"empty/.",
    "empty dot dot": b"empty/..",
    "full dot": b"full/.",
    "file slash": b"file/",
    "missing slash": b"missing/",
    "empty slash": b"empty/",
    "link slash": b"to-file/",
    "directory link slash": b"to-empty/",
    "file dot": b"file/.",
}
"""Where a call is sent; the lengths of paths are checked below."""


def test_the_long_paths_are_as_long_as_they_say() -> None:
    assert len(PATHS["path of 4095"]) == PATH_MAX - 1
    assert len(PATHS["path of 4096"]) == PATH_MAX


def errnos_of(name: str, call: PathCall) -> Case:
    """The call on every path. A failure must leave all times alone; a success gets a new scene after it."""

    def case(t: Trace) -> None:
        os.mkdir(b"top")
        os.chdir(b"top")
        try:
            before: os.stat_result | None = None
            for label, path in PATHS.items():
                if before is None:
                    os.mkdir(b"scene")
                    os.chdir(b"scene")
                    make_scene()
                    before = stamp(b".")
                t.do(f"{name} {label}", call, path)
                result = t.records[-1][1]
                t.note("times moved", moved(b".", before))
                if not isinstance(result, str) or not result.startswith("E"):
                    t.tree("after it")
                    os.chdir(b"..")
                    shutil.rmtree(b"scene")
                    before = None
        finally:
            os.chdir(b"..")

    case.__name__ = "errnos_of_" + name.replace(" ", "_")
    return case


for call_name, path_call in ALL_CALLS.items():
    if call_name != "bind":  # sun_path has room for 108 bytes, and Python says so itself
        CASES.add(errnos_of(call_name, path_call))


@CASES.add
def nothing_is_made_where_something_is(t: Trace) -> None:
    for name, call in MAKING.items():
        make_scene()
        for path in (b"file", b"empty", b"full", b"fifo", b"socket", b"to-file", b"dangling", b"loop"):
            watch(t, f"{name} over {path!r}", [b".", path], call, path)
        t.tree(f"after {name}")
        for path in os.listdir(b"."):
            shutil.rmtree(path) if os.path.isdir(path) and not os.path.islink(path) else os.unlink(path)


@CASES.add
def files_that_are_executed_are_busy(t: Trace) -> None:
    write(b"program", Path("/bin/sleep").read_bytes())
    os.chmod(b"program", 0o755)
    with subprocess.Popen([b"./program", b"60"], executable=b"./program") as running:
        try:
            for flags in (os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_APPEND, os.O_WRONLY | os.O_TRUNC):
                t.do(f"open {flags:o}", os.open, b"program", flags)
            t.do("truncate", os.truncate, b"program", 0)
            t.do("read", lambda: os.close(os.open(b"program", os.O_RDONLY)))
            t.do("chmod", os.chmod, b"program", 0o700)
            t.do("rename", os.rename, b"program", b"renamed")
            t.do("unlink", os.unlink, b"renamed")
        finally:
            running.kill()
    write(b"program2", Path("/bin/true").read_bytes())
    os.chmod(b"program2", 0o755)
    fd = os.open(b"program2", os.O_WRONLY)
    t.do("execute what is written", subprocess.run, [b"./program2"], executable=b"./program2", check=True)
    os.close(fd)
    t.do("execute", lambda: subprocess.run([b"./program2"], executable=b"./program2", check=True).returncode)


@contextmanager
def mounted_over(path: bytes) -> Iterator[None]:
    """A tmpfs on a directory."""
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", path], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", path], check=True)


@CASES.add
def mountpoints_are_busy_and_across_them_is_exdev(t: Trace) -> None:
    os.mkdir(b"point")
    os.mkdir(b"other")
    write(b"file")
    with mounted_over(b"point"):
        write(b"point/there")
        for label, work in {
            "rmdir": lambda: os.rmdir(b"point"),
            "rename": lambda: os.rename(b"point", b"renamed"),
            "rename over": lambda: os.rename(b"other", b"point"),
            "rename into": lambda: os.rename(b"file", b"point/file"),
            "rename out": lambda: os.rename(b"point/there", b"file"),
            "link into": lambda: os.link(b"file", b"point/file"),
            "link out": lambda: os.link(b"point/there", b"linked"),
        }.items():
            watch(t, label, [b"."], work)


@CASES.add
def moves_that_cannot_be(t: Trace) -> None:
    os.makedirs(b"a/b/c")
    write(b"file")
    for label, work in {
        "into itself": lambda: os.rename(b"a", b"a/inside"),
        "deep into itself": lambda: os.rename(b"a", b"a/b/c/inside"),
        "over its parent": lambda: os.rename(b"a/b", b"a"),
        "over its grandparent": lambda: os.rename(b"a/b/c", b"a"),
        "directory over file": lambda: os.rename(b"a", b"file"),
        "file over directory": lambda: os.rename(b"file", b"a/b/c"),
        "over a full one": lambda: os.rename(b"a/b", b"a"),
        "link of a directory": lambda: os.link(b"a", b"linked"),
        "of dot": lambda: os.rename(b".", b"x"),
        "to dot dot": lambda: os.rename(b"a", b".."),
        "rmdir of the full": lambda: os.rmdir(b"a"),
        "rmdir of a file": lambda: os.rmdir(b"file"),
        "unlink of a directory": lambda: os.unlink(b"a/b/c"),
    }.items():
        watch(t, label, [b".", b"a", b"a/b", b"a/b/c", b"file"], work)


@CASES.add
def bad_arguments(t: Trace) -> None:
    write(b"file")
    fd = t.open("open", b"file", os.O_RDWR)
    reader = t.open("open", b"file", os.O_RDONLY)
    stamped = stamp(fd)
    for label, work in {
        "truncate below zero": lambda: os.truncate(b"file", -1),
        "ftruncate below zero": lambda: os.ftruncate(fd, -1),
        "truncate to the largest": lambda: os.truncate(b"file", 2**63 - 1),
        "pwrite below zero": lambda: os.pwrite(fd, b"x", -1),
        "pread at the largest": lambda: os.pread(fd, 10, 2**63 - 1),
        "lseek below zero": lambda: os.lseek(fd, -1, os.SEEK_SET),
        "seek data behind the end": lambda: os.lseek(fd, 100, os.SEEK_DATA),
        "mknod of a directory": lambda: os.mknod(b"node", stat.S_IFDIR | 0o700),
        "mknod of a link": lambda: os.mknod(b"node", stat.S_IFLNK | 0o700),
        "create directory": lambda: os.open(b"new", os.O_CREAT | os.O_DIRECTORY | os.O_RDONLY),
        "fallocate nothing": lambda: os.posix_fallocate(fd, 0, 0),
        "ftruncate of a reader": lambda: os.ftruncate(reader, 0),
    }.items():
        t.do(label, work)
    t.stat("unchanged", b"file")
    t.note("times", (os.fstat(fd).st_mtime_ns == OLD_NS, os.fstat(fd).st_ctime_ns == stamped.st_ctime_ns))
    os.close(fd)
    os.close(reader)


@CASES.add
def bad_addresses(t: Trace) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    write(b"file", b"content" * 1000)
    fd = t.open("open", b"file", os.O_RDWR)

    def call(name: str, *arguments: object) -> Callable[[], object]:
        def work() -> object:
            ctypes.set_errno(0)
            result = getattr(libc, name)(*arguments)
            if result < 0:
                raise OSError(ctypes.get_errno(), "")
            return result

        return work

    size = ctypes.c_size_t(4096)
    offset = ctypes.c_int64(0)
    for bad in (ctypes.c_void_p(None), ctypes.c_void_p(1)):
        for label, work in {
            "open": call("open", bad, 0),
            "mkdir": call("mkdir", bad, 0o700),
            "rmdir": call("rmdir", bad),
            "unlink": call("unlink", bad),
            "link": call("link", b"file", bad),
            "rename": call("rename", bad, b"x"),
            "rename to": call("rename", b"file", bad),
            "symlink": call("symlink", bad, b"link"),
            "symlink to": call("symlink", b"target", bad),
            "readlink": call("readlink", bad, ctypes.create_string_buffer(10), size),
            "chmod": call("chmod", bad, 0o600),
            "chown": call("chown", bad, 0, 0),
            "truncate": call("truncate", bad, offset),
            "mknod": call("mknod", bad, stat.S_IFREG, 0),
            "pread": call("pread", fd, bad, size, offset),
            "pwrite": call("pwrite", fd, bad, size, offset),
            "setxattr": call("setxattr", b"file", b"user.name", bad, size, 0),
            "getdents": call("getdents64", fd, bad, size),
        }.items():
            t.do(f"{label} {bad.value}", work)
    t.stat("unchanged", b"file")
    os.close(fd)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_errnos(case: Case, users_pair: Pair) -> None:
    users_pair.check(case)
