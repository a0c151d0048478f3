"""`cryptfs speed`."""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import rich_click as click

from cryptfs.cli.output import answer_json, console, size_text, warn
from cryptfs.cli.params import ByteSize, debug_option

if TYPE_CHECKING:
    from cryptfs.cli.benchmark import Benchmark, RawResult, Result

_MIN_SIZE = 1 << 20
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
    from cryptfs.vfs.vault import has_aes_instructions

    return {
        "size": benchmark.size,
        "repeat": benchmark.repeat,
        "threads": threads,
        "aes_instructions": has_aes_instructions(),
        "unit": "MB/s",
        "libsodium": [{**asdict(figure), "rate": round(figure.rate, 1)} for figure in raw],
        "results": [{**asdict(figure), "rate": round(figure.rate, 1)} for figure in results],
    }


def _show(report: dict[str, Any]) -> None:
    from rich import box
    from rich.table import Table

    threads = report["threads"]
    aes = "yes" if report["aes_instructions"] else "no"
    table = Table(
        title=f"MB/s, {size_text(report['size'])} in memory, best of {report['repeat']}; CPU with AES: {aes}",
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
    )
    pool = f"pool of {threads}"
    table.add_column("cipher")
    table.add_column("chunks")
    table.add_column("", no_wrap=True)
    for heading in (
        "1 MiB runs\n1 thread",
        f"1 MiB runs\n{pool}",
        "bulk\n1 thread",
        f"bulk\n{pool}",
        "bulk\ngain",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    rates = {
        (row["cipher"], row["chunk_size"], row["operation"], row["layout"], row["threads"]): row["rate"]
        for row in report["results"]
    }
    split = {(row["cipher"], row["chunk_size"]) for row in report["results"] if row["min_chunks"] is not None}
    for cipher in dict.fromkeys(row["cipher"] for row in report["results"]):
        for figure in (row for row in report["libsodium"] if row["cipher"] == cipher):
            table.add_row(
                cipher,
                "libsodium alone",
                figure["operation"],
                "",
                "",
                f"{figure['rate']:.0f}",
                "",
                "",
                style="dim",
            )
        for chunk_size in dict.fromkeys(row["chunk_size"] for row in report["results"]):
            for operation in ("seal", "open"):
                place = (cipher, chunk_size, operation)
                figures = [
                    rates[(*place, layout, count)]
                    for layout in ("requests", "bulk")
                    for count in (1, threads)
                ]
                table.add_row(
                    cipher,
                    size_text(chunk_size),
                    operation,
                    *(f"{rate:.0f}" for rate in figures),
                    f"{figures[3] / figures[2]:.2f}x" if (cipher, chunk_size) in split else "not split",
                )
        table.add_section()
    console().print(table)


@click.command()
@click.option(
    "--size",
    type=ByteSize(),
    default="300MB",
    show_default=True,
    metavar="SIZE",
    help="Plaintext of each measurement; needs about three times as much memory.",
)
@click.option(
    "--repeat",
    type=click.IntRange(1, 100),
    default=2,
    show_default=True,
    metavar="N",
    help="The best of N counts.",
)
@click.option(
    "--threads", type=click.IntRange(2, 256), metavar="N", help="Size of the pool.  [default: the cores]"
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@debug_option
@click.pass_context
def speed(ctx: click.Context, size: int, repeat: int, threads: int | None, as_json: bool) -> None:
    """Measure how fast this machine seals and opens, in memory.

    Both ciphers, at four chunk sizes, with one thread and with the pool of threads: in runs of 1 MiB, as
    a mount does it, and all in one run. "libsodium alone" is the cipher on a reused buffer, without any
    records; a mount can come near to it, but not beyond it on one thread.
    """
    from cryptfs.cli.benchmark import Benchmark
    from cryptfs.vfs.cipherpool import usable_cores

    if size < _MIN_SIZE:
        raise click.BadParameter("at least 1m, or it measures nothing", ctx, param_hint="--size")
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
