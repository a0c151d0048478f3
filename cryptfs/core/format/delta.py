"""Deltas: the part of a chunk that an overwrite changes, sealed for the journal.

    delta    nonce | ciphertext | tag, under a key of their own; plaintext:
             length u32 | offset u32 | nonce and tag of the value before | data

The value before is the chunk's record in the journal, or the delta after it. So a delta applies to one
content of its chunk and to no other. It belongs to vaults with the feature delta-journal.

Source: docs/FORMAT.md, section 10.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from cryptfs.core.aead import FORMAT_VERSION, CipherSuite, Kind
from cryptfs.core.geometry import ChunkGeometry
from cryptfs.core.keys import derive
from cryptfs.core.sodium import Buffer, aead_calls

_FIELDS = struct.Struct("<II")
_AAD = struct.Struct("<BB6xQ")


class Delta(NamedTuple):
    """A change of a part of a chunk.

    length: plaintext bytes of the chunk before it.   offset: of the data in the chunk, at most length.
    base:   nonce and tag of the value that it applies to.   data: at least one byte.
    """

    length: int
    offset: int
    base: bytes
    data: bytes

    @property
    def new_length(self) -> int:
        """Plaintext bytes of the chunk after it."""
        return max(self.length, self.offset + len(self.data))


def delta_key(content_key: bytes) -> bytes:
    """The key that seals the deltas of a file during one epoch."""
    return derive(content_key, b"delta")


class DeltaCipher:
    """Seals and opens deltas, given the file's delta_key in each call."""

    def __init__(self, suite: CipherSuite, geometry: ChunkGeometry) -> None:
        self._suite = suite
        self._geometry = geometry
        self._calls = aead_calls(suite.function)

    def seal(self, key: bytes, chunk_index: int, delta: Delta, nonce: bytes) -> bytes:
        """The payload of a journal record. `nonce`: fresh random bytes, as many as the suite has.

        Raises: ValueError: the delta does not fit into a chunk.
        """
        if len(key) != 32 or len(nonce) != self._suite.nonce_size or not self._fits(delta):
            raise ValueError("a delta needs a 32-byte key, a whole nonce, and data that fits into its chunk")
        plain = _FIELDS.pack(delta.length, delta.offset) + delta.base + delta.data
        return nonce + self._calls.seal_value(plain, _aad(chunk_index), nonce, key)

    def open(self, key: bytes, chunk_index: int, payload: bytes) -> Delta | None:
        """Verify and decode; None if it is forged, of another chunk, or does not fit into one."""
        if len(key) != 32:
            raise ValueError("a delta needs a 32-byte key")
        nonce_size, base_size = self._suite.nonce_size, self._suite.overhead
        if len(payload) < nonce_size:
            return None
        plain = self._calls.open_value(payload[nonce_size:], _aad(chunk_index), payload[:nonce_size], key)
        if plain is None or len(plain) < _FIELDS.size:
            return None
        length, offset = _FIELDS.unpack_from(plain)
        rest = plain[_FIELDS.size :]
        delta = Delta(length, offset, rest[:base_size], rest[base_size:])
        return delta if self._fits(delta) else None

    def ends(self, sealed: Buffer) -> bytes:
        """Nonce and tag of a chunk record or a delta: what the next delta names as its base."""
        return bytes(sealed[: self._suite.nonce_size]) + bytes(sealed[-self._suite.tag_size :])

    def _fits(self, delta: Delta) -> bool:
        length, offset, base, data = delta
        size = self._geometry.chunk_size
        return (
            1 <= length <= size
            and 0 <= offset <= length
            and 1 <= len(data) <= size - offset
            and len(base) == self._suite.overhead
        )


def _aad(chunk_index: int) -> bytes:
    return _AAD.pack(Kind.DELTA, FORMAT_VERSION, chunk_index)
