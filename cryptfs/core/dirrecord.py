"""The directory record `cryptfs.dir`: magic | version | 7 zeros | dir_id[16] | mac[32], 64 bytes.

Source: docs/FORMAT.md, section 6.
"""

from __future__ import annotations

import hmac

from cryptfs.core.aead import FORMAT_VERSION
from cryptfs.core.keys import DIR_ID_SIZE, Subkeys, derive
from cryptfs.errors import DirectoryRecordError

RECORD_NAME = "cryptfs.dir"
RECORD_SIZE = 64
_START = b"CRYPTDIR" + bytes((FORMAT_VERSION,)) + bytes(7)


def pack_directory_record(dir_id: bytes, keys: Subkeys) -> bytes:
    """The record that gives a directory its 16-byte dir_id."""
    if len(dir_id) != DIR_ID_SIZE:
        raise ValueError(f"a dir_id has {DIR_ID_SIZE} bytes, not {len(dir_id)}")
    body = _START + dir_id
    return body + derive(keys.dirs_key, b"dirmac", body)


def unpack_directory_record(raw: bytes, keys: Subkeys) -> bytes:
    """Verify a record and return its dir_id.

    Raises: DirectoryRecordError: it is cut, damaged, forged or of another vault.
    """
    if len(raw) != RECORD_SIZE:
        raise DirectoryRecordError(f"the directory record has {len(raw)} bytes instead of {RECORD_SIZE}")
    body, mac = raw[:-32], raw[-32:]
    if not hmac.compare_digest(derive(keys.dirs_key, b"dirmac", body), mac):
        raise DirectoryRecordError("the directory record does not authenticate")
    if not body.startswith(_START):
        raise DirectoryRecordError("the directory record is of a version that this program does not know")
    return body[len(_START) :]
