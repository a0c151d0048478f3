"""Parameter types and options that several commands share."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

_SIZE = re.compile(r"(?i)(\d+)\s*(?:([kmg])(i?b)?|bytes|b)?")
_TOLD = 100_000  # a bound above this is no help to a person
_EXPONENT = {"k": 1, "m": 2, "g": 3}


class PathParameter(click.Path):
    """A path and no more: the commands explain errors better than click, and accept a dead mount."""

    def __init__(self) -> None:
        super().__init__(path_type=Path, readable=False)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":  # Path("") is the current directory: what a script means by "$VAULT" is another one
            self.fail("the path is empty", param, ctx)
        return super().convert(value, param, ctx)


PLACE = PathParameter()


@dataclass(slots=True)
class Settings:
    """What holds for the whole run.

    debug: tracebacks and debug lines.   quiet: nothing but answers, warnings, errors and questions.
    vault: of the command, for hints.
    """

    debug: bool = False
    quiet: bool = False
    vault: Path | None = None


class ByteSize(click.ParamType[int]):
    """A size in bytes: 4096, 16k, 1m, 256MiB (all binary), 300MB (decimal)."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = _SIZE.fullmatch(str(value).strip())
        if match is None:
            self.fail(f"{value!r} is not a size; write for example 16k, 1m or 256MiB", param, ctx)
        number, letter, unit = match.groups()
        if letter is None:
            return int(number)
        base = 1000 if (unit or "").lower() == "b" else 1024
        return int(number) * int(base ** _EXPONENT[letter.lower()])


class Number(click.IntRange):
    """A whole number between bounds. What click says of a wrong one is no sentence for a person."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not str(value).isascii():  # int() takes the digits of other scripts as well
            self.fail("", param, ctx)
        return super().convert(value, param, ctx)

    def fail(
        self, message: str, param: click.Parameter | None = None, ctx: click.Context | None = None
    ) -> NoReturn:
        raise click.BadParameter(f"give a whole number {_between(self.min, self.max)}", ctx, param)

    def _describe_range(self) -> str:
        return "" if self.max is not None and self.max > _TOLD else _between(self.min, self.max)


class Seconds(click.FloatRange):
    """A time between bounds."""

    def fail(
        self, message: str, param: click.Parameter | None = None, ctx: click.Context | None = None
    ) -> NoReturn:
        raise click.BadParameter(f"give a number {_between(self.min, self.max)}", ctx, param)

    def _describe_range(self) -> str:
        return _between(self.min, self.max)


class Duration(click.ParamType[float]):
    """A time: '90s', '10m', '1h30m'; in seconds."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        from cryptfs.mount.options import MAX_IDLE, MIN_IDLE, duration

        if isinstance(value, float):
            return value
        try:
            seconds = duration(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)
        if not MIN_IDLE <= seconds <= MAX_IDLE:
            self.fail("give a time from 1s to 30d", param, ctx)
        return seconds


class Reasons(click.ParamType[tuple[str, ...]]):
    """Some of the reasons to unmount, with commas between; completion proposes the others."""

    name = "reasons"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        from cryptfs.mount.options import LEAVE_REASONS, reasons

        if isinstance(value, tuple):
            return value
        found = reasons(str(value))
        if not set(found) <= set(LEAVE_REASONS):
            self.fail(f"give some of {', '.join(LEAVE_REASONS)}, with commas between", param, ctx)
        return found

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        from cryptfs.mount.options import LEAVE_REASONS

        before, comma, begun = incomplete.rpartition(",")
        there = before.split(",")
        return [
            CompletionItem(before + comma + reason)
            for reason in LEAVE_REASONS
            if reason.startswith(begun) and reason not in there
        ]


def _between(least: float | None, most: float | None) -> str:
    return f"from {least:,}" if most is None else f"from {least:,} to {most:,}"


def leave_to_findings(ctx: click.Context) -> None:
    """Keep the log quiet, without --debug: the findings of the command say what it says."""
    if not ctx.ensure_object(Settings).debug:
        logging.getLogger("cryptfs").addHandler(logging.NullHandler())


def _set_debug(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value:
        ctx.ensure_object(Settings).debug = True


def debug_option(function: Decorated) -> Decorated:
    """`--debug`, on the group and on every command."""
    return click.option(
        "--debug",
        is_flag=True,
        expose_value=False,
        callback=_set_debug,
        help="Show tracebacks and debug lines.",
    )(function)


def _set_quiet(ctx: click.Context, _param: click.Parameter, value: bool) -> bool:
    if value:
        ctx.ensure_object(Settings).quiet = True
    return value


def add_quiet(command: click.Command) -> None:
    """Give a command `--quiet`. If it has one of its own, that counts for all that the command says."""
    for each in command.params:
        if "--quiet" in each.opts:
            each.callback = _set_quiet
            return
    command.params.append(
        click.Option(
            ["-q", "--quiet"],
            is_flag=True,
            expose_value=False,
            callback=_set_quiet,
            help="Say nothing if all is well.",
        )
    )


def help_if_alone(ctx: click.Context) -> None:
    """For a group of commands: without one it shows its help, and ends as a wrong command line does."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())
        ctx.exit(1)


def vault_argument(function: Decorated) -> Decorated:
    """The vault, made absolute by the command."""
    return click.argument("vault", type=PLACE, metavar="VAULT", callback=_remember_vault)(function)


def _remember_vault(ctx: click.Context, _param: click.Parameter, value: Path) -> Path:
    ctx.ensure_object(Settings).vault = value
    return value


def shell_word(path: Path | str) -> str:
    """A path as it can be pasted into a shell, and shown on a terminal."""
    from cryptfs.core.printable import shell_word

    return shell_word(path)


def shown(path: Path | str | bytes) -> str:
    """A path as it can be shown on a terminal and in JSON."""
    from cryptfs.core.printable import shown

    return shown(path)
