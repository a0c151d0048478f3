"""Slots of kind `hpke`: a random slot key, sealed for a hybrid public key of age.

Somebody can make the slot for another person, with that person's public key alone, and a server can open a
vault without a passphrase. HPKE seals the slot key with ML-KEM-768 and X25519 together: an attacker has to
break both. The package cryptography, an extra, does that, and draws the randomness for it; nothing else loads
it.

Anybody can make such a slot: it proves nothing about who made the vault. Source: docs/FORMAT.md, section 9.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cryptfs.core.keys import KEY_SIZE
from cryptfs.core.names.names import decode_text, encode_text
from cryptfs.core.slots.agekeys import recipient_bytes
from cryptfs.core.slots.slot import KeySlot, Params
from cryptfs.errors import VaultConfigError, VaultError
from cryptfs.storage.libc import wipe
from cryptfs.unlock.kind import NewKey
from cryptfs.unlock.offer import Offer

if TYPE_CHECKING:  # the package is an extra
    from cryptography.hazmat.primitives.hpke import MLKEM768X25519PrivateKey, MLKEM768X25519PublicKey, Suite

HPKE = "hpke"
ENC_SIZE = 1120  # ML-KEM-768 has 1088 bytes, X25519 has 32
CIPHERTEXT_SIZE = KEY_SIZE + 16
_ML_KEM_SEED_SIZE = 64
_ML_KEM_PUBLIC_SIZE = 1184
_FIELDS = {"ciphertext", "enc", "recipient"}


@dataclass(frozen=True, slots=True)
class HybridParams:
    """The params of a slot. recipient: age's text.   enc: 1120 bytes.   ciphertext: 48 bytes."""

    recipient: str
    enc: bytes
    ciphertext: bytes

    @classmethod
    def of(cls, slot: KeySlot) -> HybridParams:
        """Raises: VaultConfigError: a field too many or too few, or of an impossible form."""
        recipient, enc, ciphertext = (slot.params.get(field) for field in ("recipient", "enc", "ciphertext"))
        if (
            set(slot.params) != _FIELDS
            or not (isinstance(recipient, str) and isinstance(enc, str))
            or not isinstance(ciphertext, str)
        ):
            raise VaultConfigError(f"{slot.name} is of a newer cryptfs: this version cannot derive its key")
        try:
            recipient_bytes(recipient)
        except ValueError as error:
            raise VaultConfigError(f"{slot.name} cannot be used: {error}") from None
        return cls(
            recipient, _bytes_in(slot, "enc", ENC_SIZE), _bytes_in(slot, "ciphertext", CIPHERTEXT_SIZE)
        )

    def params(self) -> Params:
        """As they are in a slot."""
        return {
            "ciphertext": encode_text(self.ciphertext),
            "enc": encode_text(self.enc),
            "recipient": self.recipient,
        }


def _bytes_in(slot: KeySlot, field: str, size: int) -> bytes:
    text = str(slot.params[field])
    data = decode_text(text) if len(text) <= 2 * size else None
    if data is None or len(data) != size:
        raise VaultConfigError(f"{slot.name} cannot be used: {field} is not {size} bytes in base64url")
    return data


class HybridKind:
    """The secret key for a hybrid public key of age."""

    name = HPKE
    about = "an age identity"

    def is_offered(self, offer: Offer) -> bool:
        """Whether there is an identity."""
        return bool(offer.identities)

    def check(self, slot: KeySlot, max_memory: int) -> None:
        """See SlotKind."""
        HybridParams.of(slot)
        reason = _missing()
        if reason:
            raise VaultConfigError(f"{slot.name} takes an age identity, and {reason}")

    def slot_keys(
        self, slots: Sequence[KeySlot], offer: Offer, vault_id: bytes
    ) -> Iterator[tuple[KeySlot, bytes]]:
        """See SlotKind. Every identity is tried on every slot; 64 on 32 take less than a second."""
        keys = [_private_key(identity) for identity in offer.identities]
        for slot in slots:
            params = HybridParams.of(slot)
            opened = (_opened(params, key, info_of(vault_id, slot.id)) for key in keys)
            slot_key = next(filter(None, opened), None)
            if slot_key is not None:
                yield slot, slot_key

    def renew(self, slot: KeySlot, vault_id: bytes) -> NewKey | None:
        """Another random key for the recipient of a slot, which keeps its id; no identity is needed.

        Args:   slot: of a config whose mac has been checked: that vouches for the recipient.
        Returns: None: this version cannot use the slot.
        Raises: VaultError: the package is missing.
        """
        try:
            recipient = HybridParams.of(slot).recipient
        except VaultConfigError:
            return None
        return new_hybrid(recipient, vault_id, slot.id)


def info_of(vault_id: bytes, slot_id: int) -> bytes:
    """What HPKE binds a slot key to: 32 bytes."""
    return b"cryptfs slot" + vault_id + slot_id.to_bytes(4, "little")


def new_hybrid(recipient: str, vault_id: bytes, slot_id: int) -> NewKey:
    """A random key for a recipient; nobody can open the slot until it is in this vault under this id.

    Args:   recipient: from recipient_of.   vault_id: 16 bytes.
    Raises: ValueError: the recipient is not a key.   VaultError: the package is missing.
    """
    reason = _missing()
    if reason:
        raise VaultError(f"a key slot for an age recipient cannot be made: {reason}")
    public_key = _public_key(recipient_bytes(recipient))
    slot_key = os.urandom(KEY_SIZE)
    sealed = _suite().encrypt(slot_key, public_key, info_of(vault_id, slot_id))
    params = HybridParams(recipient, sealed[:ENC_SIZE], sealed[ENC_SIZE:]).params()
    return NewKey(HPKE, params, slot_key, (vault_id, slot_id))


def _opened(params: HybridParams, key: MLKEM768X25519PrivateKey, info: bytes) -> bytes | None:
    """The slot key; None if it was sealed for somebody else, for another place, or was changed."""
    from cryptography.exceptions import InvalidTag

    try:
        return _suite().decrypt(params.enc + params.ciphertext, key, info)
    except InvalidTag:
        return None


def _suite() -> Suite:
    from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

    return Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.CHACHA20_POLY1305)


def _private_key(identity: bytes) -> MLKEM768X25519PrivateKey:
    """The key pair that follows from an identity of 32 bytes."""
    from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
    from cryptography.hazmat.primitives.hpke import MLKEM768X25519PrivateKey

    expanded = hashlib.shake_256(identity).digest(_ML_KEM_SEED_SIZE + 32)
    try:
        with memoryview(expanded) as view:  # no other copies of the secrets are made
            return MLKEM768X25519PrivateKey(
                MLKEM768PrivateKey.from_seed_bytes(view[:_ML_KEM_SEED_SIZE]),
                X25519PrivateKey.from_private_bytes(view[_ML_KEM_SEED_SIZE:]),
            )
    finally:
        wipe(expanded)


def _public_key(recipient: bytes) -> MLKEM768X25519PublicKey:
    """Raises: ValueError: the 1216 bytes are not a key."""
    from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PublicKey
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
    from cryptography.hazmat.primitives.hpke import MLKEM768X25519PublicKey

    try:
        return MLKEM768X25519PublicKey(
            MLKEM768PublicKey.from_public_bytes(recipient[:_ML_KEM_PUBLIC_SIZE]),
            X25519PublicKey.from_public_bytes(recipient[_ML_KEM_PUBLIC_SIZE:]),
        )
    except ValueError:
        raise ValueError("the recipient is not a public key") from None


def _missing() -> str:
    """Why this machine cannot do HPKE with this KEM, and what to do; '' if it can."""
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
        from cryptography.hazmat.primitives.hpke import MLKEM768X25519PrivateKey  # noqa: F401
    except ImportError:
        return (
            "this needs the package cryptography, version 50 or newer; install it with: "
            "pip install 'cryptfs[hpke]'"
        )
    try:
        MLKEM768PrivateKey.from_seed_bytes(bytes(_ML_KEM_SEED_SIZE))
    except UnsupportedAlgorithm:
        return (
            "the package cryptography was built here without ML-KEM; install it from PyPI with: "
            "pip install 'cryptfs[hpke]'"
        )
    return ""
