"""`cryptfs upgrade`: gives a vault of an earlier version the features of new vaults.

Each step leaves a vault that opens, so a person can run an interrupted upgrade again. The steps: settle all
state under the old names; replace the config by one that says that an upgrade is under way; give this
machine the list of sessions, and remove the old list; bind each directory to its place; replace the config by
the final one. Source: docs/FORMAT.md, section 12.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptfs.core.aead import SMALL_NONCE_SIZE
from cryptfs.core.names.dirrecord import RECORD_NAME, UPGRADING, DirectoryRecord, pack_bound_record
from cryptfs.core.names.host import SHARED_STATE, StateNames
from cryptfs.core.printable import shell_word
from cryptfs.core.slots.config import (
    DELTA_JOURNAL,
    SLOTS,
    VaultConfig,
    authenticate,
    decode_config,
    replace_fields,
)
from cryptfs.core.slots.kdf import PassphraseCost
from cryptfs.core.slots.slot import KeySlot, open_slot, seal_slot
from cryptfs.errors import VaultError
from cryptfs.storage.backing import create_small
from cryptfs.storage.hosts import machine_state
from cryptfs.storage.libc import keeping_mtime, syncfs, wipe
from cryptfs.storage.pins import Pin
from cryptfs.storage.records import with_owner_rights
from cryptfs.storage.recovery import read_records
from cryptfs.storage.sessions import has_sessions_file, write_sessions_file
from cryptfs.storage.vaultdir import changing_config, read_config_file, write_config_file
from cryptfs.unlock.offer import Offer
from cryptfs.unlock.recovering import seal_again
from cryptfs.unlock.unlocking import memory_limit, open_vault
from cryptfs.vfs.content.redo import Durability
from cryptfs.vfs.recovery.replay import has_journal, read_sessions
from cryptfs.vfs.scan.walk import WalkedDirectory, Walker
from cryptfs.vfs.vault import NEW_FEATURES, Vault

BATCH = 128  # records that one sync brings to disk; as many directories are open


@dataclass(frozen=True, slots=True)
class Upgraded:
    """The result of an upgrade. added: names of features; empty if the vault had them all.

    spelling, slot: as in Unlocked.
    left:     cipher paths of directories that programs could not reach before, and cannot now.
    recovery: names of the recovery words and shares that the vault's record has.
    """

    config: VaultConfig
    added: tuple[str, ...]
    spelling: str = ""
    left: tuple[str, ...] = ()
    recovery: tuple[str, ...] = ()
    slot: KeySlot | None = None


def upgrade(vault_dir: Path, passphrases: Sequence[bytes | Offer], *, deltas: bool = False) -> Upgraded:
    """Give a vault the features that it lacks. Idempotent.

    Args:   passphrases: of all its key slots; the first one unlocks, and may be any offer.
            deltas: also the feature delta-journal, which new vaults have only if asked.
    Raises: VaultError: a file cannot be settled, or no passphrase opens one of the slots.
            The errors of Vault.unlock.   OSError.
    """
    with Vault.unlock(vault_dir, passphrases[0], durability=Durability.OFF) as vault:
        before = config = vault.config
        kept = {DELTA_JOURNAL} & set(before.features) if not deltas else {DELTA_JOURNAL}
        features = sorted({*NEW_FEATURES, *kept})
        if before.features == features:
            _move_list(vault)
            return Upgraded(before, (), vault.spelling, slot=vault.slot)
        settle(vault)
        if not before.is_upgrading:
            config, _ = _replace_config(vault, before, [*features, UPGRADING], passphrases)
        _move_list(vault)
        left = _bind_directories(vault)
        config, names = _replace_config(vault, config, features, passphrases)
        _pin(vault, config, Offer.of(passphrases[0]).pin)
        added = tuple(name for name in features if name not in before.features)
        return Upgraded(config, added, vault.spelling, left, names, vault.slot)


def _pin(vault: Vault, config: VaultConfig, pin: Pin | None) -> None:
    """From now on this machine takes no config from before the upgrade."""
    if pin is not None and pin.met is not None:
        pin.keep(vault.vault_dir, dataclasses.replace(pin.met, generation=config.generation))


def _replace_config(
    vault: Vault, before: VaultConfig, features: list[str], passphrases: Sequence[bytes | Offer]
) -> tuple[VaultConfig, tuple[str, ...]]:
    """Write and return a config with these features, and the names of its recovery words and shares.

    The recovery record comes first: a lost config never comes back with too few features.

    Raises: VaultError: somebody has changed the config, or a slot has no passphrase here.
    """
    with changing_config(vault.descriptor):
        raw = read_config_file(vault.descriptor, vault.vault_dir)
        if decode_config(raw) != before:
            raise VaultError(
                f"{vault.vault_dir}: somebody changed its config meanwhile; run the upgrade again"
            )
        config = _with_features(vault, before, features, passphrases)
        names: tuple[str, ...] = ()
        if read_records(vault.descriptor):
            opened = open_vault(before, passphrases[0], memory_limit(), vault_dir=vault.vault_dir)
            secrets = seal_again(vault.descriptor, before, config, opened.masterkey) or []
            wipe(opened.masterkey)
            names = tuple(each.name for each in secrets)
            if secrets and config.version != 1:
                ids = [each.recovery_id.hex() for each in secrets]
                config = authenticate(replace_fields(config, recovery=ids), vault.context.keys)
        write_config_file(vault.descriptor, config.encode())
    return config, names


def settle(vault: Vault) -> None:
    """After a crash (unlocking has replayed its journal): settle every file, as a mount does.

    Raises: VaultError: a file cannot be settled.
    """
    unsettled = vault.workers.unsettled
    if unsettled is None:
        return
    unsettled.sweep()
    if not unsettled.over:
        raise VaultError(
            f"{vault.vault_dir}: some files that a crash left unfinished cannot be settled; first run: "
            f"cryptfs fsck --repair {shell_word(vault.vault_dir)}"
        )


def _with_features(
    vault: Vault, old: VaultConfig, features: list[str], passphrases: Sequence[bytes | Offer]
) -> VaultConfig:
    """The new config. In version 1 the wrapping covers the features, so each slot needs another one."""
    new = replace_fields(
        old, features=features, generation=old.generation + 1, version=2 if SLOTS in features else 1
    )
    if old.version == new.version == 2:
        return authenticate(new, vault.context.keys)
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
            f"{vault.vault_dir}: an upgrade needs the passphrase of every key slot, and none was given for "
            f"slot {names}. Give it with --slot-passfile; nothing was changed"
        )
    return authenticate(replace_fields(new, slots=slots), vault.context.keys)


def _rewrapped(
    old: VaultConfig, new: VaultConfig, slot: KeySlot, passphrases: Sequence[bytes | Offer]
) -> KeySlot | None:
    """The same slot for the new config; None if no passphrase opens it."""
    cost = PassphraseCost.from_params(slot.params, slot.name)
    for passphrase in passphrases:
        with contextlib.closing(Offer.of(passphrase).spellings()) as spellings:
            for spelling, _ in spellings:
                if spelling.passphrase is None:
                    continue
                slot_key = cost.derive(spelling.passphrase)
                masterkey = open_slot(old.slot_context, slot, slot_key)
                if masterkey is not None:
                    nonce = os.urandom(SMALL_NONCE_SIZE)
                    fresh = seal_slot(new.slot_context, slot, slot_key, masterkey, nonce)
                    wipe(masterkey)
                    wipe(slot_key)
                    return fresh
                wipe(slot_key)
    return None


def _move_list(vault: Vault) -> None:
    """Make the old list this machine's, if it has none; but not if a sync client brought an old journal."""
    vault_fd, keys = vault.descriptor, vault.context.keys
    if has_journal(vault_fd, SHARED_STATE) or not has_sessions_file(vault_fd, SHARED_STATE):
        return
    owner = _owner(vault)
    if not has_sessions_file(vault_fd, owner):
        sessions = read_sessions(vault.context, vault_fd, SHARED_STATE)
        write_sessions_file(vault_fd, sessions.pack(keys, os.urandom(SMALL_NONCE_SIZE), owner), owner)
    for name in (SHARED_STATE.sessions, SHARED_STATE.unsettled):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=vault_fd)
    os.fsync(vault_fd)


def _owner(vault: Vault) -> StateNames:
    """The names of this machine's files, also while the config at the unlocking does not have the feature."""
    return machine_state(vault.descriptor, bytes.fromhex(vault.config.vault_id))


def _bind_directories(vault: Vault) -> tuple[str, ...]:
    """Give every directory a record with its place; returns the cipher paths of those that cannot get one.

    On return all of it is on disk. It leaves records that have a place, so that a second run goes on.
    """
    owner, left, batch = _owner(vault), [], []
    walker = Walker(vault.context, vault.descriptor)
    for directory in walker.directories():
        record = directory.record
        if directory.is_root or (record is not None and record.places):
            continue
        if record is None or directory.place is None:
            left.append(directory.cipher_path)
            continue
        raw = pack_bound_record(DirectoryRecord(record.dir_id, (directory.place,)), vault.context.keys)
        batch.append(_NewRecord(directory, raw, owner))
        if len(batch) == BATCH:
            _write_records(vault.descriptor, batch)
    _write_records(vault.descriptor, batch)
    syncfs(vault.descriptor)
    return (*left, *(cipher_path for cipher_path, _ in walker.skipped))


class _NewRecord:
    """Replaces a directory's record in two steps, between which the new one reaches the disk."""

    def __init__(self, directory: WalkedDirectory, raw: bytes, owner: StateNames) -> None:
        self._directory = directory
        self._raw = raw
        self._temporary = f"{owner.temp_prefix}bound"  # one name, so that a second run leaves no other

    def write(self) -> None:
        """Write the new record beside the old one."""
        fd = self._directory.fd
        with with_owner_rights(fd), keeping_mtime(fd):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._temporary, dir_fd=fd)
            os.close(create_small(fd, self._temporary, self._raw, 0o600))

    def replace(self) -> None:
        """Put it in the place of the old one. The directory keeps its time of change, if it is ours."""
        fd = self._directory.fd
        with with_owner_rights(fd), keeping_mtime(fd):
            os.rename(self._temporary, RECORD_NAME, src_dir_fd=fd, dst_dir_fd=fd)


def _write_records(vault_fd: int, batch: list[_NewRecord]) -> None:
    """Write these records, with one sync for all of them, and empty the list."""
    for record in batch:
        record.write()
    syncfs(vault_fd)
    for record in batch:
        record.replace()
    batch.clear()
