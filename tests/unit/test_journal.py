"""The journal's bytes: round trips, and not one byte of a head, a record or a list that could be changed."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cryptfs.core.format.journal import (
    HEAD_SIZE,
    MAX_CRASHED,
    MAX_PATH,
    MAX_SESSIONS_SIZE,
    PREFIX_SIZE,
    JournalHead,
    JournalRecord,
    Operation,
    Sessions,
    aligned,
    payload_digest,
    record_lengths,
    unpack_record,
)
from cryptfs.core.keys import Subkeys

KEYS = Subkeys.from_masterkey(b"m" * 32)
OTHER_KEYS = Subkeys.from_masterkey(b"o" * 32)
NONCE = bytes(range(24))
JOURNAL_ID = b"journal number 1"
PLACE = 512 * 9
HEAD = JournalHead(3, JOURNAL_ID, 40, 2)
PATH = b"directory/file"
RECORD = JournalRecord(41, 12, Operation.WRITE, 5, bytes(range(32)), 99, 7, 123456, PATH, b"d" * 32)
u64 = st.integers(0, 2**64 - 1)
ids = st.binary(min_size=16, max_size=16)


def flipped(raw: bytes) -> list[bytes]:
    """Each byte changed in turn, by a bit."""
    return [raw[:at] + bytes((raw[at] ^ (1 << at % 8),)) + raw[at + 1 :] for at in range(len(raw))]


@given(number=u64, journal_id=ids, first_seq=u64, root_inode=u64)
def test_head_round_trip(number: int, journal_id: bytes, first_seq: int, root_inode: int) -> None:
    head = JournalHead(number, journal_id, first_seq, root_inode)
    raw = head.pack(KEYS, NONCE)
    assert len(raw) == HEAD_SIZE
    assert JournalHead.unpack(raw, KEYS) == head


def test_a_head_with_deltas_is_none_without() -> None:
    newer, older = HEAD.pack(KEYS, NONCE, deltas=True), HEAD.pack(KEYS, NONCE)
    assert JournalHead.unpack(newer, KEYS, deltas=True) == HEAD
    assert JournalHead.unpack(newer, KEYS) is None
    assert JournalHead.unpack(older, KEYS, deltas=True) == HEAD  # from before an upgrade
    assert [JournalHead.unpack(changed, KEYS, deltas=True) for changed in flipped(newer)] == [
        None
    ] * HEAD_SIZE


def test_every_byte_of_a_head_counts() -> None:
    raw = HEAD.pack(KEYS, NONCE)
    assert [JournalHead.unpack(changed, KEYS) for changed in flipped(raw)] == [None] * HEAD_SIZE
    assert JournalHead.unpack(raw, OTHER_KEYS) is None
    for size in (0, 7, 8, 24, 88, HEAD_SIZE - 1):
        assert JournalHead.unpack(raw[:size], KEYS) is None
    assert JournalHead.unpack(raw + b"\0", KEYS) is None


@settings(max_examples=50)
@given(raw=st.binary(max_size=600) | st.binary(max_size=600).map(lambda rest: b"CRYPTFSJ" + rest))
def test_arbitrary_heads_are_none(raw: bytes) -> None:
    assert JournalHead.unpack(raw, KEYS) is None
    assert JournalHead.unpack(raw.ljust(HEAD_SIZE, b"\0")[:HEAD_SIZE], KEYS) is None


@given(
    record=st.builds(
        JournalRecord,
        seq=u64,
        previous=u64,
        operation=st.sampled_from(Operation),
        epoch=st.integers(0, 2**32 - 1),
        file_id=st.binary(min_size=32, max_size=32),
        inode=u64,
        first=u64,
        size=u64,
        path=st.binary(max_size=MAX_PATH),
        digest=st.binary(min_size=32, max_size=32),
    ),
    journal_id=ids,
    place=u64,
    payload_size=st.integers(0, 2**32 - 1),
)
def test_record_round_trip(record: JournalRecord, journal_id: bytes, place: int, payload_size: int) -> None:
    raw = record.pack(KEYS, NONCE, journal_id, place, payload_size)
    assert len(raw) == PREFIX_SIZE + len(record.path)
    assert record_lengths(raw) == (len(record.path), payload_size)
    prefix, is_delta = raw[:PREFIX_SIZE], record.operation is Operation.DELTA
    assert unpack_record(prefix, record.path, KEYS, journal_id, place, deltas=True) == record
    without = unpack_record(prefix, record.path, KEYS, journal_id, place)
    assert without == (None if is_delta else record)


def test_every_byte_of_a_prefix_counts() -> None:
    raw = RECORD.pack(KEYS, NONCE, JOURNAL_ID, PLACE, 1000)[:PREFIX_SIZE]
    for changed in flipped(raw):
        lengths = record_lengths(changed)
        assert lengths is None or unpack_record(changed, PATH, KEYS, JOURNAL_ID, PLACE) is None
    assert all(record_lengths(changed) is None for changed in flipped(raw)[:8])
    assert unpack_record(raw[:-1], PATH, KEYS, JOURNAL_ID, PLACE) is None
    assert record_lengths(raw[:-1]) is None


def test_a_record_holds_in_its_place_in_its_journal_only() -> None:
    raw = RECORD.pack(KEYS, NONCE, JOURNAL_ID, PLACE, 1000)[:PREFIX_SIZE]
    assert unpack_record(raw, PATH, KEYS, JOURNAL_ID, PLACE) == RECORD
    for place in (0, PLACE - 512, PLACE + 512, PLACE + 2**32):
        assert unpack_record(raw, PATH, KEYS, JOURNAL_ID, place) is None
    assert unpack_record(raw, PATH, KEYS, b"journal number 2", PLACE) is None
    assert unpack_record(raw, PATH, OTHER_KEYS, JOURNAL_ID, PLACE) is None


@pytest.mark.parametrize("operation", [0, 5, 255])
def test_an_unknown_operation_is_none(operation: int) -> None:
    raw = replace(RECORD, operation=operation).pack(KEYS, NONCE, JOURNAL_ID, PLACE, 0)  # type: ignore[arg-type]
    assert unpack_record(raw[:PREFIX_SIZE], PATH, KEYS, JOURNAL_ID, PLACE) is None
    assert unpack_record(raw[:PREFIX_SIZE], PATH, KEYS, JOURNAL_ID, PLACE, deltas=True) is None


@pytest.mark.parametrize(
    ("size", "held"), [(0, True), (MAX_PATH, True), (MAX_PATH + 1, False), (65535, False)]
)
def test_the_longest_path(size: int, held: bool) -> None:
    raw = replace(RECORD, path=b"p" * size).pack(KEYS, NONCE, JOURNAL_ID, PLACE, 5)
    assert record_lengths(raw[:PREFIX_SIZE]) == ((size, 5) if held else None)


@settings(max_examples=50)
@given(raw=st.binary(max_size=300) | st.binary(max_size=300).map(lambda rest: b"CRYPTFSR" + rest))
def test_arbitrary_records_are_none(raw: bytes) -> None:
    lengths = record_lengths(raw)
    assert lengths is None or unpack_record(raw[:PREFIX_SIZE], b"", KEYS, JOURNAL_ID, PLACE) is None


def digest(path: bytes, payload: bytes | memoryview) -> bytes:
    """Of chunk records with 20 bytes, nonces of 4 and tags of 3."""
    return payload_digest(path, payload, 20, 4, 3)


def test_a_digest_covers_path_lengths_nonces_and_tags() -> None:
    payload = bytes(range(55))  # two whole records and one of 15 bytes
    of = digest(PATH, payload)
    parts = [
        *((14).to_bytes(4, "little"), PATH),
        *((20).to_bytes(4, "little"), payload[:4], payload[17:20]),
        *((20).to_bytes(4, "little"), payload[20:24], payload[37:40]),
        *((15).to_bytes(4, "little"), payload[40:44], payload[52:55]),
    ]
    assert of == hashlib.blake2b(b"".join(parts), digest_size=32).digest()
    assert digest(PATH, memoryview(payload)) == of
    covered = [at for at, changed in enumerate(flipped(payload)) if digest(PATH, changed) != of]
    assert covered == [*range(4), *range(17, 24), *range(37, 44), *range(52, 55)]
    assert all(digest(path, payload) != of for path in flipped(PATH))
    others = [digest(PATH, payload[:size]) for size in range(55)]
    assert of not in others
    assert len(set(others)) == 55


@pytest.mark.parametrize(("size", "expected"), [(0, 0), (1, 512), (511, 512), (512, 512), (513, 1024)])
def test_aligned(size: int, expected: int) -> None:
    assert aligned(size) == expected


@given(last=u64, crashed=st.lists(ids, max_size=20))
def test_sessions_round_trip(last: int, crashed: list[bytes]) -> None:
    sessions = Sessions(last, tuple(crashed))
    raw = sessions.pack(KEYS, NONCE)
    assert len(raw) == 50 + 16 * len(crashed)
    assert Sessions.unpack(raw, KEYS) == sessions
    assert Sessions.unpack(raw, OTHER_KEYS) is None


def test_every_byte_of_the_sessions_counts() -> None:
    raw = Sessions(5, (JOURNAL_ID, b"journal number 2")).pack(KEYS, NONCE)
    assert [Sessions.unpack(changed, KEYS) for changed in flipped(raw)] == [None] * len(raw)
    assert [Sessions.unpack(raw[:size], KEYS) for size in range(len(raw))] == [None] * len(raw)
    assert Sessions.unpack(raw + b"\0", KEYS) is None


def test_sessions_end_and_the_oldest_are_forgotten() -> None:
    sessions = Sessions()
    assert sessions.ended(4) == Sessions(4)
    assert sessions.ended(4).ended(2) == Sessions(4)  # never back
    names = [number.to_bytes(16, "little") for number in range(MAX_CRASHED + 3)]
    for number, name in enumerate(names, 1):
        sessions = sessions.ended(number, [name])
    assert sessions == Sessions(len(names), tuple(names[3:]))
    raw = sessions.pack(KEYS, NONCE)
    assert len(raw) == MAX_SESSIONS_SIZE
    assert Sessions.unpack(raw, KEYS) == sessions


def test_more_sessions_than_a_list_holds_are_refused() -> None:
    crashed = tuple(number.to_bytes(16, "little") for number in range(MAX_CRASHED + 1))
    assert Sessions.unpack(Sessions(1, crashed).pack(KEYS, NONCE), KEYS) is None
