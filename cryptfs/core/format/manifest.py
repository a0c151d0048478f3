"""The manifest of a witness: the state of a vault at one moment, sealed, for keeping elsewhere.

    offset  bytes
         0      8  magic "CRYPTMAN"
         8      1  version
         9      7  zeros
        16     16  vault_id
        32     32  salt: random
        64         blocks, each of at most 65536 bytes sealed

The blocks hold one stream: a head of 64 bytes, the records in ascending order of their bytes, and a tail.
It holds names as in the vault, encrypted. Source: docs/FORMAT.md, section 13.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from cryptfs.core.aead import (
    FORMAT_VERSION,
    SMALL_NONCE_SIZE,
    SMALL_OVERHEAD,
    Kind,
    aad_prefix,
    open_small,
    seal_small,
)
from cryptfs.core.keys import DIR_ID_SIZE, FILE_ID_SIZE, Subkeys, derive
from cryptfs.core.names.host import SHARED_STATE
from cryptfs.core.names.names import MAX_PADDED_SIZE, PAD_STEP, SIV_SIZE
from cryptfs.errors import ManifestError

HEADER_SIZE = 64
SALT_SIZE = 32
VAULT_ID_SIZE = 16
BLOCK_SIZE = 64 * 1024
SEALED_BLOCK_SIZE = BLOCK_SIZE + SMALL_OVERHEAD
DIGEST_SIZE = 16
NO_DIGEST = bytes(DIGEST_SIZE)
KEY_SIZE = 32  # of a record
PLACE_SIZE = DIR_ID_SIZE + SIV_SIZE
NO_PLACE = bytes(PLACE_SIZE)
_MAGIC = b"CRYPTMAN"
_HEADER = struct.Struct("<8sB7s16s32s")
_BLOCK_AAD = struct.Struct("<B5xQ")
_HEAD = struct.Struct("<Q32sQQ8s")
_RECORD = struct.Struct("<32sBB32sIQQ16s16sH")
_TAIL_KEY = b"\xff" * KEY_SIZE


class Object(IntEnum):
    """The kind of a record's entry. The numbers are in manifests."""

    FILE = 1  # a regular file with a header
    DIRECTORY = 2
    SYMLINK = 3
    EMPTY = 4  # a regular file of 0 bytes, without a header
    SPECIAL = 5  # FIFO, socket, device
    DAMAGED = 6  # an entry that does not authenticate, or is unreadable
    TAIL = 255


SETTLED = 1  # flag of a file: its header was CLEAN, and the digest is of its records


class Record(NamedTuple):
    """One entry of the vault. A file with several names has a record for each.

    key:        its identity over time: file_id; dir_id and zeros; else the place.
    place:      dir_id of its directory, and the siv of its name; zeros if that does not verify.
    digest:     of a file's nonces and tags, a symlink's sealed target, the kind of a special file.
    xattrs:     digest of its extended attributes, zeros for none.
    name:       the padded name under its keystream: the bytes after the siv in the cipher name.
    """

    key: bytes
    kind: int
    flags: int
    place: bytes
    epoch: int
    generation: int
    size: int
    digest: bytes
    xattrs: bytes
    name: bytes

    @property
    def settled(self) -> bool:
        """Whether the digest covers the file's content."""
        return bool(self.flags & SETTLED)


@dataclass(frozen=True, slots=True)
class ManifestHead:
    """The facts of a manifest about the vault as a whole.

    sessions: number of the last session that was over on that machine.
    created:  seconds since 1970, by that machine's clock.
    host:     StateNames.mark of that machine.
    """

    config_generation: int
    config_mac: bytes
    sessions: int
    created: int
    host: bytes = SHARED_STATE.mark


@dataclass(frozen=True, slots=True)
class ManifestTail:
    """The totals. skipped: places that the snapshot could not check."""

    records: int
    skipped: int


def pack_record(record: Record) -> bytes:
    """A record as bytes; the caller sorts them in ascending order."""
    *fixed, name = record
    return _RECORD.pack(*fixed, len(name)) + name


def unpack_record(raw: bytes) -> Record:
    """The reverse, for bytes of our own making."""
    *fixed, size = _RECORD.unpack_from(raw)
    return Record._make((*fixed, raw[_RECORD.size : _RECORD.size + size]))


def pack_tail(tail: ManifestTail) -> bytes:
    """What comes after all records."""
    return _RECORD.pack(
        _TAIL_KEY, Object.TAIL, 0, NO_PLACE, 0, tail.records, tail.skipped, NO_DIGEST, NO_DIGEST, 0
    )


def digest_state(keys: Subkeys) -> hashlib.blake2b:
    """The keyed hash of all digests, ready for input: without the key an attacker cannot try contents."""
    return hashlib.blake2b(
        digest_size=DIGEST_SIZE, key=derive(keys.manifest_key, b"mandgst"), person=b"cryptfs:mandgst"
    )


def is_manifest(raw: bytes) -> bool:
    """Whether a file that begins so is a manifest, authentic or not."""
    return raw.startswith(_MAGIC)


class ManifestCipher:
    """Seals and opens the blocks of one manifest."""

    def __init__(self, keys: Subkeys, header: bytes) -> None:
        self.header = header
        self._key = derive(keys.manifest_key, b"manfile", header)

    @classmethod
    def new(cls, keys: Subkeys, vault_id: bytes, salt: bytes) -> ManifestCipher:
        """For a new manifest. salt: 32 fresh random bytes."""
        if len(salt) != SALT_SIZE or len(vault_id) != VAULT_ID_SIZE:
            raise ValueError("a manifest needs a vault_id of 16 bytes and a salt of 32")
        return cls(keys, _HEADER.pack(_MAGIC, FORMAT_VERSION, bytes(7), vault_id, salt))

    @classmethod
    def of_header(cls, keys: Subkeys, vault_id: bytes, raw: bytes) -> ManifestCipher:
        """For a manifest that begins with these 64 bytes.

        Raises: ManifestError: not a manifest, of a later version, or of another vault.
        """
        if len(raw) != HEADER_SIZE or not is_manifest(raw):
            raise ManifestError("not a manifest of cryptfs")
        _, version, zeros, found_id, _ = _HEADER.unpack(raw)
        if version != FORMAT_VERSION or zeros != bytes(7):
            raise ManifestError(f"the manifest has version {version}, which this program does not know")
        if found_id != vault_id:
            found, wanted = found_id.hex(), vault_id.hex()
            raise ManifestError(f"a manifest of another vault (id {found}), not of this one (id {wanted})")
        return cls(keys, raw)

    @staticmethod
    def _aad(index: int, *, last: bool) -> bytes:
        return aad_prefix(Kind.MANIFEST) + _BLOCK_AAD.pack(last, index)

    def seal(self, index: int, plain: bytes, nonce: bytes, *, last: bool) -> bytes:
        """One block. plain: BLOCK_SIZE bytes, but for the last.   nonce: 24 fresh random bytes."""
        right_size = len(plain) <= BLOCK_SIZE if last else len(plain) == BLOCK_SIZE
        if len(nonce) != SMALL_NONCE_SIZE or not right_size:
            raise ValueError("a block has 65536 bytes, but for the last, and a nonce of 24")
        return seal_small(self._key, plain, self._aad(index, last=last), nonce)

    def open(self, index: int, sealed: bytes, *, last: bool) -> bytes:
        """The reverse. Raises: ManifestError: damaged, forged, cut or moved."""
        plain = open_small(self._key, sealed, self._aad(index, last=last))
        if plain is None or (len(plain) != BLOCK_SIZE and not last):
            raise ManifestError(
                "the manifest is damaged, cut short, or from before a change of the masterkey. Use a whole "
                "copy of it, or make a new one: cryptfs snapshot VAULT FILE"
            )
        return plain


class ManifestPacker:
    """Cuts the stream of a manifest into blocks; the caller seals them in order."""

    def __init__(self, head: ManifestHead) -> None:
        fields = (head.config_generation, head.config_mac, head.sessions, head.created, head.host)
        self._buffer = bytearray(_HEAD.pack(*fields))
        self._records = 0

    def add(self, record: bytes) -> bytes:
        """One packed record; returns the block that is full now, or nothing. Never the last block."""
        self._buffer += record
        self._records += 1
        if len(self._buffer) <= BLOCK_SIZE:
            return b""
        block = bytes(self._buffer[:BLOCK_SIZE])
        del self._buffer[:BLOCK_SIZE]
        return block

    def finish(self, skipped: int) -> tuple[bytes, bytes]:
        """The tail: a block that is full now, or nothing; and the last one."""
        full = self.add(pack_tail(ManifestTail(self._records, skipped)))
        return full, bytes(self._buffer)


class ManifestReader:
    """Reads the stream of a manifest from its opened blocks.

    Args:   blocks: in order, each authentic.
    Raises: ManifestError: from any method, if an authentic manifest is not well-formed.
    """

    def __init__(self, blocks: Iterable[bytes]) -> None:
        self._blocks = iter(blocks)
        self._buffer = b""
        self._at = 0
        self.head = ManifestHead(*_HEAD.unpack(self._take(_HEAD.size)))
        self.tail: ManifestTail | None = None

    def _take(self, size: int) -> bytes:
        while len(self._buffer) - self._at < size:
            block = next(self._blocks, None)
            if block is None:
                raise ManifestError("the manifest ends too early")
            self._buffer = self._buffer[self._at :] + block
            self._at = 0
        self._at += size
        return self._buffer[self._at - size : self._at]

    def records(self) -> Iterator[Record]:
        """All records, in ascending order; `tail` is set after the last."""
        before = b""
        count = 0
        while True:
            fixed = self._take(_RECORD.size)
            *fields, size = _RECORD.unpack(fixed)
            record = Record._make((*fields, self._take(size)))
            if record.kind == Object.TAIL:
                break
            raw = fixed + record.name
            _check(record, in_order=raw > before)
            before = raw
            count += 1
            yield record
        self.tail = ManifestTail(record.generation, record.size)
        more = self._at != len(self._buffer) or next(self._blocks, None) is not None
        if more or count != self.tail.records or fixed + record.name != pack_tail(self.tail):
            raise ManifestError("the manifest does not end where it should")


def _check(record: Record, *, in_order: bool) -> None:
    """Refuse everything that a writer never writes, as everywhere in the format."""
    size = len(record.name)
    named = size % PAD_STEP == 0 and PAD_STEP <= size <= MAX_PADDED_SIZE
    placed = named if record.place != NO_PLACE else not size
    known = Object.FILE <= record.kind <= Object.DAMAGED and not record.flags & ~SETTLED
    if not (in_order and placed and known) or record.key == _TAIL_KEY:
        raise ManifestError("the manifest has a record that no program writes")


def key_of_file(file_id: bytes) -> bytes:
    """The key of records of a file."""
    if len(file_id) != FILE_ID_SIZE:
        raise ValueError("a file_id has 32 bytes")
    return file_id


def key_of_directory(dir_id: bytes) -> bytes:
    """The key of records of a directory: dir_id and zeros."""
    if len(dir_id) != DIR_ID_SIZE:
        raise ValueError("a dir_id has 16 bytes")
    return dir_id.ljust(KEY_SIZE, b"\0")
