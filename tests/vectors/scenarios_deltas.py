"""Scenarios of section 10 with delta-journal: deltas, heads and records."""

from __future__ import annotations

from typing import Any

from tests.vectors import reference as ref
from tests.vectors.scenarios_files import CHUNK_SIZE, SHORT, record
from tests.vectors.scenarios_journal import HOST
from tests.vectors.vector import Scenarios, Vector, bad, good

_NUMBERS: dict[str, Any] = {"number": 7, "first_seq": 12, "root_inode": 2}
_OFFSET = 1024
_DATA = ref.fixed("a part of a chunk", 1024)
_INDEX = 3


def delta_scenarios() -> Scenarios:
    """Deltas, and the heads and records of journals that may have them."""
    return _good_deltas() | _bad_deltas() | _heads() | _records()


def _key(cipher: str) -> bytes:
    return ref.file_key(cipher, CHUNK_SIZE, 0, ref.FILE_ID)


def _base(cipher: str) -> bytes:
    return ref.ends(cipher, record(cipher, _INDEX, SHORT))


def _inputs(cipher: str, raw: bytes, **fields: Any) -> dict[str, Any]:
    return {
        "cipher": cipher,
        "chunk_size": CHUNK_SIZE,
        "key": _key(cipher),
        "chunk_index": _INDEX,
        "raw": raw,
    } | fields


def _sealed(cipher: str, length: int, offset: int, data: bytes, base: bytes | None = None) -> bytes:
    base = _base(cipher) if base is None else base
    return ref.seal_delta(cipher, _key(cipher), _INDEX, (length, offset), base, data)


def _good_deltas() -> Scenarios:
    found: Scenarios = {}
    for cipher in ref.CIPHERS:
        changes = {
            "middle": ("A kilobyte in the middle of a chunk.", CHUNK_SIZE, 1024, _DATA),
            "growth": ("A last chunk of 21 bytes gets 1003 more.", 21, 0, _DATA),
            "append": ("Bytes right behind the last chunk's end.", 1024, 1024, _DATA),
            "one-byte": (
                "The last byte of a chunk, the least that a delta can change.",
                CHUNK_SIZE,
                CHUNK_SIZE - 1,
                b".",
            ),
            "all": (
                "All bytes of a chunk, the most that a delta can change.",
                1,
                0,
                ref.fixed("all", CHUNK_SIZE),
            ),
        }
        for name, (about, length, offset, data) in changes.items():
            raw = _sealed(cipher, length, offset, data)
            found[f"delta-{name}-{cipher}"] = good(
                about,
                "open_delta",
                _inputs(cipher, raw),
                length=length,
                offset=offset,
                base=_base(cipher),
                data=data,
                new_length=max(length, offset + len(data)),
                ends=ref.ends(cipher, raw),
            )
    return found


def _bad_deltas() -> Scenarios:
    cipher = "aegis-256"
    right = _sealed(cipher, CHUNK_SIZE, 1024, _DATA)

    def refused(about: str, raw: bytes, **fields: Any) -> Vector:
        return bad(about, "open_delta", _inputs(cipher, raw, **fields), "refused", "does not open")

    plain_key = ref.seal_record(cipher, _key(cipher), _INDEX, bytes(200), ref.DELTA_KIND)
    return {
        "delta-flipped-nonce": refused("A bit of the nonce was turned over.", ref.flip(right, 0)),
        "delta-flipped-fields": refused("A bit of a length was turned over.", ref.flip(right, 32)),
        "delta-flipped-base": refused("A bit of the base was turned over.", ref.flip(right, 41)),
        "delta-flipped-data": refused("A bit of the data was turned over.", ref.flip(right, 110)),
        "delta-flipped-tag": refused("A bit of the tag was turned over.", ref.flip(right, len(right) - 1)),
        "delta-cut": refused("The last byte is missing.", right[:-1]),
        "delta-empty": refused("No byte at all.", b""),
        "delta-of-other-chunk": refused("For another chunk.", right, chunk_index=_INDEX + 1),
        "delta-of-other-file": refused("Of another file.", right, key=bytes(32)),
        "delta-under-the-chunks-key": refused("Sealed under the key of the chunks.", plain_key),
        "delta-of-nothing": refused("A chunk without a byte before it.", _sealed(cipher, 0, 0, _DATA)),
        "delta-behind-a-gap": refused("It begins behind the chunk's end.", _sealed(cipher, 20, 21, _DATA)),
        "delta-without-data": refused("It changes no byte.", _sealed(cipher, 20, 5, b"")),
        "delta-too-long": refused(
            "It ends behind the largest chunk.", _sealed(cipher, CHUNK_SIZE, CHUNK_SIZE - 1023, _DATA)
        ),
        "delta-of-too-long-a-chunk": refused(
            "The chunk before it has more than all its bytes.", _sealed(cipher, CHUNK_SIZE + 1, 0, _DATA)
        ),
        "delta-with-half-a-base": refused(
            "The base is cut.", _sealed(cipher, 20, 0, b"", _base(cipher)[:40])
        ),
    }


def _heads() -> Scenarios:
    inputs: dict[str, Any] = {"masterkey": ref.MASTERKEY, "host": HOST}
    newer = ref.journal_head(**_NUMBERS, host=HOST, version=2)
    older = ref.journal_head(**_NUMBERS, host=HOST)
    return {
        "head-with-deltas": good(
            "The head of a journal in a vault with delta-journal.",
            "open_journal_head",
            inputs | {"raw": newer, "deltas": True},
            journal_id=ref.JOURNAL_ID,
            **_NUMBERS,
        ),
        "head-with-deltas-in-older-vault": bad(
            "The same in a vault without delta-journal.",
            "open_journal_head",
            inputs | {"raw": newer},
            "refused",
            "no head",
        ),
        "head-without-deltas-in-newer-vault": good(
            "The head from before an upgrade: another machine may have had the vault in use meanwhile.",
            "open_journal_head",
            inputs | {"raw": older, "deltas": True},
            journal_id=ref.JOURNAL_ID,
            **_NUMBERS,
        ),
    }


def _records() -> Scenarios:
    found: Scenarios = {}
    fields: dict[str, Any] = {
        "seq": 12,
        "previous": 9,
        "inode": 77,
        "path": b"a-directory/a-file",
        "epoch": 0,
    }
    fields |= {"first": _INDEX, "size": (_INDEX + 1) * CHUNK_SIZE, "file_id": ref.FILE_ID}
    for cipher in ref.CIPHERS:
        payload = _sealed(cipher, CHUNK_SIZE, 1024, _DATA)
        raw = ref.journal_record(cipher, CHUNK_SIZE, _OFFSET, operation=ref.DELTA, payload=payload, **fields)
        inputs: dict[str, Any] = {
            "masterkey": ref.MASTERKEY,
            "cipher": cipher,
            "chunk_size": CHUNK_SIZE,
            "journal_id": ref.JOURNAL_ID,
            "offset": _OFFSET,
            "raw": raw,
        }
        found[f"delta-record-{cipher}"] = good(
            "A part of chunk 3 is about to change.",
            "open_journal_record",
            inputs | {"deltas": True},
            record_operation=ref.DELTA,
            payload=payload,
            **fields,
        )
        found[f"delta-record-in-older-vault-{cipher}"] = bad(
            "The same in a vault without delta-journal.",
            "open_journal_record",
            inputs,
            "refused",
            "does not open",
        )
    return found
