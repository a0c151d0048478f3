"""Parameter types and options that several commands share."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import rich_click as click

from cryptfs.cli.prompt import PassphraseSource

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

_SIZE = re.compile(r"(?i)(\d+)\s*(?:([kmg])(i?b)?|bytes|b)?")
_EXPONENT = {"k": 1, "m": 2, "g": 3}


# Only a path: the commands say better than click what is wrong with it, and a dead mount is a place too.
PLACE = click.Path(path_type=Path, readable=False)


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


def passphrase_source(ctx: click.Context, passfile: Path | None, passcommand: str | None) -> PassphraseSource:
    """The two options as one value; a usage error where both are given."""
    try:
        return PassphraseSource(passfile, passcommand)
    except ValueError as error:
        raise click.UsageError(str(error), ctx) from None


def passphrase_options(function: Decorated) -> Decorated:
    """`--passfile` and `--passcommand`; without them the terminal or stdin is asked."""
    function = click.option(
        "--passcommand",
        metavar="COMMAND",
        help="Run COMMAND (split into words, no shell) and take what it prints.",
    )(function)
    return click.option(
        "--passfile",
        type=PLACE,
        metavar="FILE",
        help="Read the passphrase from the first line of FILE; '-' is stdin.",
    )(function)


def kdf_options(function: Decorated) -> Decorated:
    """What it shall cost to try one passphrase."""
    function = click.option(
        "--kdf-passes",
        type=click.IntRange(3, 64),
        metavar="N",
        help="Passes of Argon2id over that memory, 3 to 64.  [default: 3]",
    )(function)
    return click.option(
        "--kdf-memory",
        type=ByteSize(),
        metavar="SIZE",
        help="Memory that one try of a passphrase takes, 64m to 4g.  [default: 256m]",
    )(function)


def kdf_costs(ctx: click.Context, memory: int | None, passes: int | None) -> tuple[int, int]:
    """Memory in bytes and passes, checked against the format's limits."""
    from cryptfs.core.config import (
        DEFAULT_KDF_MEMORY,
        DEFAULT_KDF_PASSES,
        MAX_KDF_MEMORY,
        MIN_KDF_MEMORY,
    )

    memory = DEFAULT_KDF_MEMORY if memory is None else memory
    if not MIN_KDF_MEMORY <= memory <= MAX_KDF_MEMORY or memory % 1024:
        raise click.UsageError("--kdf-memory is 64m to 4g, a multiple of 1k", ctx)
    return memory, DEFAULT_KDF_PASSES if passes is None else passes


def vault_argument(function: Decorated) -> Decorated:
    """The vault, made absolute by the command."""
    return click.argument("vault", type=PLACE, metavar="VAULT")(function)


def shell_word(path: Path | str) -> str:
    """A path as it can be pasted into a shell, and shown on a terminal."""
    from cryptfs.mount.words import shell_word

    return shell_word(path)


def shown(path: Path | str) -> str:
    """A path as it can be shown on a terminal."""
    from cryptfs.mount.words import shown

    return shown(path)
