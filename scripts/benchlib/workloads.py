"""What is timed. Each workload works in an empty directory and measures one or more quantities.

Times include the close, which on FUSE writes back what the kernel collected. Nothing is synced, so on a
disk these are figures of the page cache as well, for every subject alike.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchlib.machine import drop_caches, forget_file

MIB = 1024 * 1024
SMALL = 4096
FILE_BYTES = 2048


@dataclass(frozen=True)
class Sizes:
    """How much is done: bytes, but for the numbers of random requests (on random_file bytes) and of files."""

    sequential: int = 512 * MIB
    small_writes: int = 128 * MIB
    random: int = 8000
    random_file: int = 128 * MIB
    files: int = 2000


QUICK = Sizes(sequential=256 * MIB, small_writes=64 * MIB, random=4000, files=1000)


@dataclass(frozen=True)
class Sample:
    """One measurement. amount: bytes or operations; cpu: seconds of the daemon."""

    amount: int
    seconds: float
    cpu: float


@dataclass
class Run:
    """Collects the samples of one workload on one subject."""

    directory: Path
    cpu: Callable[[], float]
    samples: dict[str, Sample] = field(default_factory=dict)

    @contextmanager
    def timed(self, quantity: str, amount: int) -> Iterator[None]:
        """Time what is done inside."""
        cpu, start = self.cpu(), time.perf_counter()
        yield
        seconds = time.perf_counter() - start
        self.samples[quantity] = Sample(amount, seconds, self.cpu() - cpu)

    def make_cold(self, *paths: Path) -> None:
        """Before something is read: nothing of it shall come from the kernel's memory."""
        if not drop_caches():
            for path in paths:
                forget_file(path)


def write_file(path: Path, size: int, request: int) -> None:
    """A new file, written in pieces of `request` bytes."""
    piece = os.urandom(request)
    with path.open("wb", buffering=0) as file:
        for _ in range(size // request):
            file.write(piece)


def read_file(path: Path) -> None:
    """The whole file, in pieces of 1 MiB."""
    buffer = bytearray(MIB)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def sequential(run: Run, sizes: Sizes) -> None:
    """A large file, written and read back in pieces of 1 MiB."""
    path = run.directory / "large"
    with run.timed("sequential write, 1 MiB", sizes.sequential):
        write_file(path, sizes.sequential, MIB)
    run.make_cold(path)
    with run.timed("sequential read, 1 MiB", sizes.sequential):
        read_file(path)
    path.unlink()


def small_writes(run: Run, sizes: Sizes) -> None:
    """A file written in pieces of 4 KiB."""
    path = run.directory / "small"
    with run.timed("sequential write, 4 KiB", sizes.small_writes):
        write_file(path, sizes.small_writes, SMALL)
    path.unlink()


def random_access(run: Run, sizes: Sizes) -> None:
    """4 KiB at random places of a file."""
    path = run.directory / "random"
    write_file(path, sizes.random_file, MIB)
    rng = random.Random(1)
    places = [rng.randrange(sizes.random_file // SMALL) * SMALL for _ in range(sizes.random)]
    run.make_cold(path)
    with run.timed("random read, 4 KiB", sizes.random):
        fd = os.open(path, os.O_RDONLY)
        for place in places:
            os.pread(fd, SMALL, place)
        os.close(fd)
    run.make_cold(path)
    small = os.urandom(SMALL)
    with run.timed("random write, 4 KiB", sizes.random):
        fd = os.open(path, os.O_RDWR)
        for place in places:
            os.pwrite(fd, small, place)
        os.close(fd)
    path.unlink()


def small_files(run: Run, sizes: Sizes) -> None:
    """Many files of 2 kB in one directory."""
    directory = run.directory / "files"
    directory.mkdir()
    content = os.urandom(FILE_BYTES)
    paths = [str(directory / f"file number {number}") for number in range(sizes.files)]
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    with run.timed("create + write + close", sizes.files):
        for path in paths:
            fd = os.open(path, flags, 0o644)
            os.write(fd, content)
            os.close(fd)
    run.make_cold()
    with run.timed("stat", sizes.files):
        for path in paths:
            os.stat(path)
    run.make_cold()
    with run.timed("open + read + close", sizes.files):
        for path in paths:
            fd = os.open(path, os.O_RDONLY)
            os.read(fd, FILE_BYTES)
            os.close(fd)
    with run.timed("unlink", sizes.files):
        for path in paths:
            os.unlink(path)
    directory.rmdir()


WORKLOADS: tuple[Callable[[Run, Sizes], None], ...] = (sequential, small_writes, random_access, small_files)
IN_BYTES = frozenset({"sequential write, 1 MiB", "sequential read, 1 MiB", "sequential write, 4 KiB"})
