"""Keeping processors awake while programs send one small request after another.

Every request has two wake-ups: the program's processor goes idle while the engine works, and must be woken
for the answer. In a virtual machine a processor that goes idle is handed back to the host, and to get it
back takes longer than the work itself. There are two means, for virtual machines that would halt:

- PM QoS: root tells Linux how long a wake-up may take, and with zero it polls in its idle loop instead. All
  idle processors poll, so only with few of them. The kernel takes the wish back when the descriptor is
  closed, so also when this process is killed.
- Spinner: a small process keeps the second of two processors busy at the lowest priority. The engine goes to
  the program's processor, again whenever the scheduler parts them: there they take turns without a wake-up.
  Ordinary users may do that. It is stopped while it is not needed, and ends with this process.

Each works only while there are many requests.

Source: the kernel's Documentation/power/pm_qos_interface.rst and virt/guest-halt-polling.rst;
docs/decisions/0013 has the measurements.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from pathlib import Path
from struct import Struct
from typing import TYPE_CHECKING, Protocol

from cryptfs.vfs.content.cipherpool import usable_cores

if TYPE_CHECKING:
    import subprocess

log = logging.getLogger(__name__)

Pair = tuple[int, int]
"""Thread ids of the one thread that serves requests and of the one program that asks; 0 if unknown."""

_DEVICE = Path("/dev/cpu_dma_latency")
_IDLE_DRIVER = Path("/sys/devices/system/cpu/cpuidle/current_driver")
_HALTING_DRIVER = "haltpoll"  # the one of virtual machines that can poll before they halt
_MAX_PROCESSORS = 4
_MANY = 4  # requests in a tick, from which on it pays
_PATIENCE = 3  # ticks without a request, after which it ends

_SPINNABLE = 2  # processors: with more of them, the scheduler finds another idle one
_LOWEST_PRIORITY = 19
_PLACE_TICKS = 10  # between two looks whether both are on one processor
_LOOK_TICKS = 50  # the kernel counts the time of a process that runs in steps of 4 ms, at 250 Hz
_TRIES = 2  # such looks, in which the two had to be moved: then somebody else moves them
_IDLE_SHARE = 0.8  # of the time that a spinner gets where nobody else wants the processor
_BUSY_SECONDS = 1.0  # without a spinner where somebody does; twice as long each time, up to the next
_BUSIEST_SECONDS = 8.0
_PROCESSOR = 36  # field of /proc/PID/stat behind the name: the processor that it ran on last
_COUNT = 'while kill -0 "$1" 2>/dev/null; do i=0; while [ $i -lt 50000 ]; do i=$((i + 1)); done; done'

_MICROSECONDS = Struct("=i")
_NONE = _MICROSECONDS.pack(0)
_ANY = _MICROSECONDS.pack(-1)


def would_help() -> bool:
    """Whether this machine's processors are slow to wake, and few."""
    try:
        driver = _IDLE_DRIVER.read_text().strip()
    except OSError:
        return False
    return driver == _HALTING_DRIVER and (os.cpu_count() or 1) <= _MAX_PROCESSORS


class WakeLatency:
    """Keeps processors awake as long as there are requests.

    Used by one thread. Args: wanted: whether to do anything at all.
    """

    def __init__(self, *, wanted: bool) -> None:
        self._means: list[_Means] = []
        if wanted and would_help():
            self._means.append(_QualityOfService())
            if usable_cores() == _SPINNABLE == os.cpu_count():
                self._means.append(_Spinner())
        self._idle_ticks = 0
        self._held_ticks = 0
        self._not_before = 0.0
        self._rest = _BUSY_SECONDS
        self._moved = False
        self._tries = 0
        self.held = False

    def tick(self, requests: int, pair: Pair | None = (0, 0)) -> None:
        """Once a millisecond while there is work.

        Args: requests: that were served since the last time.
              pair: None if several threads serve, or several programs ask.
        """
        if requests >= _MANY:
            self._idle_ticks = 0
            if not self.held and self._means:
                self._hold(pair)
            elif self.held and self._means[0].needs_one_thread:
                self._look(pair)
        elif requests:
            self._idle_ticks = 0
        else:
            self._idle_ticks += 1
            if self.held and self._idle_ticks >= _PATIENCE:
                self.release()

    def _hold(self, pair: Pair | None) -> None:
        means = self._means[0]
        if means.needs_one_thread and (pair is None or time.monotonic() < self._not_before):
            return
        self._held_ticks = self._tries = 0
        try:
            means.hold()
            self._moved = pair is not None and means.bring_together(*pair)
        except OSError as error:
            log.debug("%s", error)
            self._give_up()
        else:
            self.held = True

    def _look(self, pair: Pair | None) -> None:
        """Whether it still pays. If the two had to be moved meanwhile, that is not known yet."""
        self._held_ticks += 1
        if pair is None:
            self.release()
        elif not self._held_ticks % _PLACE_TICKS:
            means = self._means[0]
            if not self._held_ticks % _LOOK_TICKS:
                if means.has_idle_processor():
                    self._tries, self._rest = 0, _BUSY_SECONDS
                elif not self._moved or self._tries == _TRIES:
                    self.release()
                    self._not_before = time.monotonic() + self._rest
                    self._rest = min(2 * self._rest, _BUSIEST_SECONDS)
                    return
                else:
                    self._tries += 1
                self._moved = False
            self._moved |= means.bring_together(*pair)

    def _give_up(self) -> None:
        """The present means does not work here."""
        self.held = False
        self._means.pop(0).close()

    def release(self) -> None:
        """Let processors sleep."""
        if self.held:
            self.held = False
            try:
                self._means[0].let_go()
            except OSError as error:
                log.debug("cannot let processors sleep again: %s", error)
                self._give_up()

    def close(self) -> None:
        """Let processors sleep, for good."""
        self.held = False
        for means in self._means:
            means.close()


class _Means(Protocol):
    """A way to keep processors awake. Each method but close may raise OSError: it does not work here.

    needs_one_thread: it is of use while one thread serves one program, and in the way otherwise.
    """

    needs_one_thread: bool

    def hold(self) -> None:
        """From now on."""

    def let_go(self) -> None:
        """Until now."""

    def has_idle_processor(self) -> bool:
        """Whether the processor that it keeps awake would have been idle since the last call."""

    def bring_together(self, server: int, caller: int) -> bool:
        """Let two threads share one processor, if they do not yet. Returns: whether anything was moved."""

    def close(self) -> None:
        """Leave nothing behind."""


class _QualityOfService:
    """The wish for a wake-up without delay, which only root may have."""

    needs_one_thread = False

    def __init__(self) -> None:
        self._fd = -1

    def hold(self) -> None:
        if self._fd < 0:
            self._fd = os.open(_DEVICE, os.O_WRONLY | os.O_CLOEXEC)
        os.write(self._fd, _NONE)

    def let_go(self) -> None:
        os.write(self._fd, _ANY)

    def has_idle_processor(self) -> bool:
        return True

    def bring_together(self, server: int, caller: int) -> bool:
        del server, caller
        return False

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class _Spinner:
    """A process that counts, at the lowest priority; it is stopped in between.

    A process, not a thread: that would take the interpreter lock at the lowest priority. It has a process
    group of its own in this session: so the kernel ends it, if it is stopped, when this process ends. If it
    counts, it notices that by itself.
    """

    needs_one_thread = True

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._looked = (0, 0)  # when, and how long it had run by then, in ns

    def hold(self) -> None:
        if self._process is None:
            import subprocess

            quiet = subprocess.DEVNULL
            self._process = subprocess.Popen(
                ("/bin/sh", "-c", _COUNT, "cryptfs-awake", str(os.getpid())),
                stdin=quiet, stdout=quiet, stderr=quiet, cwd="/", env={}, process_group=0,
            )  # fmt: skip
            os.setpriority(os.PRIO_PROCESS, self._process.pid, _LOWEST_PRIORITY)
        elif self._process.poll() is not None:
            raise ChildProcessError(f"the spinner has ended with code {self._process.returncode}")
        else:
            self._process.send_signal(signal.SIGCONT)
        self._looked = time.monotonic_ns(), self._ran_ns()

    def let_go(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGSTOP)

    def has_idle_processor(self) -> bool:
        """On a busy machine, others get the processor that it is on: then it is of no use."""
        (then, ran), self._looked = self._looked, (time.monotonic_ns(), self._ran_ns())
        now, running = self._looked
        return running - ran > (now - then) * _IDLE_SHARE

    def bring_together(self, server: int, caller: int) -> bool:
        """The server goes to where the caller is; the spinner takes the place that becomes free.

        A program that wakes up stays where it was unless another processor is idle, so they stay together.
        Each thread may run everywhere again at once: the scheduler moves them when it has a reason.
        """
        if self._process is None or not server or not caller:
            return False
        try:
            here, there = _processor_of(server), _processor_of(caller)
            if here == there:
                return False
            for thread, place in ((server, there), (self._process.pid, here)):
                allowed = os.sched_getaffinity(thread)
                os.sched_setaffinity(thread, {place})
                os.sched_setaffinity(thread, allowed)
        except (OSError, ValueError, IndexError) as error:  # one of them has ended
            log.debug("threads cannot be brought together: %s", error)
            return False
        return True

    def _ran_ns(self) -> int:
        if self._process is None:
            return 0
        try:
            return int(Path(f"/proc/{self._process.pid}/schedstat").read_bytes().split()[0])
        except (OSError, IndexError, ValueError):  # a kernel without it
            return time.monotonic_ns()

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def _processor_of(thread: int) -> int:
    return int(Path(f"/proc/{thread}/stat").read_bytes().rpartition(b")")[2].split()[_PROCESSOR])
