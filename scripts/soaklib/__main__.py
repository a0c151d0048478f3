"""scripts/soak: run the parts, show how they go, and what they found.

Ctrl-C ends the part that runs, waits until it has unmounted and removed what it made, and shows the table.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from soaklib.parts import PARTS, Part

FUZZ_SECONDS = 300
ROUND_SECONDS = 60.0
"""Of one round of `outside` with one engine: a fresh vault now and then."""
QUICK_FUZZ_SECONDS = 5
QUICK_SECONDS = 10.0
QUICK_EDITS = 150
SIZES = "CRYPTFS_"
"""How the settings begin that make a part larger than it is in scripts/test."""
NOTHING_RAN = 5  # pytest's exit code
INTERRUPTED = 130
TAIL = 30


@dataclass
class Outcome:
    """What became of a part. said: the last line of its last run."""

    part: Part
    runs: int = 0
    seconds: float = 0.0
    findings: int = 0
    skipped: bool = False
    interrupted: bool = False
    said: str = ""

    @property
    def verdict(self) -> str:
        """For the table."""
        if self.interrupted:
            return "interrupted"
        return "skipped" if self.skipped else str(self.findings)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="scripts/soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0, help="for the parts that repeat, in all")
    parser.add_argument("--seconds", type=float, help="the same in seconds")
    parser.add_argument(
        "--engine",
        choices=("native", "fusepy", "both"),
        default="both",
        help="of parts that run on one",
    )
    parser.add_argument("--kills", type=int, default=1000, help="of the daemon")
    parser.add_argument("--edits", type=int, default=5000, help="in each run of `syncthing` on one engine")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the first run of each part")
    parser.add_argument(
        "--quick", action="store_true", help="each part once and as small as in scripts/test: do all work?"
    )
    parser.add_argument(
        "--only", action="append", choices=[part.name for part in PARTS], help="may be given again"
    )
    parser.add_argument("--list", action="store_true", help="say what there is, and run nothing")
    chosen = parser.parse_args(arguments)
    if chosen.seconds is not None:
        chosen.minutes = chosen.seconds / 60
    if chosen.quick:
        chosen.minutes, chosen.edits = 0.0, min(chosen.edits, QUICK_EDITS)
    return chosen


def command_of(part: Part, chosen: argparse.Namespace) -> list[str]:
    """The words of a part's command."""
    engines = 2 if chosen.engine == "both" else 1
    values = {
        "fuzz": QUICK_FUZZ_SECONDS if chosen.quick else FUZZ_SECONDS,
        "seconds": QUICK_SECONDS if chosen.quick else min(ROUND_SECONDS, chosen.minutes * 60 / engines),
        "engine": chosen.engine,
        "edits": chosen.edits,
    }
    words = [word.format(**values) for word in part.command]
    return words if words[0].startswith("scripts/") else [sys.executable, *words]


def settings_of(part: Part, chosen: argparse.Namespace, seed: int) -> dict[str, str]:
    """What a run has in its environment. With --quick no sizes: then the tests are as in scripts/test."""
    settings = {name: value.format(kills=chosen.kills) for name, value in part.settings.items()}
    if chosen.quick:
        settings = {name: value for name, value in settings.items() if not name.startswith(SIZES)}
    return settings | {"CRYPTFS_CRASH_SEED": str(seed)}


def run_once(part: Part, chosen: argparse.Namespace, settings: dict[str, str], log: Path) -> int:
    """One run; returns its exit code. What it says goes to the log.

    It has a process group of its own, so that Ctrl-C comes to it once, and we are there until it has ended.

    Raises: KeyboardInterrupt: somebody has interrupted us, and the run has ended.
    """
    with log.open("ab") as output:
        process = subprocess.Popen(
            command_of(part, chosen),
            env=os.environ | settings,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            process_group=0,
        )
    interrupted = False
    while True:
        try:
            code = process.wait()
            break
        except KeyboardInterrupt:
            interrupted = True
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGINT)
    if interrupted:
        raise KeyboardInterrupt
    return code


def run(part: Part, chosen: argparse.Namespace, seconds: float, logs: Path, console: Console) -> Outcome:
    """A part: once, or with new seeds until its time is over."""
    outcome = Outcome(part)
    begin = time.monotonic()
    seed = chosen.seed
    while True:
        settings = settings_of(part, chosen, seed)
        log = logs / f"{part.name}-{seed}.log"
        code = INTERRUPTED
        try:
            code = run_once(part, chosen, settings, log)
        except KeyboardInterrupt:
            outcome.interrupted = True
        lines = log.read_text(errors="replace").splitlines() or [""]
        outcome.runs += 1
        outcome.seconds = time.monotonic() - begin
        outcome.said = lines[-1]
        if outcome.interrupted:
            return outcome
        outcome.skipped = code == NOTHING_RAN or (" skipped" in lines[-1] and " passed" not in lines[-1])
        if code not in (0, NOTHING_RAN):
            outcome.findings += 1
            again = " ".join(f"{name}={value}" for name, value in settings.items())
            console.print(f"FOUND in {part.name}, seed {seed}; the whole log: {log}", markup=False)
            console.print("\n".join(lines[-TAIL:]), markup=False, highlight=False)
            console.print(
                f"again: {again} {' '.join(command_of(part, chosen))}", markup=False, highlight=False
            )
        if not part.repeats or outcome.skipped or outcome.seconds >= seconds:
            return outcome
        seed += 1


def table_of(outcomes: list[Outcome], seed: int) -> Table:
    """The summary."""
    table = Table(title=f"soak, first seed {seed}")
    for column in ("part", "runs", "minutes", "findings", "last line"):
        table.add_column(column, justify="left" if column in ("part", "last line") else "right")
    for outcome in outcomes:
        minutes = f"{outcome.seconds / 60:.1f}"
        table.add_row(
            outcome.part.name, str(outcome.runs), minutes, outcome.verdict, outcome.said.strip("= ")
        )
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was chosen; 1 if anything was found, 130 if somebody has interrupted it."""
    chosen = parse(arguments)
    console = Console(stderr=True)
    parts = [part for part in PARTS if not chosen.only or part.name in chosen.only]
    if chosen.list:
        for part in PARTS:
            print(f"{part.name:10}{part.what}")
        return 0
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell starts what is behind `&` with SIGINT ignored
        signal.signal(number, signal.default_int_handler)
    logs = Path(tempfile.mkdtemp(prefix="cryptfs-soak-"))
    repeating = sum(part.repeats for part in parts)
    outcomes: list[Outcome] = []
    for part in parts:
        console.print(f"{time.strftime('%H:%M:%S')}  {part.name}: {part.what}", markup=False, highlight=False)
        share = chosen.minutes * 60 / repeating if repeating else 0.0
        outcomes.append(run(part, chosen, share, logs, console))
        if outcomes[-1].interrupted:
            break
    Console().print(table_of(outcomes, chosen.seed))
    if outcomes and outcomes[-1].interrupted:
        console.print(f"interrupted; the logs are kept: {logs}", markup=False, highlight=False)
        return INTERRUPTED
    if any(outcome.findings for outcome in outcomes):
        return 1
    shutil.rmtree(logs)
    return 0


if __name__ == "__main__":
    sys.exit(main())
