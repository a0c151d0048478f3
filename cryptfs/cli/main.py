"""The command `cryptfs`: its group of commands, and the one place where errors become exit codes.

Nothing here, and no module of a command at import, loads libsodium or FUSE: help is instant.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import rich_click as click

from cryptfs.cli.completion import completion
from cryptfs.cli.exit_codes import CommandError, ExitCode, exit_code_of
from cryptfs.cli.fsck import fsck
from cryptfs.cli.info import info
from cryptfs.cli.init import init
from cryptfs.cli.mount import mount, umount
from cryptfs.cli.mounthelper import HELPER_NAMES, helper_arguments
from cryptfs.cli.params import Settings, debug_option
from cryptfs.cli.passwd import passwd
from cryptfs.cli.snapshot import snapshot, verify
from cryptfs.cli.speed import speed
from cryptfs.cli.status import status
from cryptfs.cli.upgrade import upgrade
from cryptfs.errors import CryptfsError
from cryptfs.version import VERSION

PROGRAM = "cryptfs"


class _ClosedOutput(Exception):
    """Whoever read our stdout went away."""


class _Group(click.RichGroup):
    def invoke(self, ctx: click.Context) -> Any:
        # click would turn this into exit code 1 with an unfinished flush behind it.
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError:
            raise _ClosedOutput from None
        return result


@click.group(
    cls=_Group,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Start with: cryptfs init VAULT, then cryptfs mount VAULT MOUNTPOINT.",
)
@click.version_option(VERSION, "-V", "--version", prog_name=PROGRAM, message="%(prog)s %(version)s")
@debug_option
def cli() -> None:
    """An encrypted directory (the vault) that mounts as an ordinary one (on the mountpoint)."""


_COMMANDS = (init, mount, umount, info, status, fsck, passwd, upgrade, snapshot, verify, speed, completion)
for _command in _COMMANDS:
    cli.add_command(_command)


def with_command(args: Sequence[str]) -> list[str]:
    """`cryptfs VAULT MOUNTPOINT -o ...`, as mount(8) and mount.fuse3 call it, is the command mount."""
    words = list(args)
    if words and not words[0].startswith("-") and words[0] not in cli.commands and "/" in words[0]:
        return ["mount", *words]
    return words


def main(args: Sequence[str]) -> int:
    """Run one command line; returns the exit code, having printed at most one message about an error."""
    settings = Settings(debug="--debug" in args)
    try:
        result = cli.main(args=with_command(args), prog_name=PROGRAM, standalone_mode=False, obj=settings)
    except click.ClickException as error:
        return _usage_error(error)
    except (click.Abort, KeyboardInterrupt):
        click.echo(f"{PROGRAM}: interrupted", err=True)
        return ExitCode.INTERRUPTED
    except _ClosedOutput:
        # What is left in the buffer has nowhere to go; without this Python complains at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return ExitCode.BROKEN_PIPE
    except Exception as error:  # noqa: BLE001 - the one boundary where every error becomes an exit code
        return _failed(error, debug=settings.debug)
    return result if isinstance(result, int) else ExitCode.OK


def _usage_error(error: click.ClickException) -> ExitCode:
    hint = ""
    if isinstance(error, click.UsageError) and error.ctx is not None:
        hint = f"\nTry: {error.ctx.command_path} --help"
    click.echo(f"{PROGRAM}: {error.format_message()}{hint}", err=True)
    return ExitCode.USAGE


def _failed(error: Exception, *, debug: bool) -> ExitCode:
    if debug:
        traceback.print_exception(error)
    code = exit_code_of(error)
    if code is None:
        text = f"internal error: {type(error).__name__}: {error}"
        text += "" if debug else "\nRun it again with --debug for the details, and please report them"
    elif isinstance(error, OSError) and error.strerror:
        text = f"{os.fsdecode(error.filename)}: {error.strerror}" if error.filename else error.strerror
    elif isinstance(error, CryptfsError | CommandError | OSError):
        text = str(error)
    else:
        text = type(error).__name__
    click.echo(f"{PROGRAM}: {text}", err=True)
    return ExitCode.OTHER if code is None else code


def run() -> NoReturn:
    """Entry point of the scripts `cryptfs` and `mount.fuse.cryptfs`."""
    args: list[str] | None = sys.argv[1:]
    if Path(sys.argv[0]).name in HELPER_NAMES:
        args = helper_arguments(sys.argv[1:])
    sys.exit(ExitCode.OK if args is None else main(args))
