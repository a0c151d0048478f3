"""FIDO2 tokens at a terminal or on a desktop: where the PIN is typed, and what says that a touch is due.

At a terminal both go to /dev/tty, since stdin may bring a passphrase, and stderr may go to a log.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from threading import Event
from typing import TYPE_CHECKING

from cryptfs.cli.exit_codes import NothingTypedError, PassphraseUnreadableError
from cryptfs.cli.output import say
from cryptfs.cli.prompt import PassphraseSource, ask_person
from cryptfs.cli.terminal import open_terminal
from cryptfs.errors import TokenError

if TYPE_CHECKING:
    from fido2.ctap import CtapDevice

    from cryptfs.cli.dialogs import Dialogs

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
        with contextlib.ExitStack() as stack:
            try:
                terminal = stack.enter_context(open_terminal())
            except PassphraseUnreadableError:
                raise TokenError(f"{token} needs its PIN, and there is no terminal to type it on") from None
            try:
                if warning := _warning(token, tries_left):
                    terminal.say(warning)
                return terminal.ask(f"PIN of {token} ({_tries(tries_left)} left)", "PIN")
            except PassphraseUnreadableError as error:
                raise TokenError(str(error)) from None

    @contextlib.contextmanager
    def waiting(self, token: str, reason: str, cancel: Event) -> Iterator[None]:
        """See TokenAsker. A person gives up with Ctrl-C."""
        text = f"Touch {token} now, {reason}."
        try:
            with open_terminal() as terminal:
                terminal.say(f"{text}\n")
        except (PassphraseUnreadableError, OSError):
            say(text)
        yield


class WindowTokens(TerminalTokens):
    """The same in windows."""

    def __init__(self, dialogs: Dialogs) -> None:
        self._dialogs = dialogs

    def ask_pin(self, token: str, tries_left: int) -> bytes:
        """See TokenAsker. Raises: NothingTypedError: the person closed the window."""
        about = f"{_warning(token, tries_left)}The PIN of {token}, {_tries(tries_left)} left."
        try:
            return ask_person(PassphraseSource(window=self._dialogs.secret(about)), "PIN")
        except NothingTypedError:
            raise
        except PassphraseUnreadableError as error:
            raise TokenError(str(error)) from None

    @contextlib.contextmanager
    def waiting(self, token: str, reason: str, cancel: Event) -> Iterator[None]:
        """See TokenAsker. Raises: NothingTypedError: the person gave up, and the token ended for that."""
        try:
            with self._dialogs.notice(f"Touch {token} now, {reason}.", cancel.set):
                yield
        except Exception:
            if cancel.is_set():
                raise NothingTypedError(
                    "the window was closed before the token was touched; nothing was done"
                ) from None
            raise


def _tries(left: int) -> str:
    return "1 try" if left == 1 else f"{left} tries"


def _warning(token: str, tries_left: int) -> str:
    """What a person should know before the last tries."""
    if tries_left > FEW_TRIES:
        return ""
    return f"After {_tries(tries_left)} with a wrong PIN, {token} blocks itself, and only a reset helps.\n"
