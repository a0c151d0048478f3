"""What is written to a file that somebody else deletes or replaces meanwhile."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from cryptfs.vfs.content.redo import Durability
from cryptfs.vfs.tree.directory import Directory
from cryptfs.vfs.tree.rescue import is_lost
from tests.support import KIB, BareVault, pattern

OLD = pattern(20 * KIB, 1)
THEIRS = b"from another machine"
MINE = b"mine" + OLD[4:]


@pytest.fixture(params=list(Durability))
def vault(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[BareVault]:
    """A vault without a mount, at each level."""
    made = BareVault(tmp_path / "vault", durability=request.param)
    made.put(b"doc.txt", OLD)
    made.put(b"theirs", THEIRS)
    made.tree.xattrs.set(made.root, b"doc.txt", b"user.note", b"note", 0)
    made.reopen()
    yield made
    made.close()


def replace(vault: BareVault, name: bytes = b"doc.txt") -> None:
    """As a sync client does: a new file is renamed over the old one."""
    fresh = vault.vault_dir / "client.tmp"
    shutil.copy(vault.backing(b"theirs"), fresh)
    fresh.rename(vault.backing(name))


def kept(vault: BareVault, directory: Directory | None = None) -> list[bytes]:
    return [name for name in vault.names(directory) if name not in (b"doc.txt", b"theirs")]


def test_replaced(vault: BareVault, caplog: pytest.LogCaptureFixture) -> None:
    os.chmod(vault.backing(b"doc.txt"), 0o604)
    with vault.opened(b"doc.txt") as file, caplog.at_level(logging.WARNING):
        replace(vault)
        file.write(0, b"mine")
    (name,) = kept(vault)
    assert name.startswith(b"doc (conflict 20") and name.endswith(b").txt")
    assert vault.get(b"doc.txt") == THEIRS
    assert vault.get(name) == MINE
    assert vault.tree.xattrs.get(vault.root, name, b"user.note") == b"note"
    assert vault.tree.stat(vault.root, name).st.st_mode & 0o777 == 0o604
    assert "somebody else deleted or replaced it" in caplog.text and vault.entry(name) in caplog.text
    vault.reopen()
    assert vault.get(name) == MINE


def test_deleted(vault: BareVault) -> None:
    with vault.opened(b"doc.txt") as file:
        file.write(0, b"mine")
        vault.backing(b"doc.txt").unlink()
    assert kept(vault) == []
    assert vault.get(b"doc.txt") == MINE


def test_not_written_to(vault: BareVault) -> None:
    with vault.opened(b"doc.txt") as file:
        assert file.read(0, 4) == OLD[:4]
        vault.backing(b"doc.txt").unlink()
    assert vault.names() == [b"theirs"]


def test_what_a_program_removes_itself_stays_removed(vault: BareVault) -> None:
    tree, root = vault.tree, vault.root
    with vault.opened(b"doc.txt") as file:
        file.write(0, b"mine")
        tree.unlink(root, b"doc.txt")
        vault.tree.sync_file(file, data_only=False)
        file.write(0, b"MINE")
    assert vault.names() == [b"theirs"]
    vault.put(b"new", b"x")
    vault.put(b"old", b"y")
    with vault.opened(b"old") as file:
        file.write(0, b"z")
        tree.rename(root, b"new", root, b"old")
    assert vault.names() == [b"old", b"theirs"]
    assert vault.get(b"old") == b"x"
    file = tree.create_unnamed(root, os.O_RDWR, 0o600)
    file.write(0, b"unnamed")
    tree.release(file)
    assert vault.names() == [b"old", b"theirs"]


def test_removed_here_while_it_is_looked_at(vault: BareVault, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when another thread unlinks a file during its last close."""
    fstat = os.fstat

    def fstat_late(fd: int) -> os.stat_result:
        monkeypatch.setattr(os, "fstat", fstat)
        vault.tree.unlink(vault.root, b"doc.txt")
        return fstat(fd)

    with vault.opened(b"doc.txt") as file:
        file.write(0, b"mine")
        monkeypatch.setattr(os, "fstat", fstat_late)
        assert not is_lost(file.state)
    assert vault.names() == [b"theirs"]


def test_two_names_removed_here(vault: BareVault) -> None:
    tree, root = vault.tree, vault.root
    tree.link(root, b"doc.txt", root, b"second")
    with vault.opened(b"doc.txt") as file:
        file.write(0, b"mine")
        tree.unlink(root, b"doc.txt")
        tree.unlink(root, b"second")
    assert vault.names() == [b"theirs"]


def test_a_name_of_two_is_removed_here_and_the_other_elsewhere(vault: BareVault) -> None:
    tree, root = vault.tree, vault.root
    tree.link(root, b"doc.txt", root, b"second")
    with vault.opened(b"doc.txt") as file:
        file.write(0, b"mine")
        tree.unlink(root, b"doc.txt")
        vault.backing(b"second").unlink()
    assert vault.get(b"doc.txt") == MINE


def test_renamed_here_and_then_replaced(vault: BareVault) -> None:
    docs = vault.make_directory(b"docs")
    with vault.opened(b"doc.txt") as file:
        vault.tree.rename(vault.root, b"doc.txt", docs, b"new.txt")
        shutil.copy(vault.backing(b"theirs"), vault.vault_dir / "client.tmp")
        (vault.vault_dir / "client.tmp").rename(
            vault.vault_dir / docs.cipher_path / docs.entry_name(b"new.txt")
        )
        file.write(0, b"mine")
    (name,) = (each for each in vault.names(docs) if each != b"new.txt")
    assert name.startswith(b"new (conflict 20")
    assert vault.get(name, docs) == MINE


def test_with_its_directory(vault: BareVault) -> None:
    docs = vault.make_directory(b"docs")
    deep = vault.make_directory(b"deep", docs)
    vault.put(b"inner", OLD, deep)
    with vault.opened(b"inner", directory=deep) as file:
        file.write(0, b"mine")
        shutil.rmtree(vault.vault_dir / deep.cipher_path)
    assert vault.get(b"inner", docs) == MINE
    with vault.opened(b"inner", directory=docs) as file:
        file.write(0, b"MORE")
        shutil.rmtree(vault.vault_dir / docs.cipher_path)
    assert vault.get(b"inner") == b"MORE" + MINE[4:]


def test_a_long_name(vault: BareVault) -> None:
    long = b"l" * 250
    vault.put(long, OLD)
    with vault.opened(long) as file:
        replace(vault, long)
        file.write(0, b"mine")
    (name,) = (each for each in kept(vault) if each != long)
    assert len(name) == 255 and b"(conflict 20" in name
    assert vault.get(name) == MINE
    vault.reopen()
    assert vault.get(name) == MINE


def test_several_handles_and_syncs_make_one_copy(vault: BareVault) -> None:
    with vault.opened(b"doc.txt") as first:
        with vault.opened(b"doc.txt") as second:
            replace(vault)
            second.write(0, b"mine")
        assert kept(vault) == [], "the last close counts"
        for number in range(3):
            first.write(4, b"%d" % number)
            vault.tree.sync_file(first, data_only=True)
            (name,) = kept(vault)
            assert vault.get(name) == b"mine%d" % number + OLD[5:]
        first.write(4, b"9")
    assert kept(vault) == [name]
    assert vault.get(name) == b"mine9" + OLD[5:]


def test_a_copy_that_somebody_has_changed_is_left_alone(vault: BareVault) -> None:
    with vault.opened(b"doc.txt") as file:
        replace(vault)
        file.write(0, b"mine")
        vault.tree.sync_file(file, data_only=False)
        (first,) = kept(vault)
        with vault.opened(first) as copy:
            copy.write(0, b"edited")
        file.write(0, b"MINE")
    second = next(name for name in kept(vault) if name != first)
    assert vault.get(first) == b"edited" + OLD[6:]
    assert vault.get(second) == b"MINE" + OLD[4:]


def test_still_open_at_the_end_of_the_mount(vault: BareVault) -> None:
    file = vault.tree.open(vault.root, b"doc.txt", os.O_RDWR)
    file.write(0, b"mine")
    replace(vault)
    vault.reopen()
    (name,) = kept(vault)
    assert vault.get(name) == MINE


def test_synced_and_closed_but_not_in_its_place_yet(vault: BareVault) -> None:
    with vault.opened(b"doc.txt") as file:
        file.write(0, b"mine")
        vault.tree.sync_file(file, data_only=False)
    if vault.durability is not Durability.POWER:
        return  # what was closed is in its place
    replace(vault)
    vault.put(b"other", b"")
    vault.tree.unlink(vault.root, b"other")
    vault.checkpoint()
    (name,) = kept(vault)
    assert vault.get(name) == MINE
    assert vault.get(b"doc.txt") == THEIRS


def test_a_failure_is_told(
    vault: BareVault, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object, **__: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cryptfs.vfs.tree.rescue.seal_anew", full)
    with vault.opened(b"doc.txt") as file:
        replace(vault)
        file.write(0, b"mine")
        with pytest.raises(OSError, match="No space"):
            vault.tree.sync_file(file, data_only=False)
    assert "and it could not be kept" in caplog.text
    assert kept(vault) == []


def test_a_kill_after_the_sync(vault: BareVault) -> None:
    file = vault.tree.open(vault.root, b"doc.txt", os.O_RDWR)
    replace(vault)
    file.write(0, b"mine")
    vault.tree.sync_file(file, data_only=False)
    vault.die_and_reopen()
    (name,) = kept(vault)
    assert vault.get(name) == MINE
