"""What can be won back from damaged structures, and proven to be right.

Nothing here guesses: a candidate counts only once something that was sealed with the vault's keys verifies
with it. Damage of a single byte, the usual one, is tried out wherever it may stand.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterator

from cryptfs.core.aead import FORMAT_VERSION
from cryptfs.core.dirrecord import RECORD_SIZE
from cryptfs.core.geometry import HEADER_SIZE
from cryptfs.core.header import MAGIC, FileHeader
from cryptfs.core.keys import DIR_ID_SIZE, FILE_ID_SIZE, Subkeys, derive
from cryptfs.core.names import MAX_NAME_SIZE, long_entry_name
from cryptfs.errors import HeaderError

_EPOCH_OFFSET = 12
_FILE_ID_OFFSET = 16
_NONCE_OFFSET = 48
_MAC_OFFSET = 224
_DIR_ID_OFFSET = 16
_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


def with_one_byte_changed(data: bytes) -> Iterator[bytes]:
    """The data itself, and everything that differs from it in one byte."""
    yield data
    for place in range(len(data)):
        for value in range(256):
            if value != data[place]:
                yield data[:place] + bytes((value,)) + data[place + 1 :]


def dir_id_candidates(raw: bytes) -> Iterator[bytes]:
    """The dir_ids that a damaged directory record may have had, the likeliest first."""
    if len(raw) >= _DIR_ID_OFFSET + DIR_ID_SIZE:
        yield from with_one_byte_changed(raw[_DIR_ID_OFFSET : _DIR_ID_OFFSET + DIR_ID_SIZE])


def is_record_sized(size: int) -> bool:
    """Whether a file could be a whole directory record."""
    return size == RECORD_SIZE


def salvage_header(
    raw: bytes, keys: Subkeys, cipher_id: int, log2_chunk_size: int, opens: Callable[[FileHeader], bool]
) -> FileHeader | None:
    """The header that a damaged one was, as far as it can be proven.

    Where the sealed state opens, with the clear part as it is or with one byte of it changed, all of the
    header is authentic. Otherwise file_id and epoch as they stand are right where a chunk opens with them.

    Args:    raw: what stands there.   opens: whether a chunk of the file opens under a header's key.
    Returns: a header whose `generation` is 0 where only file_id and epoch are known; None: nothing is.
    """
    raw = raw.ljust(HEADER_SIZE, b"\0")[:HEADER_SIZE]
    start = MAGIC + bytes((FORMAT_VERSION, cipher_id, log2_chunk_size, 0, 0))
    for end in with_one_byte_changed(raw[_EPOCH_OFFSET:_NONCE_OFFSET]):
        body = start + end + raw[_NONCE_OFFSET:_MAC_OFFSET]
        mac = derive(keys.header_mac_key, b"hdrmac", body)
        try:
            return FileHeader.unpack(body + mac, keys, cipher_id, log2_chunk_size, machine_state=True)
        except HeaderError:
            continue
    epoch = int.from_bytes(raw[_EPOCH_OFFSET:_FILE_ID_OFFSET], "little")
    file_id = raw[_FILE_ID_OFFSET : _FILE_ID_OFFSET + FILE_ID_SIZE]
    header = FileHeader(cipher_id, log2_chunk_size, file_id, epoch)
    return header if opens(header) else None


def salvage_cipher_name(raw: bytes, entry_name: str) -> str | None:
    """The cipher name that a damaged sidecar held: the one that hashes to its entry's name."""
    text = raw.strip().decode("ascii", "replace")
    if not text or len(text) <= MAX_NAME_SIZE:
        return None
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
    """Says, authentically, that the names in a directory are being sealed anew for this dir_id."""
    return derive(keys.dirs_key, b"adopt", dir_id)


def is_adoption_mark(raw: bytes, dir_id: bytes, keys: Subkeys) -> bool:
    """Whether this is the mark for that directory."""
    return hmac.compare_digest(raw, adoption_mark(dir_id, keys))
