"""FIDO2 tokens at a terminal: where the PIN is typed, and where it says that a token waits for a touch.

Both go to /dev/tty, since stdin may bring a passphrase, and stderr may go to a log.
"""

from __future__ import annotations

import contextlib
import getpass
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cryptfs.cli.output import note
from cryptfs.core.printable import fit_for_terminal
from cryptfs.errors import TokenError

if TYPE_CHECKING:
    from fido2.ctap import CtapDevice

TERMINAL = Path("/dev/tty")
FEW_TRIES = 3


class TerminalTokens:
    """The TokenAsker of the command line."""

    def devices(self) -> Sequence[CtapDevice]:
        """See TokenAsker. The process first gives up core dumps and debuggers of the same user."""
        from cryptfs.mount.daemon import harden_process
        from cryptfs.unlock.carriers import ctap

        harden_process()
        return ctap.list_devices()

    def ask_pin(self, token: str, tries_left: int) -> bytes:
        """See TokenAsker."""
        if not _has_terminal():
            raise TokenError(f"{token} needs its PIN, and there is no terminal to type it on")
        tries = "1 try" if tries_left == 1 else f"{tries_left} tries"
        if tries_left <= FEW_TRIES:
            _say(f"After {tries} with a wrong PIN, {token} blocks itself, and only a reset helps.")
        try:
            typed = getpass.getpass(fit_for_terminal(f"PIN of {token} ({tries} left): "))
        except EOFError:
            raise TokenError("no PIN was typed") from None
        except UnicodeDecodeError:
            raise TokenError("the terminal sent bytes that are not valid text in its encoding") from None
        return os.fsencode(typed)

    def say_touch(self, token: str, reason: str) -> None:
        """See TokenAsker."""
        _say(f"Touch {token} now, {reason}.")


def _has_terminal() -> bool:
    try:
        os.close(os.open(TERMINAL, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def _say(text: str) -> None:
    """A line on the terminal; on stderr if there is none."""
    with contextlib.suppress(OSError), TERMINAL.open("w", encoding="utf-8", errors="backslashreplace") as out:
        print(fit_for_terminal(text), file=out)
        return
    note(text)
