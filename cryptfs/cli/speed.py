"""`cryptfs speed`."""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from cryptfs.cli.commands import command
from cryptfs.cli.output import answer_json, console, show, size_text, warn
from cryptfs.cli.params import ByteSize, Number, debug_option

if TYPE_CHECKING:
    from rich.table import Table

    from cryptfs.cli.benchmark import Benchmark, RawResult, Result

_MIN_SIZE = 1 << 20
_COPIES = 3  # of --size, in memory
_BUSY = 0.5  # load average: more than half a processor


def _measure(benchmark: Benchmark) -> tuple[list[Result], list[RawResult]]:
    """Run all steps under a progress bar, which shows on a terminal only."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from cryptfs.cli.benchmark import RawResult, Result

    results: list[Result] = []
    raw: list[RawResult] = []
    steps = list(benchmark.steps())
    screen = console(stderr=True)
    columns = (BarColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
    with Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal) as progress:
        task = progress.add_task("", total=len(steps))
        for words, step in steps:
            progress.update(task, description=words)
            for found in step():
                if isinstance(found, Result):
                    results.append(found)
                elif isinstance(found, RawResult):
                    raw.append(found)
            progress.advance(task)
    return results, raw


def _report(
    benchmark: Benchmark, threads: int, results: list[Result], raw: list[RawResult]
) -> dict[str, Any]:
    """The shape of `speed --json`; rates are 10**6 bytes a second."""
    from cryptfs.interpreter import this_interpreter
    from cryptfs.vfs.ciphers import has_aes_instructions

    return {
        "size": benchmark.size,
        "repeat": benchmark.repeat,
        "threads": threads,
        "aes_instructions": has_aes_instructions(),
        "python": asdict(this_interpreter()),
        "unit": "MB/s",
        "libsodium": [{**asdict(figure), "rate": round(figure.rate, 1)} for figure in raw],
        "results": [{**asdict(figure), "rate": round(figure.rate, 1)} for figure in results],
    }


def _show(report: dict[str, Any]) -> None:
    screen = console()
    aes = "yes" if report["aes_instructions"] else "no"
    size, repeat = size_text(report["size"]), report["repeat"]
    screen.print(f"MB/s, {size} in memory, best of {repeat}; CPU with AES: {aes}", style="bold")
    screen.print(
        f"Runs of 1 MiB; a pool of {report['threads']} threads. '-': the pool does not split these chunks"
    )
    if not report["python"]["pgo"]:
        screen.print(
            f"Python {report['python']['version']} was built without PGO. This does not slow the ciphers, "
            "but a mount needs more processor time"
        )
    for cipher in dict.fromkeys(row["cipher"] for row in report["results"]):
        show(_table(report, cipher))


def _table(report: dict[str, Any], cipher: str) -> Table:
    """The figures of one cipher; fits into 60 columns."""
    from rich import box
    from rich.table import Table

    threads = report["threads"]
    table = Table(title=cipher, title_justify="left", title_style="", box=box.SIMPLE_HEAD)
    table.padding = (0, 1, 0, 0)
    table.add_column("chunks", min_width=9)
    table.add_column("", no_wrap=True)
    for heading in ("runs\n1 thread", "runs\npool", "bulk\n1 thread", "bulk\npool", "bulk\ngain"):
        table.add_column(heading, justify="right", no_wrap=True)
    rows = [row for row in report["results"] if row["cipher"] == cipher]
    rates = {
        (row["chunk_size"], row["operation"], row["layout"], row["threads"]): row["rate"] for row in rows
    }
    split = {row["chunk_size"] for row in rows if row["min_chunks"] is not None}
    for figure in (row for row in report["libsodium"] if row["cipher"] == cipher):
        table.add_row(
            "libsodium alone", figure["operation"], "", "", f"{figure['rate']:.0f}", "", "", style="dim"
        )
    for chunk_size in dict.fromkeys(row["chunk_size"] for row in rows):
        for operation in ("seal", "open"):
            figures = [
                rates[chunk_size, operation, layout, count]
                for layout in ("requests", "bulk")
                for count in (1, threads)
            ]
            gain = f"{figures[3] / figures[2]:.2f}x" if chunk_size in split else "-"
            table.add_row(size_text(chunk_size), operation, *(f"{rate:.0f}" for rate in figures), gain)
    return table


@command()
@click.option(
    "--size",
    type=ByteSize(),
    default="300MB",
    show_default=True,
    metavar="SIZE",
    help="Plaintext for each measurement; the command needs three times as much memory.",
)
@click.option(
    "--repeat",
    type=Number(1, 100),
    default=2,
    show_default=True,
    metavar="N",
    help="Measure N times and show the best.",
)
@click.option("--threads", type=Number(2, 256), metavar="N", help="Size of the pool.  [default: the cores]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@debug_option
@click.pass_context
def speed(ctx: click.Context, size: int, repeat: int, threads: int | None, as_json: bool) -> None:
    """Measure how fast this machine encrypts and decrypts, in memory.

    The command tries both ciphers at four chunk sizes, with one thread and with the thread pool: in runs of
    1 MiB, as a mount does, and all in one run. "libsodium alone" is the bare cipher on a reused buffer: the
    limit for a mount on one thread.
    """
    from cryptfs.cli.benchmark import Benchmark
    from cryptfs.unlock.unlocking import available_memory
    from cryptfs.vfs.content.cipherpool import usable_cores

    if size < _MIN_SIZE:
        raise click.BadParameter("must be at least 1m", ctx, param_hint="--size")
    if size * _COPIES > available_memory():
        free = f"{available_memory() >> 20:,} MiB are free"
        raise click.BadParameter(
            f"needs {size * _COPIES >> 20:,} MiB of memory; {free}", ctx, param_hint="--size"
        )
    workers = max(2, usable_cores()) if threads is None else threads
    load = os.getloadavg()[0]
    if load > _BUSY:
        warn(f"other programs keep the processors busy (load {load:.1f}): these figures will be low")
    benchmark = Benchmark(size, repeat, workers)
    report = _report(benchmark, workers, *_measure(benchmark))
    if as_json:
        answer_json(report)
    else:
        _show(report)
