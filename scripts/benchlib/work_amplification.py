"""How much a daemon writes for one byte that a program overwrites, if it hits each chunk once or often."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

from benchlib.quantities import KIB, Quantity, Unit, Workload
from benchlib.run import Run

HITS = (1, 4, 16)
REGION = 16 * KIB  # a chunk of cryptfs, unless its vault has another size
PIECE = 4 * KIB
_QUIET = 0.8  # seconds without a written byte, after which nothing is on its way to its place
_LONGEST = 15.0
_LEAST = 0.9  # fewer bytes than that for each one cannot be


def title(hits: int) -> str:
    """Of a row."""
    return f"bytes written per byte, {hits} hit{'s' if hits > 1 else ''} a chunk"


def amplification(run: Run) -> None:
    """Passes over a file: each writes 4 KiB into every region, in another order, and ends with an fsync.

    So every hit reaches the daemon by itself: the kernel cannot collect several.
    """
    if run.written() is None:
        return  # there is no daemon, or this user may not know
    path = run.directory / "hit"
    with path.open("wb", buffering=0) as file:
        for _ in range(run.sizes.regions):
            file.write(os.urandom(REGION))
        os.fsync(file.fileno())
    before = settled(run)
    for hits in HITS:
        _overwrite(path, run.sizes.regions, hits)
        after = settled(run)
        factor, before = (after - before) / (hits * run.sizes.regions * PIECE), after
        if factor < _LEAST:
            raise RuntimeError(f"only {factor:.2f} bytes for each byte were written by write(2)")
        run.note(title(hits), factor)
    path.unlink()


def _overwrite(path: Path, regions: int, hits: int) -> None:
    rng = random.Random(hits)
    content = os.urandom(PIECE)
    fd = os.open(path, os.O_RDWR)
    try:
        for number in range(hits):
            place = number % (REGION // PIECE) * PIECE
            for region in rng.sample(range(regions), regions):
                os.pwrite(fd, content, region * REGION + place)
            os.fsync(fd)
    finally:
        os.close(fd)


def settled(run: Run) -> int:
    """What the daemon has written when it writes no more: a journal comes home after the file is closed."""
    deadline = time.monotonic() + _LONGEST
    last, since = -1, time.monotonic()
    while True:
        found, now = run.written(), time.monotonic()
        if found is None:
            raise RuntimeError("the daemon has died")
        if found != last:
            last, since = found, now
        if now - since >= _QUIET or now > deadline:
            return last
        time.sleep(0.05)


WORKLOADS = (
    Workload(
        "amplification",
        "what one overwritten byte costs: 4 KiB at a time, a chunk hit once, 4 and 16 times",
        amplification,
        tuple(Quantity(title(hits), Unit.FACTOR, "by write(2), with the journal") for hits in HITS),
    ),
)
