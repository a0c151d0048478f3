"""The terminal of the person who runs a command: questions go there, although stdin or stderr is a pipe.

A person types without echo, and the terminal is read as bytes, so that they can be overwritten later.
"""

from __future__ import annotations

import contextlib
import os
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

from cryptfs.cli.exit_codes import PassphraseUnreadableError
from cryptfs.core.printable import fit_for_terminal

TERMINAL = Path("/dev/tty")
_MAX_LINE = 64 * 1024  # more than a terminal gives at once


class Terminal:
    """An open terminal. reader, writer: descriptors; the same one for /dev/tty."""

    def __init__(self, reader: int, writer: int) -> None:
        self._reader = reader
        self._writer = writer

    def say(self, text: str) -> None:
        """Write text, without a line break of its own."""
        self.write(fit_for_terminal(text).encode(errors="backslashreplace"))

    def write(self, raw: bytes) -> None:
        """Write bytes as they are. Raises: OSError."""
        with memoryview(raw) as view:
            done = 0
            while done < len(view):
                done += os.write(self._writer, view[done:])

    def ask(self, prompt: str, what: str = "passphrase") -> bytes:
        """One line that nobody sees, without its end; to be overwritten by the caller.

        Args:   what: for messages.
        Raises: PassphraseUnreadableError: the terminal gave none.
        """
        with self._without_echo():
            self.say(f"{prompt}: ")
            try:
                line = self._read_line()
            finally:
                self.say("\n")
        if line is None:
            raise PassphraseUnreadableError(f"no {what} was typed")
        return line

    def _read_line(self) -> bytes | None:
        buffer = bytearray(_MAX_LINE)
        done = 0
        try:
            with memoryview(buffer) as view:
                while done < len(buffer):
                    got = os.readv(self._reader, [view[done:]])
                    done += got
                    if not got or buffer[done - 1] == ord("\n"):
                        break
                if not done:
                    return None
                return bytes(view[: done - 1] if buffer[done - 1] == ord("\n") else view[:done])
        except OSError as error:  # it hung up
            raise PassphraseUnreadableError(f"the terminal cannot be read: {error.strerror}") from None
        finally:
            buffer[:done] = bytes(done)

    @contextlib.contextmanager
    def _without_echo(self) -> Iterator[None]:
        """It drops keys that were pressed before the question."""
        try:
            before = termios.tcgetattr(self._reader)
            silent = [*before]
            silent[3] &= ~termios.ECHO
            termios.tcsetattr(self._reader, termios.TCSAFLUSH, silent)
        except termios.error:
            raise PassphraseUnreadableError("the terminal would show what is typed") from None
        try:
            yield
        finally:
            with contextlib.suppress(termios.error):
                termios.tcsetattr(self._reader, termios.TCSADRAIN, before)


def stdin_is_terminal() -> bool:
    """Whether a person is at stdin; a pipe or a file there is read in place of a question."""
    return sys.stdin is not None and sys.stdin.isatty()


def has_terminal() -> bool:
    """Whether a person can be shown something that goes nowhere else."""
    try:
        with open_terminal():
            return True
    except PassphraseUnreadableError:
        return False


@contextlib.contextmanager
def open_terminal() -> Iterator[Terminal]:
    """The terminal that controls this process; without one, stdin and stderr if they are terminals.

    Raises: PassphraseUnreadableError: there is none.
    """
    try:
        descriptor = os.open(TERMINAL, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        if not stdin_is_terminal():
            raise PassphraseUnreadableError("there is no terminal to ask on") from None
        reader = sys.stdin.fileno()
        writer = sys.stderr.fileno() if sys.stderr is not None and sys.stderr.isatty() else reader
        yield Terminal(reader, writer)
        return
    try:
        yield Terminal(descriptor, descriptor)
    finally:
        os.close(descriptor)
