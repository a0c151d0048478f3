"""Keys of age that cryptfs takes: hybrid public keys (recipients), and their secret keys (identities).

Both are age's own texts, as `age-keygen -pq` makes them. A recipient may be known to everybody. Messages
never repeat a text: it may be a secret in the wrong place. Source: docs/FORMAT.md, section 9; C2SP age.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from cryptfs.core.slots.bech32 import decode_bech32, overwrite

RECIPIENT_SIZE = 1216  # ML-KEM-768 has 1184 bytes, X25519 has 32
IDENTITY_SIZE = 32
MAX_FILE_SIZE = 64 * 1024
MAX_IDENTITIES = 64
_RECIPIENT = b"age1pq"
_RECIPIENT_LETTERS = 1959
_IDENTITY = b"AGE-SECRET-KEY-PQ-"
_OTHER_IDENTITIES = (b"AGE-SECRET-KEY-1", b"AGE-PLUGIN-")
_ENCRYPTED = re.compile(rb"\s*(?:age-encryption\.org/|-----BEGIN AGE ENCRYPTED FILE-----)")
_MARK = b"\xef\xbb\xbf"
_BLANKS = b" \t\r\f\v"
_HOW_TO_MAKE = "age-keygen -pq makes a key pair that cryptfs takes"


def recipient_of(text: str) -> str:
    """The recipient in what a person gave: an argument, or the content of a file with comments.

    Raises: ValueError: it is not one recipient `age1pq1...`, or has a mistake.
    """
    if len(text) > MAX_FILE_SIZE:
        raise ValueError("this is too long for a recipient")
    lines = [line.strip() for line in text.removeprefix("\ufeff").splitlines()]
    found = [line for line in lines if line and not line.startswith("#")]
    if len(found) != 1:
        raise ValueError(f"one recipient is needed, and there are {len(found)}")
    recipient = found[0]
    if recipient.upper().startswith("AGE-SECRET-KEY-"):
        raise ValueError("this is a secret identity; its recipient is printed by: age-keygen -y FILE")
    if not recipient.startswith("age1pq1"):
        raise ValueError(f"this is not a recipient age1pq1...; {_HOW_TO_MAKE}")
    recipient_bytes(recipient)
    return recipient


def recipient_bytes(recipient: str) -> bytes:
    """The 1216 bytes of a hybrid public key. Raises: ValueError: it is not a recipient, letter for letter."""
    if len(recipient) != _RECIPIENT_LETTERS or not recipient.isascii() or recipient != recipient.lower():
        raise ValueError("the recipient has a mistake: it does not have 1959 lower-case letters and digits")
    try:
        return bytes(decode_bech32(bytearray(recipient.encode()), _RECIPIENT))
    except ValueError as error:
        raise ValueError(f"the recipient has a mistake: {error}") from None


def short_recipient(recipient: str) -> str:
    """A recipient in a line of a table: its first and last letters."""
    return f"{recipient[:15]}...{recipient[-8:]}"


def identities_of(content: bytes) -> tuple[bytes, ...]:
    """The identities in the content of an identity file, 32 bytes each, to be wiped; so is the content.

    An identity file has one identity a line, and comments. Identities of other kinds are left out.

    Raises: ValueError: it has a mistake, is encrypted, or has no identity that cryptfs takes.
    """
    if len(content) > MAX_FILE_SIZE:
        raise ValueError(f"an identity file has at most {MAX_FILE_SIZE} bytes")
    if _ENCRYPTED.match(content):
        raise ValueError(
            "the identity file is encrypted itself; decrypt it with: age --decrypt FILE, and offer the result"
        )
    found: list[bytearray] = []
    others = 0
    try:
        for number, line in _lines(content):
            if line.startswith(_OTHER_IDENTITIES):
                others += 1
            else:
                found.append(_identity(line, number))
        if not found and others:
            raise ValueError(f"the file has only identities of other kinds; {_HOW_TO_MAKE}")
        if not found:
            raise ValueError("the file has no identity (AGE-SECRET-KEY-PQ-...)")
        if len(found) > MAX_IDENTITIES:
            raise ValueError(f"the file has {len(found)} identities, and at most {MAX_IDENTITIES} are tried")
        return tuple(map(bytes, found))
    finally:
        for identity in found:
            overwrite(identity)


def _lines(content: bytes) -> Iterator[tuple[int, bytearray]]:
    """The lines that are neither blank nor comments, with numbers from 1; overwritten after use."""
    start, number = len(_MARK) if content.startswith(_MARK) else 0, 0
    with memoryview(content) as view:
        while start < len(content):
            number += 1
            end = content.find(b"\n", start)
            end = len(content) if end < 0 else end
            first, last = start, end
            while first < last and content[first] in _BLANKS:
                first += 1
            while first < last and content[last - 1] in _BLANKS:
                last -= 1
            line = bytearray(view[first:last])
            try:
                if line and not line.startswith(b"#"):
                    yield number, line
            finally:
                overwrite(line)
            start = end + 1


def _identity(line: bytearray, number: int) -> bytearray:
    """Raises: ValueError: the line is not an identity."""
    if not line.startswith(_IDENTITY + b"1"):
        more = "is a recipient, which opens nothing" if line.startswith(b"age1") else "is not an age identity"
        raise ValueError(f"line {number} {more}; an identity begins with AGE-SECRET-KEY-PQ-")
    try:
        identity = decode_bech32(line, _IDENTITY.lower())
    except ValueError as error:
        raise ValueError(f"line {number} has a mistake: {error}") from None
    if len(identity) != IDENTITY_SIZE:
        overwrite(identity)
        raise ValueError(f"line {number} has a mistake: it is not {IDENTITY_SIZE} bytes")
    return identity
