"""Foreign names in messages and JSON: one text for each name, fit for a terminal, and reversible."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cryptfs.core.printable import escaped, fit_for_terminal, shown

ESCAPE = re.compile(r"\\(?:([\\nrt])|x([0-9a-f]{2})|u([0-9a-f]{4})|U([0-9a-f]{8}))")


def reverse(text: str) -> bytes:
    """As the manual describes it."""
    whole = ESCAPE.sub("", text)
    if "\\" in whole:
        return text.encode()

    def letter(match: re.Match[str]) -> str:
        simple, byte, four, eight = match.groups()
        if simple:
            return {"\\": "\\", "n": "\n", "r": "\r", "t": "\t"}[simple]
        code = int(byte or four or eight, 16)
        return chr(0xDC00 + code) if byte and code >= 0x80 else chr(code)

    return ESCAPE.sub(letter, text).encode("utf-8", "surrogateescape")


@given(st.binary() | st.text(alphabet="\\xnufe07ä\x85\u202e\n").map(str.encode))
@example(b"a\\p\\n")
@example(b"\\x85 \x85 \xc2\x85")
@example(b"\\\\")
def test_every_name_comes_back(name: bytes) -> None:
    for text in (shown(name), shown(name.decode("utf-8", "surrogateescape"))):
        assert text.isprintable()
        assert reverse(json.loads(json.dumps(text))) == name
    assert escaped(name).isprintable()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("mount\\point", "mount\\point"),
        ("naïve Ü", "naïve Ü"),
        (b"v\xff\xc3\x9c\n", "v\\xffÜ\\n"),
        ("\x85", "\\u0085"),
        ("a\\n", "a\\\\n"),
        ("\ud800", "\\ud800"),
        ("\u202egpj.exe", "\\u202egpj.exe"),
    ],
)
def test_examples(name: str | bytes, text: str) -> None:
    assert shown(name) == text


def test_a_message_keeps_its_lines_and_nothing_else_acts() -> None:
    assert fit_for_terminal("für\nx: \x1b[2J\udcff\u202e\\") == "für\nx: \\x1b[2J\\xff\\u202e\\"
