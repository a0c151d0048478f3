"""scripts/soak: run the parts, show how they go, and what they found."""

from __future__ import annotations

import argparse
import os
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
NOTHING_RAN = 5  # pytest's exit code
TAIL = 30


@dataclass
class Outcome:
    """What became of a part. said: the last line of its last run."""

    part: Part
    runs: int = 0
    seconds: float = 0.0
    findings: int = 0
    skipped: bool = False
    said: str = ""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="scripts/soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0, help="for the parts that repeat, in all")
    parser.add_argument("--seconds", type=float, help="the same in seconds")
    parser.add_argument("--engine", choices=("native", "fusepy", "both"), default="both", help="of `outside`")
    parser.add_argument("--kills", type=int, default=1000, help="of the daemon")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the first run of each part")
    parser.add_argument(
        "--only", action="append", choices=[part.name for part in PARTS], help="may be given again"
    )
    parser.add_argument("--list", action="store_true", help="say what there is, and run nothing")
    chosen = parser.parse_args(arguments)
    if chosen.seconds is not None:
        chosen.minutes = chosen.seconds / 60
    return chosen


def command_of(part: Part, chosen: argparse.Namespace) -> list[str]:
    """The words of a part's command."""
    engines = 2 if chosen.engine == "both" else 1
    values = {
        "fuzz": FUZZ_SECONDS,
        "seconds": min(ROUND_SECONDS, chosen.minutes * 60 / engines),
        "engine": chosen.engine,
        "minutes": chosen.minutes,
    }
    words = [word.format(**values) for word in part.command]
    return words if words[0].startswith("scripts/") else [sys.executable, *words]


def run_once(part: Part, chosen: argparse.Namespace, settings: dict[str, str], log: Path) -> int:
    """One run; returns its exit code. What it says goes to the log."""
    with log.open("ab") as output:
        return subprocess.run(
            command_of(part, chosen),
            env=os.environ | settings,
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        ).returncode


def run(part: Part, chosen: argparse.Namespace, seconds: float, logs: Path, console: Console) -> Outcome:
    """A part: once, or with new seeds until its time is over."""
    outcome = Outcome(part)
    begin = time.monotonic()
    seed = chosen.seed
    while True:
        settings = {name: value.format(kills=chosen.kills) for name, value in part.settings.items()}
        settings["CRYPTFS_CRASH_SEED"] = str(seed)
        log = logs / f"{part.name}-{seed}.log"
        code = run_once(part, chosen, settings, log)
        lines = log.read_text(errors="replace").splitlines() or [""]
        outcome.runs += 1
        outcome.seconds = time.monotonic() - begin
        outcome.said = lines[-1]
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
        found = "skipped" if outcome.skipped else str(outcome.findings)
        minutes = f"{outcome.seconds / 60:.1f}"
        table.add_row(outcome.part.name, str(outcome.runs), minutes, found, outcome.said.strip("= "))
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was chosen; 1 if anything was found."""
    chosen = parse(arguments)
    console = Console(stderr=True)
    parts = [part for part in PARTS if not chosen.only or part.name in chosen.only]
    if chosen.list:
        for part in PARTS:
            print(f"{part.name:10}{part.what}")
        return 0
    logs = Path(tempfile.mkdtemp(prefix="cryptfs-soak-"))
    repeating = sum(part.repeats for part in parts)
    outcomes = []
    for part in parts:
        console.print(f"{time.strftime('%H:%M:%S')}  {part.name}: {part.what}", markup=False, highlight=False)
        share = chosen.minutes * 60 / repeating if repeating else 0.0
        outcomes.append(run(part, chosen, share, logs, console))
    Console().print(table_of(outcomes, chosen.seed))
    return int(any(outcome.findings for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
