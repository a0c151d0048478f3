"""A lost config comes back from the recovery record: of the present, of before an upgrade, of elsewhere."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from cryptfs.core.names.dirrecord import BOUND_DIRS, UPGRADING
from cryptfs.core.names.host import MACHINE_STATE
from cryptfs.core.slots.checks import CONFIG_NAME, NEXT_RECOVERY_NAME, RECOVERY_NAME
from cryptfs.core.slots.config import DELTA_JOURNAL, SLOTS, replace_fields
from cryptfs.errors import (
    NoKeyError,
    UnsupportedFormatError,
    VaultError,
    VaultLockedError,
    WrongPassphraseError,
)
from cryptfs.unlock.offer import Offer
from cryptfs.unlock.recovering import HeldSecret
from cryptfs.unlock.table import changing_slots
from cryptfs.vfs.restore import GENERATIONS_AHEAD, Restorable, restorable
from cryptfs.vfs.upgrade import upgrade
from cryptfs.vfs.vault import Vault, read_config
from tests.support import MIB, crash_in, state_files
from tests.unlock.vaults import (
    CONTENT,
    PASSPHRASE,
    add,
    content,
    make_vault,
    new_shares,
    new_words,
    record_files,
    record_of,
    remove,
    shares_offer,
    words_offer,
)

NEW = b"a passphrase for what came back"
ALL = [BOUND_DIRS, MACHINE_STATE, SLOTS]


def lose(vault_dir: Path) -> None:
    (vault_dir / CONFIG_NAME).unlink()


def restore(vault_dir: Path, offer: Offer, *, copy: bytes | None = None, force: bool = False) -> Restorable:
    with restorable(vault_dir, offer, copy=copy, force=force) as found:
        found.write(NEW, kdf_memory=64 * MIB, label="new")
        return found


def test_with_words(vault_dir: Path, words: HeldSecret) -> None:
    before = read_config(vault_dir)
    lose(vault_dir)
    found = restore(vault_dir, words_offer(words))
    assert (found.by, found.verified, found.unverified, found.added) == (words.about, 2, 0, ())
    after = read_config(vault_dir)
    assert after.generation == before.generation + GENERATIONS_AHEAD
    for name in ("vault_id", "cipher", "chunk_size", "features", "recovery", "version"):
        assert getattr(after, name) == getattr(before, name)
    assert [(slot.id, slot.label) for slot in after.slots] == [(0, "new")]
    for secret in (NEW, words_offer(words)):
        assert content(vault_dir, secret) == CONTENT
    with pytest.raises(WrongPassphraseError):
        content(vault_dir)
    assert not any(found.masterkey)


def test_with_shares_of_a_vault_of_version_0_1(tmp_path: Path) -> None:
    vault_dir, shares = tmp_path / "vault", new_shares(2, 4)
    make_vault(vault_dir, features=())
    add(vault_dir, shares)
    lose(vault_dir)
    restore(vault_dir, shares_offer(shares))
    assert read_config(vault_dir).version == 1
    assert content(vault_dir, NEW) == CONTENT


@pytest.mark.parametrize("damage", ["cut", "flipped", "another", "mac", "directory"])
def test_a_damaged_config(damage: str, vault_dir: Path, words: HeldSecret, tmp_path: Path) -> None:
    path = vault_dir / CONFIG_NAME
    raw = path.read_bytes()
    if damage == "cut":
        path.write_bytes(raw[:-100])
    elif damage == "flipped":
        path.write_bytes(raw.replace(b"bound-dirs", b"bound-dust"))
    elif damage == "another":
        make_vault(tmp_path / "other")
        shutil.copy(tmp_path / "other" / CONFIG_NAME, path)
    elif damage == "mac":
        path.write_bytes(raw.replace(b'"generation": 1', b'"generation": 3'))
    else:
        path.unlink()
        path.mkdir()
    force = damage == "flipped"  # else an unknown feature may be that of a newer program
    if force:
        with pytest.raises(VaultError, match="newer cryptfs"):
            restore(vault_dir, words_offer(words))
    restore(vault_dir, words_offer(words), force=force)
    assert content(vault_dir, NEW) == CONTENT


def test_a_config_that_is_right_stays(vault_dir: Path, words: HeldSecret) -> None:
    raw = (vault_dir / CONFIG_NAME).read_bytes()
    with pytest.raises(VaultError, match="nothing to restore"):
        restore(vault_dir, words_offer(words))
    assert (vault_dir / CONFIG_NAME).read_bytes() == raw
    restore(vault_dir, words_offer(words), force=True)
    assert content(vault_dir, NEW) == CONTENT


def test_a_config_that_comes_back_meanwhile_stays(vault_dir: Path, words: HeldSecret) -> None:
    raw = (vault_dir / CONFIG_NAME).read_bytes()
    lose(vault_dir)
    with restorable(vault_dir, words_offer(words)) as found:
        (vault_dir / CONFIG_NAME).write_bytes(raw)  # by a sync client, while a person types
        with pytest.raises(VaultError, match="nothing to restore"):
            found.write(NEW, kdf_memory=64 * MIB)
    assert (vault_dir / CONFIG_NAME).read_bytes() == raw
    assert content(vault_dir) == CONTENT


def test_a_vault_that_is_mounted_stays(vault_dir: Path, words: HeldSecret) -> None:
    with Vault.unlock(vault_dir, PASSPHRASE):
        lose(vault_dir)
        with pytest.raises(VaultLockedError):
            restore(vault_dir, words_offer(words))
    restore(vault_dir, words_offer(words))


def test_without_record_and_with_other_words(vault_dir: Path, words: HeldSecret, tmp_path: Path) -> None:
    raw = record_of(vault_dir)
    lose(vault_dir)
    with pytest.raises(WrongPassphraseError, match=words.about.short_id):
        restore(vault_dir, words_offer(new_words()))
    (vault_dir / RECOVERY_NAME).unlink()
    with pytest.raises(NoKeyError, match=RECOVERY_NAME):
        restore(vault_dir, words_offer(words))
    assert CONFIG_NAME not in os.listdir(vault_dir)
    restore(vault_dir, words_offer(words), copy=raw)
    assert record_files(vault_dir) == {RECOVERY_NAME}
    assert content(vault_dir, words_offer(words)) == CONTENT


def test_of_a_kept_copy_the_secrets_of_the_vault_count(vault_dir: Path, words: HeldSecret) -> None:
    kept, more = record_of(vault_dir), new_words()
    add(vault_dir, more)
    remove(vault_dir, words, by=words_offer(more))
    lose(vault_dir)
    found = restore(vault_dir, words_offer(words), copy=kept)
    assert [held.about for held in found.secrets] == [more.about]
    assert content(vault_dir, words_offer(more)) == CONTENT
    with pytest.raises(WrongPassphraseError):
        content(vault_dir, words_offer(words))


def test_old_words_with_the_record_of_then_and_no_config_are_not_detected(
    vault_dir: Path, words: HeldSecret
) -> None:
    old, more = record_of(vault_dir), new_words()
    add(vault_dir, more)
    remove(vault_dir, words)
    (vault_dir / RECOVERY_NAME).write_bytes(old)
    lose(vault_dir)
    restore(vault_dir, words_offer(words))
    assert content(vault_dir, words_offer(words)) == CONTENT
    with pytest.raises(WrongPassphraseError):
        content(vault_dir, words_offer(more))


def test_the_record_that_was_to_follow_counts_if_it_has_the_words(vault_dir: Path, words: HeldSecret) -> None:
    old, more = record_of(vault_dir), new_words()
    add(vault_dir, more)
    (vault_dir / RECOVERY_NAME).rename(vault_dir / NEXT_RECOVERY_NAME)
    (vault_dir / RECOVERY_NAME).write_bytes(old)
    lose(vault_dir)
    assert len(restore(vault_dir, words_offer(words)).secrets) == 2
    assert record_files(vault_dir) == {RECOVERY_NAME}
    for held in (words, more):
        assert content(vault_dir, words_offer(held)) == CONTENT


def test_the_record_of_another_masterkey_is_refused(
    vault_dir: Path, tmp_path: Path, words: HeldSecret
) -> None:
    others_words = new_words()
    make_vault(tmp_path / "other", others_words)
    lose(vault_dir)
    for force in (False, True):
        with pytest.raises(VaultError, match=r"nothing in .* is sealed with its masterkey"):
            restore(vault_dir, words_offer(others_words), copy=record_of(tmp_path / "other"), force=force)
    assert CONFIG_NAME not in os.listdir(vault_dir)


def test_names_of_two_masterkeys_are_counted(vault_dir: Path, tmp_path: Path, words: HeldSecret) -> None:
    make_vault(tmp_path / "other")
    (theirs,) = (path for path in (tmp_path / "other").iterdir() if path.is_file() and "." not in path.name)
    shutil.copy(theirs, vault_dir)
    (vault_dir / "notes of a person").touch()
    lose(vault_dir)
    with restorable(vault_dir, words_offer(words)) as found:
        assert (found.verified, found.unverified, found.is_mixed) == (2, 1, True)
    assert CONFIG_NAME not in os.listdir(vault_dir)


def test_an_empty_vault(tmp_path: Path, words: HeldSecret) -> None:
    vault_dir = tmp_path / "vault"
    Vault.create(vault_dir, PASSPHRASE, kdf_memory=64 * MIB, recovery=words)
    raw = (vault_dir / CONFIG_NAME).read_bytes()
    (vault_dir / CONFIG_NAME).write_bytes(raw.replace(b'"generation": 1', b'"generation": 3'))
    with pytest.raises(VaultError, match="nothing in the vault shows which"):
        restore(vault_dir, words_offer(words))
    lose(vault_dir)
    restore(vault_dir, words_offer(words))
    with Vault.unlock(vault_dir, NEW) as vault:
        assert not list(vault.tree.list(vault.tree.root))


@pytest.mark.parametrize("before", [(), (SLOTS,), (MACHINE_STATE,), (MACHINE_STATE, SLOTS)], ids=str)
def test_a_record_from_before_an_upgrade_gets_the_features_that_the_vault_has(
    before: tuple[str, ...], tmp_path: Path, words: HeldSecret
) -> None:
    vault_dir = tmp_path / "vault"
    make_vault(vault_dir, features=before)
    add(vault_dir, words)
    kept = record_of(vault_dir)
    upgrade(vault_dir, [PASSPHRASE])
    assert record_of(vault_dir) != kept
    (vault_dir / RECOVERY_NAME).write_bytes(kept)
    lose(vault_dir)
    found = restore(vault_dir, words_offer(words))
    assert found.added == tuple(sorted({BOUND_DIRS, MACHINE_STATE} - set(before)))
    assert set(read_config(vault_dir).features) == {BOUND_DIRS, MACHINE_STATE, *before}
    assert content(vault_dir, NEW) == CONTENT
    assert set(upgrade(vault_dir, [NEW]).added) == {SLOTS} - set(before)
    for secret in (NEW, words_offer(words)):
        assert content(vault_dir, secret) == CONTENT


def test_a_record_from_before_an_upgrade_that_was_interrupted(
    tmp_path: Path, words: HeldSecret, monkeypatch: pytest.MonkeyPatch
) -> None:
    vault_dir = tmp_path / "vault"
    make_vault(vault_dir, features=())
    add(vault_dir, words)
    kept = record_of(vault_dir)
    monkeypatch.setattr("cryptfs.vfs.upgrade.BATCH", 1)
    batches = []

    def first_batch(vault_fd: int, batch: list[Any]) -> None:
        batches.append(len(batch))
        if len(batches) > 1:
            raise OSError
        real(vault_fd, batch)

    from cryptfs.vfs import upgrade as module

    real = module._write_records
    monkeypatch.setattr(module, "_write_records", first_batch)
    with pytest.raises(OSError):
        upgrade(vault_dir, [PASSPHRASE])
    monkeypatch.setattr(module, "_write_records", real)
    (vault_dir / RECOVERY_NAME).write_bytes(kept)
    lose(vault_dir)
    assert restore(vault_dir, words_offer(words)).added == (BOUND_DIRS, MACHINE_STATE, UPGRADING)
    assert content(vault_dir, NEW) == CONTENT
    upgrade(vault_dir, [NEW])
    assert read_config(vault_dir).features == ALL
    assert content(vault_dir, NEW) == CONTENT


@pytest.mark.waits
def test_a_journal_with_deltas_proves_its_feature(tmp_path: Path, words: HeldSecret) -> None:
    """What it holds is not put aside."""
    vault_dir = tmp_path / "vault"
    make_vault(vault_dir, features=tuple(ALL))
    add(vault_dir, words)
    kept = record_of(vault_dir)
    upgrade(vault_dir, [PASSPHRASE], deltas=True)
    changed = CONTENT[::-1]

    def write() -> None:
        vault = Vault.unlock(vault_dir, PASSPHRASE)
        file = vault.tree.open(vault.tree.root, b"file", os.O_RDWR)
        file.write(0, changed)

    crash_in(write)
    (vault_dir / RECOVERY_NAME).write_bytes(kept)
    lose(vault_dir)
    assert restore(vault_dir, words_offer(words)).added == (DELTA_JOURNAL,)
    assert content(vault_dir, NEW) == changed


@pytest.mark.parametrize("proof", ["list", "header"])
def test_state_of_a_machine_alone_proves_its_feature(proof: str, tmp_path: Path, words: HeldSecret) -> None:
    """A vault that has only that feature, and a record from before."""
    vault_dir = tmp_path / "vault"
    make_vault(vault_dir, features=(SLOTS,))
    add(vault_dir, words)
    kept = record_of(vault_dir)
    with changing_slots(vault_dir, PASSPHRASE) as table:
        table.config = replace_fields(table.config, features=[MACHINE_STATE, SLOTS])
        table.save()
    vault = Vault.unlock(vault_dir, PASSPHRASE)
    file = vault.tree.open(vault.tree.root, b"file", os.O_RDWR)
    file.write(0, b"W")
    if proof == "header":  # as after a crash
        names = [entry for entry in vault_dir.iterdir() if "cryptfs" not in entry.name and entry.is_file()]
        raw = names[0].read_bytes()
    vault.tree.release(file)
    vault.close()
    if proof == "header":
        names[0].write_bytes(raw)
        for name in (*state_files(vault_dir, "sessions"), *state_files(vault_dir, "journal")):
            (vault_dir / name).unlink()
    (vault_dir / RECOVERY_NAME).write_bytes(kept)
    lose(vault_dir)
    assert restore(vault_dir, words_offer(words)).added == (MACHINE_STATE,)


def test_a_record_of_a_newer_program(
    vault_dir: Path, words: HeldSecret, monkeypatch: pytest.MonkeyPatch
) -> None:
    lose(vault_dir)
    monkeypatch.setattr("cryptfs.vfs.restore.KNOWN_FEATURES", frozenset({SLOTS}))
    with pytest.raises(UnsupportedFormatError, match=BOUND_DIRS), restorable(vault_dir, words_offer(words)):
        pytest.fail("it is told before a person thinks up a passphrase")
    assert CONFIG_NAME not in os.listdir(vault_dir)


def test_a_directory_that_is_no_vault(tmp_path: Path, vault_dir: Path, words: HeldSecret) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(NoKeyError):
        restore(empty, words_offer(words))
    assert not list(empty.iterdir())
