"""Checks that config, key slots and recovery record share, and canonical JSON.

Source: docs/FORMAT.md, section 9.
"""

from __future__ import annotations

import binascii
import re
from typing import Any

import msgspec

from cryptfs.errors import VaultConfigError

CONFIG_NAME = "cryptfs.json"
RECOVERY_NAME = "cryptfs.recovery"
NEXT_RECOVERY_NAME = "cryptfs.recovery.next"
MAX_LABEL_SIZE = 64
_MAX_SHOWN = 120
# Controls, line and paragraph separators, and the marks that turn the direction of writing. A fixed list,
# since str.isprintable depends on the Unicode version of the interpreter.
_UNSHOWABLE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def canonical(value: Any) -> bytes:
    """JSON with sorted keys and no white space: the input of MAC and AAD."""
    return msgspec.json.encode(value, order="sorted")


def showable(text: str) -> str:
    """Text of a config before its authentication, made fit for a terminal."""
    short = text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "..."
    return _UNSHOWABLE.sub("?", short)


def from_hex(text: str, size: int, what: str) -> bytes:
    """`size` bytes from lower-case hex.

    Raises: VaultConfigError: it is anything else.
    """
    try:
        data = binascii.unhexlify(text)
    except ValueError:
        data = b""
    if len(data) != size or data.hex() != text:
        raise VaultConfigError(f"{what} is not {size} bytes in lower-case hex")
    return data


def check_label(label: str, name: str) -> None:
    """Raises: VaultConfigError: it is too long, or would move a terminal's cursor."""
    if len(label.encode()) > MAX_LABEL_SIZE or _UNSHOWABLE.search(label):
        raise VaultConfigError(f"{name} has an impossible label")
