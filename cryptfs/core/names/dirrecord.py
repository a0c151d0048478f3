"""The directory record `cryptfs.dir`: a directory's dir_id and, in version 2, its place.

    version 1    magic | 1 | 7 zeros | dir_id[16] | mac[32], 64 bytes
    version 2    magic | 2 | n | 6 zeros | dir_id[16] | host[12] | 20 zeros | place[32] | place[32] | mac[32],
                 160 bytes
    place        dir_id[16] of the parent | siv[16] of the name there

A rename changes record and place one after the other, so in between the record lists both. Source:
docs/FORMAT.md, section 6.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from typing import NamedTuple

from cryptfs.core.aead import FORMAT_VERSION
from cryptfs.core.keys import DIR_ID_SIZE, Subkeys, derive
from cryptfs.errors import DirectoryRecordError

RECORD_NAME = "cryptfs.dir"
RECORD_SIZE = 64
BOUND_RECORD_SIZE = 160
RECORD_SIZES = (RECORD_SIZE, BOUND_RECORD_SIZE)
BOUND_DIRS = "bound-dirs"  # the feature's name in the config
UPGRADING = "upgrading"  # likewise: an upgrade is under way, and records of version 1 count as well
HOST_SIZE = 12
PLACE_SIZE = 32
_MAGIC = b"CRYPTDIR"
_START = _MAGIC + bytes((FORMAT_VERSION,)) + bytes(7)
_BOUND_START = _MAGIC + bytes((2,))
_MAC_SIZE = 32
_COUNT_OFFSET = len(_BOUND_START)
DIR_ID_OFFSET = len(_START)
_HOST_OFFSET = DIR_ID_OFFSET + DIR_ID_SIZE
_PLACES_OFFSET = 64


class DirectoryRecord(NamedTuple):
    """An authentic record.

    places: 32 bytes each: none in version 1, the directory's own in version 2, old and new during a rename.
    host:   12 bytes: whose rename is under way; b"" for none.
    """

    dir_id: bytes
    places: tuple[bytes, ...] = ()
    host: bytes = b""

    @property
    def is_moving(self) -> bool:
        """Whether a rename is under way, or was interrupted."""
        return len(self.places) > 1


@dataclass(frozen=True, slots=True)
class RecordRules:
    """Decides by the vault's features which records count.

    bound: whether a record must name the directory's place.
    upgrading: whether records of version 1 count as well.
    """

    bound: bool = False
    upgrading: bool = False

    def misfit(self, record: DirectoryRecord, place: bytes | None) -> str:
        """Why a record does not count at a place; "" if it does. place: None if it is unknown."""
        if not self.bound:
            return (
                "the directory record is of version 2, and the config of version 1" if record.places else ""
            )
        if not record.places:
            return "" if self.upgrading else "the directory record does not say where the directory belongs"
        if place is None or place in record.places:
            return ""
        return "the directory belongs to another place, by its record"


def pack_directory_record(dir_id: bytes, keys: Subkeys) -> bytes:
    """The record of version 1 that gives a directory its 16-byte dir_id."""
    if len(dir_id) != DIR_ID_SIZE:
        raise ValueError(f"a dir_id has {DIR_ID_SIZE} bytes, not {len(dir_id)}")
    body = _START + dir_id
    return body + derive(keys.dirs_key, b"dirmac", body)


def pack_bound_record(record: DirectoryRecord, keys: Subkeys) -> bytes:
    """The record of version 2.

    Raises: ValueError: not one place without a host, nor two different places with one; an impossible length.
    """
    dir_id, places, host = record
    moving = len(places) == 2
    if len(dir_id) != DIR_ID_SIZE or any(len(place) != PLACE_SIZE for place in places):
        raise ValueError("a dir_id has 16 bytes, and a place 32")
    if not (moving or len(places) == 1) or len(set(places)) != len(places):
        raise ValueError("a directory record has one place, or two different ones")
    if len(host) != (HOST_SIZE if moving else 0):
        raise ValueError("a directory record names a host of 12 bytes if it has two places")
    start = _BOUND_START + bytes((len(places),)) + bytes(6) + dir_id
    body = (start + host).ljust(_PLACES_OFFSET, b"\0") + b"".join(places).ljust(2 * PLACE_SIZE, b"\0")
    return body + derive(keys.dirs_key, b"dirbind", body)


def open_directory_record(raw: bytes, keys: Subkeys) -> DirectoryRecord:
    """Verify a record of either version. Whether it counts is another question: see RecordRules.

    Raises: DirectoryRecordError: cut, damaged, forged or of another vault.
    """
    if len(raw) not in RECORD_SIZES:
        sizes = " or ".join(map(str, RECORD_SIZES))
        raise DirectoryRecordError(f"the directory record has {len(raw)} bytes instead of {sizes}")
    body, mac = raw[:-_MAC_SIZE], raw[-_MAC_SIZE:]
    bound = len(raw) == BOUND_RECORD_SIZE
    if not hmac.compare_digest(derive(keys.dirs_key, b"dirbind" if bound else b"dirmac", body), mac):
        raise DirectoryRecordError("the directory record does not authenticate")
    if not body.startswith(_BOUND_START if bound else _START):
        raise DirectoryRecordError("the directory record is of a version that this program does not know")
    dir_id = body[DIR_ID_OFFSET : DIR_ID_OFFSET + DIR_ID_SIZE]
    if not bound:
        return DirectoryRecord(dir_id)
    count, host = body[_COUNT_OFFSET], body[_HOST_OFFSET : _HOST_OFFSET + HOST_SIZE]
    places = body[_PLACES_OFFSET : _PLACES_OFFSET + PLACE_SIZE], body[_PLACES_OFFSET + PLACE_SIZE :]
    record = DirectoryRecord(dir_id, places[:count], host if count > 1 else b"")
    try:
        canonical = pack_bound_record(record, keys) == raw
    except ValueError:
        canonical = False
    if not canonical:
        raise DirectoryRecordError("the directory record has impossible values")
    return record


def unpack_directory_record(raw: bytes, keys: Subkeys) -> bytes:
    """Verify a record of either version and return its dir_id. Raises: DirectoryRecordError."""
    return open_directory_record(raw, keys).dir_id
