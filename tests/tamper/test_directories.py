"""Directories that somebody moves, exchanges or restores elsewhere, and their records, without a mount."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from cryptfs.core.names.dirrecord import (
    RECORD_NAME,
    open_directory_record,
    pack_bound_record,
)
from cryptfs.errors import IntegrityError
from tests.support import OWNERS, BareVault, assert_detected


def swap(one: Path, two: Path) -> None:
    aside = one.with_name(".aside")
    for source, target in ((one, aside), (two, one), (aside, two)):
        source.rename(target)


def swap_names(vault: BareVault, one: bytes, two: bytes) -> None:
    swap(vault.backing(one), vault.backing(two))


@pytest.fixture
def vault(tmp_path: Path) -> Iterator[BareVault]:
    """Two directories with a file each."""
    vault = BareVault(tmp_path / "vault", owner=OWNERS[1], bound=True)
    for name in (b"one", b"two"):
        vault.put(b"doc", name, vault.make_directory(name))
        vault.tree.xattrs.set(vault.root, name, b"user.note", name, 0)
    yield vault
    vault.close()


def test_a_directory_elsewhere_is_an_error_until_it_is_back(
    vault: BareVault, caplog: pytest.LogCaptureFixture
) -> None:
    """For its content and its attributes, each time, and nothing remembers it."""
    swap_names(vault, b"one", b"two")
    for _ in range(2):
        for name in (b"one", b"two"):
            assert_detected(lambda: vault.tree.directory(vault.root, name), caplog, vault.entry(name))  # noqa: B023
            with pytest.raises(IntegrityError):
                vault.tree.xattrs.get(vault.root, name, b"user.note")
    swap_names(vault, b"one", b"two")
    assert vault.get(b"doc", vault.tree.directory(vault.root, b"one")) == b"one"
    assert vault.tree.xattrs.get(vault.root, b"one", b"user.note") == b"one"


def test_a_directory_that_is_open_has_its_record_looked_at(
    vault: BareVault, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An older record of the directory comes back under it; and others may move an open one."""
    monkeypatch.setattr("cryptfs.vfs.tree.directory.RECORD_SECONDS", 0)
    record = vault.backing(b"one") / RECORD_NAME
    old = record.read_bytes()
    vault.tree.rename(vault.root, b"one", vault.root, b"new")
    opened = vault.tree.directory(vault.root, b"new")
    record = vault.backing(b"new") / RECORD_NAME
    new = record.read_bytes()
    assert vault.tree.opener.is_current(opened)
    record.write_bytes(old)
    assert not vault.tree.opener.is_current(opened)
    record.write_bytes(new)
    assert vault.tree.opener.is_current(opened)
    vault.backing(b"new").rename(vault.backing(b"one"))
    (vault.backing(b"one") / RECORD_NAME).write_bytes(old)
    assert vault.tree.opener.is_current(opened)


def test_a_directory_put_back_with_its_record_of_then_is_not_detected(vault: BareVault) -> None:
    """Only a witness outside of the vault can tell."""
    saved = vault.vault_dir.parent / "saved"
    shutil.copytree(vault.backing(b"one"), saved)
    old_place = vault.backing(b"one")
    vault.tree.rename(vault.root, b"one", vault.root, b"new")
    shutil.copytree(saved, old_place)
    assert vault.get(b"doc", vault.tree.directory(vault.root, b"one")) == b"one"
    assert vault.get(b"doc", vault.tree.directory(vault.root, b"new")) == b"one"


def test_a_directory_during_its_rename_counts_at_both_places(vault: BareVault) -> None:
    """Until somebody finishes the record, here by opening it."""
    old, new = vault.backing(b"one"), vault.backing(b"new")
    vault.tree.rename(vault.root, b"one", vault.root, b"new")
    opened = open_directory_record((new / RECORD_NAME).read_bytes(), vault.keys)
    assert opened.places == (vault.root.place_of(b"new"),)
    both = opened._replace(places=(vault.root.place_of(b"one"), *opened.places), host=bytes(11) + b"h")
    for place in (new, old):
        if place is old:
            new.rename(old)
        (place / RECORD_NAME).write_bytes(pack_bound_record(both, vault.keys))
        name = b"new" if place is new else b"one"
        assert vault.get(b"doc", vault.tree.directory(vault.root, name)) == b"one"
    # Another machine's rename stays as it is; one of this machine's is finished where the directory is.
    assert open_directory_record((old / RECORD_NAME).read_bytes(), vault.keys).is_moving
    ours = both._replace(host=vault.owner.digest)
    (old / RECORD_NAME).write_bytes(pack_bound_record(ours, vault.keys))
    vault.tree.directory(vault.root, b"one")
    assert open_directory_record((old / RECORD_NAME).read_bytes(), vault.keys).places == (
        vault.root.place_of(b"one"),
    )
