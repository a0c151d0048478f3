"""What an entry of a backing directory is, by its name alone."""

from __future__ import annotations

from enum import StrEnum

from cryptfs.core.dirrecord import RECORD_NAME
from cryptfs.core.names import (
    INTERNAL_PREFIX,
    LONG_PREFIX,
    MAX_PADDED_SIZE,
    PAD_STEP,
    SIDECAR_SUFFIX,
    SIV_SIZE,
    TEMP_PREFIX,
    decode_text,
)
from cryptfs.storage.dirs import is_long

_HASH_SIZE = 32


class Role(StrEnum):
    """What an entry of a backing directory is, by its name alone."""

    ENTRY = "entry"  # of the plaintext tree: a cipher name or a long one
    RECORD = "record"  # cryptfs.dir
    SIDECAR = "sidecar"  # cryptfs.long.<hash>.name
    TEMPORARY = "temporary"  # cryptfs.tmp.*
    INTERNAL = "internal"  # another name that begins with cryptfs.
    CONFLICT = "conflict"  # a sync client's copy of an entry, where the original's name verifies
    FOREIGN = "foreign"  # not a name that cryptfs makes


def role_of(entry_name: str) -> Role:
    """What an entry is, by its name alone."""
    if not entry_name.startswith(INTERNAL_PREFIX):
        return Role.ENTRY if could_be_cipher_name(entry_name) else Role.FOREIGN
    if entry_name == RECORD_NAME:
        return Role.RECORD
    if entry_name.startswith(TEMP_PREFIX):
        return Role.TEMPORARY
    if is_long(entry_name):
        sidecar = entry_name.endswith(SIDECAR_SUFFIX)
        digest = entry_name.removeprefix(LONG_PREFIX).removesuffix(SIDECAR_SUFFIX)
        if len(decode_text(digest) or b"") == _HASH_SIZE:
            return Role.SIDECAR if sidecar else Role.ENTRY
    return Role.INTERNAL


def could_be_cipher_name(text: str) -> bool:
    """Whether a name has the form of a cipher name, authentic or not."""
    data = decode_text(text)
    if data is None:
        return False
    padded_size = len(data) - SIV_SIZE
    return PAD_STEP <= padded_size <= MAX_PADDED_SIZE and padded_size % PAD_STEP == 0


def is_plain_name(name: bytes) -> bool:
    """Whether a decrypted name could be one of a directory entry."""
    return b"/" not in name and b"\0" not in name and name not in (b"", b".", b"..")
