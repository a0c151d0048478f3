"""Names that others chose, in messages: fit for a terminal, and fit to be pasted into a shell.

A mountpoint or the name of a process may hold any byte, also those that move a cursor or forge a line.
"""

from __future__ import annotations

import os
import shlex


def shown(text: str | os.PathLike[str]) -> str:
    """Fit for a terminal: as it is where all of it can be printed, else with escapes."""
    plain = os.fspath(text)
    return plain if plain.isprintable() else plain.encode("unicode_escape").decode("ascii")


def shell_word(text: str | os.PathLike[str]) -> str:
    """One word of a command that a person may paste into a shell; never one that looks like an option.

    What cannot be printed is written as bytes within $'...', which bash, zsh and ksh know.
    """
    plain = os.fspath(text)
    if plain.startswith("-"):
        plain = f"./{plain}"
    if plain.isprintable():
        return shlex.quote(plain)
    pieces = [
        f"\\{chr(byte)}" if byte in b"\\'" else chr(byte) if 32 <= byte < 127 else f"\\x{byte:02x}"
        for byte in os.fsencode(plain)
    ]
    return f"$'{''.join(pieces)}'"
