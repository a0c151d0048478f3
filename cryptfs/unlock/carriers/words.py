"""Recovery words: the 24 words of BIP-39 whose entropy is a recovery secret, without BIP-39's seed.

A person types them from paper, so much is accepted: capitals, numbers between the words, several lines, and
the first four letters of a word. The texts are wiped that are made here; Python may have copies of single
words.
Source: docs/FORMAT.md, section 9.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cryptfs.core.keys import KEY_SIZE
from cryptfs.errors import MistypedWordsError
from cryptfs.storage.libc import wipe_text

if TYPE_CHECKING:
    from mnemonic import Mnemonic

WORD_COUNT = 24
MAX_TEXT_SIZE = 4096
_LETTERS = 4  # a word of either list is known by so many
_NUMBER = re.compile(r"[0-9]{1,2}[.):]?")
_BESIDE = ".,;:)\"'"


def _english() -> Mnemonic:
    from mnemonic import Mnemonic  # here, since it reads the list of words

    return Mnemonic("english")


def words_of(secret: bytes) -> str:
    """The words of a recovery secret of 32 bytes, with a space between them."""
    if len(secret) != KEY_SIZE:
        raise ValueError(f"a recovery secret has {KEY_SIZE} bytes")
    return _english().to_mnemonic(secret)


def secret_of_words(text: bytes) -> bytes:
    """The 32 bytes of the recovery secret.

    Raises: MistypedWordsError: they are not 24, one is unknown, or the checksum is wrong.
    """
    book = _english()
    words = known_words(text, book.wordlist, "recovery words")
    if len(words) != WORD_COUNT:
        raise MistypedWordsError(f"there are {WORD_COUNT} recovery words, and these are {len(words)}")
    try:
        entropy = book.to_entropy(words)
    except ValueError:
        raise MistypedWordsError(
            "one of the recovery words is wrong, or two are exchanged: all are in the list, but the checksum "
            "does not fit; compare them with what was written down"
        ) from None
    secret = bytes(entropy)
    entropy[:] = bytes(len(entropy))
    return secret


def parse_words(text: bytes) -> list[str]:
    """The recovery words in a text, however many. Raises: MistypedWordsError: one is unknown."""
    return known_words(text, _english().wordlist, "recovery words")


def known_words(text: bytes, wordlist: Sequence[str], what: str) -> list[str]:
    """The words of a text, each as the list has it.

    Args:   what: for messages: "recovery words".
    Raises: MistypedWordsError: one is not in the list; the message says which by its number.
    """
    found: list[str] = []
    for typed in _typed(text, what):
        beginning = [word for word in wordlist if word.startswith(typed)] if len(typed) >= _LETTERS else []
        if typed in wordlist:
            found.append(typed)
        elif len(beginning) == 1:
            found += beginning
        else:
            import difflib

            number = len(found) + 1
            close = difflib.get_close_matches(typed, wordlist, n=1)
            suggestion = f"; perhaps it is '{close[0]}'" if close else ""
            raise MistypedWordsError(
                f"{what}: word {number} is not in the list of words",
                hint=f"Word {number} was read as '{typed[:20]}'{suggestion}.",
            )
    return found


def _typed(text: bytes, what: str) -> list[str]:
    """What a person typed, word by word, in small letters; without numbers and invisible letters."""
    if len(text) > MAX_TEXT_SIZE:
        raise MistypedWordsError(f"{what}: the text has more than {MAX_TEXT_SIZE} bytes")
    try:
        read = text.decode()
    except UnicodeDecodeError:
        raise MistypedWordsError(f"{what}: this is not text in UTF-8") from None
    plain = unicodedata.normalize("NFKD", read).casefold()
    seen = "".join(each for each in plain if unicodedata.category(each) not in ("Cf", "Mn"))
    parts = [part.strip(_BESIDE) for part in seen.split() if not _NUMBER.fullmatch(part)]
    found = [part for part in parts if part]
    if len(parts) > 1:  # one word alone may be the very text
        for each in (read, plain, seen):
            wipe_text(each)
    return found
