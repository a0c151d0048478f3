"""Directory records, symlink targets, xattr values."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryptfs.core.aead import Kind, open_small, seal_small
from cryptfs.core.format.smallvalues import (
    MAX_STORED_TARGET,
    link_aad,
    open_target,
    seal_target,
    target_size,
    unbound_link_aad,
    xattr_aad,
)
from cryptfs.core.keys import Subkeys
from cryptfs.core.names.dirrecord import RECORD_SIZE, pack_directory_record, unpack_directory_record
from cryptfs.core.names.names import encode_text
from cryptfs.errors import DirectoryRecordError, NameError_, NameTooLongError

KEYS = Subkeys.from_masterkey(b"m" * 32)
NONCE = bytes(range(24))
DIR_ID, SIV = b"directory number", b"siv of the name "
ids = st.binary(min_size=16, max_size=16)


@given(ids)
def test_directory_record_round_trip(dir_id: bytes) -> None:
    raw = pack_directory_record(dir_id, KEYS)
    assert len(raw) == RECORD_SIZE
    assert unpack_directory_record(raw, KEYS) == dir_id


def test_every_bit_of_a_directory_record_counts() -> None:
    raw = pack_directory_record(DIR_ID, KEYS)
    for bit in range(RECORD_SIZE * 8):
        changed = bytearray(raw)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(DirectoryRecordError, match="authenticate"):
            unpack_directory_record(bytes(changed), KEYS)


@given(st.binary(max_size=80))
def test_arbitrary_directory_records_are_refused(raw: bytes) -> None:
    with pytest.raises(DirectoryRecordError):
        unpack_directory_record(raw, KEYS)


@pytest.mark.parametrize("size", [0, 15, 17])
def test_a_dir_id_has_16_bytes(size: int) -> None:
    with pytest.raises(ValueError, match="dir_id has 16"):
        pack_directory_record(bytes(size), KEYS)


@given(target=st.binary(min_size=1, max_size=3031), bound=st.booleans())
def test_target_round_trip(target: bytes, bound: bool) -> None:
    aad = link_aad(DIR_ID, SIV) if bound else unbound_link_aad()
    text = seal_target(target, KEYS.links_key, aad, NONCE)
    assert len(text) <= MAX_STORED_TARGET
    assert target_size(len(text)) == len(target)
    assert open_target(text, KEYS.links_key, DIR_ID, SIV) == (target, bound)


def test_the_longest_target() -> None:
    aad = unbound_link_aad()
    assert len(seal_target(b"t" * 3031, KEYS.links_key, aad, NONCE)) == MAX_STORED_TARGET
    with pytest.raises(NameTooLongError, match="target"):
        seal_target(b"t" * 3032, KEYS.links_key, aad, NONCE)


@given(target=st.binary(max_size=60), dir_id=ids, siv=ids)
def test_a_bound_target_opens_nowhere_else(target: bytes, dir_id: bytes, siv: bytes) -> None:
    text = seal_target(target, KEYS.links_key, link_aad(DIR_ID, SIV), NONCE)
    for other_dir, other_siv in ((dir_id, SIV), (DIR_ID, siv), (SIV, DIR_ID)):
        if (other_dir, other_siv) == (DIR_ID, SIV):
            continue
        with pytest.raises(NameError_, match="target does not authenticate"):
            open_target(text, KEYS.links_key, other_dir, other_siv)


@given(st.text(max_size=200) | st.binary(max_size=120).map(encode_text))
def test_arbitrary_targets_are_refused(text: str) -> None:
    with pytest.raises(NameError_, match="target does not authenticate"):
        open_target(text, KEYS.links_key, DIR_ID, SIV)


@pytest.mark.parametrize(
    ("stored", "plain"), [(0, 0), (10, 0), (54, 0), (55, 1), (56, 2), (58, 3), (4095, 3031)]
)
def test_target_sizes(stored: int, plain: int) -> None:
    assert target_size(stored) == plain


def test_xattr_aads() -> None:
    assert xattr_aad(Kind.XATTR_OF_FILE, b"f" * 32, b"user.a") == b"\x05\x01" + b"f" * 32 + b"user.a"
    of_directory = xattr_aad(Kind.XATTR_OF_DIRECTORY, b"d" * 16, b"user.a")
    assert of_directory == b"\x06\x01" + b"d" * 16 + bytes(16) + b"user.a"


@given(value=st.binary(max_size=100), name=st.binary(min_size=1, max_size=20), other=st.binary(max_size=20))
def test_xattr_values_are_bound(value: bytes, name: bytes, other: bytes) -> None:
    file_id = DIR_ID + bytes(16)
    aad = xattr_aad(Kind.XATTR_OF_FILE, file_id, name)
    sealed = seal_small(KEYS.xattrs_key, value, aad, NONCE)
    assert open_small(KEYS.xattrs_key, sealed, aad) == value
    assert open_small(KEYS.xattrs_key, sealed, xattr_aad(Kind.XATTR_OF_DIRECTORY, DIR_ID, name)) is None
    if other != name:
        assert open_small(KEYS.xattrs_key, sealed, xattr_aad(Kind.XATTR_OF_FILE, file_id, other)) is None
