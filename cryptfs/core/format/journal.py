"""The redo journal's bytes: heads, records, and the list of sessions.

A journal file is a head of 512 bytes and records, each at a multiple of 512:

    head     magic "CRYPTFSJ" | journal_id | sealed(number, first_seq, root_inode)  padded with zeros
    record   magic "CRYPTFSR" | path_size u16 | payload_size u32 | sealed(fields) | path | payload

The payload of a record consists of chunk records of its file, or is one delta (delta.py). Each authenticates
by itself, and the sealed digest says which ones belong here. The path is the file's path at that time; its
names are already sealed.

A session is the time from a vault's first change by a mount to that mount's end. It has a number, and a
random journal_id that file headers name. Source: docs/FORMAT.md, section 10.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from cryptfs.core.aead import FORMAT_VERSION, SMALL_OVERHEAD, Kind, aad_prefix, open_small, seal_small
from cryptfs.core.keys import JOURNAL_ID_SIZE, Subkeys
from cryptfs.core.names.host import SHARED_STATE, StateNames

ALIGNMENT = 512  # a disk writes this much whole or not at all: a torn record never damages another
HEAD_SIZE = ALIGNMENT
HEAD_MAGIC = b"CRYPTFSJ"
RECORD_MAGIC = b"CRYPTFSR"
MAX_CRASHED = 256  # crashed sessions to remember; older ones drop out
MAX_PATH = 4096
_DELTA_HEAD_VERSION = (
    2  # of a head's AAD: without the feature, no reader takes the journal for one of its own
)
_HEAD = struct.Struct("<QQQ")
_FIELDS = struct.Struct("<QQB3sI32sQQQ32s")
_LENGTHS = struct.Struct("<8sHI")
_SESSIONS = struct.Struct("<QH")
_DIGEST_SIZE = 32
_ZEROS = bytes(3)  # after the operation
PREFIX_SIZE = _LENGTHS.size + SMALL_OVERHEAD + _FIELDS.size  # of a record, up to its path


class Operation(IntEnum):
    """The operation that a record redoes."""

    WRITE = 1  # the payload's chunk records, from chunk `first` on; the file then holds at least `size` bytes
    SHRINK = 2  # to `size` bytes; the payload is the new last chunk, if that one is cut
    PUNCH = 3  # chunks from `first` up to, not including, `size` become holes
    DELTA = 4  # the payload changes a part of chunk `first`; the file then holds at least `size` bytes


@dataclass(frozen=True, slots=True)
class JournalHead:
    """The head of a journal file.

    number:    of the session, from 1.   journal_id: 16 random bytes.
    first_seq: records with a lower sequence number are left over and do not count.
    root_inode: of the vault directory; a copy of the vault has other inode numbers than its records.
    """

    number: int
    journal_id: bytes
    first_seq: int
    root_inode: int

    def pack(
        self, keys: Subkeys, nonce: bytes, owner: StateNames = SHARED_STATE, *, deltas: bool = False
    ) -> bytes:
        """512 bytes.

        Args: nonce: 24 fresh random bytes.   owner: the machine whose journal it is.
              deltas: whether the vault has the feature delta-journal.
        """
        clear = HEAD_MAGIC + self.journal_id
        state = _HEAD.pack(self.number, self.first_seq, self.root_inode)
        sealed = seal_small(keys.journal_key, state, _head_aad(clear, owner, deltas=deltas), nonce)
        return (clear + sealed).ljust(HEAD_SIZE, b"\0")

    @classmethod
    def unpack(
        cls, raw: bytes, keys: Subkeys, owner: StateNames = SHARED_STATE, *, deltas: bool = False
    ) -> JournalHead | None:
        """Verify and decode; None if it is not one, or damaged, forged, of another vault or machine.

        Args: deltas: whether the vault has the feature delta-journal. Without it, the head of a vault with it
              does not open. With it, an older head does: another machine may have used the vault meanwhile.
        """
        clear_size = len(HEAD_MAGIC) + JOURNAL_ID_SIZE
        end = clear_size + _HEAD.size + SMALL_OVERHEAD
        clear, sealed = raw[:clear_size], raw[clear_size:end]
        if len(raw) != HEAD_SIZE or not clear.startswith(HEAD_MAGIC) or any(raw[end:]):
            return None
        state = None
        for version in (True, False) if deltas else (False,):
            state = state or open_small(keys.journal_key, sealed, _head_aad(clear, owner, deltas=version))
        if state is None:
            return None
        number, first_seq, root_inode = _HEAD.unpack(state)
        return cls(number, clear[len(HEAD_MAGIC) :], first_seq, root_inode)


def _head_aad(clear: bytes, owner: StateNames, *, deltas: bool) -> bytes:
    version = _DELTA_HEAD_VERSION if deltas else FORMAT_VERSION
    return bytes((Kind.JOURNAL_HEAD, version)) + clear + owner.aad


@dataclass(frozen=True, slots=True)
class JournalRecord:
    """One change of one file. Sizes are plaintext bytes.

    seq:      sequence number, from 1, without gaps within a session.
    previous: that of the file's record before, 0 if there is none.
    first, size: see Operation.   inode: of the backing file.   path: its path then, relative to the vault.
    digest:   of path and payload, see payload_digest.
    """

    seq: int
    previous: int
    operation: Operation
    epoch: int
    file_id: bytes
    inode: int
    first: int
    size: int
    path: bytes
    digest: bytes

    def pack(self, keys: Subkeys, nonce: bytes, journal_id: bytes, place: int, payload_size: int) -> bytes:
        """The record up to its payload. `place`: its offset in the journal.   `nonce`: 24 fresh bytes."""
        clear = _LENGTHS.pack(RECORD_MAGIC, len(self.path), payload_size)
        fields = _FIELDS.pack(
            self.seq,
            self.previous,
            self.operation,
            _ZEROS,
            self.epoch,
            self.file_id,
            self.inode,
            self.first,
            self.size,
            self.digest,
        )
        aad = _record_aad(journal_id, place) + clear
        return clear + seal_small(keys.journal_key, fields, aad, nonce) + self.path


def _record_aad(journal_id: bytes, place: int) -> bytes:
    return aad_prefix(Kind.JOURNAL_RECORD) + journal_id + place.to_bytes(8, "little")


def record_lengths(prefix: bytes) -> tuple[int, int] | None:
    """Bytes of path and payload after a record's prefix; None if no record begins. Not authentic yet."""
    if len(prefix) < PREFIX_SIZE or not prefix.startswith(RECORD_MAGIC):
        return None
    _, path_size, payload_size = _LENGTHS.unpack_from(prefix)
    return (path_size, payload_size) if path_size <= MAX_PATH else None


def unpack_record(
    prefix: bytes, path: bytes, keys: Subkeys, journal_id: bytes, place: int, *, deltas: bool = False
) -> JournalRecord | None:
    """Verify and decode a record's prefix; None if it is forged, moved, or of another journal.

    Path and payload are authentic only if payload_digest of both is the record's digest.

    Args: deltas: whether the vault has the feature delta-journal; without it, a delta is no record.
    """
    clear, sealed = prefix[: _LENGTHS.size], prefix[_LENGTHS.size : PREFIX_SIZE]
    fields = open_small(keys.journal_key, sealed, _record_aad(journal_id, place) + clear)
    if fields is None or len(fields) != _FIELDS.size:
        return None
    seq, previous, operation, zeros, epoch, file_id, inode, first, size, digest = _FIELDS.unpack(fields)
    if operation not in tuple(Operation) or zeros != _ZEROS:
        return None
    if operation == Operation.DELTA and not deltas:
        return None
    return JournalRecord(
        seq, previous, Operation(operation), epoch, file_id, inode, first, size, path, digest
    )


def payload_digest(
    path: bytes, payload: bytes | memoryview, record_size: int, nonce_size: int, tag_size: int
) -> bytes:
    """BLAKE2b-256 over the path and the nonce and tag of each chunk record in the payload.

    It leaves out the ciphertext between them: the tag vouches for it.

    Args: record_size: see counted_size.
    """
    digest = hashlib.blake2b(len(path).to_bytes(4, "little") + path, digest_size=_DIGEST_SIZE)
    for start in range(0, len(payload), record_size):
        record = payload[start : start + record_size]
        digest.update(len(record).to_bytes(4, "little"))
        digest.update(record[:nonce_size])
        digest.update(record[-tag_size:])
    return digest.digest()


def counted_size(operation: Operation, payload_size: int, record_size: int) -> int:
    """The record_size for payload_digest: a delta counts as one record, however long it is."""
    return max(payload_size, 1) if operation is Operation.DELTA else record_size


def aligned(size: int) -> int:
    """The next multiple of ALIGNMENT."""
    return -(-size // ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True, slots=True)
class Sessions:
    """The sessions of a vault, or of one machine's use of it.

    last:    number of the last one that is over.
    crashed: journal_ids of those that ended without an unmount, oldest first.
    """

    last: int = 0
    crashed: tuple[bytes, ...] = ()

    def ended(self, number: int, crashed: Sequence[bytes] = ()) -> Sessions:
        """After a session's end. crashed: its journal_id, if it ended without an unmount."""
        return Sessions(max(self.last, number), (*self.crashed, *crashed)[-MAX_CRASHED:])

    def pack(self, keys: Subkeys, nonce: bytes, owner: StateNames = SHARED_STATE) -> bytes:
        """The file's bytes. `nonce`: 24 fresh random bytes.   owner: the machine whose list it is."""
        state = _SESSIONS.pack(self.last, len(self.crashed)) + b"".join(self.crashed)
        return seal_small(keys.journal_key, state, aad_prefix(Kind.SESSIONS) + owner.aad, nonce)

    @classmethod
    def unpack(cls, raw: bytes, keys: Subkeys, owner: StateNames = SHARED_STATE) -> Sessions | None:
        """Verify and decode; None if it is damaged, forged, of another vault or machine."""
        state = open_small(keys.journal_key, raw, aad_prefix(Kind.SESSIONS) + owner.aad)
        if state is None or len(state) < _SESSIONS.size:
            return None
        last, count = _SESSIONS.unpack_from(state)
        if len(state) != _SESSIONS.size + count * JOURNAL_ID_SIZE or count > MAX_CRASHED:
            return None
        ids = range(_SESSIONS.size, len(state), JOURNAL_ID_SIZE)
        return cls(last, tuple(state[start : start + JOURNAL_ID_SIZE] for start in ids))


MAX_SESSIONS_SIZE = SMALL_OVERHEAD + _SESSIONS.size + MAX_CRASHED * JOURNAL_ID_SIZE
