"""scripts/bench: measure, show, save."""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchlib import curves, handlers, machine, markdown, plots, report, results, targets
from benchlib.bulk import SIZE, measure_bulk
from benchlib.material import ROOT, make_material
from benchlib.options import parse, sizes_of, workloads_of
from benchlib.peers import chosen
from benchlib.rounds import Field, measure
from benchlib.run import Material
from benchlib.subjects import Subject
from benchlib.turns import Setting
from benchlib.users import Rights, as_user, require_usable, this_user


class Screen:
    """Progress on stderr; a bar on a terminal, a line for each subject elsewhere would only be noise.

    It is refreshed by hand: a thread of its own would not survive the forks of the turns.
    """

    def __init__(self) -> None:
        console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            auto_refresh=False,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("", total=None)

    def __enter__(self) -> Screen:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def expect(self, turns: int) -> None:
        """So many turns will come."""
        self._progress.reset(self._task, total=turns)

    def say(self, text: str) -> None:
        """What is going on."""
        self._progress.update(self._task, description=text)
        self._progress.refresh()

    def advance(self) -> None:
        """A turn is over."""
        self._progress.advance(self._task)


@contextlib.contextmanager
def arena_in(
    directory: Path,
    subjects: Sequence[Subject],
    setting: Setting,
    options: argparse.Namespace,
    screen: Screen,
) -> Iterator[Field]:
    """All subjects mounted below a fresh directory, and everything gone at the end."""
    place = Path(tempfile.mkdtemp(prefix="cryptfs-bench-", dir=directory))
    arena = Field(subjects, place, setting, screen.say, options.wait_idle)
    try:
        arena.open()
        yield arena
    finally:
        arena.close()
        shutil.rmtree(place, ignore_errors=True)


def bench_in(
    directory: Path, found: results.Results, options: argparse.Namespace, setting: Setting, screen: Screen
) -> None:
    """Everything in one directory."""
    workloads = workloads_of(options)
    filesystem = machine.filesystem_of(directory)
    carry = any(workload.name == "transfer" for workload in workloads)
    subjects = chosen(options.variant, options.peer, setting.material.tar.parent, carry=carry)
    with arena_in(directory, subjects, setting, options, screen) as arena:
        found.subjects = [subject.name for subject in arena.subjects]
        if workloads:
            screen.expect(options.rounds * len(workloads) * len(arena.subjects))
            cells = measure(arena, workloads, options.rounds, screen.advance)
            rows = results.rows_of(cells, workloads, found.subjects, options.focus)
            found.places.append(results.Place(directory=str(directory), filesystem=filesystem, rows=rows))
        factor = options.scale if options.scale is not None else (0.5 if options.quick else 1.0)
        for curve, problems in curves.measure_curves(
            arena, options.curves or [], factor, filesystem, big=options.big
        ):
            found.curves.append(curve)
            found.notes += problems
    if "chunk-size" in (options.curves or []):
        with arena_in(directory, curves.chunk_subjects(), setting, options, screen) as arena:
            size = min(setting.sizes.sequential, 256 << 20)
            found.curves += curves.measure_chunks(arena, size, filesystem)


HEAD = (
    "{date}, as {user}, {cpu}, {cores} cores, {memory_gib} GiB, kernel {kernel}, "
    "Python {python} ({build}), cryptfs {cryptfs}; gocryptfs {gocryptfs}, "
    "securefs {securefs}, encfs {encfs}, cryfs {cryfs}"
)
TAIL = "{seconds} s; load average {load_before} before, {load_after} after"


def measured(options: argparse.Namespace, console: Console) -> results.Results:
    """The whole run, in a process of the user who was asked for."""
    user = options.user
    if user is None or user.uid == os.geteuid():
        return measure_all(options, console, Rights())

    def work(rights: Rights) -> bytes:
        mounts = bool(workloads_of(options) or options.curves)
        require_usable(user.name, options.dir, mounts=mounts)
        return results.encoded(measure_all(options, console, rights))

    return results.decoded(as_user(user, work))


def measure_all(options: argparse.Namespace, console: Console, rights: Rights) -> results.Results:
    """The whole run, as this user."""
    described = machine.describe()
    described["command"] = "scripts/bench " + " ".join(sys.argv[1:])
    described["user"] = this_user()
    described["caches_dropped"] = rights.drop_caches()
    start = time.monotonic()
    console.print(HEAD.format(**described))
    found = results.Results(machine=described, focus=options.focus, subjects=[])
    with tempfile.TemporaryDirectory(prefix="cryptfs-bench-") as kept, Screen() as screen:
        if options.handlers:
            found.handlers = handlers_of(options, screen)
            described["against"] = str(options.against or "")
        if workloads_of(options) or options.curves:
            screen.say("packing a source tree")
            material = material_of(options, Path(kept))
            described["source_tree"] = f"{material.files} files of {options.tree}"
            setting = Setting(sizes_of(options), material, options.longest, rights)
            for directory in options.dir:
                bench_in(directory, found, options, setting, screen)
        if not options.workload and (options.targets or not (options.curves or options.handlers)):
            screen.say("encryption in memory")
            found.bulk = measure_bulk(SIZE // 10 if options.quick else SIZE)
    described["load_after"] = os.getloadavg()[0]
    described["seconds"] = round(time.monotonic() - start)
    return found


def handlers_of(options: argparse.Namespace, screen: Screen) -> list[results.Handler]:
    """Of this tree, and of another one in turns."""
    trees = [ROOT, *([] if options.against is None else [options.against])]
    screen.say("handlers without a mount")
    screen.expect((options.rounds + 1) * len(trees))
    count = handlers.COUNT // 3 if options.quick else handlers.COUNT
    found = handlers.measure(trees, options.dir[0], options.rounds, count, screen.advance)
    return [
        results.Handler(title=title, ours=costs[0], theirs=costs[1] if len(costs) > 1 else [])
        for title, costs in found.items()
    ]


def material_of(options: argparse.Namespace, place: Path) -> Material:
    """As large as the sizes of this run."""
    factor = options.scale if options.scale is not None else (0.1 if options.quick else 1.0)
    return make_material(place, options.tree, options.repository, max(20, int(2000 * min(1.0, factor))))


def main() -> int:
    """Run the command line; 1 where a target that was measured is missed and --targets was asked for."""
    options = parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # by way of the finally clauses: mounts go, too
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 200)
    found = results.load(options.source) if options.source else measured(options, console)
    report.show(found, console)
    for note in found.notes:
        console.print(f"[yellow]failed[/]: {note}")
    met = targets.show(found, console) if targets.known(found) or options.targets else True
    if options.json is not None:
        results.save(found, options.json)
    if options.markdown is not None:
        options.markdown.write_text("\n".join(markdown.lines(found)) + "\n")
    if options.plots is not None:
        for path in plots.draw(found, options.plots):
            console.print(f"drawn: {path}")
    console.print(TAIL.format(**found.machine))
    return 1 if options.targets and not met else 0


if __name__ == "__main__":
    sys.exit(main())
