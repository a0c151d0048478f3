"""The figures as Markdown tables, for docs/PERFORMANCE.md."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from benchlib import targets
from benchlib.report import (
    cost_text,
    failures_of,
    handler_cells,
    handler_headings,
    shortened,
    span_text,
    value_text,
)
from benchlib.results import Entry, Place, Results, Row


def _word(verdict: targets.Verdict) -> str:
    word = verdict.standing.value
    return f"**{word}**" if verdict.standing is targets.Standing.NOT_MET else word


def table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Lines of a table; the first column is text, the others are figures."""
    yield f"| {' | '.join(heading)} |"
    yield f"|---|{'---:|' * (len(heading) - 1)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def _cell(row: Row, entry: Entry, *, focus: bool) -> str:
    if entry.median is None:
        return "failed" if entry.failed != "not measured" else ""
    text = value_text(row.unit, entry.median) + (" (then failed)" if entry.failed is not None else "")
    if focus or entry.ratio is None:
        return text
    return f"{text}, **{entry.ratio:.2f}**{span_text(entry.ratios, 2)}"


def _rates(found: Results, place: Place) -> Iterator[str]:
    names = [found.focus, *(name for name in found.subjects if name != found.focus)]
    return table(
        ["", *names],
        (
            [row.title, *(_cell(row, row.subjects[name], focus=name == found.focus) for name in names)]
            for row in place.rows
        ),
    )


def _costs(found: Results, place: Place) -> Iterator[str]:
    names = [name for name in found.subjects if name != "plain"]
    rows = (row for row in place.rows if row.unit.is_timed)
    return table(
        ["processor time of the daemon", *names],
        ([row.title, *(cost_text(row, row.subjects[name]) for name in names)] for row in rows),
    )


def _verdicts(found: Results) -> Iterator[str]:
    known = targets.known(found)
    if known:
        yield from table(
            ["target", "on", "wanted", "measured", ""],
            ([each.title, each.filesystem, each.text, each.said, _word(each)] for each in known),
        )
        yield from ("", targets.summary(known))


def lines(found: Results) -> Iterator[str]:
    """Targets; for each place the rates with their ratios, what the daemons spent, what failed; handlers."""
    yield from _verdicts(found)
    if found.handlers:
        yield ""
        headings = ["processor time of one request", *handler_headings(found)]
        yield from table(headings, ([row.title, *handler_cells(row)] for row in found.handlers))
    for place in found.places:
        yield from ("", f"### {place.filesystem}", "")
        yield from _rates(found, place)
        yield ""
        yield from _costs(found, place)
        for name, titles, reason in failures_of(place):
            yield from ("", f"Failed: {name}: {', '.join(titles)}: {shortened(reason)}")
