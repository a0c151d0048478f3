"""Small files: one after another in one directory, in a tree, by several clients, and long listings."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial
from itertools import takewhile
from pathlib import Path

from benchlib.quantities import Quantity, Unit, Workload
from benchlib.run import Run

FILE_BYTES = 2048
FILES_IN_DIRECTORY = 50
CLIENTS = (1, 4, 16)
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL
ACTS = ("make", "stat", "list", "read", "rename", "delete")


def make_file(path: str, content: bytes) -> None:
    """Create, write, close."""
    fd = os.open(path, _NEW, 0o644)
    try:
        os.write(fd, content)
    finally:
        os.close(fd)


def read_file(path: str) -> None:
    """Open, read, close."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.read(fd, FILE_BYTES)
    finally:
        os.close(fd)


def _list(directories: list[str]) -> int:
    found = 0
    for directory in directories:
        with os.scandir(directory) as entries:
            found += sum(1 for _ in entries)
    return found


def _titles(where: str) -> dict[str, str]:
    return {act: f"{act} small files {where}" for act in ACTS}


def _small_files(run: Run, titles: dict[str, str], in_directory: int) -> None:
    """All the acts, each on the files that the first had time to make."""
    content = os.urandom(FILE_BYTES)
    wanted = run.sizes.files
    directories = [str(run.directory / f"folder {number}") for number in range(-(-wanted // in_directory))]
    for directory in directories:
        os.mkdir(directory)
    planned = [f"{directories[number // in_directory]}/file number {number}" for number in range(wanted)]
    with run.timed(titles["make"]) as meter:
        for path in run.within(planned, meter):
            make_file(path, content)
    paths = planned[: int(meter.amount)]
    run.make_cold()
    with run.timed(titles["stat"], len(paths)):
        for path in paths:
            os.stat(path)
    run.make_cold()
    with run.timed(titles["list"], len(paths)):
        found = _list(directories)
    if found != len(paths):
        raise AssertionError(f"{found} files are listed of {len(paths)}")
    run.make_cold()
    with run.timed(titles["read"]) as meter:
        for path in run.within(paths, meter):
            read_file(path)
    with run.timed(titles["rename"]) as meter:
        for path in run.within(paths, meter):
            os.rename(path, path + ", renamed")
    renamed = int(meter.amount)
    left = [path + ", renamed" for path in paths[:renamed]] + paths[renamed:]
    with run.timed(titles["delete"]) as meter:
        for path in run.within(left, meter):
            os.unlink(path)


def _quantities(where: str) -> tuple[Quantity, ...]:
    notes = {
        "make": "create + write 2 kB + close",
        "stat": "cold",
        "list": "cold, entries of scandir",
        "read": "cold: open + read + close",
    }
    return tuple(
        Quantity(title, Unit.OPERATIONS, notes.get(act, "")) for act, title in _titles(where).items()
    )


def list_many(run: Run) -> None:
    """List a directory with very many entries, with their kinds only and with their attributes."""
    directory = run.prepared / "many"
    amount = len(os.listdir(directory))
    run.make_cold()
    with run.timed("list a huge directory", amount):
        os.listdir(directory)
    run.make_cold()
    with run.timed("list a huge directory with attributes", amount), os.scandir(directory) as entries:
        # Names sorted as ls does would cost the same everywhere; the stat of each is what differs.
        for entry in entries:
            entry.stat(follow_symlinks=False)


def make_many(run: Run) -> None:
    """Empty files, with one call each; as many as there is time for."""
    directory = run.prepared / "many"
    directory.mkdir()
    deadline = time.monotonic() + 10 * run.sizes.limit
    numbers = takewhile(lambda _: time.monotonic() < deadline, range(run.sizes.entries))
    for number in numbers:
        os.mknod(directory / f"entry number {number}")


def _client(base: Path, files: int, limit: float, number: int) -> float:
    """Make, stat, read, rename and delete files of one's own; how many operations that were."""
    content = os.urandom(FILE_BYTES)
    done = 0
    deadline = time.monotonic() + limit
    acts: tuple[Callable[[str], None], ...] = (
        lambda path: make_file(path, content),
        lambda path: None if os.stat(path).st_size == FILE_BYTES else _wrong(path),
        read_file,
        lambda path: os.rename(path, path + "~"),
        lambda path: os.unlink(path + "~"),
    )
    for each in range(files):
        path = f"{base}/{number}/file {each}"
        for act in acts:
            act(path)
            done += 1
        if time.monotonic() > deadline:
            break
    return done


def _wrong(path: str) -> None:
    raise AssertionError(f"{path} has not the size that was written")


def _clients_title(count: int) -> str:
    return f"{count} client{'s' if count > 1 else ''} with small files"


def clients(run: Run) -> None:
    """1, 4 and 16 processes, each with its own directory: do they get in each other's way?"""
    for count in CLIENTS:
        for number in range(count):
            (run.directory / str(number)).mkdir(exist_ok=True)
        work = partial(_client, run.directory, max(1, run.sizes.client_files // count), run.sizes.limit)
        run.in_parallel(_clients_title(count), count, work)


WORKLOADS = (
    Workload(
        "small-files",
        "small files (2 kB) in one directory",
        lambda run: _small_files(run, _titles("in one directory"), run.sizes.files),
        _quantities("in one directory"),
    ),
    Workload(
        "small-files-tree",
        f"small files (2 kB) in a tree, {FILES_IN_DIRECTORY} in a directory",
        lambda run: _small_files(run, _titles("in a tree"), FILES_IN_DIRECTORY),
        _quantities("in a tree"),
    ),
    Workload(
        "huge-directory",
        "a directory of 100,000 entries",
        list_many,
        (
            Quantity("list a huge directory", Unit.OPERATIONS, "cold, names"),
            Quantity("list a huge directory with attributes", Unit.OPERATIONS, "cold, scandir + stat"),
        ),
        prepare=make_many,
    ),
    Workload(
        "clients",
        "several clients at once: make, stat, read, rename, delete",
        clients,
        tuple(Quantity(_clients_title(count), Unit.OPERATIONS, "all operations") for count in CLIENTS),
    ),
)
