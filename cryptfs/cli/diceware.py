"""Random words as a passphrase: proposed on the terminal, and nowhere else."""

from __future__ import annotations

import os
import secrets
from importlib import resources

from cryptfs.cli.exit_codes import PassphraseUnreadableError
from cryptfs.cli.prompt import forget, harden
from cryptfs.cli.terminal import Terminal, open_terminal

WORDS = 6
LIST_SIZE = 7776
"""Words in the long list of the EFF: five dice choose one. Six words are as good as 77 random bits."""


def proposed_passphrase() -> bytes:
    """Show a passphrase of random words until the person has typed one back; to be wiped.

    Raises: PassphraseUnreadableError: there is no terminal, or something else was typed.
    """
    harden()
    try:
        with open_terminal() as terminal:
            while True:
                passphrase = draw()
                if _is_taken(terminal, passphrase):
                    return passphrase
                forget(passphrase)
    except OSError as error:
        raise PassphraseUnreadableError(f"the terminal cannot be used: {error.strerror}") from None


def draw() -> bytes:
    """A new passphrase: words with a blank between them."""
    words = _word_list()
    return b" ".join(words[secrets.randbelow(LIST_SIZE)] for _ in range(WORDS))


def _is_taken(terminal: Terminal, passphrase: bytes) -> bool:
    """Show it, take it away from the screen, and have it typed; False asks for another one."""
    terminal.say("Your new passphrase is below. Write it down, then press Enter; the line disappears.\n")
    terminal.write(passphrase)
    try:
        forget(terminal.ask("   [Enter]"))
    finally:
        if os.environ.get("TERM", "dumb") != "dumb":
            terminal.write(b"\x1b[1A\x1b[2K")
    typed = terminal.ask("Type the new passphrase (Enter alone shows another one)")
    if not typed:
        return False
    is_same = b" ".join(typed.split()) == passphrase
    forget(typed)
    if not is_same:
        forget(passphrase)
        raise PassphraseUnreadableError("this is not the proposed passphrase; nothing was done")
    return True


def _word_list() -> list[bytes]:
    """Raises: PassphraseUnreadableError: the package that has the list is another version than expected."""
    place = resources.files("xkcdpass") / "static" / "eff-long"
    words = place.read_bytes().split()
    if len(set(words)) != LIST_SIZE:
        raise PassphraseUnreadableError("the word list of the package xkcdpass is not the one of the EFF")
    return words
