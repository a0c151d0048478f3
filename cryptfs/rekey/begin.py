"""The beginning of a change of the masterkey, up to the config that says so.

Before it nothing has changed; after it the old key slots are gone, and only `cryptfs rekey` opens the vault.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass

from cryptfs.core.aead import SMALL_NONCE_SIZE
from cryptfs.core.keys import KEY_SIZE, Subkeys
from cryptfs.core.slots.config import VaultConfig, authenticate, decode_config, replace_fields
from cryptfs.core.slots.rekeying import REKEYING, Rekey, seal_old_masterkey
from cryptfs.core.slots.slot import KeySlot
from cryptfs.errors import UnsupportedFormatError, VaultError
from cryptfs.rekey.survey import require_possible
from cryptfs.storage.hosts import journals_of_others, machine_state
from cryptfs.storage.libc import wipe
from cryptfs.storage.vaultdir import changing_config, read_config_file, write_config_file
from cryptfs.unlock.offer import Offer
from cryptfs.unlock.renewal import Renewal, renewal_alone, renewal_with
from cryptfs.unlock.table import sealed
from cryptfs.unlock.unlocking import memory_limit, open_vault
from cryptfs.vfs.upgrade import settle
from cryptfs.vfs.vault import Vault


@dataclass(frozen=True, slots=True)
class SlotPlan:
    """The key slots after the change. dropped: those that nobody can keep without their secret."""

    kept: tuple[Renewal, ...]
    dropped: tuple[KeySlot, ...]

    def wipe(self) -> None:
        """Overwrite the new slot keys."""
        for each in self.kept:
            wipe(each.new.slot_key)


def plan_slots(config: VaultConfig, offers: Sequence[Offer]) -> SlotPlan:
    """Which slots can stay. Each costs the derivation of its key, and that of its new one.

    Args:   config: authenticated: its mac vouches for slots that are kept without a secret.
    Raises: TokenError: the token of a slot is here, or may be, and does not do its work.
    """
    kept, dropped = [], []
    for slot in config.slots:
        found = renewal_with(config, slot, offers, memory_limit()) or renewal_alone(config, slot)
        if found is None:
            dropped.append(slot)
        else:
            kept.append(found)
    return SlotPlan(tuple(kept), tuple(dropped))


def refuse_unready(config: VaultConfig) -> None:
    """Raises: VaultError: the vault has to be upgraded first."""
    if config.version == 1 or config.is_upgrading:
        raise UnsupportedFormatError(
            "a change of the masterkey needs a vault that is up to date; first run: cryptfs upgrade VAULT"
        )


def begin(vault: Vault, plan: SlotPlan) -> VaultConfig:
    """Draw a new masterkey, and put it in force: returns the new config, which is on disk.

    Args:   vault: with its lock, without a redo log.   plan: at least one slot is kept with an offer.
    Raises: VaultError: the vault is not ready, or somebody changed its config meanwhile.
            OSError: nothing has changed.
    """
    config = vault.config
    refuse_unready(config)
    refuse_other_journals(vault.descriptor, config)
    settle(vault)
    require_possible(vault.context, vault.descriptor)
    tried = [each for each in plan.kept if each.offer is not None]
    if not tried:
        raise ValueError("no key slot would be left that you can open")
    old = open_vault(config, _for(tried[0]), memory_limit()).masterkey
    new = os.urandom(KEY_SIZE)
    try:
        following = _new_config(vault, config, plan, old, new)
        for each in tried:
            opened = open_vault(following, _for(each), memory_limit(), for_rekey=True).masterkey
            is_same = opened == new
            wipe(opened)
            if not is_same:
                raise VaultError(f"the new {each.slot.name} does not open; nothing was changed")
        with changing_config(vault.descriptor):
            if decode_config(read_config_file(vault.descriptor, vault.vault_dir)) != config:
                raise VaultError("somebody changed the vault's config meanwhile; run this again")
            write_config_file(vault.descriptor, following.encode(), vault.context.owner)
        return following
    finally:
        wipe(old)
        wipe(new)


def _for(renewal: Renewal) -> Offer:
    """The offer for one slot alone."""
    assert renewal.offer is not None
    return dataclasses.replace(renewal.offer, slot_id=renewal.slot.id, pin=None)


def _new_config(vault: Vault, config: VaultConfig, plan: SlotPlan, old: bytes, new: bytes) -> VaultConfig:
    """The config of the vault while everything is sealed again. Uses up the plan's keys."""
    vault_id = bytes.fromhex(config.vault_id)
    slots = [sealed(config, each.slot.id, each.slot.label, each.new, new) for each in plan.kept]
    hidden = seal_old_masterkey(new, old, vault_id, os.urandom(SMALL_NONCE_SIZE))
    following = replace_fields(
        config,
        features=sorted((*config.features, REKEYING)),
        generation=config.generation + 1,
        recovery=[],  # they end with the old masterkey
        rekey=Rekey(machine_state(vault.descriptor, vault_id).host, hidden.hex()),
        slots=slots,
    )
    following = authenticate(following, Subkeys.from_masterkey(new))
    return decode_config(following.encode())


def refuse_other_journals(vault_fd: int, config: VaultConfig) -> None:
    """Raises: VaultError: another machine's journal is in the vault."""
    others = journals_of_others(vault_fd, machine_state(vault_fd, bytes.fromhex(config.vault_id)))
    if others and config.has_machine_state:
        raise VaultError(
            "the vault has an unfinished session of another machine: it is mounted there, or was not "
            "unmounted. Unmount it there and let sync clients finish. If that session will not continue: "
            "cryptfs fsck --repair --other-machines VAULT"
        )
