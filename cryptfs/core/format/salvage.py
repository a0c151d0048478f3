"""Restores damaged structures, with proof.

Nothing here guesses: a candidate counts only if something sealed with the vault's keys verifies with it. For
damage of a single byte, the usual kind, it tries every position.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterator

from cryptfs.core.aead import FORMAT_VERSION
from cryptfs.core.format.header import (
    EPOCH_OFFSET,
    FILE_ID_OFFSET,
    MAC_OFFSET,
    MAGIC,
    NONCE_OFFSET,
    FileHeader,
    claimed_file_id,
)
from cryptfs.core.geometry import HEADER_SIZE
from cryptfs.core.keys import DIR_ID_SIZE, Subkeys, derive
from cryptfs.core.names.dirrecord import DIR_ID_OFFSET
from cryptfs.core.names.names import MAX_NAME_SIZE, long_entry_name
from cryptfs.errors import HeaderError

_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


def with_one_byte_changed(data: bytes) -> Iterator[bytes]:
    """The data itself, and all variants that differ from it in one byte."""
    yield data
    for place in range(len(data)):
        for value in range(256):
            if value != data[place]:
                yield data[:place] + bytes((value,)) + data[place + 1 :]


def dir_id_candidates(raw: bytes) -> Iterator[bytes]:
    """The possible dir_ids of a damaged directory record, the likeliest first."""
    if len(raw) >= DIR_ID_OFFSET + DIR_ID_SIZE:
        yield from with_one_byte_changed(raw[DIR_ID_OFFSET : DIR_ID_OFFSET + DIR_ID_SIZE])


def salvage_header(
    raw: bytes, keys: Subkeys, cipher_id: int, log2_chunk_size: int, opens: Callable[[FileHeader], bool]
) -> FileHeader | None:
    """The original of a damaged header, as far as there is proof.

    If the sealed state opens, with the clear part as it is or with one byte of it changed, the whole header
    is authentic. Otherwise file_id and epoch are right if a chunk opens with them.

    Args:    raw: the damaged header.   opens: whether a chunk of the file opens under a header's key.
    Returns: a header, with `generation` 0 if only file_id and epoch are known; None: nothing is known.
    """
    raw = raw.ljust(HEADER_SIZE, b"\0")[:HEADER_SIZE]
    start = MAGIC + bytes((FORMAT_VERSION, cipher_id, log2_chunk_size, 0, 0))
    for end in with_one_byte_changed(raw[EPOCH_OFFSET:NONCE_OFFSET]):
        body = start + end + raw[NONCE_OFFSET:MAC_OFFSET]
        mac = derive(keys.header_mac_key, b"hdrmac", body)
        try:
            return FileHeader.unpack(body + mac, keys, cipher_id, log2_chunk_size, machine_state=True)
        except HeaderError:
            continue
    epoch = int.from_bytes(raw[EPOCH_OFFSET:FILE_ID_OFFSET], "little")
    header = FileHeader(cipher_id, log2_chunk_size, claimed_file_id(raw), epoch)
    return header if opens(header) else None


def salvage_cipher_name(raw: bytes, entry_name: str) -> str | None:
    """The cipher name of a damaged sidecar: the one that hashes to its entry's name."""
    for piece in dict.fromkeys((raw, raw.strip())):  # white space is too much, or stands for a letter
        text = piece.decode("ascii", "replace")
        if len(text) <= MAX_NAME_SIZE:
            continue
        if _is_name_of(text, entry_name):
            return text
        for place in range(len(text)):
            for letter in _ALPHABET:
                changed = text[:place] + letter + text[place + 1 :]
                if _is_name_of(changed, entry_name):
                    return changed
    return None


def _is_name_of(cipher_name: str, entry_name: str) -> bool:
    return cipher_name.isascii() and long_entry_name(cipher_name) == entry_name


def adoption_mark(dir_id: bytes, keys: Subkeys) -> bytes:
    """An authentic mark: a repair is sealing the names in a directory for this dir_id."""
    return derive(keys.dirs_key, b"adopt", dir_id)


def is_adoption_mark(raw: bytes, dir_id: bytes, keys: Subkeys) -> bool:
    """Whether this is the mark for that directory."""
    return hmac.compare_digest(raw, adoption_mark(dir_id, keys))
