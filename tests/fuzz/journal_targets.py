"""Fuzzing the journal's codecs: whoever can write to the vault can leave any journal behind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from cryptfs.core.aead import AEGIS_256
from cryptfs.core.format.delta import Delta, DeltaCipher, delta_key
from cryptfs.core.format.journal import (
    PREFIX_SIZE,
    JournalHead,
    JournalRecord,
    Operation,
    Sessions,
    payload_digest,
    record_lengths,
    unpack_record,
)
from cryptfs.core.geometry import ChunkGeometry
from tests.fuzz.targets import FILE_ID, KEYS, Target, fixed

JOURNAL_ID = fixed(16, "journal_id")
PLACE = 512 * 7


def head_target() -> Target:
    """Any 512 bytes: the head that was made, bit for bit where it counts, or nothing."""
    head = JournalHead(5, JOURNAL_ID, 77, 123_456)
    raw = head.pack(KEYS, fixed(24, "journal head"))
    sealed = len(raw.rstrip(b"\0"))

    def run(data: bytes) -> None:
        found = JournalHead.unpack(data, KEYS)
        assert found is None or (found == head and data[:sealed] == raw[:sealed])

    return Target("journal-head", run, [raw])


def record_target() -> Target:
    """Any record: the one that was made, at its place and in its journal, or nothing."""
    path, payload = b"some/place", fixed(3 * (4096 + AEGIS_256.overhead), "payload")
    sizes = (4096 + AEGIS_256.overhead, AEGIS_256.nonce_size, AEGIS_256.tag_size)
    digest = payload_digest(path, payload, *sizes)
    record = JournalRecord(9, 4, Operation.WRITE, 2, FILE_ID, 4711, 0, 12288, path, digest)
    raw = record.pack(KEYS, fixed(24, "journal record"), JOURNAL_ID, PLACE, len(payload))

    def run(data: bytes) -> None:
        lengths = record_lengths(data[:PREFIX_SIZE])
        if lengths is None:
            return
        path_size, payload_size = lengths
        assert 0 <= path_size <= 4096 and 0 <= payload_size < 2**32
        prefix, its_path = data[:PREFIX_SIZE], data[PREFIX_SIZE : PREFIX_SIZE + path_size]
        found = unpack_record(prefix, its_path, KEYS, JOURNAL_ID, PLACE)
        if found is not None:
            assert prefix == raw[:PREFIX_SIZE] and found == replace(record, path=its_path)
        assert unpack_record(prefix, its_path, KEYS, JOURNAL_ID, PLACE + 512) is None
        assert unpack_record(prefix, its_path, KEYS, bytes(16), PLACE) is None

    return Target("journal-record", run, [raw, raw + payload[:600]])


def payload_target() -> Target:
    """The digest of any payload tells it from every other: one flipped bit, one byte less, another path."""
    sizes = (4096 + AEGIS_256.overhead, AEGIS_256.nonce_size, AEGIS_256.tag_size)

    def run(data: bytes) -> None:
        path, payload = data[:20], data[20:]
        digest = payload_digest(path, payload, *sizes)
        assert digest == payload_digest(path, memoryview(bytearray(payload)), *sizes)
        assert digest != payload_digest(path + b"x", payload, *sizes)
        if payload:
            assert digest != payload_digest(path, payload[:-1], *sizes)
            assert digest != payload_digest(path, bytes((payload[0] ^ 1,)) + payload[1:], *sizes)

    return Target("journal-payload", run, [fixed(20 + 5000, "payload"), fixed(20 + 60, "short")])


def delta_target() -> Target:
    """Any delta: the one that was made, for its chunk and under its key, or nothing."""
    cipher = DeltaCipher(AEGIS_256, ChunkGeometry(4096, AEGIS_256.overhead))
    key = delta_key(fixed(32, "content key"))
    delta = Delta(3000, 2900, fixed(AEGIS_256.overhead, "base"), fixed(500, "data"))
    raw = cipher.seal(key, 3, delta, fixed(AEGIS_256.nonce_size, "delta"))

    def run(data: bytes) -> None:
        found = cipher.open(key, 3, data)
        assert found is None or (found == delta and data == raw)
        assert cipher.open(key, 4, data) is None

    return Target("delta", run, [raw])


def sessions_target() -> Target:
    """Any list of sessions."""
    sessions = {
        each.pack(KEYS, fixed(24, f"sessions {each.last}")): each
        for each in (Sessions(), Sessions(3, (JOURNAL_ID,)), Sessions(900, (bytes(16), JOURNAL_ID)))
    }

    def run(data: bytes) -> None:
        found = Sessions.unpack(data, KEYS)
        assert found == sessions.get(data)

    return Target("sessions", run, list(sessions))


JOURNAL_TARGETS: dict[str, Callable[[], Target]] = {
    "journal-head": head_target,
    "journal-record": record_target,
    "journal-payload": payload_target,
    "delta": delta_target,
    "sessions": sessions_target,
}
