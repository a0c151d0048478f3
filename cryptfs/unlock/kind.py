"""What a kind of key slot has to say. Each kind is one file of this room, and one entry of kinds.KINDS."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from cryptfs.core.slots.slot import KeySlot, Params
from cryptfs.unlock.offer import Offer


@dataclass(frozen=True, slots=True)
class NewKey:
    """The ingredients of a new slot.

    slot_key: 32 bytes, wiped after their use.
    place: vault_id and slot id, if the key comes out in that place alone.
    """

    kind: str
    params: Params
    slot_key: bytes = field(repr=False)
    place: tuple[bytes, int] | None = None


class SlotKind(Protocol):
    """A way from what a person offers to a slot key.

    name: in the config.   about: what it takes, for people: "a passphrase".
    """

    @property
    def name(self) -> str: ...

    @property
    def about(self) -> str: ...

    def is_offered(self, offer: Offer) -> bool:
        """Whether the offer has what slots of this kind need."""

    def check(self, slot: KeySlot, max_memory: int) -> None:
        """Judge the params of a slot before anything costs memory or asks a device.

        Args:   max_memory: bytes that deriving a key may take on this machine.
        Raises: VaultConfigError: this version cannot use the slot; another one may open the vault.
        """

    def slot_keys(
        self, slots: Sequence[KeySlot], offer: Offer, vault_id: bytes
    ) -> Iterator[tuple[KeySlot, bytes]]:
        """The key of each slot that the offer may open, cheapest first; the commitment decides.

        Args:   slots: of this kind, checked.   vault_id: 16 bytes, of the vault that the slots are in.
        """
