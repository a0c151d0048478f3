"""The role of an entry in a backing directory, by its name alone."""

from __future__ import annotations

from enum import StrEnum

from cryptfs.core.names.dirrecord import RECORD_NAME
from cryptfs.core.names.names import (
    INTERNAL_PREFIX,
    LONG_PREFIX,
    SIDECAR_SUFFIX,
    TEMP_PREFIX,
    could_be_cipher_name,
    decode_text,
)
from cryptfs.storage.dirs import is_long

_HASH_SIZE = 32


class Role(StrEnum):
    """The role of an entry in a backing directory, by its name alone."""

    ENTRY = "entry"  # of the plaintext tree: a cipher name or a long one
    RECORD = "record"  # cryptfs.dir
    SIDECAR = "sidecar"  # cryptfs.long.<hash>.name
    TEMPORARY = "temporary"  # cryptfs.tmp.*
    INTERNAL = "internal"  # another name that begins with cryptfs.
    CONFLICT = "conflict"  # a sync client's copy of an entry, where the original's name verifies
    FOREIGN = "foreign"  # not a name of cryptfs


def role_of(entry_name: str) -> Role:
    """The role of an entry, by its name alone."""
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


def is_plain_name(name: bytes) -> bool:
    """Whether a decrypted name could be one of a directory entry."""
    return b"/" not in name and b"\0" not in name and name not in (b"", b".", b"..")
