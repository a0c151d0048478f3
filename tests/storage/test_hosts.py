"""Which machine this is: the host id, and whose a file is by its name."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from cryptfs.core.names.host import (
    SHARED_STATE,
    StateNames,
    host_id,
    is_aside,
    is_of_some_host,
    state_of_name,
)
from cryptfs.storage import hosts
from cryptfs.storage.hosts import journals_of_others, lasting_inode, machine_id, machine_state, set_aside

VAULT_ID = bytes(range(16))
HEX = "0123456789abcdef" * 2


def names_in(directory: Path) -> StateNames:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return machine_state(fd, VAULT_ID)
    finally:
        os.close(fd)


def test_a_copy_and_another_machine_have_other_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = tmp_path / "one"
    one.mkdir()
    (tmp_path / "id").write_text(HEX + "\n")
    monkeypatch.setattr(hosts, "MACHINE_ID_FILES", (str(tmp_path / "id"),))
    first = names_in(one)
    assert names_in(one) == first
    one.rename(tmp_path / "moved")
    assert names_in(tmp_path / "moved") == first
    shutil.copytree(tmp_path / "moved", one)
    assert names_in(one) != first
    (tmp_path / "id").write_text("f" * 32)
    assert names_in(tmp_path / "moved") != first


@pytest.mark.parametrize(
    "content", [None, "", "uninitialized\n", HEX[:-1], HEX + "0", HEX + "\n\n", HEX[:-1] + "g"]
)
def test_a_machine_id_that_is_none_is_passed_over(
    content: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = (tmp_path / "etc", tmp_path / "dbus")
    monkeypatch.setattr(hosts, "MACHINE_ID_FILES", tuple(map(str, places)))
    if content is not None:
        places[0].write_text(content)
    assert machine_id() == b"0" * 32
    places[1].write_text(HEX)
    assert machine_id() == HEX.encode()
    places[0].unlink(missing_ok=True)
    os.mkfifo(places[0])  # nobody waits for a writer
    assert machine_id() == HEX.encode()


def test_numbers_that_do_not_last_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        assert lasting_inode(fd) == os.fstat(fd).st_ino
        monkeypatch.setattr(hosts, "filesystem_type", lambda _: 0x4D44)
        assert lasting_inode(fd) == 0
        assert machine_state(fd, VAULT_ID).host == host_id(machine_id(), VAULT_ID, 0, 0)
    finally:
        os.close(fd)


def test_whose_a_file_is() -> None:
    one = StateNames("A" * 16)
    for names in (one, SHARED_STATE):
        assert all(state_of_name(name) == names for name in names.files)
    for name in (
        "cryptfs.json",
        "cryptfs.host.short.lock",
        one.lock + "x",
        one.journals[0] + ".sync-conflict",
    ):
        assert state_of_name(name) is None
    assert is_of_some_host(one.temp_prefix + "x")
    assert not is_of_some_host("cryptfs.tmp.x")
    assert not is_of_some_host("cryptfs.tmp." + "A" * 24)
    assert len(one.mark) == len(SHARED_STATE.mark) == 8
    assert SHARED_STATE.aad == b""
    for wrong in ((b"0" * 31, VAULT_ID), (b"0" * 32, VAULT_ID[1:])):
        with pytest.raises(ValueError, match="bytes"):
            host_id(*wrong, 1, 1)


def test_others_are_found_by_their_journals(tmp_path: Path) -> None:
    own, other, idle = (StateNames(letter * 16) for letter in "ABC")
    for name in (own.journals[0], *other.journals, idle.sessions, "cryptfs.journal.a"):
        (tmp_path / name).touch()
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        assert journals_of_others(fd, own) == [SHARED_STATE, other]
        assert journals_of_others(fd, SHARED_STATE) == [own, other]
        aside = set_aside(fd, own.journals[0], own)
        assert is_aside(aside)
        assert state_of_name(aside) is None
        assert journals_of_others(fd, SHARED_STATE) == [other]
    finally:
        os.close(fd)
