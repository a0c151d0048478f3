"""The file that remembers which key slot opened a vault last: where it is, and what may be in its place."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cryptfs.storage.userstate import recall, remember, state_directory
from tests.cli.test_offers import place

__all__ = ["place"]  # a fixture


@pytest.fixture
def vault_id() -> Iterator[str]:
    yield "ab" * 16


def test_what_a_later_version_remembers_stays(place: Path, vault_id: str) -> None:
    directory = place / "state" / "cryptfs"
    directory.mkdir(parents=True)
    file = directory / f"{vault_id}.json"
    file.write_text('{"slot": 1, "code": "abc"}')
    remember(vault_id, slot=2)
    assert json.loads(file.read_text()) == {"slot": 2, "code": "abc"}
    assert [each.name for each in directory.iterdir()] == [file.name]
    assert file.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("way", ["file", "link", "fifo", "directory"])
def test_places_that_cannot_be_used(place: Path, vault_id: str, way: str) -> None:
    directory = place / "state" / "cryptfs"
    file = directory / f"{vault_id}.json"
    if way == "file":
        (place / "state").touch()
    else:
        directory.mkdir(parents=True)
    if way == "link":
        (place / "elsewhere").write_text('{"slot": 1}')
        file.symlink_to(place / "elsewhere")
    elif way == "fifo":
        os.mkfifo(file)
    elif way == "directory":
        file.mkdir()
    assert recall(vault_id).slot is None
    remember(vault_id, slot=2)  # no error
    assert recall(vault_id).slot == (2 if way in ("link", "fifo") else None)


def test_where_it_is(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert state_directory() == place / "state" / "cryptfs"
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    monkeypatch.setenv("HOME", str(place / "home"))
    assert state_directory() == place / "home" / ".local" / "state" / "cryptfs"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can have the home of another user")
def test_root_leaves_the_home_of_a_user_alone(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "home").mkdir()
    os.chown(place / "home", 1234, 1234)
    monkeypatch.setenv("XDG_STATE_HOME", str(place / "home" / "state"))
    assert state_directory() is None
    remember("ab" * 16, slot=1)
    assert list((place / "home").iterdir()) == []
