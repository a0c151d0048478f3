"""Slots of kind `passphrase`: Argon2id."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from cryptfs.core.keys import ARGON2_SALT_SIZE
from cryptfs.core.slots.kdf import DEFAULT_KDF_MEMORY, DEFAULT_KDF_PASSES, PassphraseCost, check_costs
from cryptfs.core.slots.slot import PASSPHRASE, KeySlot
from cryptfs.errors import VaultConfigError
from cryptfs.unlock.kind import NewKey
from cryptfs.unlock.offer import Offer


class PassphraseKind:
    """A passphrase alone."""

    name = PASSPHRASE
    about = "a passphrase"

    def is_offered(self, offer: Offer) -> bool:
        """Whether there is one."""
        return offer.passphrase is not None

    def check(self, slot: KeySlot, max_memory: int) -> None:
        """See SlotKind."""
        check_memory(PassphraseCost.from_params(slot.params, slot.name), slot, max_memory)

    def slot_keys(
        self, slots: Sequence[KeySlot], offer: Offer, vault_id: bytes
    ) -> Iterator[tuple[KeySlot, bytes]]:
        """See SlotKind."""
        assert offer.passphrase is not None
        for slot in slots:
            yield slot, PassphraseCost.from_params(slot.params, slot.name).derive(offer.passphrase)


def fresh_salt() -> bytes:
    """16 random bytes."""
    return os.urandom(ARGON2_SALT_SIZE)


def new_cost(memory: int = DEFAULT_KDF_MEMORY, passes: int = DEFAULT_KDF_PASSES) -> PassphraseCost:
    """The cost of a new slot, with a fresh salt.

    Args:   memory: bytes.
    Raises: ValueError: out of bounds.
    """
    try:
        check_costs(memory, passes, "the new key slot")
    except VaultConfigError as error:
        raise ValueError(str(error)) from None
    return PassphraseCost(memory, passes, fresh_salt())


def new_passphrase(
    passphrase: bytes, memory: int = DEFAULT_KDF_MEMORY, passes: int = DEFAULT_KDF_PASSES
) -> NewKey:
    """A key from a new passphrase. Raises: ValueError: it is empty; else as new_cost."""
    if not passphrase:
        raise ValueError("the passphrase is empty; an empty passphrase protects nothing")
    cost = new_cost(memory, passes)
    return NewKey(PASSPHRASE, cost.params(), cost.derive(passphrase))


def check_memory(cost: PassphraseCost, slot: KeySlot, max_memory: int) -> None:
    """Raises: VaultConfigError: a try takes more memory than this machine may use for it."""
    if cost.memory > max_memory:
        raise VaultConfigError(
            f"key slot {slot.id} asks for {cost.memory >> 20} MiB of memory to derive its key; "
            f"at most {max_memory >> 20} MiB (half of what is free) may be used here"
        )
