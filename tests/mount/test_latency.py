"""Keeping processors awake: where it is asked for, for how long, and that it ends by itself."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cryptfs.mount import latency
from cryptfs.mount.latency import WakeLatency, would_help
from tests.mount.native_kernel import kernel_for
from tests.support import BareVault, open_descriptors

pytestmark = pytest.mark.serial

MANY = 50
ZERO, ANY = b"\0\0\0\0", b"\xff\xff\xff\xff"


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A virtual machine with two processors. Returns: the device file, which keeps all that is written."""
    driver = tmp_path / "current_driver"
    driver.write_text("haltpoll\n")
    device = tmp_path / "cpu_dma_latency"
    device.touch()
    monkeypatch.setattr(latency, "_IDLE_DRIVER", driver)
    monkeypatch.setattr(latency, "_DEVICE", device)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(latency, "usable_cores", lambda: 1)  # so that no spinner is used
    return device


@pytest.fixture
def wish() -> Iterator[WakeLatency]:
    made = WakeLatency(wanted=True)
    yield made
    made.close()


def test_it_is_held_from_many_requests_until_there_are_none(machine: Path, wish: WakeLatency) -> None:
    wish.tick(1)
    assert machine.read_bytes() == b""
    wish.tick(MANY)
    assert machine.read_bytes() == ZERO
    for requests in (MANY, 0, 0, 1, 0, 0, MANY, 0, 0):
        wish.tick(requests)
        assert wish.held
    wish.tick(0)
    assert not wish.held
    assert machine.read_bytes() == ZERO + ANY
    wish.tick(0)
    wish.tick(MANY)
    assert machine.read_bytes() == ZERO + ANY + ZERO


def test_the_end_of_the_work_releases_it_and_closing_takes_the_descriptor(
    machine: Path, wish: WakeLatency
) -> None:
    before = open_descriptors()
    wish.tick(MANY)
    wish.release()
    wish.release()
    assert machine.read_bytes() == ZERO + ANY
    wish.tick(MANY)
    wish.close()
    wish.close()
    assert not wish.held
    assert open_descriptors() == before


@pytest.fixture
def spinner(machine: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WakeLatency]:
    """As for an ordinary user: nobody may write to the device."""
    machine.unlink()
    monkeypatch.setattr(latency, "usable_cores", lambda: 2)
    made = WakeLatency(wanted=True)
    made.tick(MANY)  # refused
    assert not is_held(made)
    made.tick(MANY)
    yield made
    made.close()


def children() -> list[int]:
    """Process ids of the spinners of this process. Other tests may have left children of another kind."""
    pids = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    found = {int(pid): Path(f"/proc/{pid}/cmdline").read_bytes() for pid in pids}
    if b"" in [line for pid, line in found.items() if fields_of(pid)[0] != "Z"]:
        time.sleep(0.01)  # it has not yet become another program
        return children()
    return [pid for pid, line in found.items() if b"cryptfs-awake" in line]


def fields_of(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on: S, parent, group, session ... 16: nice."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def is_held(spinner: WakeLatency) -> bool:
    """Whether it is held now."""
    return spinner.held


def holds(spinner: WakeLatency) -> bool:
    """Whether it is held after a further millisecond with many requests."""
    time.sleep(0.001)
    spinner.tick(MANY)
    return spinner.held


def test_a_spinner_counts_at_the_lowest_priority_and_stops_with_the_burst(spinner: WakeLatency) -> None:
    assert is_held(spinner)
    (pid,) = children()
    wait_until(lambda: fields_of(pid)[0] == "R")
    assert fields_of(pid)[16] == "19"
    for _ in range(4):
        spinner.tick(0)
    assert not is_held(spinner)
    wait_until(lambda: fields_of(pid)[0] == "T")
    spinner.tick(MANY)
    assert is_held(spinner)
    assert children() == [pid]
    wait_until(lambda: fields_of(pid)[0] == "R")
    spinner.close()
    assert children() == []


def test_a_spinner_is_not_in_the_way_of_several_threads(spinner: WakeLatency) -> None:
    (pid,) = children()
    spinner.tick(MANY, None)
    assert not is_held(spinner)
    wait_until(lambda: fields_of(pid)[0] == "T")
    spinner.tick(MANY, None)
    assert not is_held(spinner)
    spinner.tick(MANY)
    assert is_held(spinner)


def test_a_spinner_rests_where_others_want_the_processor(
    spinner: WakeLatency, monkeypatch: pytest.MonkeyPatch
) -> None:
    (pid,) = children()
    work = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
    try:
        wait_until(lambda: not holds(spinner))
        wait_until(lambda: fields_of(pid)[0] == "T")
        assert not holds(spinner)  # for a while
        later = time.monotonic() + 2
        monkeypatch.setattr("cryptfs.mount.latency.time.monotonic", lambda: later)
        assert holds(spinner)
    finally:
        for each in work:
            each.kill()
            each.wait()


SPINS = "import os, sys; print(os.getpid(), flush=True)\nwhile True: pass"


@pytest.fixture
def server_and_caller() -> Iterator[tuple[int, int]]:
    """Two programs that compute, on different processors."""
    if len(os.sched_getaffinity(0)) < 2:
        pytest.fail("this test needs two processors")
    programs = [subprocess.Popen([sys.executable, "-c", SPINS], stdout=subprocess.PIPE) for _ in range(2)]
    try:
        for program, processor in zip(programs, sorted(os.sched_getaffinity(0)), strict=False):
            assert program.stdout is not None
            program.stdout.readline()
            os.sched_setaffinity(program.pid, {processor})
        yield programs[0].pid, programs[1].pid
    finally:
        for program in programs:
            program.kill()
            program.wait()
            assert program.stdout is not None
            program.stdout.close()


def test_the_server_goes_to_where_the_program_is(
    spinner: WakeLatency, server_and_caller: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both may run everywhere before and after; nothing is moved where they are together, or unknown."""
    server, caller = server_and_caller
    (pid,) = children()
    moved: list[tuple[int, set[int]]] = []
    set_affinity = os.sched_setaffinity

    def spy(thread: int, processors: set[int]) -> None:
        moved.append((thread, set(processors)))
        set_affinity(thread, processors)

    here, there = (latency._processor_of(each) for each in (server, caller))
    assert here != there
    monkeypatch.setattr(os, "sched_setaffinity", spy)
    (means,) = spinner._means
    assert means.bring_together(server, caller)
    assert moved[0] == (server, {there})
    assert (pid, {here}) in moved
    assert latency._processor_of(server) in {there, here}  # its own mask has one processor: it had to go back
    for pair in ((0, caller), (server, 0), (caller, caller), (server, 2**22 + 5)):
        moved.clear()
        assert not means.bring_together(*pair)
        assert moved == []


class Scheduler:
    """Stands in for a machine. apart: whether it has moved one of the two away when somebody looks.

    idle: whether the spinner gets its processor.   looks: at where the two are.
    """

    def __init__(self, spinner: WakeLatency, monkeypatch: pytest.MonkeyPatch) -> None:
        self.apart = False
        self.idle = False
        self.looks: list[tuple[int, int]] = []
        self.now = time.monotonic()
        self._spinner = spinner
        (means,) = spinner._means
        monkeypatch.setattr(means, "has_idle_processor", lambda: self.idle)
        monkeypatch.setattr(means, "bring_together", self._bring_together)
        monkeypatch.setattr("cryptfs.mount.latency.time.monotonic", lambda: self.now)

    def _bring_together(self, server: int, caller: int) -> bool:
        self.looks.append((server, caller))
        return self.apart

    def ticks_until_it_rests(self) -> int:
        self._spinner.tick(MANY, (3, 4))
        assert is_held(self._spinner)
        for number in range(1, 10 * latency._LOOK_TICKS):
            self._spinner.tick(MANY, (3, 4))
            if not is_held(self._spinner):
                return number
        raise AssertionError("it never rests")


@pytest.fixture
def scheduler(spinner: WakeLatency, monkeypatch: pytest.MonkeyPatch) -> Scheduler:
    spinner.release()
    return Scheduler(spinner, monkeypatch)


def test_it_rests_longer_each_time_that_others_want_the_processor(
    spinner: WakeLatency, scheduler: Scheduler
) -> None:
    rests = []
    for _ in range(5):
        assert scheduler.ticks_until_it_rests() == latency._LOOK_TICKS
        rests.append(spinner._not_before - scheduler.now)
        scheduler.now = spinner._not_before
    assert rests == [1, 2, 4, 8, 8]
    assert set(scheduler.looks) == {(3, 4)}
    scheduler.idle = True
    for _ in range(3 * latency._LOOK_TICKS):
        spinner.tick(MANY, (3, 4))
    assert is_held(spinner)
    assert spinner._rest == 1


def test_two_that_come_apart_are_brought_together_again(spinner: WakeLatency, scheduler: Scheduler) -> None:
    """At once, and then often; only if that does not help, others want the processor."""
    scheduler.apart = True
    spinner.tick(MANY, (3, 4))
    assert scheduler.looks == [(3, 4)]
    for _ in range(latency._LOOK_TICKS - 1):
        spinner.tick(MANY, (3, 4))
    assert len(scheduler.looks) == latency._LOOK_TICKS // latency._PLACE_TICKS
    spinner.release()
    assert scheduler.ticks_until_it_rests() == (latency._TRIES + 1) * latency._LOOK_TICKS
    scheduler.now, scheduler.idle = spinner._not_before, True
    for _ in range(9 * latency._LOOK_TICKS):
        spinner.tick(MANY, (3, 4))
    assert is_held(spinner)  # it pays, however often they come apart
    scheduler.apart = scheduler.idle = False
    spinner.release()
    assert scheduler.ticks_until_it_rests() == latency._LOOK_TICKS


def test_a_spinner_that_somebody_ends_is_left_alone(spinner: WakeLatency) -> None:
    (pid,) = children()
    spinner.release()
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: fields_of(pid)[0] == "Z")
    spinner.tick(MANY)
    assert not is_held(spinner)
    spinner.tick(MANY)
    assert not is_held(spinner)
    assert children() == []


def open_in(pid: int) -> set[str]:
    """What a process has open."""
    found = set()
    for each in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed just now
            found.add(os.readlink(each))
    return found


def test_a_spinner_has_no_descriptor_of_ours(spinner: WakeLatency, tmp_path: Path) -> None:
    spinner.close()
    with (tmp_path / "file").open("w") as file:
        os.set_inheritable(file.fileno(), True)
        spinner.tick(MANY)
        (pid,) = children()
        wait_until(lambda: Path(f"/proc/{pid}/comm").read_text() != Path("/proc/self/comm").read_text())
        wait_until(lambda: open_in(pid) == {"/dev/null"})  # it opens its libraries first
    assert os.readlink(f"/proc/{pid}/cwd") == "/"


_HOLDS = """
import sys, time
from pathlib import Path
from cryptfs.mount import latency
latency._IDLE_DRIVER, latency._DEVICE = Path(sys.argv[1]), Path("/missing/device")
latency.os.cpu_count = latency.usable_cores = lambda: 2
wish = latency.WakeLatency(wanted=True)
wish.tick(50), wish.tick(50)
assert wish.held
if sys.argv[2] == "stopped":
    wish.release()
print(wish._means[0]._process.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("state", ["counting", "stopped"])
def test_a_spinner_ends_with_a_daemon_that_is_killed(state: str) -> None:
    command = [sys.executable, "-c", _HOLDS, str(latency._IDLE_DRIVER), state]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    try:
        wait_until(lambda: fields_of(pid)[0] == ("T" if state == "stopped" else "R"))
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    wait_until(lambda: not Path(f"/proc/{pid}").exists() or fields_of(pid)[0] == "Z")


def test_with_more_processors_there_is_no_spinner(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.unlink()
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(latency, "usable_cores", lambda: 4)
    wish = WakeLatency(wanted=True)
    for _ in range(3):
        wish.tick(MANY)
    assert not wish.held
    assert children() == []


def test_who_may_not_ask_does_so_once(machine: Path, wish: WakeLatency) -> None:
    machine.unlink()
    wish.tick(MANY)
    assert not wish.held
    machine.touch()
    wish.tick(MANY)
    assert not wish.held
    assert machine.read_bytes() == b""


def test_a_device_that_refuses_is_left_alone(
    machine: Path, wish: WakeLatency, monkeypatch: pytest.MonkeyPatch
) -> None:
    wish.tick(MANY)
    monkeypatch.setattr(latency, "_DEVICE", Path("/dev/full"))
    wish.close()
    wish.tick(MANY)  # opened anew, and refused
    assert not wish.held
    monkeypatch.setattr(latency, "_DEVICE", machine)
    wish.tick(MANY)
    assert machine.read_bytes() == ZERO


def test_it_is_not_asked_for_unless_wanted(machine: Path) -> None:
    wish = WakeLatency(wanted=False)
    wish.tick(MANY)
    assert not wish.held
    assert machine.read_bytes() == b""


@pytest.mark.parametrize(("driver", "processors"), [("intel_idle\n", 2), (None, 2), ("haltpoll\n", 64)])
def test_other_machines_are_left_alone(
    machine: Path, monkeypatch: pytest.MonkeyPatch, driver: str | None, processors: int
) -> None:
    assert would_help()
    if driver is None:
        monkeypatch.setattr(latency, "_IDLE_DRIVER", machine / "missing")
    else:
        latency._IDLE_DRIVER.write_text(driver)
    monkeypatch.setattr(os, "cpu_count", lambda: processors)
    assert not would_help()
    wish = WakeLatency(wanted=True)
    wish.tick(MANY)
    assert not wish.held


def wait_until(condition: Callable[[], bool], act: Callable[[], object] = lambda: time.sleep(0.001)) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it does not come about"
        act()


def is_open(path: Path) -> bool:
    """Whether this process has a descriptor of that file."""
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the one that lists
            if os.readlink(f"/proc/self/fd/{number}") == str(path):
                return True
    return False


def test_a_session_asks_for_it_in_a_burst_of_requests_only(
    machine: Path, vault: BareVault, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latency, "_MANY", 2)  # in a millisecond of a busy machine, too
    with kernel_for(vault) as kernel:
        kernel.lookup(b"one request")
        time.sleep(0.1)
        assert machine.read_bytes() == b""
        wait_until(lambda: machine.read_bytes()[-4:] == ZERO, lambda: kernel.lookup(b"missing"))
        wait_until(lambda: machine.read_bytes()[-4:] == ANY)
        wait_until(lambda: machine.read_bytes()[-4:] == ZERO, lambda: kernel.lookup(b"missing"))
        assert is_open(machine)
    assert not is_open(machine)
