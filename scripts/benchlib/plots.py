"""The figures as pictures: bars against the peers, and curves. Needs matplotlib (cryptfs[bench])."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Any

from benchlib.peers import PEERS, PLAIN
from benchlib.results import Curve, Place, Results, Row

_COLOURS = {
    "cryptfs": "#0b6e4f", "gocryptfs": "#d1495b", "securefs": "#edae49", "encfs": "#8d6a9f",
    "cryfs": "#30638e", "pass-through": "#888888", "plain": "#bbbbbb",
}  # fmt: skip
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "cryptfs",  # the same figures give the same file
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "legend.frameon": False,
}


def _pyplot() -> Any:
    try:
        import matplotlib as mpl
    except ImportError:
        raise RuntimeError("plots need matplotlib: pip install 'cryptfs[bench]'") from None
    mpl.use("svg")
    import matplotlib.pyplot as plt

    plt.rcParams.update(_STYLE)
    return plt


def draw(results: Results, directory: Path) -> list[Path]:
    """One file for each place's bars, and one for each thing that grows; what was written.

    Raises: RuntimeError: matplotlib is not installed.
    """
    plt = _pyplot()
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    for place in results.places:
        path = directory / f"peers-{place.filesystem}.svg"
        if _draw_bars(plt, results, place, path):
            written.append(path)
    ordered = sorted(results.curves, key=lambda curve: (curve.name, curve.filesystem))
    for (name, filesystem), curves in groupby(ordered, key=lambda curve: (curve.name, curve.filesystem)):
        path = directory / f"{name}-{filesystem}.svg"
        _draw_curves(plt, list(curves), path)
        written.append(path)
    return written


def _compared(row: Row, focus: str) -> dict[str, float]:
    """How many times as fast the focus is, by peer."""
    return {
        name: entry.ratio
        for name, entry in row.subjects.items()
        if name in PEERS and name != focus and entry.ratio is not None
    }


def _draw_bars(plt: Any, results: Results, place: Place, path: Path) -> bool:
    rows = [row for row in place.rows if row.unit.is_timed and _compared(row, results.focus)]
    peers = [name for name in PEERS if any(name in _compared(row, results.focus) for row in rows)]
    if not rows:
        return False
    figure, axes = plt.subplots(figsize=(9, 1.2 + 0.14 * len(rows) * (len(peers) + 1)), layout="constrained")
    height = 0.8 / len(peers)
    for index, peer in enumerate(peers):
        ratios = [(number, _compared(row, results.focus).get(peer)) for number, row in enumerate(rows)]
        known = [(number, ratio) for number, ratio in ratios if ratio is not None]
        axes.barh(
            [number + (index - (len(peers) - 1) / 2) * height for number, _ in known],
            [ratio - 1 for _, ratio in known],
            height,
            left=1,
            color=_COLOURS.get(peer),
            label=f"against {peer}",
        )
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}x")
    axes.set_yticks(range(len(rows)), [row.title for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel(f"{results.focus} is so many times as fast (right of 1x), {place.filesystem}")
    axes.legend(loc="lower center", bbox_to_anchor=(0.4, 1), ncols=len(peers))
    _write(plt, figure, path)
    return True


def _draw_curves(plt: Any, curves: list[Curve], path: Path) -> None:
    figure, grid = plt.subplots(
        1, len(curves), figsize=(3.6 * len(curves), 3.2), layout="constrained", squeeze=False
    )
    for axes, curve in zip(grid[0], curves, strict=True):
        _draw_curve(axes, curve)
    grid[0][0].legend()
    figure.suptitle(f"{curves[0].filesystem}", fontsize=9)
    _write(plt, figure, path)


def _draw_curve(axes: Any, curve: Curve) -> None:
    for name, points in curve.points.items():
        if points and name != PLAIN:  # far above all others: it would press them flat
            xs, ys = zip(*points, strict=True)
            axes.plot(xs, ys, marker="o", markersize=3, label=name, color=_COLOURS.get(name))
    axes.set_xscale("log", base=2 if "bytes" in curve.x_label or "clients" in curve.x_label else 10)
    axes.xaxis.set_major_formatter(lambda value, _: quantity_text(value, binary="bytes" in curve.x_label))
    axes.set_ylim(bottom=0)
    axes.set_title(curve.title, fontsize=9)
    axes.set_xlabel(curve.x_label)
    axes.set_ylabel(curve.y_label)


def quantity_text(value: float, *, binary: bool) -> str:
    """'64 MiB', '10 k', '16': a tick of the x axis."""
    base, units = (1024, (" B", " KiB", " MiB", " GiB")) if binary else (1000, ("", " k", " M", " G"))
    for unit in units[:-1]:
        if value < base:
            return f"{value:g}{unit}"
        value /= base
    return f"{value:g}{units[-1]}"


def _write(plt: Any, figure: Any, path: Path) -> None:
    figure.savefig(path, format="svg", metadata={"Date": None})
    plt.close(figure)
