"""`cryptfs upgrade`: gives a vault of an earlier version the features that new vaults have.

Each step leaves a vault that opens, so that an upgrade that was interrupted can be run again: first all that
the old names say is dealt with, then the config is replaced, then this machine gets the list of sessions, and
then the old list goes. Source: docs/FORMAT.md, section 12.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptfs.core.aead import SMALL_NONCE_SIZE
from cryptfs.core.config import KeySlot, VaultConfig, authenticate, decode_config, replace_fields, rewrap_slot
from cryptfs.core.host import SHARED_STATE
from cryptfs.errors import VaultError
from cryptfs.storage.hosts import machine_state
from cryptfs.storage.sessions import has_sessions_file, write_sessions_file
from cryptfs.storage.vaultdir import changing_config, read_config_file, write_config_file
from cryptfs.vfs.redo import Durability
from cryptfs.vfs.replay import has_journal, read_sessions
from cryptfs.vfs.vault import NEW_FEATURES, Vault


@dataclass(frozen=True, slots=True)
class Upgraded:
    """What an upgrade did. added: names of features, none where the vault had them all."""

    config: VaultConfig
    added: tuple[str, ...]


def upgrade(vault_dir: Path, passphrases: Sequence[bytes]) -> Upgraded:
    """Give a vault the features that it lacks. Idempotent.

    Args:   passphrases: of all its key slots; the first one unlocks.
    Raises: VaultError: something is unsettled and cannot be settled, or a slot was opened by none of them.
            What Vault.unlock raises.   OSError.
    """
    with Vault.unlock(vault_dir, passphrases[0], durability=Durability.OFF) as vault:
        added = tuple(name for name in NEW_FEATURES if name not in vault.config.features)
        if not added:
            _move_list(vault)
            return Upgraded(vault.config, ())
        _settle(vault)
        with changing_config(vault.descriptor):
            raw = read_config_file(vault.descriptor, vault.vault_dir)
            if decode_config(raw) != vault.config:
                raise VaultError(f"{vault_dir}: its config was changed meanwhile; run the upgrade again")
            config = _with_features(vault, added, passphrases)
            write_config_file(vault.descriptor, config.encode())
        _move_list(vault)
        return Upgraded(config, added)


def _settle(vault: Vault) -> None:
    """After a crash, whose journal unlocking has replayed: look at every file, as a mount does."""
    unsettled = vault.tree.unsettled
    if unsettled is None:
        return
    unsettled.sweep()
    if not unsettled.over:
        raise VaultError(
            f"{vault.vault_dir}: files that a crash left cannot all be settled; first run: "
            "cryptfs fsck --repair"
        )
    vault.tree.unsettled = None


def _with_features(vault: Vault, added: Sequence[str], passphrases: Sequence[bytes]) -> VaultConfig:
    """The new config: the masterkey's wrapping covers the features, so every slot is wrapped anew."""
    old = vault.config
    new = replace_fields(old, features=sorted([*old.features, *added]), generation=old.generation + 1)
    slots: list[KeySlot] = []
    closed: list[KeySlot] = []
    for slot in old.slots:
        fresh = _rewrapped(old, new, slot, passphrases)
        if fresh is None:
            closed.append(slot)
        else:
            slots.append(fresh)
    if closed:
        names = ", ".join(f"{slot.id} ({slot.label})" if slot.label else str(slot.id) for slot in closed)
        raise VaultError(
            f"{vault.vault_dir}: an upgrade needs the passphrase of every key slot; missing: that of slot "
            f"{names}. Give it with --slot-passfile; nothing was changed"
        )
    return authenticate(replace_fields(new, slots=slots), vault.context.keys)


def _rewrapped(
    old: VaultConfig, new: VaultConfig, slot: KeySlot, passphrases: Sequence[bytes]
) -> KeySlot | None:
    for passphrase in passphrases:
        fresh = rewrap_slot(old, new, slot, passphrase, os.urandom(SMALL_NONCE_SIZE))
        if fresh is not None:
            return fresh
    return None


def _move_list(vault: Vault) -> None:
    """The old list becomes this machine's, if it has none; not where a sync client brought an old journal."""
    vault_fd, keys = vault.descriptor, vault.context.keys
    if has_journal(vault_fd, SHARED_STATE) or not has_sessions_file(vault_fd, SHARED_STATE):
        return
    owner = machine_state(vault_fd, bytes.fromhex(vault.config.vault_id))
    if not has_sessions_file(vault_fd, owner):
        sessions = read_sessions(vault.context, vault_fd, SHARED_STATE)
        write_sessions_file(vault_fd, sessions.pack(keys, os.urandom(SMALL_NONCE_SIZE), owner), owner)
    for name in (SHARED_STATE.sessions, SHARED_STATE.unsettled):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=vault_fd)
    os.fsync(vault_fd)
