"""Mounting: how long it takes, and how much memory the daemon holds when nothing happens."""

from __future__ import annotations

import time

from benchlib.machine import resident_bytes
from benchlib.quantities import Quantity, Unit, Workload
from benchlib.run import Run
from benchlib.subjects import Subject

MOUNT = "mount, passphrase derivation apart"
IDLE = "memory, idle"
LOAD = "memory, highest under load"
_SETTLE = 0.5  # seconds; what a daemon does after its start belongs to the start


def mount_again(run: Run, subject: Subject) -> None:
    """Take the mount away and bring it back; then look at the daemon."""
    if subject.pid is None:
        return
    subject.stop()
    before = time.perf_counter()
    subject.start()
    seconds = time.perf_counter() - before
    run.note(MOUNT, 1, max(0.001, seconds - subject.derivation_seconds()))
    time.sleep(_SETTLE)
    run.note(IDLE, resident_bytes(subject.pid)[0])


def _by_owner_only(run: Run) -> None:
    raise RuntimeError("a mount is taken away by the process that made it")


WORKLOADS = (
    Workload(
        "mount",
        "the mount itself",
        _by_owner_only,
        (
            Quantity(MOUNT, Unit.SECONDS, "derivation taken off for cryptfs; cheap or default for others"),
            Quantity(IDLE, Unit.MEMORY, "resident, half a second after mounting"),
            Quantity(LOAD, Unit.MEMORY, "resident, over all workloads of the round"),
        ),
        whole_mount=True,
    ),
)
