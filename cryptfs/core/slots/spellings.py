"""The spellings of a passphrase: one text that two programs or two systems write in different bytes.

An editor puts a byte order mark before a file, a password manager prints notes below the first line, and one
system composes an accent with its letter (NFC) where another writes it behind the letter (NFD). A key slot
knows bytes only. Source: docs/FORMAT.md, section 2.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from typing import Literal

_MARK = b"\xef\xbb\xbf"
_FORMS: tuple[tuple[Literal["NFC", "NFD"], str], ...] = (("NFC", "composed"), ("NFD", "decomposed"))


def other_spellings(passphrase: bytes) -> list[tuple[bytes, str]]:
    """What to try when a passphrase, as it was read, opens no slot: at most two, each with a few words.

    They are its first line without a byte order mark, in NFC and in NFD; only those that differ from what was
    read, and from each other. So a line of ASCII has none.
    """
    plain = first_line(passphrase)
    words = _words_about(passphrase)
    found: list[tuple[bytes, str]] = []
    for spelling, form in _normalized(plain):
        if spelling and spelling not in (passphrase, *(each for each, _ in found)):
            found.append((spelling, ", ".join([*words, *([form] if spelling != plain else [])])))
    return found


def first_line(passphrase: bytes) -> bytes:
    """Its first line, without the line break and without a byte order mark."""
    line = passphrase.partition(b"\n")[0]
    return (line.removesuffix(b"\r") if line != passphrase else line).removeprefix(_MARK)


def _words_about(passphrase: bytes) -> list[str]:
    words = ["its first line alone"] if b"\n" in passphrase else []
    return words + (["without its byte order mark"] if passphrase.startswith(_MARK) else [])


def _normalized(line: bytes) -> Iterator[tuple[bytes, str]]:
    """The line in both forms; as it is where it is ASCII or not UTF-8."""
    if line.isascii():
        yield line, ""
        return
    try:
        text = line.decode()
    except UnicodeDecodeError:
        yield line, ""
        return
    for form, words in _FORMS:
        yield unicodedata.normalize(form, text).encode(), f"with {words} letters (Unicode {form})"


def composed(passphrase: bytes) -> bytes:
    """A new passphrase that a person typed, in NFC; as it is if it is not UTF-8."""
    return next(_normalized(passphrase))[0]
