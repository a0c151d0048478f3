"""One turn in a process of its own, so that a filesystem that hangs or dies takes only its turn with it.

The child works and sends its measurements; the parent owns the daemons, watches their memory, takes the
mount away and back when the child asks for it, and ends what takes too long.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchlib.machine import resident_bytes
from benchlib.quantities import Sample, Workload
from benchlib.run import Material, Run, Sizes
from benchlib.subjects import Subject, daemon_cpu
from benchlib.users import Rights
from benchlib.work_mount import mount_again

_LOOK = 0.1  # seconds between two looks at the daemon's memory
_LINE = 65536


@dataclass
class Outcome:
    """What a turn gave: samples by title; why it failed, if it did; the daemon's highest memory in bytes."""

    samples: dict[str, Sample] = field(default_factory=dict)
    failure: str | None = None
    memory: int = 0


@dataclass(frozen=True)
class Setting:
    """What all turns have in common. longest: seconds that one may take.   rights: over the machine."""

    sizes: Sizes
    material: Material
    longest: float
    rights: Rights = field(default_factory=Rights)


def take_turn(subject: Subject, workload: Workload, setting: Setting, *, prepare: bool = False) -> Outcome:
    """Run a workload, or what prepares it, on a mounted subject; its directory is empty again after."""
    outcome = Outcome()
    if workload.whole_mount:
        _in_this_process(subject, setting, outcome)
        return outcome
    work = workload.prepare if prepare else workload.run
    assert work is not None
    directory = subject.directory / "turn"
    prepared = subject.directory / f"prepared-{workload.name}"
    try:
        directory.mkdir()
        prepared.mkdir(exist_ok=True)
    except OSError as error:
        outcome.failure = f"mkdir: {error.strerror}"
        return outcome
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        ours.close()
        home = subject.directory.parent
        run = Run(
            directory,
            setting.sizes,
            setting.material,
            subject.cpu,
            _nowhere,
            None,
            prepared,
            home,
            setting.rights,
            carrier=subject.carrier(),
        )
        _child(run, work, theirs, subject)
    theirs.close()
    with ours:
        _watch(pid, ours, subject, outcome, time.monotonic() + setting.longest)
    _clean(directory, outcome)
    return outcome


def _nowhere(title: str, sample: Sample) -> None:
    raise AssertionError(f"{title} is measured before the turn began")


def _in_this_process(subject: Subject, setting: Setting, outcome: Outcome) -> None:
    def report(title: str, sample: Sample) -> None:
        outcome.samples[title] = sample

    run = Run(subject.directory, setting.sizes, setting.material, subject.cpu, report)
    try:
        mount_again(run, subject)
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        outcome.failure = str(error)


# ---- the child


def _child(run: Run, work: Callable[[Run], None], channel: socket.socket, subject: Subject) -> None:
    """Never returns."""
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.setsid()
        pid = subject.pid

        def send(**what: Any) -> None:
            channel.sendall(json.dumps(what).encode() + b"\n")

        def report(title: str, sample: Sample) -> None:
            send(title=title, amount=sample.amount, seconds=sample.seconds, cpu=sample.cpu)

        def remount() -> None:
            nonlocal pid
            send(cold=True)
            pid = json.loads(channel.recv(_LINE))

        run.report = report
        run.cpu = subject.cpu if pid is None else lambda: daemon_cpu(pid)
        run.written = lambda: None if pid is None else run.rights.bytes_written(pid)
        run.remount = remount if pid is not None else None
        try:
            work(run)
            send(end=True)
        except BaseException as error:  # noqa: BLE001 - the parent shows it
            send(failed=explain(error))
    finally:
        os._exit(0)


def explain(error: BaseException) -> str:
    """One line for the table."""
    if isinstance(error, OSError) and error.strerror:
        call = type(error).__name__ if error.filename is None else Path(os.fsdecode(error.filename)).name
        return f"{error.strerror} ({call})"
    return f"{error}" if str(error) else type(error).__name__


# ---- the parent


def _watch(pid: int, channel: socket.socket, subject: Subject, outcome: Outcome, deadline: float) -> None:
    pending = b""
    ended = False
    poll = select.poll()  # select(2) knows no descriptor above 1023
    poll.register(channel, select.POLLIN)
    while not ended:
        if subject.pid is not None:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                outcome.memory = max(outcome.memory, resident_bytes(subject.pid)[0])
        if time.monotonic() > deadline:
            outcome.failure = "it took too long"
            break
        if not poll.poll(_LOOK * 1000):
            continue
        piece = channel.recv(_LINE)
        if not piece:
            outcome.failure = outcome.failure or "the work ended without a word"
            break
        *lines, pending = (pending + piece).split(b"\n")
        for line in lines:
            ended = _take(json.loads(line), channel, subject, outcome) or ended
    _end(pid, subject, forced=not ended)


def _take(message: dict[str, Any], channel: socket.socket, subject: Subject, outcome: Outcome) -> bool:
    """One message of the child; whether it was the last."""
    if "title" in message:
        title = message.pop("title")
        outcome.samples[title] = Sample(**message)
    elif "cold" in message:
        subject.stop()
        subject.start()
        channel.sendall(json.dumps(subject.pid).encode())
    elif "failed" in message:
        outcome.failure = message["failed"]
        return True
    return "end" in message


def _end(pid: int, subject: Subject, *, forced: bool) -> None:
    """The child is gone after this, and whatever it started; if need be by taking the mount from under it."""
    if forced:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        time.sleep(0.2)
        if os.waitpid(pid, os.WNOHANG) != (0, 0):
            return
        subject.abort()  # it waits for an answer that will not come
    os.waitpid(pid, 0)


def _clean(directory: Path, outcome: Outcome) -> None:
    try:
        shutil.rmtree(directory)
    except OSError as error:
        outcome.failure = outcome.failure or f"what it left cannot be removed: {error.strerror}"
