"""Parameter types and options that several commands share."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import rich_click as click

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

_SIZE = re.compile(r"(?i)(\d+)\s*(?:([kmg])(i?b)?|bytes|b)?")
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
    """What holds for the whole run. debug: tracebacks and debug lines."""

    debug: bool = False


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


class WholeNumber(click.ParamType[int]):
    """A number between bounds, which the message about another one names."""

    name = "number"

    def __init__(self, least: int, most: int) -> None:
        self.least = least
        self.most = most

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        text = str(value).strip()
        if not (text.isascii() and text.isdigit() and self.least <= int(text[:20]) <= self.most):
            self.fail(f"{value!r} is not a whole number from {self.least} to {self.most}", param, ctx)
        return int(text)


class Seconds(click.FloatRange):
    """A number of seconds between bounds."""

    name = "number of seconds"


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


def help_if_alone(ctx: click.Context) -> None:
    """For a group of commands: without one it shows its help, and ends as a wrong command line does."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())
        ctx.exit(1)


def vault_argument(function: Decorated) -> Decorated:
    """The vault, made absolute by the command."""
    return click.argument("vault", type=PLACE, metavar="VAULT")(function)


def shell_word(path: Path | str) -> str:
    """A path as it can be pasted into a shell, and shown on a terminal."""
    from cryptfs.core.printable import shell_word

    return shell_word(path)


def shown(path: Path | str | bytes) -> str:
    """A path as it can be shown on a terminal and in JSON."""
    from cryptfs.core.printable import shown

    return shown(path)
