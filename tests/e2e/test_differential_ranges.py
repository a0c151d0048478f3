"""fallocate(2) with its modes, SEEK_HOLE and SEEK_DATA."""

from __future__ import annotations

import errno
import mmap
import os

import pytest

from cryptfs.storage.libc import FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, FALLOC_ZERO_RANGE, fallocate
from tests.e2e.conftest import ENGINES, Pair, require_fuse
from tests.e2e.mounting import Mounted, MountSpec, mounted
from tests.e2e.trace import Case, Cases, Trace

CASES = Cases()
PATTERN = bytes(index % 253 + 1 for index in range(200_000))
RANGES = (
    (0, 1),
    (0, 16_384),
    (10, 100),
    (16_384, 32_768),
    (4000, 60_000),
    (100_000, 200_000),
    (150_000, 500_000),
)


def fresh(t: Trace, size: int = 200_000) -> int:
    fd = t.open("create", b"f", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    t.do("fill", os.pwrite, fd, PATTERN[:size], 0)
    return fd


@CASES.add
def allocate(t: Trace) -> None:
    for mode in (0, FALLOC_KEEP_SIZE):
        for offset, length in RANGES:
            fd = fresh(t, 120_000)
            t.do(f"fallocate {mode} {offset} {length}", fallocate, fd, mode, offset, length)
            t.stat("size", fd)
            t.do("content", os.pread, fd, 1 << 20, 0)
            t.do("write into it", os.pwrite, fd, b"inside", offset + length // 2)
            t.do("content", os.pread, fd, 1 << 20, 0)
            os.close(fd)
    fd = t.open("empty", b"e", os.O_RDWR | os.O_CREAT)
    t.do("posix_fallocate", os.posix_fallocate, fd, 0, 100_000)
    t.stat("size", fd)
    t.do("zeros", os.pread, fd, 200_000, 0)
    os.close(fd)


@CASES.add
def punch_holes(t: Trace) -> None:
    for offset, length in RANGES:
        fd = fresh(t)
        t.do(f"punch {offset} {length}", fallocate, fd, FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE, offset, length)
        t.stat("size", fd)
        t.do("content", os.pread, fd, 1 << 20, 0)
        t.do("write into it", os.pwrite, fd, b"inside", offset)
        t.do("content", os.pread, fd, 1 << 20, 0)
        os.close(fd)
        with open("f", "rb") as file:
            t.note("again", file.read())


@CASES.add
def refuse_what_is_wrong(t: Trace) -> None:
    fd = fresh(t)
    t.do("negative offset", fallocate, fd, 0, -1, 10)
    t.do("no length", fallocate, fd, 0, 0, 0)
    t.do("negative length", fallocate, fd, 0, 0, -5)
    t.do("punch without keep size", fallocate, fd, FALLOC_PUNCH_HOLE, 0, 10)
    reader = t.open("reader", b"f", os.O_RDONLY)
    t.do("read only", fallocate, reader, 0, 0, 10)
    os.close(reader)
    os.close(fd)


@CASES.add
def sparse_writes_read_as_zeros(t: Trace) -> None:
    fd = t.open("create", b"f", os.O_RDWR | os.O_CREAT)
    for offset in (50 << 20, 10 << 20, 30 << 20, 0):
        t.do("write", os.pwrite, fd, PATTERN[:5000], offset)
    for offset in (50 << 20, 10 << 20, 30 << 20, 0, 20 << 20, (10 << 20) + 4000):
        t.do("read", os.pread, fd, 6000, offset)
    os.close(fd)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_ranges(case: Case, pair: Pair) -> None:
    pair.check(case)


def _zero_range(fd: int, offset: int, length: int, *, keep_size: bool) -> None:
    fallocate(fd, FALLOC_ZERO_RANGE | (FALLOC_KEEP_SIZE if keep_size else 0), offset, length)


@pytest.mark.parametrize("keep_size", [False, True])
@pytest.mark.parametrize(("offset", "length"), RANGES)
def test_zero_range(pair: Pair, offset: int, length: int, keep_size: bool) -> None:
    # Not differential: tmpfs has no ZERO_RANGE.
    directory, _ = pair.directories("zero-range")
    fd = os.open(directory / "f", os.O_RDWR | os.O_CREAT)
    os.pwrite(fd, PATTERN, 0)
    _zero_range(fd, offset, length, keep_size=keep_size)
    expected = bytearray(PATTERN)
    end = min(offset + length, len(expected)) if keep_size else offset + length
    expected.extend(bytes(max(0, end - len(expected))))
    expected[offset:end] = bytes(end - offset)
    assert os.pread(fd, 1 << 20, 0) == expected
    assert os.fstat(fd).st_size == len(expected)
    os.close(fd)


def extents_of(fd: int) -> list[tuple[int, int]]:
    """Where a file has data, from start to end."""
    extents: list[tuple[int, int]] = []
    offset = 0
    while True:
        try:
            start = os.lseek(fd, offset, os.SEEK_DATA)
        except OSError as error:
            assert error.errno == errno.ENXIO
            return extents
        offset = os.lseek(fd, start, os.SEEK_HOLE)
        extents.append((start, offset))
        assert offset > start


@pytest.mark.parametrize("maker", ["truncate", "seek", "punch"])
def test_seek_never_skips_data_and_finds_big_holes(pair: Pair, maker: str) -> None:
    directory, _ = pair.directories("seek")
    fd = os.open(directory / "f", os.O_RDWR | os.O_CREAT)
    size = 64 << 20
    pieces = [(0, 10), (20 << 20, 100_000), (40 << 20, 3)]
    if maker == "punch":
        os.pwrite(fd, b"x" * size, 0)
        os.fsync(fd)
        fallocate(fd, FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE, 0, size)
    elif maker == "truncate":
        os.ftruncate(fd, size)
    for offset, length in pieces:
        os.pwrite(fd, b"D" * length, offset)
    if maker == "seek":
        os.pwrite(fd, b"D", size - 1)
        pieces.append((size - 1, 1))
    if pair.mount.spec.engine == "fusepy":  # knows no holes while it thinks that somebody writes
        os.close(fd)
        pair.mount.remount()
        fd = os.open(directory / "f", os.O_RDONLY)
    extents = extents_of(fd)
    for where, length in pieces:
        assert any(start <= where and where + length <= end for start, end in extents), (where, extents)
    hole = sum(end - start for start, end in extents)
    # A gap of up to 4 MiB is filled by design; those here are far larger.
    assert hole < 16 << 20, extents
    with pytest.raises(OSError, match="No such device"):
        os.lseek(fd, size, os.SEEK_DATA)
    assert os.stat(directory / "f").st_blocks * 512 < 24 << 20
    os.close(fd)


def test_seek_sees_what_is_not_written_back_yet(own_mount: Mounted) -> None:
    # The data is in the kernel's page cache alone. `cp --sparse=auto` of such a file looks for it like this.
    path = own_mount.mountpoint / "f"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    reader = os.open(path, os.O_RDONLY)
    size = 0
    pieces: list[tuple[int, int]] = []
    for where, length in ((0, 100), (0, 100_000), (50 << 20, 5000), (20 << 20, 4096), (90 << 20, 1)):
        os.pwrite(fd, b"D" * length, where)
        pieces.append((where, length))
        size = max(size, where + length)
        for looking in (fd, reader):
            extents = extents_of(looking)
            assert extents[-1][1] == size
            for start, count in pieces:
                assert any(low <= start and start + count <= high for low, high in extents), extents
    with mmap.mmap(fd, size) as mapping:
        mapping[70 << 20] = 1
        assert any(low <= 70 << 20 < high for low, high in extents_of(reader))
    os.unlink(path)
    os.pwrite(fd, b"D", 80 << 20)
    assert any(low <= 80 << 20 < high for low, high in extents_of(fd))
    os.ftruncate(fd, 0)
    assert extents_of(fd) == []
    os.close(reader)
    os.close(fd)


@pytest.mark.parametrize("own_mount", ["native"], indirect=True)
def test_seek_with_a_single_thread(own_mount: Mounted) -> None:
    # The kernel writes back while the answer is outstanding: that must not take a thread that reads requests.
    own_mount.unmount()
    own_mount.spec = MountSpec("native", options="max_threads=1")
    own_mount.start()
    with (own_mount.mountpoint / "f").open("wb", buffering=0) as file:
        for index in range(20):
            os.pwrite(file.fileno(), b"D" * 50_000, index * 1_000_000)
            assert os.lseek(file.fileno(), index * 1_000_000, os.SEEK_DATA) == index * 1_000_000


@pytest.mark.parametrize("tmpfs", [True, False], ids=["tmpfs", "disk"])
@pytest.mark.parametrize("engine", ENGINES)
def test_seek_finds_exactly_the_chunks_with_data(engine: str, tmpfs: bool) -> None:
    """Records do not begin where the disk's blocks do: the zeros before a record are in its first block."""
    spec = MountSpec(engine, tmpfs=tmpfs)
    require_fuse(spec)
    chunk, filled = spec.chunk_size, (0, 259, 300, 301, 302, 1000)
    with mounted(spec) as mount:
        path = mount.mountpoint / "f"
        with path.open("wb") as file:
            file.truncate(1200 * chunk)
            for index in filled:
                os.pwrite(file.fileno(), b"a" * 4096, index * chunk)
        mount.remount()
        with path.open("rb") as file:  # libfuse's engine finds no holes while a writer has it open
            fd = file.fileno()
            found = [(start // chunk, end // chunk) for start, end in extents_of(fd)]
            assert found == [(0, 1), (259, 260), (300, 303), (1000, 1001)]
            for index in range(1000):
                expected = next(other for other in filled if other >= index) * chunk
                assert os.lseek(fd, index * chunk, os.SEEK_DATA) == expected
            assert os.lseek(fd, 301 * chunk + 5, os.SEEK_DATA) == 301 * chunk + 5
            assert os.lseek(fd, 1001 * chunk - 1, os.SEEK_HOLE) == 1001 * chunk
