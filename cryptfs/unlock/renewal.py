"""Key slots for another masterkey: each slot of a vault whose secret is at hand, or needs none.

A passphrase or key file gets a fresh salt, so that a slot key that leaked opens nothing new. A kind that
cannot have another slot key without a person's help keeps the one that it has.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from cryptfs.core.slots.config import VaultConfig
from cryptfs.core.slots.kdf import PassphraseCost
from cryptfs.core.slots.slot import PASSPHRASE, KeySlot, open_slot
from cryptfs.errors import AbsentTokenError, VaultConfigError
from cryptfs.storage.libc import wipe
from cryptfs.unlock.keyfile import KEY_FILE, PASSPHRASE_KEY_FILE, new_key_file, new_passphrase_key_file
from cryptfs.unlock.kind import NewKey, SlotKind
from cryptfs.unlock.kinds import kind_of
from cryptfs.unlock.offer import Offer
from cryptfs.unlock.passphrase import new_passphrase


@runtime_checkable
class RenewsAlone(Protocol):
    """A kind of slots that can be made for another masterkey without a secret, as public keys can."""

    def renew(self, slot: KeySlot, vault_id: bytes) -> NewKey | None:
        """The key of a slot with the same id for the same recipient; None if this one cannot be renewed.

        Args: slot: of an authenticated config: its mac vouches for the recipient.   vault_id: 16 bytes.
        """


class Renewal(NamedTuple):
    """One slot as it goes on. slot: of the old config.   new: its new key.

    offer: opens the new slot; None if no secret was at hand, so that nobody can try it here.
    """

    slot: KeySlot
    new: NewKey
    offer: Offer | None


def renewal_with(
    config: VaultConfig, slot: KeySlot, offers: Sequence[Offer], max_memory: int
) -> Renewal | None:
    """The slot renewed by the first offer that opens it; None if none does.

    Args:   max_memory: bytes that deriving a key may take.
    Raises: TokenError: the slot's token is here, or may be, and does not do its work.
    """
    kind = kind_of(slot)
    if kind is None:
        return None
    try:
        kind.check(slot, max_memory)
    except VaultConfigError:
        return None
    for offer in offers:
        if not kind.is_offered(offer):
            continue
        with contextlib.suppress(AbsentTokenError), contextlib.closing(offer.spellings()) as spellings:
            for spelling, _ in spellings:
                new = _opened_and_renewed(config, kind, slot, spelling)
                if new is not None:
                    return Renewal(slot, new, offer)
    return None


def _opened_and_renewed(config: VaultConfig, kind: SlotKind, slot: KeySlot, offer: Offer) -> NewKey | None:
    """The slot's new key, if an offer opens the slot as it is spelled."""
    for _, slot_key in kind.slot_keys([slot], offer, config.slot_context.vault_id):
        masterkey = open_slot(config.slot_context, slot, slot_key)
        if masterkey is None:
            wipe(slot_key)
            continue
        wipe(masterkey)
        alone = renewal_alone(config, slot)
        if alone is None:
            return _renewed(slot, offer, slot_key)
        wipe(slot_key)
        return alone.new
    return None


def renewal_alone(config: VaultConfig, slot: KeySlot) -> Renewal | None:
    """The slot renewed without a secret; None if its kind cannot do that."""
    kind: object = kind_of(slot)
    if not isinstance(kind, RenewsAlone):
        return None
    new = kind.renew(slot, bytes.fromhex(config.vault_id))
    return None if new is None else Renewal(slot, new, None)


def _renewed(slot: KeySlot, offer: Offer, slot_key: bytes) -> NewKey:
    """A new key by the offer that opened the slot. Takes over the slot key."""
    if slot.kind in (PASSPHRASE, PASSPHRASE_KEY_FILE):
        cost = PassphraseCost.from_params(slot.params, slot.name)
        wipe(slot_key)
        if slot.kind == PASSPHRASE_KEY_FILE:
            return new_passphrase_key_file(offer, cost.memory, cost.passes)
        assert offer.passphrase is not None
        return new_passphrase(offer.passphrase, cost.memory, cost.passes)
    if slot.kind == KEY_FILE:
        wipe(slot_key)
        assert offer.key_file is not None
        return new_key_file(offer.key_file)
    return NewKey(slot.kind, dict(slot.params), slot_key)
