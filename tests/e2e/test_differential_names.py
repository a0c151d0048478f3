"""Names of every length and encoding, deep paths, listings and their offsets."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import pytest

from tests.e2e.conftest import Pair
from tests.e2e.mounting import Mounted
from tests.e2e.trace import Case, Cases, Trace

CASES = Cases()
LARGE_DIRECTORY = int(os.environ.get("CRYPTFS_E2E_LARGE_DIRECTORY", "20000"))


def touch(name: bytes) -> None:
    os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))


@CASES.add
def names_of_every_length(t: Trace) -> None:
    for length in [*range(1, 256), 256, 257, 1000, 4094]:
        name = b"n" * length
        t.do(f"create {length}", touch, name)
        t.do("again", touch, name)
        t.do("lookup", lambda name=name: os.stat(name).st_size)
    t.note("listing", sorted(os.listdir(b".")))
    for length in range(1, 256, 2):
        t.do("unlink", os.unlink, b"n" * length)
    for length in (150, 175, 176, 177, 200, 254):
        t.do("rename", os.rename, b"n" * length, b"m" * (length + 1))
    t.note("listing", sorted(os.listdir(b".")))


@CASES.add
def names_of_every_byte(t: Trace) -> None:
    for byte in range(1, 256):
        if byte == ord("/"):
            continue
        name = bytes([byte])
        if name != b".":
            t.do(f"single {byte}", touch, name)
        t.do(f"in a name {byte}", touch, b"a" + name + b"z")
        t.do(f"long {byte}", os.mkdir, name * 255)
    t.note("listing", sorted(os.listdir(b".")))


@CASES.add
def names_that_are_not_text(t: Trace) -> None:
    for name in (
        b"\xff\xfe",
        b"\xc3\x28",
        b"\xed\xa0\x80",
        "\u00e9".encode(),
        "e\u0301".encode(),
        "\U0001f512".encode(),
        b"new\nline",
        b"tab\t",
        b"-rf",
        b"~",
        b"...",
        b". ",
        b" ",
        b"*",
        b"\\",
        b"cryptfs.dir",
        b"cryptfs.json",
        b"cryptfs.long.abc",
        b"cryptfs.long.abc.name",
        b".fuse_hidden0000000100000001",
        b"CASE",
        b"case",
    ):
        t.do(f"file {name!r}", touch, name)
        t.do("stat", lambda name=name: os.stat(name).st_nlink)
    t.note("listing", sorted(os.listdir(b".")))


@CASES.add
def dots_and_too_long(t: Trace) -> None:
    t.do("dot", os.mkdir, b".")
    t.do("dotdot", os.mkdir, b"..")
    t.do("mkdir 256", os.mkdir, b"x" * 256)
    t.do("symlink 256", os.symlink, b"t", b"x" * 256)
    t.do("mknod 256", os.mknod, b"x" * 256)
    touch(b"f")
    t.do("link 256", os.link, b"f", b"x" * 256)
    t.do("rename to 256", os.rename, b"f", b"x" * 256)
    t.do("rename from 256", os.rename, b"x" * 256, b"g")
    t.do("stat 256", os.stat, b"x" * 256)
    t.do("stat below 256", os.stat, b"x" * 256 + b"/f")
    t.do("unlink 256", os.unlink, b"x" * 256)
    t.do("rmdir 256", os.rmdir, b"x" * 256)
    t.do("open 256", os.open, b"x" * 256, os.O_RDONLY)
    t.do("path over 4096", os.stat, b"d/" * 2100)
    t.do("inode of dotdot", lambda: os.stat(b"..").st_ino == os.stat(os.path.dirname(os.getcwd())).st_ino)


@CASES.add
def deep_paths(t: Trace) -> None:
    top = os.getcwd()
    for number in range(60):
        name = b"%d-" % number + b"d" * 150
        t.do("mkdir", os.mkdir, name)
        t.do("chdir", os.chdir, name)
    touch(b"at the bottom")
    t.note("listing", os.listdir(b"."))
    os.unlink(b"at the bottom")
    for number in range(59, -1, -1):
        os.chdir("..")
        t.do("rmdir", os.rmdir, b"%d-" % number + b"d" * 150)
    t.note("back at the top", os.getcwd() == top)


@CASES.add
def listing_while_it_changes(t: Trace) -> None:
    for number in range(300):
        touch(b"f%d" % number)
    seen = set()
    with os.scandir(b".") as entries:
        for number, entry in enumerate(entries):
            seen.add(entry.name)
            if number == 10:
                for gone in range(200, 300):
                    os.unlink(b"f%d" % gone)
                touch(b"new")
    t.note("what stayed was seen", all(b"f%d" % number in seen for number in range(200)))
    t.note("listing", sorted(os.listdir(b".")))


@CASES.add
def types_in_listings(t: Trace) -> None:
    touch(b"file")
    os.mkdir(b"dir")
    os.symlink(b"file", b"link")
    os.mkfifo(b"fifo")
    with os.scandir(b".") as entries:
        found = sorted(
            (e.name, e.is_file(follow_symlinks=False), e.is_dir(follow_symlinks=False), e.is_symlink())
            for e in entries
        )
    t.note("types", found)
    with os.scandir(b".") as entries:
        t.note("inodes", all(e.inode() == os.lstat(e.name).st_ino for e in entries))


class _Dirent(ctypes.Structure):
    _fields_ = (
        ("d_ino", ctypes.c_uint64),
        ("d_off", ctypes.c_int64),
        ("d_reclen", ctypes.c_ushort),
        ("d_type", ctypes.c_ubyte),
        ("d_name", ctypes.c_char * 256),
    )


class DirectoryStream:
    """opendir(3), readdir(3), telldir(3), seekdir(3)."""

    def __init__(self, path: bytes) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.opendir.restype = ctypes.c_void_p
        self._libc.readdir.restype = ctypes.POINTER(_Dirent)
        self._libc.telldir.restype = ctypes.c_long
        self._stream = ctypes.c_void_p(self._libc.opendir(path))

    def read(self) -> bytes | None:
        entry = self._libc.readdir(self._stream)
        return bytes(entry.contents.d_name) if entry else None

    def tell(self) -> int:
        return int(self._libc.telldir(self._stream))

    def seek(self, position: int) -> None:
        self._libc.seekdir(self._stream, ctypes.c_long(position))

    def rewind(self) -> None:
        self._libc.rewinddir(self._stream)

    def close(self) -> None:
        self._libc.closedir(self._stream)


@CASES.add
def telldir_and_seekdir(t: Trace) -> None:
    for number in range(2000):
        touch(b"f%04d" % number)
    stream = DirectoryStream(b".")
    order: list[tuple[int, bytes]] = []
    while True:
        position = stream.tell()
        name = stream.read()
        if name is None:
            break
        order.append((position, name))
    t.note("all were read", sorted(name for _, name in order) == sorted([b".", b"..", *os.listdir(b".")]))
    for index in (0, 1, 2, 17, 500, 1999, 3, 2001):
        stream.seek(order[index][0])
        t.note(f"same entry at {index}", stream.read() == order[index][1])
    stream.rewind()
    t.note("first again", stream.read() == order[0][1])
    touch(b"late")
    stream.rewind()
    names = set()
    while (name := stream.read()) is not None:
        names.add(name)
    t.note("a rewind shows what is new", b"late" in names)
    stream.close()
    for number in range(2000):
        os.unlink(b"f%04d" % number)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_names(case: Case, pair: Pair) -> None:
    pair.check(case)


def test_a_large_directory(on_mount: Path, shared_mount: Mounted) -> None:
    names = {b"entry number %d" % number for number in range(LARGE_DIRECTORY)}
    directory_fd = os.open(on_mount, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for name in names:
            os.mknod(name, dir_fd=directory_fd)
        assert set(os.listdir(os.fsencode(on_mount))) == names
        with os.scandir(os.fsencode(on_mount)) as entries:
            assert sum(1 for _ in entries) == LARGE_DIRECTORY
        assert os.stat(
            "entry number 77777" if LARGE_DIRECTORY > 77_777 else "entry number 1", dir_fd=directory_fd
        )
        for number in range(0, LARGE_DIRECTORY, 1000):
            os.unlink(b"entry number %d" % number, dir_fd=directory_fd)
            names.discard(b"entry number %d" % number)
        assert set(os.listdir(os.fsencode(on_mount))) == names
    finally:
        os.close(directory_fd)
    shared_mount.assert_quiet()
