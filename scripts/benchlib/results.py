"""Everything that was measured, as it stands in the JSON file. Tables, targets and plots are made of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import msgspec

from benchlib.quantities import CPU_UNITS, Unit, Workload
from benchlib.rounds import Cells
from benchlib.statistics import Figure, Ratio, figure, ratio

FORMAT = 2


class Entry(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One quantity of one subject, in the unit of its row. ratio: focus to this one, above 1 is faster."""

    median: float | None = None
    spread: float = 0.0
    rounds: list[float | None] = []
    cpu: float = 0.0
    ratio: float | None = None
    ratios: list[float] = []
    failed: str | None = None


class Row(msgspec.Struct, kw_only=True):
    """One quantity."""

    workload: str
    heading: str
    title: str
    note: str
    unit: Unit
    cpu_unit: str
    subjects: dict[str, Entry]


class Place(msgspec.Struct, kw_only=True):
    """One directory that vaults were made in."""

    directory: str
    filesystem: str
    rows: list[Row]


class Curve(msgspec.Struct, kw_only=True):
    """How a quantity changes as something grows. points: subject -> (x, y), in order of x."""

    name: str
    title: str
    x_label: str
    y_label: str
    filesystem: str
    points: dict[str, list[tuple[float, float]]]


class Handler(msgspec.Struct, kw_only=True):
    """Processor time of a kind of request, in microseconds, one figure a round. theirs: of --against."""

    title: str
    ours: list[float]
    theirs: list[float] = []

    @property
    def ratio(self) -> float | None:
        """Ours to theirs, of the medians: below 1 is less."""
        return _short(median(self.ours) / median(self.theirs)) if self.theirs else None

    @property
    def ratios(self) -> list[float]:
        """The same in each round."""
        return (
            [ours / theirs for ours, theirs in zip(self.ours, self.theirs, strict=True)]
            if self.theirs
            else []
        )


class Results(msgspec.Struct, kw_only=True):
    """A run. focus: the subject that ratios are of."""

    format: int = FORMAT
    machine: dict[str, Any]
    focus: str
    subjects: list[str]
    places: list[Place] = []
    curves: list[Curve] = []
    handlers: list[Handler] = []
    bulk: dict[str, float] = {}  # MB/s of bulk encryption in memory, by number of threads
    notes: list[str] = []

    def row(self, place: Place, title: str) -> Row | None:
        """By its title."""
        return next((row for row in place.rows if row.title == title), None)


def _entry(found: Figure | None, failure: str | None, compared: Ratio | None) -> Entry:
    if found is None:
        return Entry(failed=failure or "not measured")
    return Entry(
        median=_short(found.median),
        spread=round(found.spread, 3),
        rounds=[None if value is None else _short(value) for value in found.values],
        cpu=_short(found.cost),
        ratio=None if compared is None else _short(compared.of_medians),
        ratios=[] if compared is None else [_short(each) for each in compared.rounds],
        failed=failure,
    )


def _short(value: float) -> float:
    """Five figures are more than any of this is good for."""
    return float(f"{value:.5g}")


def rows_of(cells: Cells, workloads: Sequence[Workload], subjects: list[str], focus: str) -> list[Row]:
    """The rows of one place."""
    rows = []
    for workload in workloads:
        for quantity in workload.quantities:
            samples = cells.samples.get(quantity.title, {})
            failures = cells.failures.get(quantity.title, {})
            figures = {name: figure(quantity.unit, samples.get(name, [])) for name in subjects}
            ours = figures.get(focus)
            rows.append(
                Row(
                    workload=workload.name,
                    heading=workload.title,
                    title=quantity.title,
                    note=quantity.note,
                    unit=quantity.unit,
                    cpu_unit=CPU_UNITS[quantity.unit],
                    subjects={
                        name: _entry(
                            found,
                            failures.get(name),
                            None if found is None or ours is None else ratio(ours, found),
                        )
                        for name, found in figures.items()
                    },
                )
            )
    return rows


def encoded(results: Results) -> bytes:
    """As JSON."""
    return msgspec.json.encode(results)


def decoded(raw: bytes) -> Results:
    """The reverse. Raises: ValueError."""
    return msgspec.json.decode(raw, type=Results)


def save(results: Results, path: Path) -> None:
    """Write the JSON file."""
    path.write_bytes(msgspec.json.format(encoded(results), indent=1) + b"\n")


def load(path: Path) -> Results:
    """Read one back. Raises: ValueError: it is no such file, or of another format."""
    found = decoded(path.read_bytes())
    if found.format != FORMAT:
        raise ValueError(f"{path} has format {found.format}, this bench reads {FORMAT}")
    return found
