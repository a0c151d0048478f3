"""The identity of a vault: what it was when somebody opened it, for a comparison with what it is now.

The identity follows from the masterkey and tells nothing about it. Its code is what people compare.
Source: docs/FORMAT.md, section 2.
"""

from __future__ import annotations

import base64
import hmac
from dataclasses import dataclass
from enum import Enum

from cryptfs.core.keys import KEY_SIZE, derive

CODE_LETTERS = 24  # 120 bits: nobody finds another masterkey with the same code
_GROUP = 4
_ALPHABET = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567")


@dataclass(frozen=True, slots=True)
class Mark:
    """What tells a vault from another, and a config from an older one.

    vault_id: in hex.   identity: 32 bytes in hex.   generation: of the config.
    """

    vault_id: str
    identity: str
    generation: int

    @property
    def code(self) -> str:
        """The identity for people: six groups of four letters and digits."""
        letters = base64.b32encode(bytes.fromhex(self.identity)).decode("ascii")[:CODE_LETTERS]
        return "-".join(letters[start : start + _GROUP] for start in range(0, CODE_LETTERS, _GROUP))

    def has_code(self, code: str) -> bool:
        """Whether this is the code, in any spelling that `read_code` takes; in constant time.

        Raises: ValueError: it is not a code.
        """
        return hmac.compare_digest(read_code(self.code), read_code(code))


class Mismatch(Enum):
    """In what the vault at a place differs from the one that was there."""

    ANOTHER_VAULT = "another vault"
    ANOTHER_MASTERKEY = "another masterkey"
    OLDER_CONFIG = "an older config"


def identity_of(masterkey: bytes) -> str:
    """The identity in hex; nobody can compute the masterkey from it, or open anything with it."""
    return derive(masterkey, b"identity").hex()


def is_identity(text: object) -> bool:
    """Whether this is an identity in hex."""
    return isinstance(text, str) and len(text) == 2 * KEY_SIZE and set(text) <= set("0123456789abcdef")


def read_code(text: str) -> str:
    """The letters of a code that a person typed: case, blanks and dashes do not count.

    Raises: ValueError: it is not a whole code.
    """
    letters = "".join(text.replace("-", " ").split()).upper()
    if not text.isascii() or len(letters) != CODE_LETTERS or not set(letters) <= _ALPHABET:
        raise ValueError(f"an identity has {CODE_LETTERS} letters and digits from 2 to 7")
    return letters


def mismatch(seen: Mark, now: Mark) -> Mismatch | None:
    """In what a vault differs from the one that was seen before; None if it is the same, or newer."""
    if seen.vault_id != now.vault_id:
        return Mismatch.ANOTHER_VAULT
    if seen.identity != now.identity:
        return Mismatch.ANOTHER_MASTERKEY
    return Mismatch.OLDER_CONFIG if now.generation < seen.generation else None
