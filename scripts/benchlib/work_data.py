"""Large files and random access. Times include the close, which on FUSE writes back what was collected."""

from __future__ import annotations

import os
import random
import time
from functools import partial
from pathlib import Path

from benchlib.quantities import KIB, MIB, Quantity, Unit, Workload
from benchlib.run import Run

SMALL = 4 * KIB
PAGE = 16 * KIB
IN_FLIGHT = 16
_SYNC_EVERY = 10  # page writes between two fsyncs
_READS = 0.7  # part of the page accesses


def write_in_pieces(run: Run, title: str, path: Path, size: int, piece: int) -> None:
    """A new file; as much of it as there is time for. The clock is looked at once a MiB."""
    content = os.urandom(piece)
    pieces = range(max(1, MIB // piece))
    with run.timed(title) as meter:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            for _ in run.within(range(size // MIB), meter, MIB):
                for _ in pieces:
                    os.write(fd, content)
        finally:
            os.close(fd)


def read_in_pieces(run: Run, title: str, path: Path, piece: int) -> None:
    """The whole file, cold."""
    size = path.stat().st_size
    run.make_cold()
    buffer = bytearray(piece)
    with run.timed(title, size), path.open("rb", buffering=0) as file:
        done = 0
        while count := file.readinto(buffer):
            done += count
    if done != size:
        raise AssertionError(f"{done} bytes were read of {size}")


def sequential(run: Run) -> None:
    """One large file, with large requests and with small ones."""
    for size, piece, words in (
        (run.sizes.sequential, MIB, "1 MiB"),
        (run.sizes.small_requests, SMALL, "4 KiB"),
    ):
        path = run.directory / words
        write_in_pieces(run, f"write a large file, {words} requests", path, size, piece)
        read_in_pieces(run, f"read a large file, {words} requests", path, piece)
        path.unlink()


def fill(path: Path, size: int) -> None:
    """A file with random content."""
    piece = os.urandom(MIB)
    with path.open("wb", buffering=0) as file:
        for _ in range(size // MIB):
            file.write(piece)


def _places(run: Run, request: int, seed: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(run.sizes.random_file // request) * request for _ in range(run.sizes.random)]


def random_access(run: Run) -> None:
    """4 KiB at random places of a file: one request at a time, and 16 at once."""
    path = run.directory / "random"
    fill(path, run.sizes.random_file)
    content = os.urandom(SMALL)
    for title, flags in (("read 4 KiB at random", os.O_RDONLY), ("write 4 KiB at random", os.O_RDWR)):
        run.make_cold()
        with run.timed(title) as meter:
            fd = os.open(path, flags)
            for place in run.within(_places(run, SMALL, 1), meter):
                if flags == os.O_RDONLY:
                    os.pread(fd, SMALL, place)
                else:
                    os.pwrite(fd, content, place)
            os.close(fd)
        work = partial(_share, path, _places(run, SMALL, 2), flags, run.sizes.limit)
        run.make_cold()
        run.in_parallel(f"{title}, 16 in flight", IN_FLIGHT, work)
    path.unlink()


def _share(path: Path, places: list[int], flags: int, limit: float, number: int) -> float:
    """One client's part of the random places; how many of them there was time for."""
    deadline = time.monotonic() + limit
    content = os.urandom(SMALL)
    done = 0
    fd = os.open(path, flags)
    for place in places[number::IN_FLIGHT]:
        if flags == os.O_RDONLY:
            os.pread(fd, SMALL, place)
        else:
            os.pwrite(fd, content, place)
        done += 1
        if time.monotonic() > deadline:
            break
    os.close(fd)
    return done


def database_pages(run: Run) -> None:
    """16 KiB pages, seven reads to three writes, and an fsync after every tenth write."""
    path = run.directory / "pages"
    fill(path, run.sizes.random_file)
    run.make_cold()
    rng = random.Random(3)
    page = os.urandom(PAGE)
    written = 0
    with run.timed("read and write database pages, with fsync") as meter:
        fd = os.open(path, os.O_RDWR)
        for _ in run.within(range(run.sizes.pages), meter):
            place = rng.randrange(run.sizes.random_file // PAGE) * PAGE
            if rng.random() < _READS:
                os.pread(fd, PAGE, place)
                continue
            os.pwrite(fd, page, place)
            written += 1
            if written % _SYNC_EVERY == 0:
                os.fsync(fd)
        os.close(fd)
    path.unlink()


WORKLOADS = (
    Workload(
        "large-files",
        "a large file (1 GiB, or as much as there is time for)",
        sequential,
        tuple(
            Quantity(f"{act} a large file, {size} requests", Unit.BYTES, note)
            for size in ("1 MiB", "4 KiB")
            for act, note in (("write", "with the close"), ("read", "cold"))
        ),
    ),
    Workload(
        "random-access",
        "4 KiB at random places of a file",
        random_access,
        tuple(
            Quantity(f"{act} 4 KiB at random{more}", Unit.OPERATIONS, note)
            for act, note in (("read", "cold"), ("write", "with the close"))
            for more in ("", ", 16 in flight")
        ),
    ),
    Workload(
        "database-pages",
        "16 KiB pages, 70 % reads, an fsync after every tenth write",
        database_pages,
        (Quantity("read and write database pages, with fsync", Unit.OPERATIONS),),
    ),
)
