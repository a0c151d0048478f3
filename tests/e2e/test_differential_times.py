"""Times of files: set and kept to the nanosecond, moved by what moves them and by nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cryptfs.storage.libc import (
    AT_FDCWD,
    FALLOC_KEEP_SIZE,
    FALLOC_PUNCH_HOLE,
    UTIME_NOW,
    UTIME_OMIT,
    fallocate,
    futimens,
    utimensat,
)
from tests.e2e.conftest import Pair
from tests.e2e.mounting import Mounted
from tests.e2e.trace import Case, Cases, Trace

pytestmark = pytest.mark.waits

CASES = Cases()


def times_of(path: str | int) -> tuple[int, int]:
    found = os.fstat(path) if isinstance(path, int) else os.lstat(path)
    return found.st_atime_ns, found.st_mtime_ns


@CASES.add
def set_to_the_nanosecond(t: Trace) -> None:
    Path("file").write_bytes(b"content")
    Path("dir").mkdir()
    os.mkfifo("fifo")
    os.symlink("file", "link")
    for path in ("file", "dir", "fifo", "link", "."):
        for atime, mtime in (
            (1, 2),
            (1_600_000_000_123_456_789, 1_500_000_000_987_654_321),
            (0, 0),
            (10**18, 10**9),
        ):
            t.do(f"utime {path}", os.utime, path, ns=(atime, mtime), follow_symlinks=False)
            t.note("times", times_of(path))
    for mtime in (-1, -(10**9), 2**31 * 10**9, 2**33 * 10**9 + 999_999_999):
        t.do(f"utime {mtime}", os.utime, "file", ns=(mtime, mtime))
        t.note("times", times_of("file"))
    t.do("nothing", os.utime, "none", ns=(1, 2))


@CASES.add
def now_and_omit(t: Trace) -> None:
    Path("file").write_bytes(b"content")
    fd = os.open("file", os.O_RDWR)
    setters: tuple[tuple[str, Callable[[tuple[int, int, int, int]], None]], ...] = (
        ("path", lambda times: utimensat(AT_FDCWD, "file", times)),
        ("fd", lambda times: futimens(fd, times)),
    )
    for label, setter in setters:
        t.do(f"{label} base", setter, (100, 5, 200, 6))
        t.do("omit both", setter, (0, UTIME_OMIT, 0, UTIME_OMIT))
        t.note("unchanged", times_of("file"))
        t.do("omit atime", setter, (0, UTIME_OMIT, 300, 7))
        t.note("mtime only", times_of("file"))
        t.do("omit mtime", setter, (400, 8, 0, UTIME_OMIT))
        t.note("atime only", times_of("file"))
        before = time.time_ns() - 10**8
        t.do("now", setter, (0, UTIME_NOW, 500, 9))
        atime, mtime = times_of("file")
        t.note("atime is now", (atime >= before, mtime))
        t.do("both now", setter, (0, UTIME_NOW, 0, UTIME_NOW))
        t.note("both are now", [stamp >= before for stamp in times_of("file")])
    os.close(fd)


@CASES.add
def times_set_before_close_survive_it(t: Trace) -> None:
    for name, by_fd in (("a", True), ("b", False)):
        fd = os.open(name, os.O_RDWR | os.O_CREAT)
        os.write(fd, b"x" * 50_000)
        if by_fd:
            os.utime(fd, ns=(111, 222))
        else:
            os.utime(name, ns=(111, 222))
        os.close(fd)
        t.note("times", times_of(name)[1])
    fd = os.open("a", os.O_RDWR)
    os.pread(fd, 100, 0)
    os.close(fd)
    t.note("reading leaves mtime", times_of("a")[1])
    os.chmod("a", 0o600)
    os.rename("a", "c")
    os.link("c", "d")
    os.unlink("c")
    t.note("so do chmod, rename and link", times_of("d")[1])
    os.unlink("d")


def moved(action: Callable[[], object], path: str) -> bool:
    """Whether an action moves the mtime of a file that has an old one."""
    os.utime(path, ns=(10**9, 10**9))
    action()
    return times_of(path)[1] != 10**9


@CASES.add
def what_moves_mtime(t: Trace) -> None:
    path = "file"
    Path(path).write_bytes(b"content" * 1000)
    Path("dir").mkdir()
    fd = os.open(path, os.O_RDWR)

    def rename_and_back() -> None:
        os.rename(path, "file2")
        os.rename("file2", path)

    on_file: tuple[tuple[str, Callable[[], object]], ...] = (
        ("write", lambda: os.pwrite(fd, b"x", 0)),
        ("read", lambda: os.pread(fd, 1, 0)),
        ("ftruncate", lambda: os.ftruncate(fd, 100)),
        ("truncate up", lambda: os.truncate(path, 50_000)),
        ("ftruncate to the same size", lambda: os.ftruncate(fd, 50_000)),
        ("chmod", lambda: os.chmod(path, 0o600)),
        ("chown", lambda: os.chown(path, 0, 0)),
        ("fsync", lambda: os.fsync(fd)),
        ("open for writing", lambda: os.close(os.open(path, os.O_RDWR))),
        ("open and truncate", lambda: os.close(os.open(path, os.O_RDWR | os.O_TRUNC))),
        ("rename", rename_and_back),
    )
    for label, action in on_file:
        t.note(label, moved(action, path))
    os.close(fd)
    in_directory: tuple[tuple[str, Callable[[], object]], ...] = (
        ("create in it", lambda: Path("dir/f").touch()),
        ("write to a child", lambda: Path("dir/f").write_bytes(b"x")),
        ("rename in it", lambda: os.rename("dir/f", "dir/g")),
        ("unlink in it", lambda: os.unlink("dir/g")),
        ("mkdir in it", lambda: os.mkdir("dir/d")),
        ("rmdir in it", lambda: os.rmdir("dir/d")),
        ("symlink in it", lambda: os.symlink("x", "dir/l")),
        ("list it", lambda: os.listdir("dir")),
    )
    for label, action in in_directory:
        t.note(label, moved(action, "dir"))


@CASES.add
def allocating_while_an_overwrite_waits(t: Trace) -> None:
    """Content of an overwrite reaches its place later, and fallocate its own at once."""
    for mode, offset, length in (
        (0, 10_000, 20_000),
        (0, 90_000, 40_000),
        (FALLOC_KEEP_SIZE, 10_000, 20_000),
        (FALLOC_KEEP_SIZE, 200_000, 10_000),
        (FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE, 20_000, 40_000),
        (FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE, 20_000, 100),
    ):
        Path("file").write_bytes(b"content" * 15_000)
        fd = os.open("file", os.O_RDWR)
        os.pwrite(fd, b"x" * 5000, 3000)
        before = times_of(fd)[1]
        time.sleep(0.02)
        t.do(f"fallocate {mode} {offset} {length}", fallocate, fd, mode, offset, length)
        after = times_of(fd)[1]
        t.note("moves mtime", after > before)
        t.note("to now", abs(after - time.time_ns()) < 10**9)
        os.close(fd)
        t.note("mtime stays after the close", times_of("file")[1] == after)
        os.unlink("file")


@CASES.add
def programs_that_keep_times(t: Trace) -> None:
    Path("file").write_bytes(b"content" * 10_000)
    Path("empty").touch()
    for number, name in enumerate(("file", "empty")):
        os.utime(name, ns=(10**18 + number, 10**18 + 123_456_789 + number))
        subprocess.run(["cp", "-p", name, f"cp-{name}"], check=True)
        shutil.copy2(name, f"copy2-{name}")
        subprocess.run(["touch", "-r", name, f"touched-{name}"], check=True)
        t.note(name, [times_of(f"{how}-{name}")[1] for how in ("cp", "copy2", "touched")])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_times(case: Case, pair: Pair) -> None:
    pair.check(case)


def test_mtime_does_not_move_after_close(own_mount: Mounted) -> None:
    directory = own_mount.mountpoint
    seen: dict[str, int] = {}
    for number in range(60):
        path = directory / f"f{number}"
        with path.open("wb") as file:
            file.write(b"x" * (number * 1000))
            if number % 3 == 0:
                file.flush()
                path.stat()
        seen[path.name] = path.stat().st_mtime_ns
    time.sleep(1.5)
    assert {name: (directory / name).stat().st_mtime_ns for name in seen} == seen
    own_mount.remount()
    assert {name: (directory / name).stat().st_mtime_ns for name in seen} == seen


def test_link_right_after_close_shows_the_same_mtime(own_mount: Mounted) -> None:
    directory = own_mount.mountpoint
    seen: dict[str, int] = {}
    for number in range(500):
        path = directory / f"f{number}"
        path.write_bytes(b"x" * 20_000)
        os.link(path, directory / f"g{number}")
        seen[path.name] = path.stat().st_mtime_ns
        seen[f"g{number}"] = (directory / f"g{number}").stat().st_mtime_ns
    wrong = [name for name in seen if seen[name] != seen["f" + name[1:]]]
    own_mount.remount()
    moved = [name for name in seen if (directory / name).stat().st_mtime_ns != seen[name]]
    assert (len(wrong), len(moved)) == (0, 0)


def test_times_set_right_after_close(own_mount: Mounted) -> None:
    """The last close seals the length in the vault, some time after close(2) has returned."""
    directory = own_mount.mountpoint
    for number in range(500):
        path = directory / f"f{number}"
        path.write_bytes(b"x" * 20_000)
        os.utime(path, ns=(number, 10**18 + number))
    own_mount.remount()
    for number in range(500):
        assert (directory / f"f{number}").stat().st_mtime_ns == 10**18 + number
