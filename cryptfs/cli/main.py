"""The command `cryptfs`: its group of commands, and the one place where errors become exit codes.

Nothing here, and no module of a command at import, loads libsodium or FUSE: help is instant.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from cryptfs.cli.commands import CommandModules, Group
from cryptfs.cli.exit_codes import CommandError, ExitCode, exit_code_of
from cryptfs.cli.interrupts import heeds_interrupts
from cryptfs.cli.mounthelper import HELPER_NAMES, helper_arguments, leave_environment
from cryptfs.cli.output import say
from cryptfs.cli.params import Settings, debug_option, shown
from cryptfs.core.printable import for_vault
from cryptfs.errors import CryptfsError
from cryptfs.mount.resources import open_standard_streams
from cryptfs.signals import interrupt_behind
from cryptfs.version import VERSION

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

PROGRAM = "cryptfs"

_MODULES = {
    "changing": ("cp", "mkdir", "mv", "rm"),
    "ls": ("cat", "find", "ls", "tree"),
    "mount": ("mount",),
    "umount": ("umount",),
    "snapshot": ("snapshot", "verify"),
    "transfer": ("export", "import"),
} | {
    name: (name,)
    for name in (
        *(
            "completion",
            "fsck",
            "info",
            "init",
            "integrate",
            "key",
            "open",
            "passwd",
            "path",
            "recovery",
            "rekey",
            "speed",
        ),
        *("rekey", "speed", "status", "upgrade"),
    )
}
_COMMANDS = {name: f"cryptfs.cli.{module}" for module, names in _MODULES.items() for name in names}


@click.group(
    cls=Group,
    commands=CommandModules(_COMMANDS),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Start with: cryptfs init VAULT, then cryptfs mount VAULT MOUNTPOINT.",
)
@click.version_option(VERSION, "-V", "--version", prog_name=PROGRAM, message="%(prog)s %(version)s")
@debug_option
def cli() -> None:
    """Keep files encrypted in one directory (the vault), and work with them in another (the mountpoint)."""


def every_command() -> dict[str, click.Command]:
    """All commands by what a person types: "mount", "recovery", "recovery words"."""

    def below(group: click.Group, before: str) -> dict[str, click.Command]:
        found: dict[str, click.Command] = {}
        for name, command in group.commands.items():
            found[before + name] = command
            if isinstance(command, click.Group):
                found |= below(command, f"{before}{name} ")
        return found

    return below(cli, "")


def with_command(args: Sequence[str]) -> list[str]:
    """`cryptfs VAULT MOUNTPOINT -o ...`, as mount.fuse3 calls it, is the command mount.

    It is silent then, as a mount helper is.
    """
    words = list(args)
    if words and not words[0].startswith("-") and words[0] not in cli.commands and "/" in words[0]:
        return ["mount", "--quiet", *words]
    return words


def main(args: Sequence[str], *, reads_config: bool = True) -> int:
    """Run one command line; returns the exit code, having printed at most one message about an error.

    Args: reads_config: whether the config file of the person counts.
    """
    settings = Settings(debug="--debug" in args, reads_config=reads_config)
    try:
        with heeds_interrupts():
            result = cli.main(
                args=with_command(args or ["--help"]), prog_name=PROGRAM, standalone_mode=False, obj=settings
            )
            sys.stdout.flush()
    except click.ClickException as error:
        return _usage_error(error)
    except (click.Abort, KeyboardInterrupt):
        return _interrupted()
    except (BrokenPipeError, SystemExit):  # click and rich end the process where a pipe is broken
        # The rest of the buffer has no reader; without this Python complains at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return ExitCode.BROKEN_PIPE
    except Exception as error:  # noqa: BLE001 - the one boundary where every error becomes an exit code
        if exit_code_of(error) is None and interrupt_behind(error) is not None:
            return _interrupted()  # an interrupted lock of Python's says so in words of its own
        return _failed(error, settings)
    if not args:
        return ExitCode.USAGE
    return result if isinstance(result, int) else ExitCode.OK


def _interrupted() -> ExitCode:
    click.echo(f"{PROGRAM}: interrupted", err=True)
    return ExitCode.INTERRUPTED


def _usage_error(error: click.ClickException) -> ExitCode:
    hint = ""
    if isinstance(error, click.UsageError) and error.ctx is not None:
        hint = f"\nTry: {error.ctx.command_path} --help"
    say(f"{PROGRAM}: {error.format_message()}{hint}")
    return ExitCode.USAGE


def _failed(error: Exception, settings: Settings) -> ExitCode:
    if settings.debug:
        say("".join(traceback.format_exception(error)).rstrip())
    code = exit_code_of(error)
    if code is None:
        text = f"internal error: {type(error).__name__}: {error}"
        text += "" if settings.debug else "\nRun it again with --debug for details, and please report them"
    elif isinstance(error, OSError) and error.strerror:
        name = error.filename if isinstance(error.filename, str | bytes) else ""  # it may be a descriptor
        text = f"{shown(os.fsdecode(name))}: {error.strerror}" if name else error.strerror
    elif isinstance(error, CryptfsError | CommandError | OSError):
        text = str(error)
    elif isinstance(error, MemoryError):
        text = str(error) or "there is not enough free memory"
    else:
        text = type(error).__name__
    say(f"{PROGRAM}: {text if settings.vault is None else for_vault(text, settings.vault)}")
    return ExitCode.OTHER if code is None else code


class _Output(io.FileIO):
    """Standard output, whose first error says so, and is the last: what a buffer still has is lost."""

    _is_lost = False

    def write(self, data: ReadableBuffer, /) -> int:
        if self._is_lost:
            return memoryview(data).nbytes
        try:
            return super().write(data)
        except OSError as error:
            self._is_lost = True
            error.filename = "stdout"
            raise


def _named(stdout: io.TextIOWrapper) -> io.TextIOWrapper:
    raw = _Output(stdout.fileno(), "wb", closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(raw), encoding=stdout.encoding, line_buffering=stdout.line_buffering
    )


def prepare_streams() -> None:
    """Before a program says anything: open streams, and make all text fit for them."""
    open_standard_streams()
    if logging.lastResort is not None:  # for warnings of the log before a mount has one, or without a mount
        logging.lastResort.setFormatter(logging.Formatter(f"{PROGRAM}: warning: %(message)s"))
    if isinstance(sys.stdout, io.TextIOWrapper):
        with contextlib.suppress(io.UnsupportedOperation):  # it has no descriptor
            sys.stdout = _named(sys.stdout)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a path may have any bytes, and a terminal any encoding
            stream.reconfigure(errors="backslashreplace")


def run() -> NoReturn:
    """The program, from its arguments to its exit code."""
    prepare_streams()
    args: list[str] | None = sys.argv[1:]
    is_helper = Path(sys.argv[0]).name in HELPER_NAMES
    if is_helper:
        leave_environment()
        args = helper_arguments(sys.argv[1:])
    sys.exit(ExitCode.OK if args is None else main(args, reads_config=not is_helper))
