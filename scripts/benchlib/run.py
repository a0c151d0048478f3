"""One turn: a workload, a subject, a directory to work in, and the clock."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TypeVar

from benchlib.clients import in_parallel
from benchlib.machine import forget_file, sync_filesystem
from benchlib.quantities import GIB, MIB, Sample
from benchlib.subjects import Carrier, CopyingCarrier
from benchlib.users import Rights

Item = TypeVar("Item")
_FIXED = ("limit", "regions")
"""Sizes that are not scaled: with fewer regions, the zeros ahead in a journal would count for most."""


@dataclass(frozen=True)
class Sizes:
    """How much is done: bytes, or numbers of operations, files and entries. limit: seconds of one loop."""

    sequential: int = GIB
    small_requests: int = GIB
    random_file: int = 256 * MIB
    random: int = 20_000
    regions: int = 200
    pages: int = 2_000
    files: int = 10_000
    entries: int = 100_000
    rows: int = 100_000
    commits: int = 500
    client_files: int = 2_000
    transfer_bytes: int = 2 * GIB
    transfer_files: int = 10_000
    limit: float = 1.5

    def scaled(self, factor: float) -> Sizes:
        """Everything so many times as large, but for what is in _FIXED; at least 4, or 1 MiB of bytes."""
        changed: dict[str, int] = {}
        for each in fields(self):
            value = getattr(self, each.name)
            if each.name not in _FIXED:
                least = MIB if value >= MIB else 4
                changed[each.name] = max(least, int(value * factor) // least * least)
        return replace(self, **changed)


@dataclass(frozen=True)
class Material:
    """What workloads take from outside: a tar of a source tree, md5 sums of its files, a git repository."""

    tar: Path
    sums: Path
    files: int
    repository: Path


@dataclass
class Meter:
    """What a timed block has done, where that is known at its end only."""

    amount: float


@dataclass
class Run:
    """What a workload gets. It works in `directory` and reports through `timed` and `note`.

    Args: cpu: seconds of processor time of the daemon so far.
          remount: takes the mount away and back, for a cold cache where the kernel's may not be dropped;
                   None: there is nothing to remount.
          report: called with each measurement.
          prepared: where `prepare` of the workload puts things.   backing: on the filesystem with the vault.
          rights: over the machine.
          carrier: puts trees into the subject, and gets them out.
          written: bytes that the daemon has written so far; None where there is none, or nobody may know.
    """

    directory: Path
    sizes: Sizes
    material: Material
    cpu: Callable[[], float]
    report: Callable[[str, Sample], None]
    remount: Callable[[], None] | None = None
    prepared: Path = field(default_factory=Path)
    backing: Path = field(default_factory=Path)
    rights: Rights = field(default_factory=Rights)
    written: Callable[[], int | None] = lambda: None
    carrier: Carrier = field(default_factory=lambda: CopyingCarrier(Path()))
    _deadline: float = 0.0

    @contextmanager
    def timed(self, title: str, amount: float = 1) -> Iterator[Meter]:
        """Time what is done inside; a loop over `within` may end early and then sets the amount."""
        meter = Meter(amount)
        cpu, start = self.cpu(), time.perf_counter()
        self._deadline = start + self.sizes.limit
        yield meter
        seconds = time.perf_counter() - start
        self.report(title, Sample(meter.amount, seconds, self.cpu() - cpu))

    def in_parallel(self, title: str, count: int, work: Callable[[int], float]) -> None:
        """So many clients at once; what each returns is what it has done. Starting them is not timed."""
        cpu = self.cpu()
        done, seconds = in_parallel(count, work)
        self.report(title, Sample(sum(done), seconds, self.cpu() - cpu))

    def within(self, items: Iterable[Item], meter: Meter, each: float = 1) -> Iterator[Item]:
        """The items, until the time limit of the timed block; the meter counts those that were done."""
        meter.amount = 0
        for item in items:
            yield item
            meter.amount += each
            if time.perf_counter() > self._deadline:
                return

    def note(self, title: str, amount: float, seconds: float = 1.0) -> None:
        """A measurement made otherwise."""
        self.report(title, Sample(amount, seconds, 0.0))

    def make_cold(self) -> None:
        """Before something is read: nothing of it shall come from memory."""
        for each in (self.directory, self.backing):
            sync_filesystem(each)
        if self.rights.drop_caches():
            return
        if self.remount is not None:
            self.remount()
            return
        for path in self.directory.rglob("*"):
            if path.is_file() and not path.is_symlink():
                forget_file(path)
