"""The targets of the design, section 6: each with what was measured, and whether it is met."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from rich import box
from rich.console import Console
from rich.table import Table

from benchlib.peers import C_PASS_THROUGHS, PEERS
from benchlib.results import Handler, Place, Results
from benchlib.work_mount import IDLE, LOAD, MOUNT
from benchlib.workloads import WORKLOADS

BEST, C = "best peer", "C pass-through"
GOCRYPTFS = "gocryptfs"
OTHER_TREE = "the other tree"
GROUPS = {BEST: PEERS, C: tuple(C_PASS_THROUGHS)}
"""Names in targets that stand for several subjects: for the one of them that is hardest to beat."""
_SMALL_WRITES = "write a large file, 4 KiB requests"
_LIMITS = {
    ("write a large file, 1 MiB requests", C): 0.9,
    ("read a large file, 1 MiB requests", C): 0.9,
    (_SMALL_WRITES, BEST): 4.0,
}  # fmt: skip
_HANDLER_LIMIT = 0.7


class Standing(Enum):
    """How something stands to its target; the order is that of the tables. The values are shown."""

    NOT_MET = "not met"
    LEVEL = "level"
    MET = "met"
    UNKNOWN = "-"


@dataclass(frozen=True)
class Target:
    """At least so many times as fast as somebody; or at most so much of something.

    Args: than: a subject, or a name in GROUPS; '' for an absolute limit, which is in the unit of the row.
    """

    title: str
    than: str
    limit: float

    @property
    def text(self) -> str:
        """As the design says it."""
        if self.than:
            return f">= {self.limit:g}x of {self.than}"
        return f"<= {self.limit:g} {'s' if self.title == MOUNT else 'MiB'}"


def _of_all_rows() -> Iterator[Target]:
    """As fast as the best; mounting and memory have limits of their own."""
    for quantity in (each for workload in WORKLOADS for each in workload.quantities):
        if quantity.unit.is_timed and quantity.title != MOUNT:
            for group in GROUPS:
                yield Target(quantity.title, group, _LIMITS.get((quantity.title, group), 1.0))


TARGETS = (
    *_of_all_rows(),
    Target(_SMALL_WRITES, GOCRYPTFS, 10.0),
    Target(IDLE, "", 60.0),
    Target(LOAD, "", 150.0),
    Target(MOUNT, "", 0.1),
)
BULK = "encrypt 300 MB in memory, two threads against one"
BULK_LIMIT = 1.75


@dataclass(frozen=True)
class Verdict:
    """A target in one place. measured: None where it was not; whom: the one of a group that it is about."""

    title: str
    text: str
    limit: float
    filesystem: str
    measured: float | None
    standing: Standing
    whom: str = ""

    @property
    def said(self) -> str:
        """What was measured, for the table."""
        if self.measured is None:
            return "not measured"
        # 0.996 is not 1.00: a figure that would be rounded up to its limit gets the digits that tell.
        rounded = f"{self.measured:.2f}" == f"{self.limit:.2f}"
        digits = 4 if rounded and self.standing is not Standing.MET else 2
        if "x of" in self.text or self.title == BULK:
            return f"{self.measured:.{digits}f}x" + (f" ({self.whom})" if self.whom else "")
        return f"{self.measured:.{digits}f}"

    @property
    def distance(self) -> float:
        """Above 1 it is met, below it is not; for sorting."""
        if not self.measured:
            return 1.0
        return self.measured / self.limit if self.text.startswith(">=") else self.limit / self.measured


def at_least(limit: float, measured: float, rounds: list[float]) -> Standing:
    """Level: some rounds reach the limit, and some do not. More is better."""
    if rounds and min(rounds) < limit <= max(rounds):
        return Standing.LEVEL
    return Standing.MET if measured >= limit else Standing.NOT_MET


def _against(results: Results, place: Place, target: Target) -> Verdict:
    row = results.row(place, target.title)
    names = GROUPS.get(target.than, (target.than,))
    entries = {} if row is None else {name: row.subjects[name] for name in names if name in row.subjects}
    known = [(entry.ratio, name) for name, entry in entries.items() if entry.ratio is not None]
    if not known:
        return Verdict(target.title, target.text, target.limit, place.filesystem, None, Standing.UNKNOWN)
    measured, name = min(known)
    standing = at_least(target.limit, measured, entries[name].ratios)
    whom = name if target.than in GROUPS else ""
    return Verdict(target.title, target.text, target.limit, place.filesystem, measured, standing, whom)


def _absolute(results: Results, place: Place, target: Target) -> Verdict:
    row = results.row(place, target.title)
    entry = row.subjects.get(results.focus) if row is not None else None
    measured, standing = None if entry is None else entry.median, Standing.UNKNOWN
    if measured is not None:
        standing = Standing.MET if measured <= target.limit else Standing.NOT_MET
    return Verdict(target.title, target.text, target.limit, place.filesystem, measured, standing)


def _of_handler(row: Handler) -> Verdict:
    standing, ratio = Standing.UNKNOWN, row.ratio
    if ratio is not None:
        standing = at_least(1 / _HANDLER_LIMIT, 1 / ratio, [1 / each for each in row.ratios])
    text = f"<= {_HANDLER_LIMIT}x of {OTHER_TREE}"
    return Verdict(row.title, text, _HANDLER_LIMIT, "no mount", ratio, standing)


def judge(results: Results) -> Iterator[Verdict]:
    """Every target in every place, then those that need no place."""
    for place in results.places:
        for target in TARGETS:
            yield _against(results, place, target) if target.than else _absolute(results, place, target)
    yield from (_of_handler(row) for row in results.handlers if row.theirs)
    one, two = results.bulk.get("1"), results.bulk.get("2")
    measured, standing = two / one if one and two else None, Standing.UNKNOWN
    if measured is not None:
        standing = Standing.MET if measured >= BULK_LIMIT else Standing.NOT_MET
    yield Verdict(BULK, f">= {BULK_LIMIT}x", BULK_LIMIT, "memory", measured, standing)


def known(results: Results) -> list[Verdict]:
    """What was measured: what is behind comes first, and of that what is furthest behind."""
    order = list(Standing)
    found = [each for each in judge(results) if each.standing is not Standing.UNKNOWN]
    return sorted(found, key=lambda each: (order.index(each.standing), each.distance))


def summary(verdicts: list[Verdict]) -> str:
    """How many stand how."""
    counts = {each: sum(verdict.standing is each for verdict in verdicts) for each in Standing}
    words = ", ".join(
        f"{each.value} {counts[each]}" for each in (Standing.MET, Standing.LEVEL, Standing.NOT_MET)
    )
    return f"targets that were measured: {len(verdicts)}; {words}"


def show(results: Results, console: Console) -> bool:
    """The table; True where no target that was measured is missed."""
    table = Table(
        title=f"targets: {results.focus}", title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    for heading in ("work", "on", "target", "measured", ""):
        table.add_column(heading, justify="right" if heading in ("target", "measured") else "left")
    verdicts = known(results)
    colours = {Standing.MET: "green", Standing.LEVEL: "yellow", Standing.NOT_MET: "red"}
    for each in verdicts:
        word = f"[{colours[each.standing]}]{each.standing.value}[/]"
        table.add_row(each.title, each.filesystem, each.text, each.said, word)
    console.print(table)
    console.print(summary(verdicts))
    return all(each.standing is not Standing.NOT_MET for each in verdicts)


def needed() -> frozenset[str]:
    """Titles of all quantities that some target is about."""
    return frozenset(target.title for target in TARGETS)
