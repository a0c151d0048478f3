"""The figures as tables for people."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from statistics import median

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchlib.quantities import Unit
from benchlib.results import Entry, Handler, Place, Results, Row

_TITLE_WIDTH, _NARROW = 46, 30  # columns, on a wide screen and on others
_REASON = 100  # characters


def value_text(unit: Unit, value: float) -> str:
    """With its unit, in the figures that a person reads."""
    if unit is Unit.BYTES:
        return f"{value:,.0f} MB/s"
    if unit is Unit.MEMORY:
        return f"{value:,.0f} MiB"
    if unit is Unit.FACTOR:
        return f"{value:.2f}"
    if unit is Unit.SECONDS:
        return f"{value:.2f} s" if value >= 0.1 else f"{value * 1000:.0f} ms"
    if value >= 100_000:
        return f"{value / 1000:,.0f} k/s"
    return f"{value / 1000:,.1f} k/s" if value >= 10_000 else f"{value:,.0f} /s"


def cost_text(row: Row, entry: Entry) -> str:
    """Processor time of the daemon."""
    if not row.unit.is_timed or entry.median is None:
        return ""
    number = f"{entry.cpu:.0f}" if row.unit is Unit.OPERATIONS else f"{entry.cpu:.2f}"
    return f"{number} {row.cpu_unit}"


def ratio_text(entry: Entry) -> str:
    """The focus to this one, coloured: of the medians, and the range of the rounds."""
    if entry.ratio is None:
        return ""
    colour = "green" if entry.ratio >= 1 else "red"
    return f"[{colour}]x{entry.ratio:.2f}[/]{span_text(entry.ratios, 2)}"


def cell_text(row: Row, entry: Entry, *, focus: bool) -> str:
    """The median and half the spread; below it how many times as fast the focus is."""
    if entry.median is None:
        return "[yellow]failed[/]" if entry.failed != "not measured" else "-"
    first = value_text(row.unit, entry.median)
    if len(entry.rounds) > 1:
        first += f" [dim]{entry.spread:.0%}[/]"
    if entry.failed is not None:
        first += " [yellow]then failed[/]"
    return first if focus else f"{first}\n{ratio_text(entry)}"


def show(results: Results, console: Console) -> None:
    """Rates with ratios, what the daemons spent, what failed, and what the handlers cost."""
    if results.handlers:
        console.print(handlers_table(results))
    for place in results.places:
        console.print(f"\n[bold]{escape(place.directory)}[/] ({escape(place.filesystem)})")
        console.print(
            f"median, half the spread; x: how many times as fast {escape(results.focus)} is, and its range"
        )
        for heading, rows in groupby(place.rows, key=lambda row: row.heading):
            width = _TITLE_WIDTH if console.width >= 160 else _NARROW
            console.print(f"\n[italic]{escape(heading)}[/]")
            console.print(rates_table(results, list(rows), width))
        console.print(costs_table(results, place))
        for name, titles, reason in failures_of(place):
            what = escape(f"{name}: {', '.join(titles)}: {shortened(reason)}")
            console.print(f"[yellow]failed[/]: {what}")


def span_text(values: Sequence[float], digits: int) -> str:
    """' (1.2-3.4)', or '' for one value."""
    return f" ({min(values):.{digits}f}-{max(values):.{digits}f})" if len(values) > 1 else ""


def handler_cells(row: Handler) -> list[str]:
    """Microseconds with their range: ours, and theirs with the ratio if there are any."""
    cells = [f"{median(costs):.1f}{span_text(costs, 1)}" for costs in (row.ours, row.theirs) if costs]
    return cells if row.ratio is None else [*cells, f"{row.ratio:.2f}{span_text(row.ratios, 2)}"]


def handler_headings(found: Results) -> list[str]:
    """Over what handler_cells gives."""
    return ["this tree, us", "the other, us", "ratio"] if found.handlers[0].theirs else ["us"]


def handlers_table(found: Results) -> Table:
    """Processor time of the handlers."""
    title = "processor time of one request, without a mount"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("")
    for heading in handler_headings(found):
        table.add_column(heading, justify="right")
    for row in found.handlers:
        table.add_row(row.title, *handler_cells(row))
    return table


def rates_table(results: Results, rows: list[Row], width: int = _NARROW) -> Table:
    """One workload."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("", max_width=width)
    for name in results.subjects:
        table.add_column(escape(name), justify="right", style="bold" if name == results.focus else "")
    for row in rows:
        title = escape(row.title) + (f"\n[dim]{escape(row.note)}[/]" if row.note else "")
        cells = [cell_text(row, row.subjects[name], focus=name == results.focus) for name in results.subjects]
        table.add_row(title, *cells)
    return table


def costs_table(results: Results, place: Place) -> Table:
    """Processor time of the daemons."""
    table = Table(title="processor time of the daemon", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("")
    names = [name for name in results.subjects if name != "plain"]
    for name in names:
        table.add_column(escape(name), justify="right")
    for row in place.rows:
        if row.unit.is_timed:
            table.add_row(escape(row.title), *(cost_text(row, row.subjects[name]) for name in names))
    return table


def shortened(reason: str) -> str:
    """Its beginning and its end, which say what and why; a long path in between says less."""
    return reason if len(reason) <= _REASON else f"{reason[: _REASON // 2]} ... {reason[-_REASON // 2 :]}"


def failures_of(place: Place) -> list[tuple[str, list[str], str]]:
    """Who failed at what, and why; one for all that one turn did not give."""
    found: dict[tuple[str, str], list[str]] = {}
    for row in place.rows:
        for name, entry in row.subjects.items():
            if entry.failed is not None and entry.failed != "not measured":
                found.setdefault((name, entry.failed), []).append(row.title)
    return [(name, titles, reason) for (name, reason), titles in found.items()]
