"""The targets of the design, section 6: each with what was measured, and whether it is met."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.table import Table

from benchlib.peers import PASS_THROUGH, PEERS
from benchlib.results import Place, Results
from benchlib.work_mount import IDLE, LOAD, MOUNT

BEST = "best peer"
GOCRYPTFS = "gocryptfs"
_TREE_TITLES = (
    "unpack a source tree", "check its files (md5sum)", "list it (ls -lR)", "copy it (cp -a)",
    "remove it (rm -r)",
)  # fmt: skip
_SMALL = tuple(
    f"{act} small files in one directory" for act in ("make", "stat", "list", "read", "rename", "delete")
)


@dataclass(frozen=True)
class Target:
    """At least so many times as fast as somebody; or at most so much of something.

    Args: than: a subject, or BEST; '' for an absolute limit, which is then in the unit of the row.
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


TARGETS = (
    Target("write a large file, 1 MiB requests", BEST, 2.0),
    Target("read a large file, 1 MiB requests", BEST, 1.3),
    Target("write a large file, 1 MiB requests", PASS_THROUGH, 0.8),
    Target("read a large file, 1 MiB requests", PASS_THROUGH, 0.8),
    Target("write a large file, 4 KiB requests", BEST, 10.0),
    Target("read 4 KiB at random", GOCRYPTFS, 1.2),
    Target("write 4 KiB at random", GOCRYPTFS, 1.2),
    *(Target(title, than, 1.0) for title in (*_SMALL, *_TREE_TITLES) for than in (GOCRYPTFS, BEST)),
    Target("list a huge directory", GOCRYPTFS, 1.0),
    Target(IDLE, "", 60.0),
    Target(LOAD, "", 150.0),
    Target(MOUNT, "", 0.5),
)
BULK = "encrypt 300 MB in memory, two threads against one"
BULK_LIMIT = 1.75


@dataclass(frozen=True)
class Verdict:
    """A target in one place. measured: None where it was not; whom: the best peer's name."""

    title: str
    text: str
    limit: float
    filesystem: str
    measured: float | None
    met: bool | None
    whom: str = ""

    @property
    def said(self) -> str:
        """What was measured, for the table."""
        if self.measured is None:
            return "not measured"
        # 0.996 is not 1.00: a figure that would be rounded up to its limit gets the digits that tell.
        digits = 2 if self.met or f"{self.measured:.2f}" != f"{self.limit:.2f}" else 4
        if self.text.startswith(">="):
            return f"{self.measured:.{digits}f}x" + (f" ({self.whom})" if self.whom else "")
        return f"{self.measured:.{digits}f}"


def _ratio_to(results: Results, place: Place, target: Target) -> tuple[float | None, str]:
    row = results.row(place, target.title)
    if row is None:
        return None, ""
    names = [each for each in PEERS if each in row.subjects] if target.than == BEST else [target.than]
    known = [
        (entry.ratio, name) for name in names if (entry := row.subjects.get(name)) and entry.ratio is not None
    ]
    if not known:
        return None, ""
    measured, name = min((ratio, name) for ratio, name in known if ratio is not None)
    return measured, name if target.than == BEST else ""


def _value_of(results: Results, place: Place, target: Target) -> float | None:
    row = results.row(place, target.title)
    entry = row.subjects.get(results.focus) if row is not None else None
    return None if entry is None else entry.median


def judge(results: Results) -> Iterator[Verdict]:
    """Every target in every place, then the one that needs no place."""
    for place in results.places:
        for target in TARGETS:
            whom = ""
            if target.than:
                measured, whom = _ratio_to(results, place, target)
                met = None if measured is None else measured >= target.limit
            else:
                measured = _value_of(results, place, target)
                met = None if measured is None else measured <= target.limit
            yield Verdict(target.title, target.text, target.limit, place.filesystem, measured, met, whom)
    one, two = results.bulk.get("1"), results.bulk.get("2")
    measured = two / one if one and two else None
    met = None if measured is None else measured >= BULK_LIMIT
    yield Verdict(BULK, f">= {BULK_LIMIT}x", BULK_LIMIT, "memory", measured, met)


def show(results: Results, console: Console) -> bool:
    """The table; True where every target that was measured is met."""
    table = Table(
        title=f"targets: {results.focus}", title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    for heading in ("work", "on", "target", "measured", ""):
        table.add_column(heading, justify="right" if heading in ("target", "measured") else "left")
    verdicts = list(judge(results))
    words = {True: "[green]met[/]", False: "[red]NOT MET[/]", None: "[dim]-[/]"}
    for each in verdicts:
        table.add_row(each.title, each.filesystem, each.text, each.said, words[each.met])
    console.print(table)
    counted = [each.met for each in verdicts if each.met is not None]
    console.print(f"{sum(counted)} of {len(counted)} met, {len(verdicts) - len(counted)} not measured")
    return all(counted)


def needed() -> frozenset[str]:
    """Titles of all quantities that some target is about."""
    return frozenset(target.title for target in TARGETS)
