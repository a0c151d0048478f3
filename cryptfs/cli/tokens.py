"""FIDO2 tokens at a terminal: where the PIN is typed, and where it says that a token waits for a touch.

Both go to /dev/tty, since stdin may bring a passphrase, and stderr may go to a log.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cryptfs.cli.exit_codes import PassphraseUnreadableError
from cryptfs.cli.output import say
from cryptfs.cli.terminal import open_terminal
from cryptfs.errors import TokenError

if TYPE_CHECKING:
    from fido2.ctap import CtapDevice

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
        tries = "1 try" if tries_left == 1 else f"{tries_left} tries"
        with contextlib.ExitStack() as stack:
            try:
                terminal = stack.enter_context(open_terminal())
            except PassphraseUnreadableError:
                raise TokenError(f"{token} needs its PIN, and there is no terminal to type it on") from None
            try:
                if tries_left <= FEW_TRIES:
                    terminal.say(
                        f"After {tries} with a wrong PIN, {token} blocks itself, and only a reset helps.\n"
                    )
                return terminal.ask(f"PIN of {token} ({tries} left)", "PIN")
            except PassphraseUnreadableError as error:
                raise TokenError(str(error)) from None

    def say_touch(self, token: str, reason: str) -> None:
        """See TokenAsker."""
        text = f"Touch {token} now, {reason}."
        try:
            with open_terminal() as terminal:
                terminal.say(f"{text}\n")
        except (PassphraseUnreadableError, OSError):
            say(text)
