"""Names that a vault remembers once they were verified: for how long, how many, and that they stay right."""

from __future__ import annotations

import os

import pytest

from cryptfs.core.names.names import DirectoryNames
from cryptfs.vfs.tree import directory as directory_module
from cryptfs.vfs.tree.directory import CachedNames, Directory
from tests.support import BareVault


@pytest.fixture
def opened_names(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The cipher names that were decrypted and verified, from now on."""
    found: list[str] = []
    real = DirectoryNames.open

    def spy(self: DirectoryNames, cipher_name: str) -> bytes:
        found.append(cipher_name)
        return real(self, cipher_name)

    monkeypatch.setattr(DirectoryNames, "open", spy)
    return found


def directory_of(vault: BareVault, name: bytes) -> Directory:
    """Opened anew, as after the kernel has forgotten it."""
    return vault.tree.directory(vault.tree.root, name)


def listed(vault: BareVault, directory: Directory) -> set[bytes]:
    """The names that a listing shows."""
    return {name for name, *_ in vault.tree.list(directory)}


def fill(vault: BareVault, name: bytes, count: int) -> set[bytes]:
    """A directory with so many files."""
    vault.tree.make_directory(vault.tree.root, name, 0o755)
    directory = directory_of(vault, name)
    names = {b"%s-%d" % (name, number) for number in range(count)}
    for each in names:
        os.close(os.open(directory.proc_path(directory.entry_name(each)), os.O_CREAT | os.O_WRONLY, 0o644))
    return names


def test_names_outlive_the_open_directory(vault: BareVault, opened_names: list[str]) -> None:
    names = fill(vault, b"dir", 100)
    vault.reopen()
    assert listed(vault, directory_of(vault, b"dir")) == names
    assert len(opened_names) >= 100
    opened_names.clear()
    assert listed(vault, directory_of(vault, b"dir")) == names
    assert opened_names == []


def test_a_directory_in_the_place_of_another_one_has_its_own_names(vault: BareVault) -> None:
    """What is remembered belongs to a dir_id, and not to a path."""
    names = {name: fill(vault, name, 3) for name in (b"one", b"two")}
    for name, found in names.items():
        assert listed(vault, directory_of(vault, name)) == found
    vault.tree.rename(vault.tree.root, b"one", vault.tree.root, b"other")
    vault.tree.rename(vault.tree.root, b"two", vault.tree.root, b"one")
    assert listed(vault, directory_of(vault, b"one")) == names[b"two"]
    assert listed(vault, directory_of(vault, b"other")) == names[b"one"]


def test_a_listing_of_more_names_than_there_is_room_for_keeps_the_first_ones(
    vault: BareVault, opened_names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory_module, "_CACHED_NAMES", 128)
    names = fill(vault, b"dir", 300)
    vault.reopen()
    for _ in range(3):
        opened_names.clear()
        assert listed(vault, directory_of(vault, b"dir")) == names
    assert len(opened_names) == 300 - 128


def test_there_is_an_end_to_what_all_directories_remember(
    vault: BareVault, opened_names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The directories that were opened longest ago lose their names; an open one may go on with its own."""
    monkeypatch.setattr(directory_module, "MAX_CACHED_NAMES", 400)
    names = {b"%d" % number: fill(vault, b"%d" % number, 100) for number in range(10)}
    vault.reopen()
    kept = directory_of(vault, b"0")
    for name, found in names.items():
        assert listed(vault, directory_of(vault, name)) == found
    cached = kept._cached
    assert sum(len(table.entries) for table in cached._tables.values()) <= 400
    opened_names.clear()
    assert listed(vault, directory_of(vault, b"9")) == names[b"9"]
    assert opened_names == []
    assert listed(vault, kept) == names[b"0"]
    assert len(opened_names) == 100


def test_many_small_directories_count_as_well() -> None:
    """Their tables, too, take memory."""
    cached = CachedNames()
    for number in range(100_000):
        cached.of(number.to_bytes(16, "little"))
    assert len(cached._tables) <= directory_module.MAX_CACHED_NAMES // directory_module._ONE_TABLE


def test_the_directory_itself_has_a_name_even_when_all_are_forgotten(vault: BareVault) -> None:
    vault.tree.root.forget_names()
    assert vault.tree.root.entry_name(b"") == "."
