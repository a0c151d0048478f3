"""Keeping processors awake: where it is asked for, for how long, and that it ends by itself."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cryptfs.mount.native import latency
from cryptfs.mount.native.latency import WakeLatency, would_help
from tests.support import BareVault, open_descriptors
from tests.unit.native_kernel import kernel_for

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
