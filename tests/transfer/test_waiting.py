"""When a copy uses threads for small files."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

import cryptfs
from cryptfs.transfer.copying import TreeCopy
from cryptfs.transfer.entrycopy import Copied
from cryptfs.transfer.plainside import PlainDirectory, PlainSide
from cryptfs.transfer.vaultside import VaultSide
from cryptfs.transfer.waiting import PROBE, TURN, DiskWaits, waits_of_this_thread


class Disk:
    """Counts waits: `each` for an entry that this thread copies alone."""

    def __init__(self, each: float) -> None:
        self.each = each
        self.waits = 0.0
        self.joined = 0

    def copy(self, waiting: DiskWaits, entries: int) -> int:
        """How many of so many entries went to the threads."""
        given = 0
        for _ in range(entries):
            if waiting.pays(self.join):
                given += 1
            else:
                self.waits += self.each
        return given

    def join(self) -> None:
        self.joined += 1


def waiting_on(disk: Disk) -> DiskWaits:
    return DiskWaits(lambda: int(disk.waits))


@pytest.mark.parametrize("each", [0.0, 0.1, 0.4])
def test_one_thread_where_it_does_not_wait(each: float) -> None:
    disk = Disk(each)
    assert disk.copy(waiting_on(disk), 5000) == 0
    assert disk.joined == 1  # before the first entry, when nobody is at work


@pytest.mark.parametrize("each", [0.5, 1.0, 20.0])
def test_threads_where_it_waits_for_the_disk(each: float) -> None:
    disk = Disk(each)
    assert disk.copy(waiting_on(disk), PROBE + TURN) == TURN
    assert disk.copy(waiting_on(disk), PROBE) == 0  # a look now and then


def test_it_notices_when_the_rest_is_in_memory() -> None:
    disk = Disk(2.0)
    waiting = waiting_on(disk)
    disk.copy(waiting, PROBE + TURN)
    disk.each = 0.0
    assert disk.copy(waiting, 5000) == 0
    assert disk.joined == 2
    disk.each = 2.0
    assert disk.copy(waiting, 2 * PROBE + TURN) >= TURN - PROBE


def test_a_sleep_is_a_wait_and_work_is_not() -> None:
    before = waits_of_this_thread()
    time.sleep(0.001)
    time.sleep(0.001)
    assert waits_of_this_thread() - before >= 2


@pytest.mark.parametrize("pays", [True, False])
def test_both_ways_copy_the_same(
    opened: cryptfs.Vault, tmp_path: Path, pays: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DiskWaits, "pays", lambda *_: pays)
    for number in range(60):
        place = tmp_path / "tree" / str(number % 3) / "below" / str(number)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(bytes([number]) * number)
    problems: list[object] = []
    side = VaultSide(opened, lambda *each: problems.append(each))
    plain, counted = PlainSide(PlainDirectory.at(str(tmp_path))), Copied()
    copy = TreeCopy(plain, side, lambda *each: problems.append(each), counted, verify=True)
    copy.run(PlainDirectory.at(str(tmp_path)), b"tree", *opened.places.find("tree", follow=False), b"tree")
    assert problems == []
    assert (counted.entries, counted.verified) == (67, 60)
    for place in (tmp_path / "tree").rglob("*"):
        name = str(place.relative_to(tmp_path))
        assert opened.stat(name).st_mtime_ns == place.stat().st_mtime_ns
        if place.is_file():
            with opened.open(name, "rb") as file:
                assert file.read() == place.read_bytes()
