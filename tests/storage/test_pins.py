"""Pins in the state directory: files that are missing, damaged, hostile or cannot be written."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest

from cryptfs.core.names.host import SHARED_STATE, StateNames
from cryptfs.core.slots.identity import Mark
from cryptfs.errors import UnexpectedVaultError
from cryptfs.storage import pins as pins_module
from cryptfs.storage.pins import Pin, SeenSessions, pinned

MARK = Mark("ab" * 16, "cd" * 32, 3)
HOST = StateNames("abcdefghijklmnop")


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state"


@pytest.fixture
def place(tmp_path: Path, state: Path) -> Path:
    """A directory that has a pin with sessions."""
    place = tmp_path / "vault"
    place.mkdir()
    pin = Pin()
    pin.check(place, MARK)
    pin.keep_sessions(place, SeenSessions(HOST, 7))
    return place


def pin_file(state: Path) -> Path:
    (found,) = (state / "cryptfs" / "pins").iterdir()
    return found


def fields(state: Path) -> dict[str, Any]:
    found = json.loads(pin_file(state).read_bytes())
    assert isinstance(found, dict)
    return found


def test_the_file(place: Path, state: Path) -> None:
    assert fields(state) == {
        "path": str(place),
        "vault_id": MARK.vault_id,
        "identity": MARK.identity,
        "generation": 3,
        "sessions": {"host": HOST.host, "last": 7},
    }
    assert pin_file(state).stat().st_mode & 0o777 == 0o600
    assert pin_file(state).parent.stat().st_mode & 0o777 == 0o700


def test_a_higher_generation_is_pinned_and_a_lower_one_refused(place: Path) -> None:
    Pin().check(place, dataclasses.replace(MARK, generation=5))
    assert pinned(place) == dataclasses.replace(MARK, generation=5)
    with pytest.raises(UnexpectedVaultError, match="is older than the one that this machine has seen"):
        Pin().check(place, MARK)
    assert pinned(place) == dataclasses.replace(MARK, generation=5)
    Pin(accept=True).check(place, MARK)
    assert pinned(place) == MARK
    Pin().check(place, MARK)


@pytest.mark.parametrize("change", [{"vault_id": "00" * 16}, {"identity": "00" * 32}])
def test_another_vault_is_refused(place: Path, change: dict[str, str]) -> None:
    other = dataclasses.replace(MARK, generation=99, **change)
    with pytest.raises(UnexpectedVaultError, match=other.code):
        Pin().check(place, other)
    Pin(is_off=True).check(place, other)
    assert pinned(place) == MARK
    Pin(accept=True).check(place, other)
    assert pinned(place) == other


def test_the_sessions_of_another_vault_are_forgotten(place: Path) -> None:
    assert Pin().seen_sessions(place) == SeenSessions(HOST, 7)
    Pin(accept=True).check(place, dataclasses.replace(MARK, identity="00" * 32))
    assert Pin().seen_sessions(place) == SeenSessions(HOST, 7)  # the same vault, with another masterkey
    Pin(accept=True).check(place, dataclasses.replace(MARK, vault_id="00" * 16))
    assert Pin().seen_sessions(place) is None


def test_an_expected_identity_needs_no_pin_and_overrules_an_older_one(place: Path, state: Path) -> None:
    other = dataclasses.replace(MARK, identity="00" * 32)
    for pin in (Pin(expected=other.code), Pin(expected=other.code, accept=True, is_off=True)):
        with pytest.raises(UnexpectedVaultError, match="not the expected one"):
            pin.check(place, MARK)
        assert pinned(place) == MARK
    Pin(expected=other.code).check(place, other)
    assert pinned(place) == other
    with pytest.raises(UnexpectedVaultError, match="is older"):
        Pin(expected=other.code).check(place, dataclasses.replace(other, generation=1))
    pin_file(state).unlink()
    with pytest.raises(UnexpectedVaultError, match="not the expected one"):
        Pin(expected=other.code).check(place, MARK)


def test_a_pin_that_is_off_reads_and_writes_nothing(tmp_path: Path, state: Path) -> None:
    pin = Pin(is_off=True)
    pin.check(tmp_path, MARK)
    pin.keep(tmp_path, MARK)
    pin.keep_sessions(tmp_path, SeenSessions(SHARED_STATE, 1))
    assert pin.seen_sessions(tmp_path) is None
    assert pin.met == MARK
    assert not state.exists()


def test_paths_of_one_directory_have_one_pin(place: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(place)
    assert pinned(tmp_path / "link") == MARK
    place.rename(tmp_path / "moved")
    assert pinned(tmp_path / "moved") is None


def test_a_path_that_is_not_text(tmp_path: Path, state: Path) -> None:
    place = tmp_path / os.fsdecode(b"\xff vault")
    place.mkdir()
    Pin().check(place, MARK)
    assert pinned(place) == MARK


def test_machines_that_share_a_home_have_pins_of_their_own(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pins_module, "machine_id", lambda: b"f" * 32)
    assert pinned(place) is None


DAMAGE: dict[str, Any] = {
    "empty": b"",
    "no JSON": b"\xff{",
    "deep": b"[" * 60_000,
    "a list": b"[]",
    "large": b" " * 70_000 + b"{}",
    "path": {"path": "/elsewhere"},
    "no path": {"path": None},
    "vault_id": {"vault_id": 7},
    "vault_id not in hex": {"vault_id": "xyz"},
    "identity": {"identity": "cd"},
    "no identity": {"identity": None},
    "generation": {"generation": "3"},
    "generation true": {"generation": True},
    "generation below 0": {"generation": -1},
    "large generation": {"generation": 2**64},
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_pin_is_as_none(place: Path, state: Path, damage: bytes | dict[str, Any]) -> None:
    content = damage if isinstance(damage, bytes) else json.dumps(fields(state) | damage).encode()
    pin_file(state).write_bytes(content)
    assert pinned(place) is None
    assert Pin().seen_sessions(place) is None
    other = dataclasses.replace(MARK, identity="00" * 32)
    Pin().check(place, other)
    assert pinned(place) == other


@pytest.mark.parametrize(
    "sessions",
    [7, {}, {"host": HOST.host}, {"last": 7}, {"host": 1, "last": 7}, {"host": HOST.host, "last": True}]
    + [{"host": host, "last": 7} for host in ("../../etc", "a", "abcdefghijklmno/", "a" * 17)],
)
def test_damaged_sessions_are_as_none(place: Path, state: Path, sessions: object) -> None:
    pin_file(state).write_text(json.dumps(fields(state) | {"sessions": sessions}))
    assert pinned(place) == MARK
    assert Pin().seen_sessions(place) is None


def test_a_link_or_fifo_in_its_place_is_not_followed(place: Path, state: Path) -> None:
    file = pin_file(state)
    file.rename(state / "real")
    file.symlink_to(state / "real")
    assert pinned(place) is None
    file.unlink()
    os.mkfifo(file)
    assert pinned(place) is None


@pytest.mark.parametrize("in_the_way", ["state", "state/cryptfs", "state/cryptfs/pins"])
def test_a_state_directory_that_cannot_be_made(tmp_path: Path, state: Path, in_the_way: str) -> None:
    """A file in its place: root may write everywhere else."""
    obstacle = tmp_path / in_the_way
    obstacle.parent.mkdir(parents=True, exist_ok=True)
    obstacle.write_bytes(b"")
    Pin().check(tmp_path, MARK)
    Pin().keep_sessions(tmp_path, SeenSessions(HOST, 1))
    assert pinned(tmp_path) is None
    assert obstacle.read_bytes() == b""
