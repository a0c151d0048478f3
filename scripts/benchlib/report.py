"""The figures as a table for people and as JSON."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from benchlib.statistics import Figure, ratio
from benchlib.workloads import IN_BYTES

Figures = dict[str, dict[str, Figure]]  # quantity -> subject -> figure


def _rate(quantity: str, figure: Figure) -> str:
    if quantity in IN_BYTES:
        return f"{figure.rate:,.0f} MB/s"
    return f"{figure.rate / 1000:,.1f} k/s"


def _cost(quantity: str, figure: Figure) -> str:
    return f"{figure.cpu_cost:.2f} s/GiB" if quantity in IN_BYTES else f"{figure.cpu_cost:.0f} us/op"


def show(figures: Figures, subjects: list[str], against: str, console: Console) -> None:
    """Two tables: rates with ratios, and what the daemons spent."""
    others = [name for name in subjects if name != against]
    rates = Table(title="rate: median (half spread)", title_justify="left", box=box.SIMPLE_HEAD)
    rates.add_column("")
    for name in subjects:
        rates.add_column(name, justify="right")
    for name in others:
        rates.add_column(f"{name}\n: {against}", justify="right")
    costs = Table(title="processor time of the daemon", title_justify="left", box=box.SIMPLE_HEAD)
    costs.add_column("")
    for name in subjects:
        costs.add_column(name, justify="right")
    for quantity, row in figures.items():
        cells = [f"{_rate(quantity, row[name])} ({row[name].spread:.0%})" for name in subjects]
        for name in others:
            found = ratio(row[name], row[against])
            cells.append(f"{found.of_medians:.2f} ({found.lowest:.2f}-{found.highest:.2f})")
        rates.add_row(quantity, *cells)
        costs.add_row(quantity, *(_cost(quantity, row[name]) for name in subjects))
    console.print(rates)
    console.print(costs)


def as_json(figures: Figures, subjects: list[str], against: str) -> dict[str, Any]:
    """The same, with every round."""
    return {
        quantity: {
            name: {
                "unit": "MB/s" if quantity in IN_BYTES else "1/s",
                "median": round(row[name].rate, 2),
                "rounds": [round(rate, 2) for rate in row[name].rates],
                "spread": round(row[name].spread, 3),
                "cpu": round(row[name].cpu_cost, 3),
                "cpu_unit": "s/GiB" if quantity in IN_BYTES else "us/op",
                "ratio": round(ratio(row[name], row[against]).of_medians, 3),
                "ratios": [
                    round(mine / other, 3)
                    for mine, other in zip(row[name].rates, row[against].rates, strict=True)
                ],
            }
            for name in subjects
        }
        for quantity, row in figures.items()
    }
