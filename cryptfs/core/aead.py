"""The cipher suites: seal and open runs of chunk records, and single small values.

A record is nonce | ciphertext | tag. Its AAD is kind, version and chunk_index, so that a chunk moved
within its file does not authenticate; one moved to another file fails because every file has its own
key. Source: docs/FORMAT.md, sections 3 and 4.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from functools import cache

from cryptfs.core.geometry import ChunkGeometry
from cryptfs.core.sodium import AeadCalls, Buffer, aead_calls, is_offered
from cryptfs.errors import ChunkError

FORMAT_VERSION = 1


class Kind(IntEnum):
    """First byte of every AAD: the kind of a sealed value, so that none can pose as another."""

    CHUNK = 1
    HEADER = 2
    LINK = 3
    LINK_UNBOUND = 4
    XATTR_OF_FILE = 5
    XATTR_OF_DIRECTORY = 6
    SLOT_VERSION_1 = 7
    JOURNAL_RECORD = 8
    JOURNAL_HEAD = 9
    SESSIONS = 10
    MANIFEST = 11
    SLOT = 12
    RECOVERY_SECRET = 13
    RECOVERY_RECORD = 14
    DELTA = 15
    OLD_MASTERKEY = 16
    XATTR_OF_LINK = 17


def aad_prefix(kind: Kind) -> bytes:
    """The first two bytes of every AAD."""
    return bytes((kind, FORMAT_VERSION))


@dataclass(frozen=True, slots=True)
class CipherSuite:
    """An AEAD that can seal chunks. `function` is libsodium's name for it; sizes are bytes."""

    name: str
    cipher_id: int
    function: str
    nonce_size: int
    tag_size: int

    @property
    def overhead(self) -> int:
        """Bytes that a record has beyond its plaintext."""
        return self.nonce_size + self.tag_size

    @property
    def is_offered(self) -> bool:
        """Whether the libsodium of this machine has it."""
        return is_offered(self.function)

    def nonces_size(self, chunks: int) -> int:
        """Bytes of the nonces of that many chunks, end to end."""
        return chunks * self.nonce_size


AEGIS_256 = CipherSuite("aegis-256", 1, "crypto_aead_aegis256", nonce_size=32, tag_size=32)
XCHACHA20_POLY1305 = CipherSuite(
    "xchacha20-poly1305", 2, "crypto_aead_xchacha20poly1305_ietf", nonce_size=24, tag_size=16
)
SUITES = {suite.name: suite for suite in (AEGIS_256, XCHACHA20_POLY1305)}

_CHUNK_AAD = struct.Struct("<BB6xQ")
_CHUNK_KIND = int(Kind.CHUNK)


def chunk_aad(chunk_index: int) -> bytes:
    """AAD of one chunk record: kind, version, six zero bytes, chunk_index; 16 bytes."""
    return _CHUNK_AAD.pack(_CHUNK_KIND, FORMAT_VERSION, chunk_index)


class ChunkCipher:
    """Seals and opens runs of chunk records; one for a vault, given the file's key in each call.

    Args: suite: the AEAD.   geometry: chunk size and overhead.
          calls: the implementation; None takes the fastest that works here.
    """

    def __init__(self, suite: CipherSuite, geometry: ChunkGeometry, calls: AeadCalls | None = None) -> None:
        if geometry.overhead != suite.overhead:
            raise ValueError("geometry and suite disagree about the overhead")
        self.suite = suite
        self.geometry = geometry
        self._calls = aead_calls(suite.function) if calls is None else calls

    def seal_run(self, key: bytes, first_index: int, plain: Buffer, nonces: bytes, out: memoryview) -> int:
        """Seal consecutive chunks into records.

        Args:    key: the file's 32-byte content key.   first_index: index of the first chunk.
                 plain: at least one byte; whole chunks, but for the last.
                 nonces: one fresh nonce for each chunk, end to end.
                 out: room for the records; never overlaps `plain`.
        Returns: bytes written to out.
        Source:  docs/FORMAT.md, section 4.
        """
        geometry, calls = self.geometry, self._calls
        chunk_size, overhead = geometry.chunk_size, geometry.overhead
        nonce_size = self.suite.nonce_size
        total = len(plain)
        count = geometry.chunk_count(total)
        if total == 0 or len(key) != 32 or len(nonces) != count * nonce_size:
            raise ValueError("seal_run needs plaintext, a 32-byte key and one nonce for each chunk")
        if out.readonly or len(out) < total + count * overhead:
            raise ValueError("seal_run needs writable room for every record")
        source, target = calls.pointer(plain), calls.pointer(out)
        place = nonce_at = done = 0
        try:
            for chunk_index in range(first_index, first_index + count):
                length = min(chunk_size, total - done)
                out[place : place + nonce_size] = nonces[nonce_at : nonce_at + nonce_size]
                record = target + place
                calls.seal(record + nonce_size, source + done, length, chunk_aad(chunk_index), record, key)
                done += length
                nonce_at += nonce_size
                place += length + overhead
            return place
        finally:
            source = target = None  # see open_run

    def open_run(
        self, key: bytes, first_index: int, sealed: memoryview, out: memoryview, *, holes: bool
    ) -> int:
        """Authenticate and decrypt a run of consecutive chunk records.

        Args:    key: the file's 32-byte content key.   first_index: index of the first chunk.
                 sealed: whole records, the last may be short.
                 out: writable room for the plaintext; never overlaps `sealed`.
                 holes: whether an all-zero record reads as zeros (the file's SPARSE flag).
        Returns: plaintext bytes written to out.
        Raises:  ChunkError: a record is forged, damaged, moved or of impossible length; out then holds
                 no byte of that chunk nor of later ones.
        Source:  docs/FORMAT.md, section 4.
        """
        geometry, calls = self.geometry, self._calls
        record_size, overhead = geometry.record_size, geometry.overhead
        nonce_size = self.suite.nonce_size
        total = len(sealed)
        count = -(-total // record_size)
        # A tail too short for plaintext must not count against the room of the records before it:
        # below, libsodium writes through bare pointers.
        if len(key) != 32 or out.readonly or len(out) < geometry.plain_length(total):
            raise ValueError("open_run needs a 32-byte key and writable room for the plaintext")
        source, target = calls.pointer(sealed), calls.pointer(out)
        place = done = 0
        try:
            for chunk_index in range(first_index, first_index + count):
                length = min(record_size, total - place)
                if length <= overhead:
                    raise ChunkError("the record has no plaintext", chunk_index=chunk_index)
                record = source + place
                aad = chunk_aad(chunk_index)
                opened = calls.open(target + done, record + nonce_size, length - nonce_size, aad, record, key)
                if not opened:
                    out[done : done + length - overhead] = bytes(length - overhead)
                    if bytes(sealed[place : place + length]) != bytes(length):
                        raise ChunkError("the record does not authenticate", chunk_index=chunk_index)
                    if not holes:
                        raise ChunkError(
                            "the record was zeroed; the file has no holes", chunk_index=chunk_index
                        )
                place += length
                done += length - overhead
            return done
        finally:
            # An exception keeps this frame alive, and often stands in a reference loop. Until Python 3.11.8
            # and 3.12.2 the collector crashes on a memoryview in a loop while such a pointer is on it.
            source = target = None


SMALL_NONCE_SIZE = 24
SMALL_TAG_SIZE = 16
SMALL_OVERHEAD = SMALL_NONCE_SIZE + SMALL_TAG_SIZE


@cache
def _small_calls() -> AeadCalls:
    return aead_calls(XCHACHA20_POLY1305.function)


def seal_small(key: bytes, plain: bytes, aad: bytes, nonce: bytes) -> bytes:
    """Seal a small value with XChaCha20-Poly1305: nonce | ciphertext | tag (FORMAT.md, section 3)."""
    if len(key) != 32 or len(nonce) != SMALL_NONCE_SIZE:
        raise ValueError(f"seal_small needs a 32-byte key and a nonce of {SMALL_NONCE_SIZE} bytes")
    return nonce + _small_calls().seal_value(plain, aad, nonce, key)


def open_small(key: bytes, sealed: bytes, aad: bytes) -> bytes | None:
    """Open what seal_small made; None if it does not authenticate."""
    if len(key) != 32:
        raise ValueError("open_small needs a 32-byte key")
    if len(sealed) < SMALL_OVERHEAD:
        return None
    return _small_calls().open_value(sealed[SMALL_NONCE_SIZE:], aad, sealed[:SMALL_NONCE_SIZE], key)
