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
    spinner.tick(MANY, alone=False)
    assert not is_held(spinner)
    wait_until(lambda: fields_of(pid)[0] == "T")
    spinner.tick(MANY, alone=False)
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


def test_a_spinner_has_no_descriptor_of_ours(spinner: WakeLatency, tmp_path: Path) -> None:
    spinner.close()
    with (tmp_path / "file").open("w") as file:
        os.set_inheritable(file.fileno(), True)
        spinner.tick(MANY)
        (pid,) = children()
        wait_until(lambda: Path(f"/proc/{pid}/comm").read_text() != Path("/proc/self/comm").read_text())
        found = {os.readlink(each) for each in Path(f"/proc/{pid}/fd").iterdir()}
    assert found == {"/dev/null"}
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
