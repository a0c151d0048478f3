"""The masterkey, its subkeys, and the derivation of keys from passphrases.

Every key is 32 bytes. Subkeys are BLAKE2b-256 keyed with the masterkey, each with its own BLAKE2b
personalization. Source: docs/FORMAT.md, section 2.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

KEY_SIZE = 32
DIR_ID_SIZE = 16
FILE_ID_SIZE = 32
JOURNAL_ID_SIZE = 16
ARGON2_SALT_SIZE = 16
_PERSON_PREFIX = b"cryptfs:"


def derive(key: bytes, purpose: bytes, data: bytes = b"", size: int = KEY_SIZE) -> bytes:
    """BLAKE2b of `data`, keyed with `key`, personalized with 'cryptfs:' and `purpose` (at most 8 bytes)."""
    if len(key) != KEY_SIZE or len(purpose) > 8:
        raise ValueError("derive needs a 32-byte key and a purpose of at most 8 bytes")
    return hashlib.blake2b(data, digest_size=size, key=key, person=_PERSON_PREFIX + purpose).digest()


@dataclass(frozen=True, slots=True)
class Subkeys:
    """The subkeys of the masterkey; a repr shows none of them."""

    content_key: bytes = field(repr=False)
    header_key: bytes = field(repr=False)
    header_mac_key: bytes = field(repr=False)
    names_mac_key: bytes = field(repr=False)
    names_stream_key: bytes = field(repr=False)
    dirs_key: bytes = field(repr=False)
    links_key: bytes = field(repr=False)
    xattrs_key: bytes = field(repr=False)
    journal_key: bytes = field(repr=False)
    config_key: bytes = field(repr=False)
    manifest_key: bytes = field(repr=False)
    root_dir_id: bytes = field(repr=False)

    @classmethod
    def from_masterkey(cls, masterkey: bytes) -> Subkeys:
        """Derive all of them from the 32-byte masterkey."""
        return cls(
            content_key=derive(masterkey, b"content"),
            header_key=derive(masterkey, b"header"),
            header_mac_key=derive(masterkey, b"hdrmac"),
            names_mac_key=derive(masterkey, b"namemac"),
            names_stream_key=derive(masterkey, b"namestrm"),
            dirs_key=derive(masterkey, b"dirs"),
            links_key=derive(masterkey, b"links"),
            xattrs_key=derive(masterkey, b"xattrs"),
            journal_key=derive(masterkey, b"journal"),
            config_key=derive(masterkey, b"config"),
            manifest_key=derive(masterkey, b"manifest"),
            root_dir_id=derive(masterkey, b"rootdir", size=DIR_ID_SIZE),
        )


def file_content_key(
    content_key: bytes, cipher_id: int, log2_chunk_size: int, epoch: int, file_id: bytes
) -> bytes:
    """The key that seals one file's chunks during one epoch (FORMAT.md, section 4)."""
    if len(file_id) != FILE_ID_SIZE:
        raise ValueError(f"a file_id has {FILE_ID_SIZE} bytes, not {len(file_id)}")
    data = bytes((cipher_id, log2_chunk_size)) + epoch.to_bytes(4, "little") + file_id
    return derive(content_key, b"file", data)


def passphrase_key(passphrase: bytes, salt: bytes, memory: int, passes: int) -> bytes:
    """Argon2id with one lane (RFC 9106): 32 bytes from a passphrase.

    Args:   salt: 16 bytes.   memory: bytes, a multiple of 1024.   passes: iterations.
    Raises: TypeError: the passphrase is text.   MemoryError: there is not so much.
    """
    from nacl.exceptions import CryptoError
    from nacl.pwhash import argon2id  # it is slow to load, and other kinds of keys need none of it

    if not isinstance(passphrase, bytes):
        raise TypeError(
            f"a passphrase is bytes, not {type(passphrase).__name__}; encode text: passphrase.encode()"
        )
    if len(salt) != ARGON2_SALT_SIZE:
        raise ValueError(f"the salt has {ARGON2_SALT_SIZE} bytes, not {len(salt)}")
    try:
        return argon2id.kdf(KEY_SIZE, passphrase, salt, opslimit=passes, memlimit=memory)
    except CryptoError:  # it fails for no other reason
        raise MemoryError(
            f"a try of this passphrase takes {memory >> 20:,} MiB of memory, and there is not so much"
        ) from None
