"""Rounds: every workload on every subject, one after another, the order moving on from round to round.

All subjects are mounted at once and idle but for the one whose turn it is. So whatever else the machine
does hits all alike, and the ratio within a round says more than a rate. Who fails at something is not
asked for it again, is given a fresh vault, and goes on with the rest.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchlib import machine
from benchlib.quantities import Sample, Workload
from benchlib.subjects import Subject
from benchlib.turns import Outcome, Setting, take_turn
from benchlib.work_mount import LOAD

Progress = Callable[[str], None]
_GONE = (OSError, RuntimeError, subprocess.SubprocessError)


@dataclass
class Cells:
    """What was measured. samples: title -> subject -> one a round, None where there is none."""

    samples: dict[str, dict[str, list[Sample | None]]] = field(default_factory=dict)
    failures: dict[str, dict[str, str]] = field(default_factory=dict)  # title -> subject -> why

    def add(self, workload: Workload, subject: str, outcome: Outcome, number: int) -> None:
        """The outcome of a turn in a round (from 0)."""
        for title in outcome.samples:
            workload.quantity(title)  # raises where it is not announced
        for quantity in workload.quantities:
            row = self.samples.setdefault(quantity.title, {}).setdefault(subject, [])
            row += [None] * (number - len(row))
            found = outcome.samples.get(quantity.title)
            if number == len(row):
                row.append(found)
            elif found is not None:
                row[number] = found
            if found is None and outcome.failure is not None:
                self.failures.setdefault(quantity.title, {}).setdefault(subject, outcome.failure)


@dataclass
class Field:
    """The subjects in one place, mounted below it.

    Args: say: told what is going on.
    """

    subjects: Sequence[Subject]
    place: Path
    setting: Setting
    say: Progress = lambda text: None
    wait_idle: float = 0.0
    broken: dict[str, str] = field(default_factory=dict)  # subject -> why it cannot be mounted
    _vaults: int = 0
    _prepared: set[tuple[str, str]] = field(default_factory=set)

    def open(self) -> None:
        """Make and mount all. Who cannot is broken, and the others go on."""
        for subject in self.subjects:
            missing = subject.missing()
            if missing is not None:
                self.broken[subject.name] = missing
            else:
                self._make(subject)

    def _make(self, subject: Subject) -> None:
        self._vaults += 1
        home = self.place / f"{subject.name}-{self._vaults}"
        home.mkdir()
        self.say(f"making a vault: {subject.name}")
        try:
            subject.create(home)
            subject.start()
        except _GONE as error:
            self.broken[subject.name] = str(error)
            with contextlib.suppress(*_GONE):
                subject.abort()

    def close(self) -> None:
        """Unmount all."""
        for subject in self.subjects:
            with contextlib.suppress(*_GONE):
                subject.stop()

    def turn(self, subject: Subject, workload: Workload) -> Outcome:
        """One turn; what the workload needs is prepared before its first on this vault."""
        if subject.only and workload.name not in subject.only:
            return Outcome()
        if subject.name in self.broken:
            return Outcome(failure=self.broken[subject.name])
        key = (subject.name, workload.name)
        outcome = Outcome()
        if workload.prepare is not None and key not in self._prepared:
            self.say(f"preparing: {workload.title}, {subject.name}")
            outcome = take_turn(subject, workload, self.setting, prepare=True)
            self._prepared.add(key)
        if outcome.failure is None:
            self.say(f"{workload.title}, {subject.name}")
            if self.wait_idle:
                machine.wait_until_idle(self.wait_idle)
            prepared, outcome = outcome, take_turn(subject, workload, self.setting)
            outcome.memory = max(outcome.memory, prepared.memory)
        if outcome.failure is not None or not subject.healthy():
            self._renew(subject)
        return outcome

    def _renew(self, subject: Subject) -> None:
        """A fresh vault, whatever state the old one is in."""
        home = subject.directory.parent
        with contextlib.suppress(*_GONE):
            subject.stop() if subject.healthy() else subject.abort()
        shutil.rmtree(home, ignore_errors=True)
        self._prepared = {key for key in self._prepared if key[0] != subject.name}
        self._make(subject)


def measure(
    arena: Field, workloads: Sequence[Workload], rounds: int, advance: Callable[[], None] = lambda: None
) -> Cells:
    """All rounds. advance: called after each turn."""
    cells = Cells()
    given_up: dict[tuple[str, str], str] = {}
    with_load = next((each for each in workloads if each.whole_mount), None)
    for number in range(rounds):
        highest: dict[str, int] = {}
        for workload in workloads:
            for subject in _in_turn(arena.subjects, number):
                key = (subject.name, workload.name)
                outcome = Outcome(failure=given_up[key]) if key in given_up else arena.turn(subject, workload)
                if outcome.failure is not None:
                    given_up[key] = outcome.failure
                highest[subject.name] = max(highest.get(subject.name, 0), outcome.memory)
                if workload.whole_mount and highest[subject.name]:
                    outcome.samples[LOAD] = Sample(highest[subject.name], 1.0, 0.0)
                cells.add(workload, subject.name, outcome, number)
                advance()
    assert with_load is None or LOAD in cells.samples
    return cells


def _in_turn(subjects: Sequence[Subject], number: int) -> Iterator[Subject]:
    """All, beginning with another one in each round."""
    first = number % len(subjects)
    yield from subjects[first:]
    yield from subjects[:first]
