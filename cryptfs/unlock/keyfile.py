"""Slots that need a file: of kind `key-file` it alone, of kind `passphrase-key-file` beside a passphrase.

Alone it takes only a file that cryptfs made: 32 random bytes and a checksum, one line of ASCII. Somebody else
could have the same photo or song, or guess it. Beside a passphrase any file will do.
Source: docs/FORMAT.md, section 9.
"""

from __future__ import annotations

import binascii
import hashlib
import hmac
import os
import re
from collections.abc import Iterator, Sequence

from cryptfs.core.keys import KEY_SIZE, derive
from cryptfs.core.slots.checks import from_hex
from cryptfs.core.slots.kdf import DEFAULT_KDF_MEMORY, DEFAULT_KDF_PASSES, PassphraseCost
from cryptfs.core.slots.slot import KeySlot
from cryptfs.errors import VaultConfigError
from cryptfs.storage.libc import wipe
from cryptfs.unlock.kind import NewKey
from cryptfs.unlock.offer import Offer
from cryptfs.unlock.passphrase import check_memory, new_cost

KEY_FILE = "key-file"
PASSPHRASE_KEY_FILE = "passphrase-key-file"  # noqa: S105 - a kind of slot
MIN_FILE_SIZE = 32
MAX_FILE_SIZE = 1024 * 1024
_SALT_SIZE = 16
_CHECKSUM_SIZE = 8
_LINE = re.compile(rb"cryptfs-key-1:([0-9a-f]{64}):([0-9a-f]{16})\s*")


class KeyFileKind:
    """A key file that cryptfs made, without a passphrase."""

    name = KEY_FILE
    about = "a key file"

    def is_offered(self, offer: Offer) -> bool:
        """Whether there is a key file that cryptfs made."""
        return offer.key_file is not None and is_made_here(offer.key_file)

    def check(self, slot: KeySlot, max_memory: int) -> None:
        """See SlotKind."""
        _salt_of(slot)

    def slot_keys(
        self, slots: Sequence[KeySlot], offer: Offer, vault_id: bytes
    ) -> Iterator[tuple[KeySlot, bytes]]:
        """See SlotKind."""
        assert offer.key_file is not None
        secret = secret_of(offer.key_file)
        assert secret is not None
        try:
            for slot in slots:
                yield slot, derive(secret, b"keyfile", _salt_of(slot))
        finally:
            wipe(secret)


class PassphraseKeyFileKind:
    """A passphrase and any file, both needed."""

    name = PASSPHRASE_KEY_FILE
    about = "a passphrase and a key file"

    def is_offered(self, offer: Offer) -> bool:
        """Whether both are there."""
        return offer.passphrase is not None and offer.key_file is not None

    def check(self, slot: KeySlot, max_memory: int) -> None:
        """See SlotKind."""
        check_memory(PassphraseCost.from_params(slot.params, slot.name), slot, max_memory)

    def slot_keys(
        self, slots: Sequence[KeySlot], offer: Offer, vault_id: bytes
    ) -> Iterator[tuple[KeySlot, bytes]]:
        """See SlotKind."""
        assert offer.passphrase is not None and offer.key_file is not None
        for slot in slots:
            yield slot, _both(PassphraseCost.from_params(slot.params, slot.name), offer)


def _both(cost: PassphraseCost, offer: Offer) -> bytes:
    assert offer.passphrase is not None and offer.key_file is not None
    digest = hashlib.blake2b(offer.key_file, digest_size=KEY_SIZE).digest()
    key = cost.derive(offer.passphrase)
    try:
        return derive(key, b"keyfile", digest)
    finally:
        wipe(key)
        wipe(digest)


def _salt_of(slot: KeySlot) -> bytes:
    salt = slot.params.get("salt")
    if set(slot.params) != {"salt"} or not isinstance(salt, str):
        raise VaultConfigError(f"{slot.name} is of a newer cryptfs: this version cannot derive its key")
    return from_hex(salt, _SALT_SIZE, f"{slot.name}, salt")


def generate_key_file(secret: bytes) -> bytes:
    """The content of a key file. secret: 32 random bytes."""
    letters = binascii.hexlify(secret)
    content = b"cryptfs-key-1:%s:%s\n" % (letters, binascii.hexlify(_checksum(secret)))
    wipe(letters)
    return content


def secret_of(key_file: bytes) -> bytes | None:
    """The 32 bytes in a key file that cryptfs made, to be wiped; None for another file, or a damaged one."""
    match = _LINE.fullmatch(key_file)
    if match is None:
        return None
    with memoryview(key_file) as view:  # no other copy of the secret is made
        secret = binascii.unhexlify(view[slice(*match.span(1))])
        checksum = binascii.unhexlify(view[slice(*match.span(2))])
    if hmac.compare_digest(_checksum(secret), checksum):
        return secret
    wipe(secret)
    return None


def is_made_here(key_file: bytes) -> bool:
    """Whether it is a key file that cryptfs made, and undamaged."""
    secret = secret_of(key_file)
    if secret is None:
        return False
    wipe(secret)
    return True


def _checksum(secret: bytes) -> bytes:
    return derive(secret, b"keycheck", size=_CHECKSUM_SIZE)


def new_key_file(key_file: bytes) -> NewKey:
    """A key from a key file that cryptfs made. Raises: ValueError: it is another file."""
    secret = secret_of(key_file)
    if secret is None:
        raise ValueError("not a key file that cryptfs made, or a damaged one")
    salt = os.urandom(_SALT_SIZE)
    try:
        return NewKey(KEY_FILE, {"salt": salt.hex()}, derive(secret, b"keyfile", salt))
    finally:
        wipe(secret)


def new_passphrase_key_file(
    offer: Offer, memory: int = DEFAULT_KDF_MEMORY, passes: int = DEFAULT_KDF_PASSES
) -> NewKey:
    """A key from a passphrase and a file. Raises: ValueError: the file is too small or too large."""
    if offer.passphrase is None or offer.key_file is None:
        raise ValueError("a passphrase and a file are needed")
    if not MIN_FILE_SIZE <= len(offer.key_file) <= MAX_FILE_SIZE:
        raise ValueError(f"a key file has {MIN_FILE_SIZE} to {MAX_FILE_SIZE} bytes")
    cost = new_cost(memory, passes)
    return NewKey(PASSPHRASE_KEY_FILE, cost.params(), _both(cost, offer))
