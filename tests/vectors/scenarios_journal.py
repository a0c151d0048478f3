"""Scenarios of section 10: heads and records of the journal, and the list of sessions."""

from __future__ import annotations

from typing import Any

from tests.vectors import reference as ref
from tests.vectors.scenarios_files import CHUNK_SIZE, SHORT, record
from tests.vectors.vector import Scenarios, Vector, bad, good

_NUMBERS: dict[str, Any] = {"number": 7, "first_seq": 12, "root_inode": 2}
_OFFSET = 1024
_PATH = b"a-directory/a-file"
_WHOLE = ref.fixed("a whole chunk", CHUNK_SIZE)


HOST = ref.host_id(ref.MACHINE_ID, ref.fixed("vault_id", 16), 2, 1_700_000_000_123_456_789)
OTHER_HOST = ref.host_id(b"0" * 32, ref.fixed("vault_id", 16), 2, 0)


def host_scenarios() -> Scenarios:
    """Host ids."""

    def host(about: str, machine_id: bytes, inode: int, birth: int) -> Vector:
        vault_id = ref.fixed("vault_id", 16)
        inputs = {"machine_id": machine_id.decode(), "vault_id": vault_id, "inode": inode, "birth": birth}
        made = ref.host_id(machine_id, vault_id, inode, birth)
        names = [f"cryptfs.host.{made}.{kind}" for kind in ("journal.a", "journal.b", "sessions")]
        return good(about, "host_id", inputs, host_id=made, names=names)

    return {
        "host": host("A machine, and a directory.", ref.MACHINE_ID, 2, 1_700_000_000_123_456_789),
        "no-birth": host("A filesystem that keeps no time of birth.", ref.MACHINE_ID, 2, 0),
        "no-machine-id": host("An operating system that has no name for the machine.", b"0" * 32, 2, 0),
        "fleeting-numbers": host("A filesystem whose inode numbers do not last.", ref.MACHINE_ID, 0, 0),
        "largest": host("Numbers at their limit.", b"f" * 32, 2**64 - 1, 2**64 - 1),
    }


def journal_scenarios() -> Scenarios:
    """Heads and records."""
    return _heads() | _good_records() | _bad_records()


def _heads() -> Scenarios:
    right = ref.journal_head(**_NUMBERS)
    of_host = ref.journal_head(**_NUMBERS, host=HOST)
    inputs_of_host: dict[str, Any] = {"masterkey": ref.MASTERKEY, "raw": of_host, "host": HOST}

    def head(about: str, raw: bytes, **fields: Any) -> Vector:
        inputs = {"masterkey": ref.MASTERKEY, "raw": raw} | fields
        return bad(about, "open_journal_head", inputs, "refused", "no head")

    return {
        "head": good(
            "The head of a journal file of a vault's seventh session.",
            "open_journal_head",
            {"masterkey": ref.MASTERKEY, "raw": right},
            journal_id=ref.JOURNAL_ID,
            **_NUMBERS,
        ),
        "head-of-host": good(
            "The same of a machine that has its own.",
            "open_journal_head",
            inputs_of_host,
            journal_id=ref.JOURNAL_ID,
            **_NUMBERS,
        ),
        "head-of-other-host": head("Renamed: another machine's.", of_host, host=OTHER_HOST),
        "head-of-host-in-old-vault": head("In a vault without machine-state.", of_host),
        "head-of-old-vault-for-host": head("0.1's head for a machine's own.", right, host=HOST),
        "head-flipped-magic": head("A bit of the magic was turned over.", ref.flip(right, 0)),
        "head-flipped-journal-id": head("A bit of the journal_id was turned over.", ref.flip(right, 8)),
        "head-flipped-numbers": head("A bit of the sealed numbers was turned over.", ref.flip(right, 48)),
        "head-zeros-set": head("The last of the zeros is none.", ref.flip(right, 511)),
        "head-cut": head("The last byte is missing.", right[:-1]),
        "head-of-other-vault": head("Another masterkey.", ref.journal_head(**_NUMBERS, masterkey=bytes(32))),
    }


def _record(cipher: str, **fields: Any) -> bytes:
    defaults: dict[str, Any] = {"seq": 12, "previous": 9, "inode": 77, "path": _PATH}
    offset = fields.pop("offset", _OFFSET)
    return ref.journal_record(cipher, CHUNK_SIZE, offset, **(defaults | fields))


def _inputs(cipher: str, raw: bytes, **fields: Any) -> dict[str, Any]:
    return {
        "masterkey": ref.MASTERKEY,
        "cipher": cipher,
        "chunk_size": CHUNK_SIZE,
        "journal_id": ref.JOURNAL_ID,
        "offset": _OFFSET,
        "raw": raw,
    } | fields


def _good_records() -> Scenarios:
    found: Scenarios = {}
    for cipher in ref.CIPHERS:
        two = record(cipher, 3, _WHOLE) + record(cipher, 4, SHORT)
        size = 4 * CHUNK_SIZE + len(SHORT)
        changes: dict[str, tuple[str, dict[str, Any]]] = {
            "write": (
                "A short chunk, the first, is about to be written.",
                {"operation": ref.WRITE, "first": 0, "size": len(SHORT), "payload": record(cipher, 0, SHORT)},
            ),
            "write-two": (
                "A whole chunk and a short one behind it, in a later epoch.",
                {"operation": ref.WRITE, "first": 3, "size": size, "payload": two, "epoch": 5},
            ),
            "shrink": (
                "The file is about to be cut to 21 bytes.",
                {"operation": ref.SHRINK, "first": 0, "size": 21, "payload": record(cipher, 0, SHORT)},
            ),
            "shrink-whole": (
                "The file is about to be cut behind a chunk that stays whole.",
                {"operation": ref.SHRINK, "first": 1, "size": 2 * CHUNK_SIZE},
            ),
            "punch": (
                "Chunks 2 to 4 are about to become holes.",
                {"operation": ref.PUNCH, "first": 2, "size": 5},
            ),
            "no-path": (
                "A file whose path is not known, or too long.",
                {"operation": ref.PUNCH, "first": 0, "size": 1, "path": b""},
            ),
        }
        for name, (about, fields) in changes.items():
            results = {"seq": 12, "previous": 9, "epoch": 0, "inode": 77, "path": _PATH, "payload": b""}
            results |= {"file_id": ref.FILE_ID, "record_operation": fields["operation"]} | fields
            del results["operation"]
            found[f"{name}-{cipher}"] = good(
                about, "open_journal_record", _inputs(cipher, _record(cipher, **fields)), **results
            )
    return found


def _bad_records() -> Scenarios:
    cipher = "aegis-256"
    payload = record(cipher, 0, SHORT)
    write: dict[str, Any] = {"operation": ref.WRITE, "first": 0, "size": len(SHORT), "payload": payload}
    right = _record(cipher, **write)
    path_at, payload_at = 171, 171 + len(_PATH)

    def refused(about: str, raw: bytes, why: str = "does not open", **fields: Any) -> Vector:
        return bad(about, "open_journal_record", _inputs(cipher, raw, **fields), "refused", why)

    wrong = {
        "flipped-magic": (0, "magic", "no record"),
        "flipped-path-length": (8, "length of the path", "does not open"),
        "flipped-payload-length": (10, "length of the payload", "does not open"),
        "flipped-nonce": (14, "nonce", "does not open"),
        "flipped-fields": (38, "sealed fields", "does not open"),
        "flipped-path": (path_at, "path", "digest"),
        "flipped-payload-nonce": (payload_at, "nonce in the payload", "digest"),
        "flipped-payload-tag": (len(right) - 1, "tag in the payload", "digest"),
    }
    found = {
        name: refused(f"A bit of the {what} was turned over.", ref.flip(right, at), why)
        for name, (at, what, why) in wrong.items()
    }
    return found | {
        "moved": refused("The record stands at another offset.", right, offset=_OFFSET + 512),
        "other-journal": refused("A record of another session.", right, journal_id=ref.OTHER_JOURNAL_ID),
        "other-vault": refused("Another masterkey.", _record(cipher, masterkey=bytes(32), **write)),
        "unknown-operation": refused("Operation 4.", _record(cipher, **(write | {"operation": 4}))),
        "zeros-set": refused("The last of the zeros is none.", _record(cipher, zeros=b"\0\0\1", **write)),
        "path-too-long": refused(
            "A path of 4097 bytes.", _record(cipher, **write, path=b"p" * 4097), "no record"
        ),
        "cut-payload": refused("The last byte is missing.", right[:-1], "digest"),
    }


def sessions_scenarios() -> Scenarios:
    """Lists of sessions."""
    crashed = [ref.JOURNAL_ID, ref.OTHER_JOURNAL_ID]
    many = [ref.fixed(f"journal_id {number}", 16) for number in range(257)]

    def opened(about: str, last: int, ids: list[bytes], host: str = "") -> Vector:
        inputs: dict[str, Any] = {"masterkey": ref.MASTERKEY, "raw": ref.sessions(last, ids, host=host)}
        inputs |= {"host": host} if host else {}
        return good(about, "open_sessions", inputs, last=last, crashed=[each.hex() for each in ids])

    def refused(about: str, raw: bytes, **fields: Any) -> Vector:
        inputs: dict[str, Any] = {"masterkey": ref.MASTERKEY, "raw": raw} | fields
        return bad(about, "open_sessions", inputs, "refused", "no list")

    right = ref.sessions(9, crashed)
    of_host = ref.sessions(9, crashed, host=HOST)
    return {
        "none-crashed": opened("Three sessions, all of which ended by an unmount.", 3, []),
        "two-crashed": opened("Nine sessions, two of which crashed.", 9, crashed),
        "of-host": opened("The same of a machine that has its own.", 9, crashed, HOST),
        "of-other-host": refused("Renamed: another machine's.", of_host, host=OTHER_HOST),
        "of-host-in-old-vault": refused("In a vault without machine-state.", of_host),
        "of-old-vault-for-host": refused("0.1's list for a machine's own.", right, host=HOST),
        "most": opened("As many as a list holds.", 2**64 - 1, many[:256]),
        "too-many": refused("257 journal_ids.", ref.sessions(300, many)),
        "fewer-than-counted": refused("One less than it says.", ref.sessions(9, crashed, count=3)),
        "more-than-counted": refused("One more than it says.", ref.sessions(9, crashed, count=1)),
        "flipped": refused("A bit of the list was turned over.", ref.flip(right, 30)),
        "cut": refused("The last byte is missing.", right[:-1]),
        "empty": refused("No byte at all.", b""),
        "other-vault": refused("Another masterkey.", ref.sessions(9, crashed, masterkey=bytes(32))),
    }
