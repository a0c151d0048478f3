"""open(2) on a mount as on a plain directory: access modes, flags, kinds of entries, what the fd then can."""

from __future__ import annotations

import mmap
import os
import stat

import pytest

from tests.e2e.conftest import Pair
from tests.e2e.trace import Case, Cases, Trace

CASES = Cases()

ACCESS = {"r": os.O_RDONLY, "w": os.O_WRONLY, "rw": os.O_RDWR}
FLAGS = {
    "none": 0,
    "append": os.O_APPEND,
    "trunc": os.O_TRUNC,
    "creat": os.O_CREAT,
    "creat excl": os.O_CREAT | os.O_EXCL,
    "creat trunc": os.O_CREAT | os.O_TRUNC,
    "creat append": os.O_CREAT | os.O_APPEND,
    "directory": os.O_DIRECTORY,
    "nofollow": os.O_NOFOLLOW,
    "nofollow creat": os.O_NOFOLLOW | os.O_CREAT,
    "sync": os.O_SYNC | os.O_CREAT,
    "dsync": os.O_DSYNC,
    "noatime": os.O_NOATIME,
    "path": os.O_PATH,
}


def make_kinds() -> list[bytes]:
    """One entry of each kind; names of what can be opened without hanging."""
    with open(b"file", "wb") as file:
        file.write(b"0123456789" * 2000)
    os.close(os.open(b"empty", os.O_CREAT | os.O_WRONLY))
    os.mkdir(b"dir")
    os.symlink(b"file", b"link")
    os.symlink(b"missing-target", b"dangling")
    os.symlink(b"loop", b"loop")
    os.symlink(b"dir", b"dirlink")
    return [
        b"file",
        b"empty",
        b"dir",
        b"link",
        b"dangling",
        b"loop",
        b"dirlink",
        b"nothing",
        b"file/x",
        b"no/x",
    ]


def use(t: Trace, label: str, fd: int) -> None:
    """Read, write and seek with a descriptor, whatever it may do."""
    t.do(f"{label} pwrite", os.pwrite, fd, b"PW", 5)
    t.do(f"{label} write", os.write, fd, b"WRITE")
    t.do(f"{label} offset", os.lseek, fd, 0, os.SEEK_CUR)
    t.do(f"{label} pread", os.pread, fd, 30, 0)
    if not stat.S_ISDIR(os.fstat(fd).st_mode):  # the end of a directory is the filesystem's own affair
        t.do(f"{label} end", os.lseek, fd, 0, os.SEEK_END)
    t.do(f"{label} ftruncate", os.ftruncate, fd, 17)
    t.stat(f"{label} fstat", fd)
    os.close(fd)


@CASES.add
def every_mode_and_flag_on_every_kind(t: Trace) -> None:
    for access_name, access in ACCESS.items():
        for flag_name, flags in FLAGS.items():
            base = f"{access_name} {flag_name}"
            os.mkdir(base)
            os.chdir(base)
            for name in make_kinds():
                label = f"{base} {name!r}"
                fd = t.open(label, name, access | flags | os.O_NONBLOCK, 0o640)
                if fd >= 0:
                    use(t, label, fd)
            t.tree(base)
            os.chdir("..")


@CASES.add
def append_ignores_the_offset(t: Trace) -> None:
    fd = t.open("open", b"f", os.O_RDWR | os.O_CREAT | os.O_APPEND)
    other = t.open("other", b"f", os.O_RDWR)
    for round_ in range(20):
        t.do("append", os.write, fd, b"a" * (round_ * 701))
        t.do("other", os.pwrite, other, b"XY", round_ * 311)
        t.do("where", os.lseek, fd, 0, os.SEEK_CUR)
    t.do("pwrite on append", os.pwrite, fd, b"end", 0)
    t.do("all", os.pread, other, 1 << 20, 0)
    os.close(fd)
    os.close(other)


@CASES.add
def truncate_on_open_while_others_have_it_open(t: Trace) -> None:
    first = t.open("first", b"f", os.O_RDWR | os.O_CREAT)
    t.do("fill", os.write, first, os.fsencode("x" * 100_000))
    second = t.open("second", b"f", os.O_WRONLY | os.O_TRUNC)
    t.stat("after", first)
    t.do("read", os.pread, first, 100, 0)
    t.do("write far", os.pwrite, first, b"far", 50_000)
    t.do("write near", os.pwrite, second, b"near", 0)
    t.do("all", os.pread, first, 100_000, 0)
    os.close(first)
    os.close(second)


@CASES.add
def modes_at_creation_follow_the_umask(t: Trace) -> None:
    for umask in (0o000, 0o022, 0o077, 0o777):
        os.umask(umask)
        for mode in (0o000, 0o400, 0o644, 0o777, 0o4755, 0o2755, 0o1777, 0o7777):
            fd = t.open(f"{umask:o} {mode:o}", f"f-{umask:o}-{mode:o}", os.O_CREAT | os.O_RDWR, mode)
            if fd >= 0:
                t.do("write through it", os.write, fd, b"content")
                t.stat("mode", fd)
                os.close(fd)
            t.do("mkdir", os.mkdir, f"d-{umask:o}-{mode:o}", mode)
            t.do("mkfifo", os.mkfifo, f"p-{umask:o}-{mode:o}", mode)
    os.umask(0o022)


@CASES.add
def write_only_and_unreadable_files(t: Trace) -> None:
    fd = t.open("create without any right", b"f", os.O_CREAT | os.O_WRONLY, 0o000)
    for offset in (0, 5000, 20_000, 16_384, 100):
        t.do("pwrite", os.pwrite, fd, b"some text", offset)
    t.do("read", os.pread, fd, 1, 0)
    os.close(fd)
    again = t.open("write only", b"f", os.O_WRONLY)
    t.do("middle", os.pwrite, again, b"middle", 10_000)
    os.close(again)
    os.chmod(b"f", 0o600)


@CASES.add
def read_only_descriptors_cannot_change(t: Trace) -> None:
    with open("f", "wb") as file:
        file.write(b"content")
    fd = t.open("open", b"f", os.O_RDONLY)
    t.do("write", os.write, fd, b"x")
    t.do("pwrite", os.pwrite, fd, b"x", 0)
    t.do("ftruncate", os.ftruncate, fd, 1)
    t.do("truncate by name", os.truncate, "f", 3)
    t.do("read", os.read, fd, 100)
    t.do("fchmod", os.fchmod, fd, 0o600)
    t.do("futimens", os.utime, fd, ns=(1, 2))
    t.stat("after", fd, mtime=True)
    os.close(fd)


@CASES.add
def direct_io(t: Trace) -> None:
    buffer = mmap.mmap(-1, 64 * 1024)
    buffer[:] = bytes(range(256)) * 256
    fd = t.open("open", b"f", os.O_RDWR | os.O_CREAT | os.O_DIRECT)
    t.do("write", os.writev, fd, [buffer])
    t.do("pwrite", os.pwritev, fd, [memoryview(buffer)[:4096]], 128 * 1024)
    t.stat("size", fd)
    count = t.do("preadv", os.preadv, fd, [buffer], 100 * 1024)
    t.note("read", bytes(buffer[:count]))
    plain = t.open("buffered", b"f", os.O_RDWR)
    t.do("buffered write", os.pwrite, plain, b"buffered", 4096 * 3)
    t.do("sync", os.fsync, plain)
    t.do("direct sees it", os.preadv, fd, [memoryview(buffer)[:4096]], 4096 * 3)
    t.note("read", bytes(buffer[:4096]))
    t.do("direct over it", os.pwritev, fd, [memoryview(buffer)[4096:8192]], 4096 * 3)
    t.do("buffered sees it", os.pread, plain, 4096, 4096 * 3)
    t.do("direct append past a hole", os.pwritev, fd, [memoryview(buffer)[:4096]], 1 << 20)
    t.do("end", os.lseek, fd, 0, os.SEEK_END)
    os.close(plain)
    os.close(fd)


@CASES.add
def tmpfile_and_dup(t: Trace) -> None:
    fd = t.open("create", b"f", os.O_RDWR | os.O_CREAT)
    twin = os.dup(fd)
    t.do("write", os.write, fd, b"one")
    t.do("write by twin", os.write, twin, b"two")
    os.close(fd)
    t.do("offset is shared", os.lseek, twin, 0, os.SEEK_CUR)
    t.do("read", os.pread, twin, 10, 0)
    os.close(twin)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_open(case: Case, pair: Pair) -> None:
    pair.check(case)
