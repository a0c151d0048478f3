"""Changes of a vault's key slots: each is one change of the config, whole or not at all.

They work while the vault is mounted.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from cryptfs.core.aead import SMALL_NONCE_SIZE
from cryptfs.core.keys import Subkeys
from cryptfs.core.slots.checks import check_label
from cryptfs.core.slots.config import (
    MAX_SLOTS,
    VaultConfig,
    authenticate,
    decode_config,
    free_slot_id,
    replace_fields,
)
from cryptfs.core.slots.identity import Mark
from cryptfs.core.slots.kdf import PassphraseCost
from cryptfs.core.slots.slot import PASSPHRASE, KeySlot, seal_slot
from cryptfs.errors import UnsupportedFormatError, VaultConfigError, VaultError
from cryptfs.storage.hosts import own_state
from cryptfs.storage.libc import wipe
from cryptfs.storage.recovery import read_records
from cryptfs.storage.vaultdir import (
    changing_config,
    open_vault_dir,
    read_config_file,
    remove_unfinished_keys,
    write_config_file,
)
from cryptfs.unlock.keyfile import PASSPHRASE_KEY_FILE
from cryptfs.unlock.kind import NewKey
from cryptfs.unlock.offer import Offer
from cryptfs.unlock.passphrase import new_passphrase
from cryptfs.unlock.unlocking import Unlocked, memory_limit, open_vault

_WITH_PASSPHRASE = (PASSPHRASE, PASSPHRASE_KEY_FILE)


def sealed(config: VaultConfig, slot_id: int, label: str, new: NewKey, masterkey: bytes) -> KeySlot:
    """A slot of a vault.

    Raises: ValueError: the label is out of bounds, or the key was made for another place.
    """
    if new.place not in (None, (config.slot_context.vault_id, slot_id)):
        raise ValueError("the new key is for another vault, or for a slot with another id")
    try:
        check_label(label, "the new key slot")
    except VaultConfigError as error:
        raise ValueError(str(error)) from None
    empty = KeySlot(commitment="", id=slot_id, kind=new.kind, label=label, params=new.params, wrapped="")
    slot = seal_slot(config.slot_context, empty, new.slot_key, masterkey, os.urandom(SMALL_NONCE_SIZE))
    wipe(new.slot_key)
    return slot


def require_kind(config: VaultConfig, kind: str) -> None:
    """Raises: UnsupportedFormatError: a vault of 0.1 has slots for passphrases alone."""
    if kind != PASSPHRASE and not config.has_slots_of_all_kinds:
        raise UnsupportedFormatError(
            "this vault is from an earlier version, and can have only passphrases; first run: cryptfs "
            "upgrade VAULT"
        )


def slot_of(config: VaultConfig, slot_id: int) -> KeySlot:
    """Raises: VaultError: there is no such slot."""
    for slot in config.slots:
        if slot.id == slot_id:
            return slot
    raise VaultError(f"the vault has no key slot {slot_id}. To list them: cryptfs key list VAULT")


def slot_to_change(config: VaultConfig, opened: KeySlot | None, slot_id: int | None = None) -> KeySlot:
    """The slot whose passphrase a person wants to change; `cryptfs passwd` and the Python API ask here.

    Args:   opened: the slot that opened the vault; None if words or shares did.
            slot_id: None takes `opened` or, if that has no passphrase, the only passphrase of the vault.
    Raises: VaultError: there is no such slot, it has no passphrase, or there are several.
    """
    if slot_id is not None:
        meant = slot_of(config, slot_id)
        if meant.kind in _WITH_PASSPHRASE:
            return meant
        raise VaultError(
            f"key slot {slot_id} ({meant.kind}) has no passphrase to change. To replace it, add another key "
            f"with cryptfs key add, then: cryptfs key remove VAULT {slot_id}"
        )
    if opened is not None and opened.kind in _WITH_PASSPHRASE:
        return opened
    found = [slot for slot in config.slots if slot.kind == PASSPHRASE]
    if len(found) == 1:
        return found[0]
    if not found:
        raise VaultError("the vault has no passphrase to change. Add one: cryptfs key add passphrase VAULT")
    raise VaultError(
        f"the vault has {len(found)} passphrases; say which one to change: --change-slot ID. "
        "To list them: cryptfs key list VAULT"
    )


class SlotTable:
    """The key slots of a vault that somebody has opened. Nothing is on disk before `save`.

    Args: on_save: called with the mark of each new config that is on disk.
    """

    def __init__(
        self,
        vault_fd: int,
        config: VaultConfig,
        opened: Unlocked,
        on_save: Callable[[Mark], None] | None = None,
    ) -> None:
        self.config = config
        self.opened = opened
        self._vault_fd = vault_fd
        self._on_save = on_save

    @property
    def vault_id(self) -> bytes:
        """16 bytes."""
        return self.config.slot_context.vault_id

    @property
    def next_id(self) -> int:
        """The id of the slot that `add` will make: some keys are made for their place."""
        return free_slot_id(self.config)

    def add(self, new: NewKey, label: str = "") -> KeySlot:
        """One more slot.

        Raises: ValueError: the label is out of bounds, or the key was made for another place.
                VaultError: there are as many as can be.
                UnsupportedFormatError: a vault of 0.1 has slots for passphrases alone.
        """
        if len(self.config.slots) >= MAX_SLOTS:
            raise VaultError(f"the vault has {MAX_SLOTS} key slots, and can have no more; remove one first")
        require_kind(self.config, new.kind)
        slot = sealed(self.config, self.next_id, label, new, self.opened.masterkey)
        self._set([*self.config.slots, slot])
        return slot

    def replace(self, slot_id: int, new: NewKey) -> KeySlot:
        """Another key for a slot, which keeps id and label.

        Raises: VaultError: there is no such slot.   UnsupportedFormatError: as add.
        """
        old = self.slot(slot_id)
        require_kind(self.config, new.kind)
        fresh = sealed(self.config, slot_id, old.label, new, self.opened.masterkey)
        self._set([fresh if slot.id == slot_id else slot for slot in self.config.slots])
        return fresh

    def remove(self, slot_id: int) -> KeySlot:
        """One slot less. Raises: VaultError: there is no such slot, or it is the last one."""
        gone = self.slot(slot_id)
        if len(self.config.slots) == 1:
            raise VaultError(
                f"key slot {slot_id} is the last one; without it nobody could open the vault. First add "
                "another one: cryptfs key add passphrase VAULT"
            )
        self._set([slot for slot in self.config.slots if slot.id != slot_id])
        return gone

    def relabel(self, slot_id: int, label: str) -> KeySlot:
        """Another label. Raises: ValueError: it is out of bounds.   VaultError: there is no such slot."""
        try:
            check_label(label, f"key slot {slot_id}")
        except VaultConfigError as error:
            raise ValueError(str(error)) from None
        fresh = msgspec.structs.replace(self.slot(slot_id), label=label)
        self._set([fresh if slot.id == slot_id else slot for slot in self.config.slots])
        return fresh

    @property
    def opened_id(self) -> int | None:
        """The id of the slot that was opened for this change; None if it was the recovery record."""
        return None if self.opened.slot is None else self.opened.slot.id

    def slot(self, slot_id: int) -> KeySlot:
        """Raises: VaultError: there is no such slot."""
        return slot_of(self.config, slot_id)

    def change_passphrase(
        self, new: bytes, slot_id: int | None = None, memory: int | None = None, passes: int | None = None
    ) -> KeySlot:
        """Another passphrase for the slot that slot_to_change finds; None keeps the cost of a guess.

        Raises: VaultError: as slot_to_change, or the slot takes a key file beside its passphrase.
        """
        slot = slot_to_change(self.config, self.opened.slot, slot_id)
        if slot.kind != PASSPHRASE:  # alone, the new passphrase would open what needs two things now
            raise VaultError(
                f"key slot {slot.id} takes a key file beside its passphrase. To change that: "
                "cryptfs passwd VAULT"
            )
        cost = PassphraseCost.from_params(slot.params, slot.name)
        memory = cost.memory if memory is None else memory
        passes = cost.passes if passes is None else passes
        return self.replace(slot.id, new_passphrase(new, memory, passes))

    def _set(self, slots: list[KeySlot]) -> None:
        self.config = replace_fields(self.config, slots=slots)

    def save(self) -> None:
        """Write the config with the next generation, and remove what killed writers left of older ones.

        Raises: OSError: the old one is still there.
        """
        changed = replace_fields(self.config, generation=self.config.generation + 1)
        self.config = authenticate(changed, Subkeys.from_masterkey(self.opened.masterkey))
        decode_config(self.config.encode())  # never write what no reader takes
        write_config_file(self._vault_fd, self.config.encode(), own_state(self._vault_fd, self.config))
        if self._on_save is not None:
            self._on_save(dataclasses.replace(self.opened.mark, generation=self.config.generation))
        remove_unfinished_keys(self._vault_fd)


def records_for(vault_fd: int, secret: bytes | Offer) -> list[bytes]:
    """The bytes of the vault's recovery records, if an offer needs them. Raises: OSError."""
    return read_records(vault_fd) if isinstance(secret, Offer) and secret.takes_record else []


@contextlib.contextmanager
def changing_slots(vault_dir: Path, secret: bytes | Offer) -> Iterator[SlotTable]:
    """The slots of a vault for one change; others who change its config wait. Wipes the masterkey.

    Raises: NotAVaultError, UnsupportedFormatError, VaultConfigError, WrongPassphraseError,
            UnexpectedVaultError, OSError.
    """
    pin = Offer.of(secret).pin
    vault_fd = open_vault_dir(vault_dir)
    try:
        with changing_config(vault_fd):
            config = decode_config(read_config_file(vault_fd, vault_dir))
            opened = open_vault(
                config, secret, memory_limit(), records_for(vault_fd, secret), vault_dir=vault_dir
            )
            try:
                on_save = None if pin is None else functools.partial(pin.keep, vault_dir)
                yield SlotTable(vault_fd, config, opened, on_save)
            finally:
                wipe(opened.masterkey)
    finally:
        os.close(vault_fd)
