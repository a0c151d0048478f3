"""The masterkey, its subkeys, and keys from passphrases."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryptfs.core.keys import Subkeys, derive, file_content_key, passphrase_key
from cryptfs.core.slots.kdf import MIN_KDF_MEMORY, MIN_KDF_PASSES
from cryptfs.unlock.kind import NewKey
from cryptfs.unlock.offer import Offer

MASTERKEY = b"a masterkey of exactly 32 bytes!"


def test_all_subkeys_are_distinct() -> None:
    keys = dataclasses.asdict(Subkeys.from_masterkey(MASTERKEY))
    assert len(keys) == 12
    starts = {value[:16] for value in (*keys.values(), MASTERKEY)}
    assert len(starts) == 13
    assert {len(value) for name, value in keys.items() if name != "root_dir_id"} == {32}
    assert len(keys["root_dir_id"]) == 16


def test_another_masterkey_changes_every_subkey() -> None:
    one = dataclasses.asdict(Subkeys.from_masterkey(MASTERKEY))
    two = dataclasses.asdict(Subkeys.from_masterkey(MASTERKEY[::-1]))
    assert [name for name in one if one[name] == two[name]] == []


def test_no_secret_in_a_repr() -> None:
    keys = Subkeys.from_masterkey(MASTERKEY)
    for shown in (repr(keys), str(keys)):
        for value in dataclasses.asdict(keys).values():
            assert repr(value)[2:8] not in shown
            assert value.hex()[:8] not in shown
    for holder in (Offer(passphrase=b"hunter2", key_file=b"hunter2"), NewKey("passphrase", {}, b"hunter2")):
        assert "hunter2" not in repr(holder)


@pytest.mark.parametrize("size", [0, 16, 31, 33, 64])
def test_a_key_has_32_bytes(size: int) -> None:
    with pytest.raises(ValueError, match="32-byte key"):
        Subkeys.from_masterkey(bytes(size))


def test_a_purpose_has_at_most_8_bytes() -> None:
    assert len(derive(MASTERKEY, b"8 bytes!")) == 32
    with pytest.raises(ValueError, match="at most 8"):
        derive(MASTERKEY, b"9 bytes!!")


@given(st.sampled_from(["cipher_id", "log2_chunk_size", "epoch", "file_id"]))
def test_a_file_key_depends_on_all_it_is_made_of(changed: str) -> None:
    base = {"cipher_id": 1, "log2_chunk_size": 14, "epoch": 0, "file_id": bytes(32)}
    other = base | {changed: b"x" + bytes(31) if changed == "file_id" else 2}
    content_key = bytes(32)
    assert file_content_key(content_key, **base) != file_content_key(content_key, **other)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [0, 31, 33])
def test_a_file_id_has_32_bytes(size: int) -> None:
    with pytest.raises(ValueError, match="file_id has 32"):
        file_content_key(bytes(32), 1, 14, 0, bytes(size))


def test_passphrase_keys() -> None:
    salt = bytes(range(16))
    key = passphrase_key(b"passphrase", salt, MIN_KDF_MEMORY, MIN_KDF_PASSES)
    assert len(key) == 32
    assert key != passphrase_key(b"passphrase ", salt, MIN_KDF_MEMORY, MIN_KDF_PASSES)
    assert key != passphrase_key(b"passphrase", salt[::-1], MIN_KDF_MEMORY, MIN_KDF_PASSES)
    with pytest.raises(ValueError, match="salt has 16"):
        passphrase_key(b"passphrase", salt[:-1], MIN_KDF_MEMORY, MIN_KDF_PASSES)
