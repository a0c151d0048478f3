"""How the cost of an operation changes as something grows: file size, directory size, depth, clients, chunks.

What must stay flat is a rate of operations at a given size, so each is measured at that size, for a moment.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchlib.peers import cryptfs
from benchlib.quantities import GIB, KIB, MIB, Sample, Unit, Workload
from benchlib.results import Curve
from benchlib.rounds import Field
from benchlib.run import Run
from benchlib.statistics import shown
from benchlib.subjects import Subject
from benchlib.turns import Outcome
from benchlib.work_data import SMALL, fill
from benchlib.work_files import _client, make_file, read_file

_MOMENT = 0.5  # seconds of one point, or one pass over what there is
_PROBES = 1000  # files
_PLACES = 2000  # of 4 KiB, no two the same
CHUNK_SIZES = (4 * KIB, 16 * KIB, 64 * KIB, 256 * KIB, MIB)


@dataclass(frozen=True)
class Axis:
    """One quantity over what grows."""

    key: str
    title: str
    unit: Unit


@dataclass(frozen=True)
class CurveSpec:
    """One thing that grows. run: measures at each of the points, and reports as 'key@x'."""

    name: str
    x_label: str
    axes: tuple[Axis, ...]
    run: Callable[..., None]
    points: tuple[int, ...]
    big_points: tuple[int, ...] = ()

    def chosen(self, factor: float, *, big: bool) -> list[int]:
        """The points of this run; a factor below 1 leaves out the largest."""
        points = [*self.points, *(self.big_points if big else ())]
        return points[: max(2, round(len(points) * min(1.0, factor)))]


def _for_a_moment(run: Run, title: str, work: Callable[[int], None]) -> None:
    """Call work(0), work(1) ... for a moment; the rate is the measurement."""
    cpu, start = run.cpu(), time.perf_counter()
    count = 0
    while (seconds := time.perf_counter() - start) < _MOMENT:
        work(count)
        count += 1
    run.report(title, Sample(count, seconds, run.cpu() - cpu))


# ---- file size


def file_size(run: Run, points: Sequence[int]) -> None:
    """Write and read a whole file of that size, then 4 KiB at random."""
    rng = random.Random(1)
    for size in points:
        path = run.directory / str(size)
        repeats = max(1, 16 * MIB // size)
        seconds = 0.0
        for _ in range(repeats):
            start = time.perf_counter()
            fill(path, size)
            seconds += time.perf_counter() - start
        run.note(f"write@{size}", size * repeats, seconds)
        run.make_cold()
        start = time.perf_counter()
        with path.open("rb", buffering=0) as file:
            while file.read(MIB):
                pass
        run.note(f"read@{size}", size, time.perf_counter() - start)
        run.make_cold()
        places = [page * SMALL for page in rng.sample(range(size // SMALL), min(_PLACES, size // SMALL))]
        fd = os.open(path, os.O_RDONLY)
        start = time.perf_counter()
        for place in places:
            os.pread(fd, SMALL, place)
        os.close(fd)
        run.note(f"random@{size}", len(places), time.perf_counter() - start)
        path.unlink()


def _read_one(fd: int, places: list[int], number: int) -> None:
    os.pread(fd, SMALL, places[number % len(places)])


def stored_bytes(directory: Path) -> int:
    """What the regular files of a vault take on disk; a mountpoint below it is not looked into."""
    found = 0
    for place, directories, names in os.walk(directory):
        directories[:] = [each for each in directories if not os.path.ismount(os.path.join(place, each))]
        found += sum(os.lstat(os.path.join(place, name)).st_blocks * 512 for name in names)
    return found


def sparse_size(run: Run, points: Sequence[int]) -> None:
    """A file that is one hole, of that size: 4 KiB written at random places, and read back."""
    rng = random.Random(1)
    content = os.urandom(SMALL)
    for size in points:
        path = run.directory / str(size)
        before = stored_bytes(run.backing)
        fd = os.open(path, os.O_RDWR | os.O_CREAT)
        os.truncate(fd, size)
        written = stored_bytes(run.backing) - before
        if written > size // 2:  # the next size would fill the disk
            raise RuntimeError(f"it makes no holes: {written >> 20} MiB were written for {size >> 20} MiB")
        places = [rng.randrange(size // SMALL) * SMALL for _ in range(_PLACES)]
        start = time.perf_counter()
        for place in places:
            os.pwrite(fd, content, place)
        os.close(fd)
        run.note(f"sparse-write@{size}", len(places), time.perf_counter() - start)
        run.make_cold()
        fd = os.open(path, os.O_RDONLY)
        _for_a_moment(run, f"sparse-read@{size}", partial(_read_one, fd, places))
        os.close(fd)
        path.unlink()


# ---- directories


def directory_size(run: Run, points: Sequence[int]) -> None:
    """A directory that grows; at each size some files more, stats of what is there, and a listing."""
    directory = str(run.directory)
    rng = random.Random(1)
    there = 0
    content = os.urandom(2048)
    for size in points:
        for number in range(there, size):
            os.mknod(f"{directory}/entry {number}")
        there = size
        start = time.perf_counter()
        for number in range(_PROBES):
            make_file(f"{directory}/new {number}", content)
        run.note(f"make@{size}", _PROBES, time.perf_counter() - start)
        start = time.perf_counter()
        for number in range(_PROBES):
            os.unlink(f"{directory}/new {number}")
        run.note(f"delete@{size}", _PROBES, time.perf_counter() - start)
        run.make_cold()
        wanted = [f"{directory}/entry {rng.randrange(size)}" for _ in range(min(size, 5000))]
        start = time.perf_counter()
        for path in wanted:
            os.stat(path)
        run.note(f"stat@{size}", len(wanted), time.perf_counter() - start)
        run.make_cold()
        start = time.perf_counter()
        found = len(os.listdir(directory))
        run.note(f"list@{size}", size, time.perf_counter() - start)
        if found != size:
            raise AssertionError(f"{found} entries are listed of {size}")


def depth(run: Run, points: Sequence[int]) -> None:
    """Files that lie so many directories deep: stat and read, cold."""
    for levels in points:
        place = run.directory / "/".join(f"level {number}" for number in range(levels))
        place.mkdir(parents=True)
        paths = [str(place / f"file {levels} {number}") for number in range(_PROBES)]
        for path in paths:
            make_file(path, b"content")
        run.make_cold()
        start = time.perf_counter()
        for path in paths:
            os.stat(path)
        run.note(f"deep-stat@{levels}", len(paths), time.perf_counter() - start)
        run.make_cold()
        start = time.perf_counter()
        for path in paths:
            read_file(path)
        run.note(f"deep-read@{levels}", len(paths), time.perf_counter() - start)
        for path in paths:
            os.unlink(path)
        _remove_empty(run.directory)


def _remove_empty(top: Path) -> None:
    for place, directories, _ in os.walk(top, topdown=False):
        for name in directories:
            Path(place, name).rmdir()


def clients(run: Run, points: Sequence[int]) -> None:
    """So many processes with small files of their own."""
    for count in points:
        for number in range(count):
            (run.directory / str(number)).mkdir(exist_ok=True)
        work = partial(_client, run.directory, max(1, run.sizes.client_files // count), run.sizes.limit)
        run.in_parallel(f"clients@{count}", count, work)


_OPS, _BYTES = Unit.OPERATIONS, Unit.BYTES
SPECS = (
    CurveSpec(
        "file-size",
        "file size, bytes",
        (
            Axis("write", "write a file", _BYTES),
            Axis("read", "read a file, cold", _BYTES),
            Axis("random", "read 4 KiB at random", _OPS),
        ),
        file_size,
        (MIB, 4 * MIB, 16 * MIB, 64 * MIB, 256 * MIB, GIB),
        (2 * GIB, 4 * GIB, 8 * GIB),
    ),
    CurveSpec(
        "sparse-size",
        "size of a sparse file, bytes",
        (
            Axis("sparse-write", "write 4 KiB at random places of a hole", _OPS),
            Axis("sparse-read", "read them back", _OPS),
        ),
        sparse_size,
        (64 * MIB, GIB, 10 * GIB, 100 * GIB),
    ),
    CurveSpec(
        "directory-size",
        "entries in the directory",
        (
            Axis("make", "make a small file there", _OPS),
            Axis("delete", "delete it", _OPS),
            Axis("stat", "stat an entry, cold", _OPS),
            Axis("list", "entries listed, cold", _OPS),
        ),
        directory_size,
        (10, 100, 1000, 10_000),
        (100_000, 1_000_000),
    ),
    CurveSpec(
        "depth",
        "directories above a file",
        (Axis("deep-stat", "stat, cold", _OPS), Axis("deep-read", "read a small file, cold", _OPS)),
        depth,
        (1, 2, 4, 8, 16, 32, 64),
    ),
    CurveSpec(
        "clients",
        "clients at once",
        (Axis("clients", "operations on small files, all clients", _OPS),),
        clients,
        (1, 2, 4, 8, 16),
        (32, 64),
    ),
)
CHUNK_AXES = (
    Axis("write", "write a large file", _BYTES),
    Axis("read", "read a large file, cold", _BYTES),
    Axis("random", "read 4 KiB at random", _OPS),
)


def _workload(name: str, run: Callable[[Run], None]) -> Workload:
    return Workload(f"curve-{name}", f"curve: {name}", run, ())


def points_of(outcome: Outcome, axis: Axis) -> list[tuple[float, float]]:
    """(x, y) of one axis, in order of x."""
    found = []
    for title, sample in outcome.samples.items():
        key, _, x = title.partition("@")
        if key == axis.key:
            found.append((float(x), shown(axis.unit, sample)))
    return sorted(found)


def _curve(spec: str, x_label: str, axis: Axis, filesystem: str) -> Curve:
    return Curve(
        name=spec,
        title=axis.title,
        x_label=x_label,
        y_label=axis.unit.value,
        filesystem=filesystem,
        points={},
    )


def measure_curves(
    arena: Field, names: Sequence[str], factor: float, filesystem: str, *, big: bool
) -> Iterator[tuple[Curve, list[str]]]:
    """Each curve with what failed on it."""
    for spec in SPECS:
        if spec.name not in names:
            continue
        made = [_curve(spec.name, spec.x_label, axis, filesystem) for axis in spec.axes]
        problems = []
        points = spec.chosen(factor, big=big)
        for subject in arena.subjects:
            outcome = arena.turn(subject, _workload(spec.name, partial(spec.run, points=points)))
            if outcome.failure is not None:
                problems.append(f"{subject.name} over {spec.x_label}: {outcome.failure}")
            for curve, axis in zip(made, spec.axes, strict=True):
                curve.points[subject.name] = points_of(outcome, axis)
        for curve in made:
            yield curve, problems
            problems = []


def chunk_subjects() -> list[Subject]:
    """cryptfs with each chunk size."""
    return [cryptfs(f"chunks-{size}", f"--chunk-size {size // KIB}k") for size in CHUNK_SIZES]


def measure_chunks(arena: Field, size: int, filesystem: str) -> list[Curve]:
    """Chunk size, on an arena of chunk_subjects."""
    made = [_curve("chunk-size", "chunk size, bytes", axis, filesystem) for axis in CHUNK_AXES]
    for curve in made:
        curve.points["cryptfs"] = []
    for subject, chunk in zip(arena.subjects, CHUNK_SIZES, strict=True):
        outcome = arena.turn(subject, _workload("chunk-size", partial(file_size, points=(size,))))
        for curve, axis in zip(made, CHUNK_AXES, strict=True):
            curve.points["cryptfs"] += [(float(chunk), y) for _, y in points_of(outcome, axis)]
    return made
