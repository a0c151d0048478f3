"""The identity of a vault, its code, and the comparison of two marks."""

from __future__ import annotations

import dataclasses
import hashlib

import pytest

from cryptfs.core.slots.identity import (
    CODE_LETTERS,
    Mark,
    Mismatch,
    identity_of,
    is_identity,
    mismatch,
    read_code,
)

MASTERKEY = bytes(range(32))
SEEN = Mark("00ff", identity_of(MASTERKEY), 5)


def test_an_identity_is_a_keyed_hash_of_its_own_purpose() -> None:
    digest = hashlib.blake2b(b"", digest_size=32, key=MASTERKEY, person=b"cryptfs:identity")
    assert SEEN.identity == digest.hexdigest()
    assert is_identity(SEEN.identity)


@pytest.mark.parametrize("value", [None, 5, "", "00" * 31, "00" * 33, "0G" * 32, "AB" * 32, ["00" * 32]])
def test_no_identity(value: object) -> None:
    assert not is_identity(value)


def test_the_code_is_the_beginning_of_the_identity_in_base32() -> None:
    groups = SEEN.code.split("-")
    assert [len(group) for group in groups] == [4] * 6
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
    number = 0
    for letter in "".join(groups):
        number = number * 32 + alphabet.index(letter)
    assert number.to_bytes(15, "big") == bytes.fromhex(SEEN.identity)[:15]
    assert CODE_LETTERS * 5 >= 100


def test_spellings_of_a_code() -> None:
    code = SEEN.code
    spellings = (code, code.lower(), code.replace("-", ""), code.replace("-", " "), f"  {code}\n")
    assert {read_code(each) for each in spellings} == {code.replace("-", "")}
    assert all(SEEN.has_code(each) for each in spellings)


def test_every_letter_of_a_code_matters() -> None:
    letters = read_code(SEEN.code)
    for place, letter in enumerate(letters):
        other = letters[:place] + ("A" if letter != "A" else "B") + letters[place + 1 :]
        assert not SEEN.has_code(other)


@pytest.mark.parametrize(
    "text", ["", "ABCD", SEEN.code[:-1], SEEN.code + "A", "0" * 24, "ä" * 24, "\u017f" * 24]
)
def test_no_code(text: str) -> None:
    with pytest.raises(ValueError, match="an identity has 24"):
        read_code(text)


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({}, None),
        ({"generation": 6}, None),
        ({"generation": 4}, Mismatch.OLDER_CONFIG),
        ({"identity": "11" * 32}, Mismatch.ANOTHER_MASTERKEY),
        ({"identity": "11" * 32, "generation": 9}, Mismatch.ANOTHER_MASTERKEY),
        ({"vault_id": "01ff"}, Mismatch.ANOTHER_VAULT),
        ({"vault_id": "01ff", "identity": "11" * 32, "generation": 1}, Mismatch.ANOTHER_VAULT),
    ],
)
def test_differences(changes: dict[str, object], found: Mismatch | None) -> None:
    assert mismatch(SEEN, dataclasses.replace(SEEN, **changes)) is found  # type: ignore[arg-type]
