"""Vaults with words and shares, for tests of the recovery record."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from cryptfs.core.slots.checks import NEXT_RECOVERY_NAME, RECOVERY_NAME
from cryptfs.core.slots.recovery import RecoveryKind
from cryptfs.unlock.carriers.shares import split
from cryptfs.unlock.carriers.words import words_of
from cryptfs.unlock.offer import Offer
from cryptfs.unlock.recovering import HeldSecret, draw_secret, opened_recovery
from cryptfs.vfs.vault import NEW_FEATURES, Vault
from tests.support import MIB

PASSPHRASE = b"of a vault that can be recovered"
CONTENT = b"what a person wants back"


def wiped_later(held: HeldSecret) -> HeldSecret:
    """A copy: tables wipe the secrets that they are given."""
    return HeldSecret(held.about, bytes(bytearray(held.secret)))


def words_offer(held: HeldSecret) -> Offer:
    """These words, offered."""
    return Offer(words=words_of(held.secret).encode())


def shares_offer(held: HeldSecret) -> Offer:
    """As many of its shares as it takes."""
    texts = split(held.secret, held.about.needed, held.about.shares)
    return Offer(shares=tuple(text.encode() for text in texts[-held.about.needed :]))


def new_words() -> HeldSecret:
    return draw_secret(RecoveryKind.WORDS)


def new_shares(needed: int = 2, shares: int = 3) -> HeldSecret:
    return draw_secret(RecoveryKind.SHARES, needed, shares)


def make_vault(
    vault_dir: Path, held: HeldSecret | None = None, *, features: Sequence[str] = NEW_FEATURES
) -> None:
    """A vault with a file and a directory, of an earlier version if it has fewer features."""
    recovery = None if held is None else wiped_later(held)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cryptfs.vfs.vault.NEW_FEATURES", tuple(features))
        Vault.create(vault_dir, PASSPHRASE, kdf_memory=64 * MIB, recovery=recovery)
    with Vault.unlock(vault_dir, PASSPHRASE) as vault:
        tree = vault.tree
        file = tree.create(tree.root, b"file", os.O_RDWR, 0o600)
        file.write(0, CONTENT)
        tree.release(file)
        tree.make_directory(tree.root, b"directory", 0o700)
        inner = tree.directory(tree.root, b"directory")
        tree.make_directory(inner, b"below", 0o700)


def add(vault_dir: Path, *helds: HeldSecret, by: bytes | Offer = PASSPHRASE) -> None:
    with opened_recovery(vault_dir, by) as table:
        for held in helds:
            table.add(wiped_later(held))
        table.save()


def remove(vault_dir: Path, held: HeldSecret, by: bytes | Offer = PASSPHRASE) -> None:
    with opened_recovery(vault_dir, by) as table:
        table.remove(held.about.short_id)
        table.save()


def content(vault_dir: Path, secret: bytes | Offer = PASSPHRASE) -> bytes:
    """The file, read and written, so that all of the vault is asked."""
    with Vault.unlock(vault_dir, secret) as vault:
        tree = vault.tree
        file = tree.open(tree.root, b"file", os.O_RDWR)
        try:
            assert tree.directory(tree.directory(tree.root, b"directory"), b"below")
            return file.read(0, 100)
        finally:
            tree.release(file)


def record_of(vault_dir: Path) -> bytes:
    return (vault_dir / RECOVERY_NAME).read_bytes()


def record_files(vault_dir: Path) -> set[str]:
    return {RECOVERY_NAME, NEXT_RECOVERY_NAME} & set(os.listdir(vault_dir))


def age(path: Path, seconds: float = 86_500) -> None:
    """Let a file be older."""
    st = path.stat()
    os.utime(path, (st.st_atime - seconds, st.st_mtime - seconds))
