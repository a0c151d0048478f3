"""Where passphrases come from: a file, a descriptor, a command, a person, or stdin; never argv.

A passphrase is bytes. One line break at its end belongs to the file, not to the passphrase. Every other
byte counts at the first try; if that fails, unlocking tries other spellings (core/slots/spellings.py).
"""

from __future__ import annotations

import contextlib
import os
import shlex
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from cryptfs.cli.exit_codes import EmptyPassphraseError, NothingTypedError, PassphraseUnreadableError
from cryptfs.cli.output import say, warn
from cryptfs.cli.terminal import open_terminal, stdin_is_terminal
from cryptfs.core.printable import shell_word, shown
from cryptfs.core.slots.spellings import composed, first_line
from cryptfs.errors import WrongPassphraseError

MAX_PASSPHRASE_SIZE = 1024 * 1024
TRIES = 3

_Used = TypeVar("_Used")


@dataclass(frozen=True, slots=True)
class PassphraseSource:
    """Where one passphrase comes from; at most one of the first four is set.

    Args: passfile: read this file; '-' is stdin.   passcommand: run this, take what it prints.
          passfd: read the next line of this open descriptor.
          askpass: run this program with the question, as ssh runs its askpass.
          window: the words of a program that asks in a window; "{question}" in them becomes the question.
          named_by: what named the file, if it was no option: a variable, or a credential of systemd.
    """

    passfile: Path | None = None
    passcommand: str | None = None
    passfd: int | None = None
    askpass: str | None = None
    named_by: str = ""
    window: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        given = [
            each for each in (self.passfile, self.passcommand, self.passfd, self.askpass) if each is not None
        ]
        if len(given) > 1:
            raise ValueError("choose one of --passfile, --passcommand, --passfd and --askpass")

    @property
    def is_person(self) -> bool:
        """Whether a person answers, at the terminal or in a window, and may try again."""
        if self.askpass is not None or self.window:
            return True
        return self.is_empty and stdin_is_terminal()

    @property
    def is_empty(self) -> bool:
        """Whether the passphrase comes from the terminal, or from stdin."""
        return (
            self.passfile is None
            and self.passcommand is None
            and self.passfd is None
            and self.askpass is None
        )

    @property
    def is_option(self) -> bool:
        """Whether the command line says where the passphrase is, so that nobody has to be asked."""
        return not self.is_empty and self.askpass is None and not self.named_by

    @property
    def name(self) -> str:
        """Where the passphrase comes from, for messages; '' if a person gives it."""
        if self.is_person:
            return ""
        if self.passfile is not None and str(self.passfile) != "-":
            return shown(self.passfile) + (f", named by {self.named_by}" if self.named_by else "")
        if self.passcommand is not None:
            return "--passcommand"
        return "stdin" if self.passfd is None else f"file descriptor {self.passfd}"


def harden() -> None:
    """Before a secret is read: give up core dumps, and debuggers of the same user."""
    from cryptfs.mount.daemon import harden_process

    harden_process()


@contextlib.contextmanager
def passphrase_of(
    source: PassphraseSource, prompt: str = "Passphrase", *, confirm: bool = False
) -> Iterator[bytes]:
    """A passphrase for as long as a command needs it; every command takes its passphrases from here.

    Before it is read, the process gives up core dumps and debuggers of the same user. Afterwards it is
    overwritten, whatever happened; so before a daemon is forked with a copy of this memory.

    Raises: what read_passphrase raises.
    """
    harden()
    passphrase = read_passphrase(source, prompt, confirm=confirm)
    try:
        yield passphrase
    finally:
        forget(passphrase)


def with_passphrase(
    source: PassphraseSource, use: Callable[[bytes], _Used], prompt: str = "Passphrase"
) -> _Used:
    """Read a passphrase and use it. A person has TRIES tries.

    Raises: what read_passphrase raises, and what `use` raises: WrongPassphraseError after the last try.
    """
    left = TRIES - 1 if source.is_person else 0
    while True:
        with passphrase_of(source, prompt) as passphrase:
            try:
                return use(passphrase)
            except WrongPassphraseError:
                if not left:
                    raise
        tries = "1 try" if left == 1 else f"{left} tries"
        wrong = f"Wrong passphrase, try again ({tries} left). Is Caps Lock on?"
        if source.window:
            prompt = wrong
        else:
            say(wrong)
        left -= 1


def forget(*passphrases: bytes) -> None:
    """Overwrite passphrases after their use."""
    from cryptfs.storage.libc import wipe

    for passphrase in passphrases:
        wipe(passphrase)


def read_passphrase(source: PassphraseSource, prompt: str = "Passphrase", *, confirm: bool = False) -> bytes:
    """The passphrase from its source; without one from the terminal, else the next line of stdin.

    Args:   confirm: it is a new one. A person gives it twice, and it is stored in NFC.
    Raises: PassphraseUnreadableError: it cannot be read.   EmptyPassphraseError: it is empty.
    """
    if source.passfile is not None:
        passphrase = _from_file(source.passfile)
    elif source.passcommand is not None:
        passphrase = _from_command(source.passcommand)
        if confirm:
            passphrase = _new_from_command(passphrase)
    elif source.passfd is not None:
        passphrase = _from_descriptor(source.passfd)
    elif source.is_person:
        passphrase = _from_person(source, prompt, confirm=confirm)
    else:
        passphrase = _from_stdin()
    if not passphrase:
        where = f" (from {source.name})" if source.name else ""
        raise EmptyPassphraseError(f"the passphrase is empty{where}; an empty passphrase protects nothing")
    if confirm and not source.is_person:
        _warn_if_weak(passphrase)
    return passphrase


def _warn_if_weak(passphrase: bytes, *, is_typed: bool = False) -> None:
    """Say that a new passphrase can be guessed; a person may have a reason for it."""
    from cryptfs.cli.strength import weakness

    reason = weakness(passphrase)
    if reason:
        how = "To choose another, press Ctrl-C" if is_typed else "To change it: cryptfs passwd VAULT"
        warn(f"this passphrase {reason} {how}; with --generate, init and passwd propose six random words")


def _strip_line_end(raw: bytes) -> bytes:
    stripped = raw[:-2] if raw.endswith(b"\r\n") else raw[:-1] if raw.endswith(b"\n") else raw
    if stripped is not raw:
        forget(raw)
    return stripped


def read_secret(
    descriptor: int,
    where: str,
    *,
    line: bool = False,
    most: int = MAX_PASSPHRASE_SIZE,
    what: str = "passphrase",
) -> bytes:
    """Read to the end, or one line with its end, and leave no copy of it in a buffer that is freed.

    A line is read byte by byte: the next reader of the descriptor gets the rest.

    Args:   where, what: for messages.   most: bytes.
    Raises: PassphraseUnreadableError: there are more.   OSError.
    """
    buffer = bytearray(most + 1)
    done = 0
    try:
        with memoryview(buffer) as view:
            while done < len(buffer):
                got = os.readv(descriptor, [view[done : done + 1] if line else view[done:]])
                done += got
                if not got or (line and buffer[done - 1] == ord("\n")):
                    break
            if done > most:
                raise PassphraseUnreadableError(f"{where}: the {what} may have at most {most} bytes")
            return bytes(view[:done])
    finally:
        buffer[:done] = bytes(done)


def _from_file(passfile: Path) -> bytes:
    """The file's bytes up to its first line break."""
    if str(passfile) == "-":
        return _from_stdin()
    raw, mode = read_secret_file(passfile, "passphrase file")
    _warn_if_others_read(passfile, mode)
    line, _, rest = raw.partition(b"\n")
    if rest.strip():
        warn(f"{shown(passfile)} has several lines; the first one is the passphrase")
    passphrase = line.removesuffix(b"\r")
    forget(*(each for each in (raw, line, rest) if each is not passphrase))
    return passphrase


def read_secret_file(place: Path, what: str, most: int = MAX_PASSPHRASE_SIZE) -> tuple[bytes, int]:
    """All bytes of a file, to be wiped after use, and its mode.

    Args:   what: for messages: "key file".   most: bytes.
    Raises: PassphraseUnreadableError: it cannot be read, or has more.
    """
    try:
        descriptor = os.open(place, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return read_secret(descriptor, shown(place), most=most, what=what), os.fstat(descriptor).st_mode
        finally:
            os.close(descriptor)
    except OSError as error:
        raise PassphraseUnreadableError(f"{shown(place)}: cannot read the {what}: {error.strerror}") from None


def joined_secrets(places: Sequence[Path]) -> int:
    """An open descriptor with the first lines of several files, one behind the other; for --passfd.

    Raises: PassphraseUnreadableError: one cannot be read.
    """
    harden()
    descriptor = os.memfd_create("cryptfs")
    try:
        for place in places:
            content, mode = read_secret_file(place, "passphrase file")
            _warn_if_others_read(place, mode)
            line = first_line(content)
            os.write(descriptor, line)
            forget(content, line)
        os.lseek(descriptor, 0, os.SEEK_SET)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def read_secret_text(place: Path, what: str) -> bytes:
    """All of a small text, such as recovery words: of a file, or of stdin if it is '-'. Wipe it after use.

    Args:   what: for messages: "recovery words".
    Raises: PassphraseUnreadableError.
    """
    harden()
    if str(place) == "-":
        if sys.stdin is None:
            raise PassphraseUnreadableError("stdin is closed")
        return read_secret(sys.stdin.fileno(), "stdin")
    raw, mode = read_secret_file(place, what)
    _warn_if_others_read(place, mode)
    return raw


@contextlib.contextmanager
def line_of(prompt: str) -> Iterator[bytes]:
    """One line that a person types at the terminal, and sees; overwritten afterwards.

    Raises: PassphraseUnreadableError: the end of the input.
    """
    harden()
    print(f"{prompt}: ", end="", file=sys.stderr, flush=True)  # noqa: T201 - a prompt has no line end
    line = read_secret(sys.stdin.fileno(), "stdin", line=True)
    if not line:
        print(file=sys.stderr)  # noqa: T201 - ends the line of the prompt
        raise PassphraseUnreadableError("nothing was typed; nothing was done")
    try:
        yield line
    finally:
        forget(line)


def _warn_if_others_read(place: Path, mode: int) -> None:
    if stat.S_ISREG(mode) and mode & (stat.S_IRGRP | stat.S_IROTH):
        warn(f"{shown(place)} can be read by other users; fix it with: chmod 600 {shell_word(place)}")


def _from_command(command: str) -> bytes:
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise PassphraseUnreadableError(f"--passcommand: cannot split it into words: {error}") from None
    if not words:
        raise PassphraseUnreadableError("--passcommand: the command is empty")
    return _run(words, "--passcommand")


def _run(words: list[str], option: str, *, asks: bool = False) -> bytes:
    """The output of a program, without the line break at its end.

    asks: it is a window, which a person may close.
    """
    import subprocess

    try:
        with contextlib.ExitStack() as stack:
            said, before = None, None
            if asks:
                from cryptfs.cli.dialogs import end_with_cryptfs, said_by_window

                said, before = stack.enter_context(said_by_window()), end_with_cryptfs
            running = stack.enter_context(
                subprocess.Popen(words, stdout=subprocess.PIPE, stderr=said, bufsize=0, preexec_fn=before)
            )
            assert running.stdout is not None
            raw = read_secret(running.stdout.fileno(), option)
    except OSError as error:
        raise PassphraseUnreadableError(f"{option}: cannot run {shown(words[0])}: {error.strerror}") from None
    code = running.returncode
    if code != 0:
        forget(raw)
        if asks and code == 1:
            raise NothingTypedError("the window was closed; nothing was done")
        how = f"exit code {code}" if code > 0 else f"signal {-code}"
        raise PassphraseUnreadableError(f"{option}: {shown(words[0])} failed with {how}")
    return _strip_line_end(raw)


def _from_descriptor(descriptor: int) -> bytes:
    """Its next line. It is closed afterwards, so that a daemon does not keep it."""
    where = f"file descriptor {descriptor}"
    try:
        raw = read_secret(descriptor, where, line=True)
        if descriptor > 2:
            os.close(descriptor)
    except OSError as error:
        raise PassphraseUnreadableError(f"{where}: cannot be read: {error.strerror}") from None
    return _strip_line_end(raw)


def _new_from_command(passphrase: bytes) -> bytes:
    """Of a text with several lines the first alone, as of a file: the notes below a passphrase may change.

    Other bytes stay as they are: a random key may have a line break anywhere.
    """
    line = first_line(passphrase)
    try:
        has_notes = bool(passphrase.decode().partition("\n")[2].strip())
    except UnicodeDecodeError:
        return passphrase
    if not has_notes:
        return passphrase
    warn("--passcommand prints several lines; the first one is the new passphrase")
    forget(passphrase)
    return line


def _from_person(source: PassphraseSource, prompt: str, *, confirm: bool) -> bytes:
    passphrase = ask_person(source, prompt)
    if confirm and passphrase:
        _warn_if_weak(passphrase, is_typed=True)
        repeated = ask_person(source, f"{prompt}, once more")
        is_same = repeated == passphrase
        forget(repeated)
        if not is_same:
            forget(passphrase)
            raise PassphraseUnreadableError("the two passphrases differ; nothing was done")
    return _composed(passphrase) if confirm else passphrase


def ask_person(source: PassphraseSource, prompt: str) -> bytes:
    """What a person types, in a window or at the terminal; it may be empty. To be wiped.

    Raises: PassphraseUnreadableError: nothing.
    """
    if source.window:
        return _run([word.replace("{question}", prompt) for word in source.window], "the window", asks=True)
    if source.askpass is not None:
        return _run([source.askpass, f"{prompt}: "], "--askpass")
    with open_terminal() as terminal:
        return terminal.ask(prompt)


def _composed(typed: bytes) -> bytes:
    """A new passphrase in NFC, so that it does not matter which system it was typed on."""
    stored = composed(typed)
    if stored != typed:
        forget(typed)
    return stored


def _from_stdin() -> bytes:
    """One line, so that two passphrases can follow each other."""
    if sys.stdin is None:
        raise PassphraseUnreadableError("stdin is closed; use --passfile or --passcommand")
    raw = read_secret(sys.stdin.fileno(), "stdin", line=True)
    if not raw:
        raise PassphraseUnreadableError(
            "no passphrase on stdin, and no terminal to ask on; use --passfile or --passcommand"
        )
    return _strip_line_end(raw)
