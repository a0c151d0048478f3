"""Bech32: text with a checksum, in which age writes its keys. Only the way back to bytes.

A limit of 90 characters, as addresses have it, does not hold here: a hybrid public key has 1959.
Source: BIP 173; C2SP age, "Conventions".
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable

_LETTERS = b"qpzry9x8gf2tvdw0s3jn54khce6mua7l"
_NONE = 0xFF
_VALUES = bytes(_LETTERS.find(bytes((letter,)).lower()) & _NONE for letter in range(256))
_CHECKSUM_LETTERS = 6
_GENERATOR = (0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)


def _folded(top: int) -> int:
    """What the five bits that leave the checksum's register add to the rest of it."""
    found = 0
    for bit, generator in enumerate(_GENERATOR):
        if top >> bit & 1:
            found ^= generator
    return found


_FOLDED = tuple(_folded(top) for top in range(32))


def _register(values: Iterable[int]) -> int:
    """The state of the checksum behind values of five bits; 1 behind a whole text."""
    state = 1
    for value in values:
        state = (state & 0x1FFFFFF) << 5 ^ value ^ _FOLDED[state >> 25]
    return state


def decode_bech32(text: bytearray, prefix: bytes) -> bytearray:
    """The bytes in a text, whose letters are all small or all capital.

    Text and result may be secrets, which the caller overwrites.

    Args:   prefix: the part before the last "1", in small letters.
    Raises: ValueError: another prefix, an impossible letter, a wrong checksum, or bits that are left.
    """
    start = len(prefix) + 1
    if bytes(text[:start]).lower() != prefix + b"1":
        raise ValueError("it does not begin as it should")
    if not (text.islower() or text.isupper()):
        raise ValueError("it has small and capital letters")
    values = text.translate(_VALUES)
    del values[:start]
    try:
        if _NONE in values:
            raise ValueError("it has a character that such a key never has")
        spread = [letter >> 5 for letter in prefix] + [0] + [letter & 31 for letter in prefix]
        if len(values) < _CHECKSUM_LETTERS or _register(itertools.chain(spread, values)) != 1:
            raise ValueError("its checksum does not fit: a letter is wrong or missing")
        return _regrouped(values, len(values) - _CHECKSUM_LETTERS)
    finally:
        overwrite(values)


def _regrouped(values: bytearray, count: int) -> bytearray:
    """The first values, of five bits each, as bytes. Raises: ValueError: bits are left that are not 0."""
    data = bytearray(count * 5 // 8)
    size = waiting = bits = 0
    for place in range(count):
        waiting = (waiting << 5 | values[place]) & 0xFFF
        bits += 5
        if bits >= 8:
            bits -= 8
            data[size] = waiting >> bits & 0xFF
            size += 1
    if bits >= 5 or waiting & (1 << bits) - 1:
        overwrite(data)
        raise ValueError("its length or its end is wrong")
    return data


def overwrite(secret: bytearray) -> None:
    """Put zeros in the place of a secret."""
    secret[:] = bytes(len(secret))
