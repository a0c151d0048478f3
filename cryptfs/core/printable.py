"""Foreign names in messages: fit for a terminal, and fit for pasting into a shell.

A mountpoint or the name of a process may hold any byte, also those that move a cursor or forge a line.
"""

from __future__ import annotations

import re
import shlex
from typing import Protocol

_COMMAND = re.compile(r"(\bcryptfs (?:[a-z-]+ )+)VAULT\b")
_ESCAPE = re.compile(r"\\(?:[\\nrt]|x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8})")


class Path(Protocol):
    """A path object, such as one of pathlib."""

    def __fspath__(self) -> str: ...


def shown(text: str | bytes | Path) -> str:
    """Fit for a terminal and for JSON: as it is if all of it is printable, else escaped.

    A text that looks escaped is also escaped: so programs can reverse it.
    """
    plain = _decoded(text) if isinstance(text, bytes) else _plain(text)
    if plain.isprintable() and ("\\" not in plain or not _ESCAPE.search(plain)):
        return plain
    return _escaped(plain)


def escaped(name: bytes) -> str:
    r"""A name or path, escaped for any output and reversible: \\, \xNN for a byte that is not UTF-8, \uNNNN.

    So a hostile name cannot forge lines, colours or the direction of text.
    """
    return _escaped(_decoded(name))


def fit_for_terminal(message: str) -> str:
    """A whole message, made fit for a terminal: only its line breaks act."""
    if message.replace("\n", "").isprintable():
        return message
    return "".join(each if each == "\n" else _letter(each) for each in message)


def for_vault(message: str, vault_dir: str | Path) -> str:
    """A message with the vault's path in its commands. What knows no path writes VAULT in its place."""
    return _COMMAND.sub(lambda found: found[1] + shell_word(vault_dir), message)


def _escaped(text: str) -> str:
    return "".join(map(_letter, text.replace("\\", "\\\\")))


def _letter(letter: str) -> str:
    if letter.isprintable():
        return letter
    code = ord(letter)
    if 0xDC80 <= code <= 0xDCFF:  # as Python keeps a byte that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    if 0x80 <= code < 0x100:  # \xNN would be a byte
        return f"\\u{code:04x}"
    return letter.encode("unicode_escape").decode("ascii")


def _decoded(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def shell_word(text: str | Path) -> str:
    """One word of a command that a person may paste into a shell; never one that looks like an option.

    It writes unprintable characters as bytes within $'...', which bash, zsh and ksh know.
    """
    plain = _plain(text)
    if plain.startswith("-"):
        plain = f"./{plain}"
    if plain.isprintable():
        return shlex.quote(plain)
    pieces = [
        f"\\{chr(byte)}" if byte in b"\\'" else chr(byte) if 32 <= byte < 127 else f"\\x{byte:02x}"
        for byte in plain.encode("utf-8", "surrogateescape")
    ]
    return f"$'{''.join(pieces)}'"


def _plain(text: str | Path) -> str:
    return text if isinstance(text, str) else text.__fspath__()
