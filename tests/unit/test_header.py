"""The file header: round trip, and not one bit of it that could be changed unnoticed."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cryptfs.core.format.header import NO_FLAGS, NO_JOURNAL, FileHeader, HeaderFlag, claimed_file_id
from cryptfs.core.geometry import HEADER_SIZE
from cryptfs.core.keys import Subkeys
from cryptfs.errors import HeaderError

KEYS = Subkeys.from_masterkey(b"m" * 32)
NONCE = bytes(range(24))
FILE_ID = bytes(range(32))
u64 = st.integers(0, 2**64 - 1)
headers = st.builds(
    FileHeader,
    cipher_id=st.just(1),
    log2_chunk_size=st.just(14),
    file_id=st.binary(min_size=32, max_size=32),
    epoch=st.integers(0, 2**32 - 1),
    size=u64,
    size_min=u64,
    generation=u64,
    flags=st.integers(0, 7),
)


@given(header=headers, nonce=st.binary(min_size=24, max_size=24))
def test_round_trip(header: FileHeader, nonce: bytes) -> None:
    raw = header.pack(KEYS, nonce)
    assert len(raw) == HEADER_SIZE
    assert FileHeader.unpack(raw, KEYS, 1, 14) == header


def test_every_bit_counts() -> None:
    raw = FileHeader(1, 14, FILE_ID, size=5).pack(KEYS, NONCE)
    for bit in range(HEADER_SIZE * 8):
        changed = bytearray(raw)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(HeaderError, match="authenticate"):
            FileHeader.unpack(bytes(changed), KEYS, 1, 14)


@settings(max_examples=50)
@given(raw=st.binary(max_size=300))
def test_arbitrary_bytes_are_refused(raw: bytes) -> None:
    with pytest.raises(HeaderError):
        FileHeader.unpack(raw, KEYS, 1, 14)


@pytest.mark.parametrize(("cipher_id", "log2_chunk_size"), [(2, 14), (1, 15), (2, 15)])
def test_another_cipher_or_chunk_size_than_the_vaults(cipher_id: int, log2_chunk_size: int) -> None:
    raw = FileHeader(1, 14, FILE_ID).pack(KEYS, NONCE)
    with pytest.raises(HeaderError, match="another cipher or chunk size"):
        FileHeader.unpack(raw, KEYS, cipher_id, log2_chunk_size)


@pytest.mark.parametrize("flags", [8, 16, 2**31, 9])
def test_unknown_flags_are_refused(flags: int) -> None:
    raw = FileHeader(1, 14, FILE_ID, flags=flags).pack(KEYS, NONCE)
    with pytest.raises(HeaderError, match="does not know"):
        FileHeader.unpack(raw, KEYS, 1, 14)


def test_bad_arguments_of_pack() -> None:
    with pytest.raises(ValueError, match="nonce has 24"):
        FileHeader(1, 14, FILE_ID).pack(KEYS, NONCE[:-1])
    with pytest.raises(ValueError, match="file_id has 32"):
        FileHeader(1, 14, FILE_ID[:-1]).pack(KEYS, NONCE)


def test_changed_leaves_the_original_alone() -> None:
    header = FileHeader(1, 14, FILE_ID, epoch=3)
    closed = header.changed(size=9, flags=HeaderFlag.CLEAN)
    assert (closed.size, closed.flags, closed.epoch, closed.file_id) == (9, HeaderFlag.CLEAN, 3, FILE_ID)
    assert (header.size, header.flags) == (0, NO_FLAGS)


def test_sizes_are_not_in_clear() -> None:
    one = FileHeader(1, 14, FILE_ID, size=1).pack(KEYS, NONCE)
    two = FileHeader(1, 14, FILE_ID, size=1).pack(KEYS, NONCE[::-1])
    assert one[:48] == two[:48]
    assert sum(a == b for a, b in zip(one[72:], two[72:], strict=True)) < 20


@pytest.mark.parametrize(
    ("before", "size", "after"),
    [
        (NO_FLAGS, 0, HeaderFlag.CLEAN),
        (NO_FLAGS, 5, HeaderFlag.CLEAN),
        (HeaderFlag.SPARSE, 0, HeaderFlag.CLEAN),
        (HeaderFlag.SPARSE, 5, HeaderFlag.CLEAN | HeaderFlag.SPARSE),
        (HeaderFlag.VOID | HeaderFlag.SPARSE, 5, HeaderFlag.CLEAN | HeaderFlag.SPARSE),
        (HeaderFlag.VOID, 5, HeaderFlag.CLEAN),
    ],
)
def test_a_header_that_is_closed_says_all_of_the_length(before: int, size: int, after: int) -> None:
    old = FileHeader(1, 14, FILE_ID, 3, 9, 2, 7, before, bytes(range(16)), 11)
    assert old.closed_at(size) == FileHeader(1, 14, FILE_ID, 3, size, size, 7, after, NO_JOURNAL, 0)
    assert old.size == 9


@pytest.mark.parametrize("length", [0, 15, 16, 47, 48, 255, 256])
def test_the_file_id_can_be_read_without_a_key(length: int) -> None:
    raw = FileHeader(1, 14, FILE_ID).pack(KEYS, NONCE)[:length]
    assert claimed_file_id(raw) == (FILE_ID if length >= 48 else b"")
