"""The kinds of key slots that this version can open. A new kind is one more entry."""

from __future__ import annotations

from cryptfs.core.slots.slot import KeySlot
from cryptfs.unlock.hybrid import HybridKind
from cryptfs.unlock.keyfile import KeyFileKind, PassphraseKeyFileKind
from cryptfs.unlock.kind import SlotKind
from cryptfs.unlock.passphrase import PassphraseKind
from cryptfs.unlock.token import TokenKind

KINDS: tuple[SlotKind, ...] = (  # in the order in which they are tried: what costs little first
    KeyFileKind(),
    HybridKind(),
    PassphraseKind(),
    PassphraseKeyFileKind(),
    TokenKind(),
)


def kind_of(slot: KeySlot) -> SlotKind | None:
    """The kind of a slot; None if this version does not know it."""
    return next((kind for kind in KINDS if kind.name == slot.kind), None)
