"""Reads, writes, truncates and mappings on a mount as on a plain directory."""

from __future__ import annotations

import mmap
import os
import random
import threading
from collections.abc import Callable

import pytest

from tests.e2e.conftest import Pair, require_fuse
from tests.e2e.mounting import MountSpec, mounted
from tests.e2e.trace import Case, Cases, Trace

CASES = Cases()

EDGES = sorted(
    {
        size + step
        for size in (0, 4096, 8192, 16_384, 32_768, 1 << 20)
        for step in (-1, 0, 1)
        if size + step >= 0
    }
)
PAGE = mmap.PAGESIZE
PATTERN = random.Random(1).randbytes(1 << 21)


def fresh(t: Trace, name: bytes, size: int) -> int:
    """An open file with `size` bytes of the pattern."""
    fd = t.open(f"create {name!r}", name, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    t.do("fill", os.pwrite, fd, PATTERN[:size], 0)
    return fd


@CASES.add
def pwrite_and_pread_at_edges(t: Trace) -> None:
    fd = t.open("create", b"f", os.O_RDWR | os.O_CREAT)
    for offset in EDGES:
        for length in (0, 1, 4095, 4097, 16_385):
            t.do(f"pwrite {length} at {offset}", os.pwrite, fd, PATTERN[offset : offset + length], offset)
            t.do(f"around {offset}", os.pread, fd, length + 20, max(0, offset - 10))
    t.do("past the end", os.pread, fd, 100, 1 << 30)
    t.do("negative", os.pread, fd, 1, -1)
    t.do("negative write", os.pwrite, fd, b"x", -1)
    os.close(fd)


@CASES.add
def every_size_reads_back(t: Trace) -> None:
    for size in EDGES:
        os.close(fresh(t, b"f%d" % size, size))
    for size in EDGES:
        with open(b"f%d" % size, "rb") as file:
            t.note(f"read {size}", file.read())


@CASES.add
def truncate_up_and_down(t: Trace) -> None:
    fd = fresh(t, b"f", 100_000)
    for size in [*EDGES, *reversed(EDGES), 77_777, 0, 5_000_000, 4_999_999, 17, 300_000, 0]:
        t.do(f"ftruncate {size}", os.ftruncate, fd, size)
        t.stat("after", fd)
        t.do("tail", os.pread, fd, 200, max(0, size - 100))
        t.do("write near the end", os.pwrite, fd, b"tail", max(0, size - 2))
        t.do("head", os.pread, fd, 100, 0)
    t.do("negative", os.ftruncate, fd, -1)
    os.close(fd)
    for size in (10, 100_000, 3, 0, 16_384):
        t.do(f"truncate {size} by name", os.truncate, b"f", size)
        t.stat("after", b"f")
        with open(b"f", "rb") as file:
            t.note("content", file.read())
    os.mkdir(b"d")
    os.symlink(b"f", b"l")
    t.do("of a directory", os.truncate, b"d", 0)
    t.do("of a link", os.truncate, b"l", 5)
    t.do("of nothing", os.truncate, b"no", 5)
    os.mkfifo(b"p")
    t.do("of a fifo", os.truncate, b"p", 5)


@CASES.add
def truncated_bytes_never_come_back(t: Trace) -> None:
    fd = fresh(t, b"f", 200_000)
    for size in (150_000, 16_384, 16_383, 16_385, 1, 40_000):
        t.do("down", os.ftruncate, fd, size)
        t.do("up", os.ftruncate, fd, 200_000)
        t.do("content", os.pread, fd, 200_000, 0)
        t.do("far", os.pwrite, fd, b"far", 190_000)
    os.close(fd)


@CASES.add
def gaps_read_as_zeros(t: Trace) -> None:
    for gap in (1, 4095, 16_384, 100_000, 5 << 20, 20 << 20):
        fd = t.open("create", b"f%d" % gap, os.O_RDWR | os.O_CREAT)
        t.do("start", os.write, fd, b"start")
        t.do("seek", os.lseek, fd, gap, os.SEEK_CUR)
        t.do("end", os.write, fd, b"end")
        t.stat("size", fd)
        t.do("read", os.pread, fd, gap + 20, 0)
        os.close(fd)


@CASES.add
def random_writes_and_truncates(t: Trace) -> None:
    dice = random.Random(7)
    fd = t.open("create", b"f", os.O_RDWR | os.O_CREAT)
    for step in range(400):
        offset, length = dice.randrange(300_000), dice.randrange(1, 40_000)
        action = dice.randrange(10)
        if action < 5:
            t.do(f"{step} write", os.pwrite, fd, PATTERN[offset : offset + length], offset)
        elif action < 8:
            t.do(f"{step} read", os.pread, fd, length, offset)
        elif action < 9:
            t.do(f"{step} truncate", os.ftruncate, fd, offset)
        else:
            os.close(fd)
            fd = t.open(f"{step} reopen", b"f", os.O_RDWR)
    t.do("all", os.pread, fd, 1 << 20, 0)
    os.close(fd)


@CASES.add
def vectors_and_copies(t: Trace) -> None:
    fd = t.open("create", b"f", os.O_RDWR | os.O_CREAT)
    t.do("writev", os.writev, fd, [PATTERN[:10], b"", PATTERN[10:30_000]])
    t.do("pwritev", os.pwritev, fd, [PATTERN[:5000], PATTERN[:9000]], 12_345)
    buffers = [bytearray(7), bytearray(20_000)]
    t.do("preadv", os.preadv, fd, buffers, 3)
    t.note("read", bytes(buffers[1]))
    copy = t.open("copy", b"g", os.O_RDWR | os.O_CREAT)
    t.do("copy_file_range", os.copy_file_range, fd, copy, 20_000, 100, 50)
    t.do("sendfile", os.sendfile, copy, fd, 0, 9000)
    t.stat("size", copy)
    t.do("fsync", os.fsync, copy)
    t.do("fdatasync", os.fdatasync, copy)
    os.close(copy)
    os.close(fd)


@CASES.add
def shared_mapping_writes(t: Trace) -> None:
    fd = fresh(t, b"f", 100_001)
    with mmap.mmap(fd, 0) as view:
        view[10:20] = b"0123456789"
        view[99_990:100_001] = b"end of file"
        t.do("pread sees it", os.pread, fd, 30, 0)
        t.do("pwrite", os.pwrite, fd, b"PWRITE", 50_000)
        t.note("mapping sees it", view[49_990:50_010])
        view.flush()
        t.do("tail", os.pread, fd, 100, 99_950)
    t.stat("size is kept", fd)
    with open(b"f", "rb") as file:
        t.note("content", file.read())
    os.close(fd)


@CASES.add
def mapping_of_a_growing_file(t: Trace) -> None:
    fd = t.open("create", b"f", os.O_RDWR | os.O_CREAT)
    for size in (4096, 10_000, 70_000, 1_000_000):
        t.do("grow", os.ftruncate, fd, size)
        with mmap.mmap(fd, size) as view:
            t.note("fresh bytes are zeros", view[size - 100 : size])
            view[size - 50 : size - 40] = b"ten bytes!"
            view[0:4] = size.to_bytes(4, "little")
        t.do("read", os.pread, fd, 200, size - 150)
    os.close(fd)
    with open(b"f", "rb") as file:
        t.note("content", file.read())


@CASES.add
def private_mapping_leaves_the_file(t: Trace) -> None:
    fd = fresh(t, b"f", 50_000)
    os.close(fd)
    reader = t.open("read only", b"f", os.O_RDONLY)
    with mmap.mmap(reader, 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE) as view:
        view[0:5] = b"XXXXX"
        t.note("mapping", view[0:20])
    with mmap.mmap(reader, 0, prot=mmap.PROT_READ) as view:
        t.note("file", view[0:20])
    t.do("shared and writable is refused", mmap.mmap, reader, 0)
    os.close(reader)


@CASES.add
def mapping_outlives_its_descriptor(t: Trace) -> None:
    fd = fresh(t, b"f", 40_000)
    view = mmap.mmap(fd, 0)
    os.close(fd)
    view[100:110] = b"after that"
    os.unlink(b"f")
    view[200:210] = b"and unlink"
    t.note("mapping", view[90:220])
    view.close()
    fd = fresh(t, b"g", 40_000)
    view = mmap.mmap(fd, 0)
    os.close(fd)
    view[39_000:39_010] = b"still here"
    view.close()


@CASES.add
def two_descriptors_see_each_other(t: Trace) -> None:
    first = fresh(t, b"f", 20_000)
    second = t.open("second", b"f", os.O_RDWR)
    third = t.open("third", b"f", os.O_RDONLY)
    for offset in range(0, 60_000, 7777):
        t.do("write first", os.pwrite, first, b"first", offset)
        t.do("write second", os.pwrite, second, b"second", offset + 3)
        t.do("third", os.pread, third, 20, offset)
        t.stat("size", third)
    t.do("truncate first", os.ftruncate, first, 100)
    t.do("third", os.pread, third, 200, 0)
    for fd in (first, second, third):
        os.close(fd)


def run_threads(work: Callable[[int], None]) -> None:
    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@CASES.add
def threads_on_one_file(t: Trace) -> None:
    """Chunks are shared, pages are not: docs/ENGINES.md has what libfuse shows of those."""
    fd = t.open("create", b"f", os.O_RDWR | os.O_CREAT)
    failures: list[str] = []

    def work(number: int) -> None:
        dice = random.Random(number)
        own = dict.fromkeys(range(40), 0)
        for step in range(1, 120):
            index = dice.randrange(40)
            offset = (index * 8 + number) * PAGE
            content = bytes([number, step % 256]) * 750
            os.pwrite(fd, content, offset)
            own[index] = step
            if os.pread(fd, 1500, offset) != content:
                failures.append(f"{number} {step}")
        for index, step in own.items():
            content = bytes([number, step % 256]) * 750
            if step and os.pread(fd, 1500, (index * 8 + number) * PAGE) != content:
                failures.append(f"{number} at the end {index}")

    run_threads(work)
    t.note("failures", failures)
    t.do("all", os.pread, fd, 2 << 20, 0)
    os.close(fd)


@CASES.add
def threads_on_shared_pages(t: Trace) -> None:
    """What any of them wrote is there when all are done."""
    fd = t.open("create", b"f", os.O_RDWR | os.O_CREAT)

    def work(number: int) -> None:
        dice = random.Random(number)
        for step in range(1, 120):
            offset = (dice.randrange(40) * 8 + number) * 1500  # regions of 1500 bytes lie in turn
            os.pwrite(fd, bytes([number, step % 256]) * 750, offset)
            os.pread(fd, 1500, offset)

    run_threads(work)
    t.do("all", os.pread, fd, 1 << 20, 0)
    os.close(fd)
    again = t.open("again", b"f", os.O_RDONLY)
    t.do("all again", os.pread, again, 1 << 20, 0)
    os.close(again)


@CASES.add
def over_four_gibibytes(t: Trace) -> None:
    fd = t.open("create", b"f", os.O_RDWR | os.O_CREAT)
    five = 5 << 30
    t.do("write at 5 GiB", os.pwrite, fd, PATTERN[:100_000], five)
    t.do("write at 4 GiB - 10", os.pwrite, fd, b"across the border", (4 << 30) - 10)
    t.stat("size", fd)
    t.do("read", os.pread, fd, 100_100, five - 100)
    t.do("border", os.pread, fd, 40, (4 << 30) - 20)
    t.do("hole", os.pread, fd, 100_000, 3 << 30)
    os.close(fd)
    t.stat("after close", b"f")
    fd = t.open("again", b"f", os.O_RDWR)
    t.do("end", os.lseek, fd, 0, os.SEEK_END)
    t.do("border", os.pread, fd, 40, (4 << 30) - 20)
    t.do("truncate to 4 GiB", os.ftruncate, fd, 4 << 30)
    t.do("end", os.pread, fd, 100, (4 << 30) - 20)
    t.do("truncate up", os.ftruncate, fd, 40 << 30)
    t.stat("size", fd)
    t.do("read", os.pread, fd, 100, (40 << 30) - 100)
    os.close(fd)
    os.unlink(b"f")


@pytest.mark.parametrize("options", ["", "nowriteback"])
def test_a_thread_reads_what_it_wrote_into_a_shared_page(options: str) -> None:
    """Native only: libfuse has Linux drop pages, which lets older ones come back (docs/ENGINES.md)."""
    spec = MountSpec("native", chunk_size=1 << 20, options=options)
    require_fuse(spec)
    missing: list[tuple[int, int]] = []
    with mounted(spec) as mount:
        fd = os.open(mount.mountpoint / "f", os.O_RDWR | os.O_CREAT)

        def work(number: int) -> None:
            dice = random.Random(number)
            for step in range(1, 250):
                offset, content = (dice.randrange(40) * 8 + number) * 1500, dice.randbytes(1500)
                os.pwrite(fd, content, offset)
                if os.pread(fd, 1500, offset) != content:
                    missing.append((number, step))

        run_threads(work)
        os.close(fd)
    assert not missing


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_data(case: Case, pair: Pair) -> None:
    pair.check(case)
