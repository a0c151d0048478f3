"""Keys and stanzas of age that other programs made; age_keys.json says which. Read when it is imported."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

AGE_KEYS: dict[str, Any] = json.loads(Path(__file__).with_suffix(".json").read_text("utf-8"))
SPECIFICATION: dict[str, str] = AGE_KEYS["specification"]
TESTKIT: list[dict[str, str]] = AGE_KEYS["testkit"]
NPM: list[dict[str, str]] = AGE_KEYS["npm"]
SLOT: dict[str, Any] = AGE_KEYS["slot"]


def identity_file(identity: str) -> bytes:
    """As `age-keygen -pq` writes it."""
    return f"# created: 2026-11-30T10:00:00Z\n# public key: age1pq1...\n{identity}\n".encode()


def of_base64(text: str) -> bytes:
    """The bytes in unpadded base64."""
    return base64.b64decode(text + "=" * (-len(text) % 4))


def bech32(prefix: str, data: bytes, *, last: int = 0, more: int = 0) -> str:
    """Bech32 by the formulas of BIP 173: an encoder that shares nothing with cryptfs.

    Args: last: put into the unused bits of the last value.   more: values of 0 behind it.
    """
    bits = "".join(f"{byte:08b}" for byte in data)
    bits += "0" * (-len(bits) % 5)
    values = [int(bits[at : at + 5], 2) for at in range(0, len(bits), 5)]
    if last:
        values[-1] |= last
    values += [0] * more
    spread = [ord(letter) >> 5 for letter in prefix] + [0] + [ord(letter) & 31 for letter in prefix]
    state = _polymod([*spread, *values, *[0] * 6]) ^ 1
    checksum = [state >> 5 * (5 - place) & 31 for place in range(6)]
    return prefix + "1" + "".join("qpzry9x8gf2tvdw0s3jn54khce6mua7l"[value] for value in values + checksum)


def _polymod(values: list[int]) -> int:
    """The remainder of a polynomial over GF(32), by long division of its coefficients' bits."""
    state = 1
    for value in values:
        top = state >> 25
        state = ((state & 0x1FFFFFF) << 5) ^ value
        for bit, generator in enumerate((0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)):
            state ^= generator if top >> bit & 1 else 0
    return state
