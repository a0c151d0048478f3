"""Bech32 without a limit of length: what BIP 173 has, and every mistake in a key."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryptfs.core.slots.bech32 import decode_bech32
from tests.age_keys import NPM, bech32

IDENTITY = NPM[0]["identity"].encode()
RECIPIENT = NPM[0]["recipient"].encode()
PREFIX = b"age-secret-key-pq-"


def decode(text: bytes, prefix: bytes) -> bytes:
    return bytes(decode_bech32(bytearray(text), prefix))


@pytest.mark.parametrize(
    ("text", "prefix", "data"),
    [
        (b"A12UEL5L", b"a", b""),
        (b"a12uel5l", b"a", b""),
        (b"?1ezyfcl", b"?", b""),
        (
            b"abcdef1qpzry9x8gf2tvdw0s3jn54khce6mua7lmqqqxw",
            b"abcdef",
            bytes.fromhex("00443214c74254b635cf84653a56d7c675be77df"),
        ),
    ],
)
def test_texts_of_bip_173(text: bytes, prefix: bytes, data: bytes) -> None:
    assert decode(text, prefix) == data


@pytest.mark.parametrize(
    ("text", "prefix", "why"),
    [
        (b"A1G7SGD8", b"a", "checksum"),  # computed over capitals
        (b"x1b4n0q5v", b"x", "never has"),
        (b"li1dgmt3", b"li", "checksum"),  # too short for one
        (b"de1lg7wt\xff", b"de", "never has"),
        (b"a12uel5l", b"b", "begin"),
        (b"a", b"a", "begin"),
        (b"", b"a", "begin"),
        (b"a1", b"a", "checksum"),
        (b"A12uel5l", b"a", "small and capital"),
        (b"a12uel5l ", b"a", "never has"),
        (b"a1lqfn3a", b"a", "checksum"),  # of Bech32m
    ],
)
def test_what_is_refused(text: bytes, prefix: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        decode(text, prefix)


@given(st.binary(max_size=1300))
def test_it_undoes_another_encoder(data: bytes) -> None:
    text = bech32("age1pq", data)
    assert decode(text.encode(), b"age1pq") == decode(text.upper().encode(), b"age1pq") == data


def test_every_letter_of_an_identity_matters() -> None:
    assert len(decode(IDENTITY, PREFIX)) == 32
    for place in range(len(PREFIX) + 1, len(IDENTITY)):
        for letter in b"QPZRY9X8GF2TVDW0S3JN54KHCE6MUA7L".replace(IDENTITY[place : place + 1], b""):
            changed = IDENTITY[:place] + bytes((letter,)) + IDENTITY[place + 1 :]
            with pytest.raises(ValueError, match="checksum"):
                decode(changed, PREFIX)


def test_every_letter_of_a_recipient_matters() -> None:
    assert len(decode(RECIPIENT, b"age1pq")) == 1216
    for place in range(7, len(RECIPIENT)):
        other = b"q" if RECIPIENT[place : place + 1] != b"q" else b"p"
        with pytest.raises(ValueError, match="checksum"):
            decode(RECIPIENT[:place] + other + RECIPIENT[place + 1 :], b"age1pq")


def test_exchanged_and_missing_letters() -> None:
    for place in range(len(PREFIX) + 1, len(IDENTITY) - 1):
        first, second = IDENTITY[place : place + 1], IDENTITY[place + 1 : place + 2]
        for changed in (b"", second + first) if first != second else (b"",):
            with pytest.raises(ValueError, match="checksum"):
                decode(
                    IDENTITY[:place] + changed + IDENTITY[place + 2 * bool(changed) + (not changed) :], PREFIX
                )


@pytest.mark.parametrize("size", [31, 32, 33])
def test_bits_that_are_left(size: int) -> None:
    """The checksum is right; the last value has a bit of 1 behind the last byte, or is one too many."""
    assert decode(bech32("a", bytes(size)).encode(), b"a") == bytes(size)
    spare = -size * 8 % 5
    if spare:
        with pytest.raises(ValueError, match="end"):
            decode(bech32("a", bytes(size), last=1).encode(), b"a")
    with pytest.raises(ValueError, match="end"):
        decode(bech32("a", bytes(size), more=1 + (spare > 3)).encode(), b"a")
