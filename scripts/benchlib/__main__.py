"""Measure mounts of cryptfs against gocryptfs and a plain directory.

All subjects are mounted at once and idle but for the one whose turn it is. In each round every workload runs
on each of them, one after another; the order moves on by one from round to round. So whatever else the
machine does hits all alike, and the ratio within a round says more than a rate.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from benchlib import machine, memory, report, subjects
from benchlib.statistics import figure
from benchlib.workloads import QUICK, WORKLOADS, Run, Sample, Sizes

DEFAULT_VARIANTS = ("cryptfs::", "cryptfs-noxattrs::--no-xattrs")
Samples = dict[str, dict[str, list[Sample]]]  # quantity -> subject -> one a round


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="rounds; 5 unless said")
    parser.add_argument("--quick", action="store_true", help="small sizes")
    parser.add_argument(
        "--dir",
        type=Path,
        action="append",
        metavar="DIRECTORY",
        help="where vaults are made, on tmpfs for the processor's cost or on a disk; may be repeated; "
        "/dev/shm unless said",
    )
    parser.add_argument(
        "--variant",
        action="append",
        metavar="NAME:INIT:MOUNT",
        help="cryptfs with options of init and mount, such as 'c64:--chunk-size 64k:--no-xattrs'; may be "
        f"repeated; {' and '.join(DEFAULT_VARIANTS)} unless said",
    )
    parser.add_argument(
        "--wait-idle",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="before each turn wait until nobody else uses the processors, SECONDS at most; 0 unless said",
    )
    parser.add_argument("--against", default="gocryptfs", metavar="NAME", help="what ratios are taken to")
    parser.add_argument("--workload", action="append", choices=[each.__name__ for each in WORKLOADS])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything measured to FILE")
    parser.add_argument(
        "--memory", type=int, metavar="MIB", help="instead: resident memory after MIB written and read back"
    )
    return parser.parse_args()


def chosen_subjects(variants: list[str]) -> list[subjects.Subject]:
    """The plain directory, gocryptfs, and the variants of cryptfs."""
    found: list[subjects.Subject] = [subjects.PlainDirectory("plain"), subjects.gocryptfs()]
    for variant in variants:
        name, init_options, mount_options = (*variant.split(":"), "", "")[:3]
        found.append(subjects.cryptfs(name, init_options, mount_options))
    return found


def measure(places: list[tuple[subjects.Subject, Path]], options: argparse.Namespace) -> Samples:
    """All rounds."""
    samples: Samples = {}
    sizes = QUICK if options.quick else Sizes()
    workloads = [each for each in WORKLOADS if not options.workload or each.__name__ in options.workload]
    screen = Console(stderr=True)
    with Progress(console=screen, transient=True, disable=not screen.is_terminal) as progress:
        task = progress.add_task("", total=options.rounds * len(workloads) * len(places))
        for number in range(options.rounds):
            for workload in workloads:
                turn = number % len(places)
                for subject, directory in places[turn:] + places[:turn]:
                    progress.update(task, description=f"{workload.__name__}, {subject.name}")
                    run = Run(directory, subject.cpu)
                    machine.drop_caches()
                    if options.wait_idle:
                        machine.wait_until_idle(options.wait_idle)
                    workload(run, sizes)
                    for quantity, sample in run.samples.items():
                        samples.setdefault(quantity, {}).setdefault(subject.name, []).append(sample)
                    progress.advance(task)
    return samples


def bench(directory: Path, options: argparse.Namespace, console: Console) -> dict[str, object]:
    """Everything in one directory: mount, measure, unmount, show."""
    present = chosen_subjects(options.variant or list(DEFAULT_VARIANTS))
    place = Path(tempfile.mkdtemp(prefix="cryptfs-bench-", dir=directory))
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, place, ignore_errors=True)
        places = []
        for subject in present:
            home = place / subject.name
            home.mkdir()
            stack.callback(subject.stop)
            places.append((subject, subject.start(home)))
        if options.memory:
            return memory.measure(places, options.memory, console)
        samples = measure(places, options)
    figures = {
        quantity: {name: figure(quantity, row) for name, row in by_subject.items()}
        for quantity, by_subject in samples.items()
    }
    names = [subject.name for subject in present]
    report.show(figures, names, options.against, console)
    return report.as_json(figures, names, options.against)


def main() -> None:
    """Run the command line."""
    options = arguments()
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 200)
    described = machine.describe()
    described["command"] = "scripts/bench " + " ".join(sys.argv[1:])
    described["caches_dropped"] = os.geteuid() == 0
    console.print(
        "{date}, {cpu}, {cores} cores, kernel {kernel}, Python {python}, {gocryptfs}".format(**described)
    )
    results = {}
    for directory in options.dir or [Path("/dev/shm")]:
        console.print(f"\n{directory}: {options.rounds} rounds{', quick' if options.quick else ''}")
        results[str(directory)] = bench(directory, options, console)
    described["load_after"] = os.getloadavg()[0]
    console.print("load average {load_before} before, {load_after} after".format(**described))
    if options.json is not None:
        options.json.write_text(json.dumps({"machine": described, "results": results}, indent=2) + "\n")


main()
