"""The other spellings of a passphrase: which are tried, and which are not."""

from __future__ import annotations

import unicodedata

import pytest

from cryptfs.core.slots.spellings import composed, first_line, other_spellings

NFC = "grüße é".encode()
NFD = unicodedata.normalize("NFD", "grüße é").encode()
MARK = b"\xef\xbb\xbf"


@pytest.mark.parametrize(
    ("read", "others"),
    [
        (b"correct horse", []),
        (b" spaces stay ", []),
        (b"ends with a return\r", []),
        (b"", []),
        (b"\nnothing before", []),
        (b"first\nuser: me", [(b"first", "its first line alone")]),
        (b"first\r\nuser: me", [(b"first", "its first line alone")]),
        (MARK + b"word", [(b"word", "without its byte order mark")]),
        (MARK, []),
        (MARK + b"a\nb", [(b"a", "its first line alone, without its byte order mark")]),
        (NFC, [(NFD, "with decomposed letters (Unicode NFD)")]),
        (NFD, [(NFC, "with composed letters (Unicode NFC)")]),
        (
            MARK + NFD + b"\nnote",
            [
                (
                    NFC,
                    "its first line alone, without its byte order mark, with composed letters (Unicode NFC)",
                ),
                (NFD, "its first line alone, without its byte order mark"),
            ],
        ),
        ("漢字".encode(), []),  # both forms are what was read
        (b"\xff\x00", []),
        (b"\xff\x00\nmore", [(b"\xff\x00", "its first line alone")]),
    ],
)
def test_what_is_tried_after_what_was_read(read: bytes, others: list[tuple[bytes, str]]) -> None:
    found = list(other_spellings(read))
    assert found == others
    assert len(found) <= 2
    assert read not in [spelling for spelling, _ in found]


def test_a_letter_that_is_in_both_forms_at_once() -> None:
    mixed = NFC + NFD
    assert [spelling for spelling, _ in other_spellings(mixed)] == [NFC + NFC, NFD + NFD]


@pytest.mark.parametrize(
    ("typed", "stored"), [(NFD, NFC), (NFC, NFC), (b"ascii", b"ascii"), (b"\xff", b"\xff")]
)
def test_a_new_one(typed: bytes, stored: bytes) -> None:
    assert composed(typed) == stored
    assert first_line(typed) == typed
