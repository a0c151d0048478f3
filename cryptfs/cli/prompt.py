"""Where passphrases come from: a file, a command, the terminal, or stdin; never argv.

A passphrase is bytes. One line break at its end belongs to the file, not to the passphrase; every
other byte counts.
"""

from __future__ import annotations

import getpass
import os
import shlex
import stat
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from cryptfs.cli.exit_codes import EmptyPassphraseError, PassphraseUnreadableError
from cryptfs.cli.output import warn

MAX_PASSPHRASE_SIZE = 1024 * 1024


@dataclass(frozen=True, slots=True)
class PassphraseSource:
    """What the command line said about one passphrase; at most one of the two is set.

    Args: passfile: read this file; '-' is stdin.   passcommand: run this, take what it prints.
    """

    passfile: Path | None = None
    passcommand: str | None = None

    def __post_init__(self) -> None:
        if self.passfile is not None and self.passcommand is not None:
            raise ValueError("choose one of --passfile and --passcommand")


def harden_process() -> None:
    """Before a passphrase is read: no core dump, no debugger of the same user."""
    from cryptfs.mount.daemon import harden_process as harden

    harden()


def forget(*passphrases: bytes) -> None:
    """Overwrite passphrases after their use, before a daemon is forked with a copy of this memory."""
    from cryptfs.vfs.vault import wipe

    for passphrase in passphrases:
        wipe(passphrase)


def read_passphrase(source: PassphraseSource, prompt: str = "Passphrase", *, confirm: bool = False) -> bytes:
    """The passphrase from where the command line says; else the terminal, else the first line of stdin.

    Args:   confirm: ask twice; for a new passphrase typed by a person.
    Raises: PassphraseUnreadableError: it cannot be had.   EmptyPassphraseError: it is empty.
    """
    if source.passfile is not None:
        passphrase = _from_file(source.passfile)
    elif source.passcommand is not None:
        passphrase = _from_command(source.passcommand)
    elif sys.stdin is not None and sys.stdin.isatty():
        passphrase = _from_terminal(prompt, confirm=confirm)
    else:
        passphrase = _from_stdin()
    if not passphrase:
        raise EmptyPassphraseError("the passphrase is empty; an empty one protects nothing")
    return passphrase


def _strip_line_end(raw: bytes) -> bytes:
    stripped = raw[:-2] if raw.endswith(b"\r\n") else raw[:-1] if raw.endswith(b"\n") else raw
    if stripped is not raw:
        forget(raw)
    return stripped


def _read_secret(descriptor: int, where: str, *, line: bool = False) -> bytes:
    """Read to the end, or one line with its end, and leave no copy of it in a buffer that is freed.

    A line is read byte by byte: what follows it is somebody else's.

    Raises: PassphraseUnreadableError: more than MAX_PASSPHRASE_SIZE bytes.   OSError.
    """
    buffer = bytearray(MAX_PASSPHRASE_SIZE + 1)
    done = 0
    try:
        with memoryview(buffer) as view:
            while done < len(buffer):
                got = os.readv(descriptor, [view[done : done + 1] if line else view[done:]])
                done += got
                if not got or (line and buffer[done - 1] == ord("\n")):
                    break
            if done > MAX_PASSPHRASE_SIZE:
                raise PassphraseUnreadableError(
                    f"{where}: more than {MAX_PASSPHRASE_SIZE} bytes is no passphrase"
                )
            return bytes(view[:done])
    finally:
        buffer[:done] = bytes(done)


def _from_file(passfile: Path) -> bytes:
    """The file's bytes up to its first line break."""
    if str(passfile) == "-":
        return _from_stdin()
    try:
        descriptor = os.open(passfile, os.O_RDONLY | os.O_CLOEXEC)
        try:
            mode = os.fstat(descriptor).st_mode
            raw = _read_secret(descriptor, str(passfile))
        finally:
            os.close(descriptor)
    except OSError as error:
        raise PassphraseUnreadableError(
            f"{passfile}: cannot read the passphrase file: {error.strerror}"
        ) from None
    if stat.S_ISREG(mode) and mode & (stat.S_IRGRP | stat.S_IROTH):
        warn(f"{passfile} can be read by other users; mend it with: chmod 600 {shlex.quote(str(passfile))}")
    line, _, rest = raw.partition(b"\n")
    if rest.strip():
        warn(f"{passfile} has several lines; the first one is the passphrase")
    passphrase = line.removesuffix(b"\r")
    forget(*(each for each in (raw, line, rest) if each is not passphrase))
    return passphrase


def _from_command(command: str) -> bytes:
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise PassphraseUnreadableError(f"--passcommand: cannot split it into words: {error}") from None
    if not words:
        raise PassphraseUnreadableError("--passcommand: the command is empty")
    try:
        with subprocess.Popen(words, stdout=subprocess.PIPE, bufsize=0) as running:
            assert running.stdout is not None
            raw = _read_secret(running.stdout.fileno(), "--passcommand")
    except OSError as error:
        raise PassphraseUnreadableError(f"--passcommand: cannot run {words[0]}: {error.strerror}") from None
    code = running.returncode
    if code != 0:
        how = f"exit code {code}" if code > 0 else f"signal {-code}"
        raise PassphraseUnreadableError(f"--passcommand: {words[0]} failed with {how}")
    return _strip_line_end(raw)


def _ask(prompt: str) -> bytes:
    try:
        text = getpass.getpass(f"{prompt}: ", stream=sys.stderr)
    except EOFError:
        print(file=sys.stderr)  # noqa: T201 - ends the line of the prompt
        raise PassphraseUnreadableError("no passphrase was typed") from None
    except UnicodeDecodeError:
        raise PassphraseUnreadableError("the terminal sent bytes that are no text in its encoding") from None
    return os.fsencode(text)


def _from_terminal(prompt: str, *, confirm: bool) -> bytes:
    passphrase = _ask(prompt)
    if confirm and passphrase and _ask(f"{prompt}, once more") != passphrase:
        raise PassphraseUnreadableError("the two passphrases differ; nothing was done")
    return passphrase


def _from_stdin() -> bytes:
    """One line, so that two passphrases can follow each other."""
    if sys.stdin is None:
        raise PassphraseUnreadableError("stdin is closed; use --passfile or --passcommand")
    raw = _read_secret(sys.stdin.fileno(), "stdin", line=True)
    if not raw:
        raise PassphraseUnreadableError(
            "no passphrase on stdin, and no terminal to ask on; use --passfile or --passcommand"
        )
    return _strip_line_end(raw)
