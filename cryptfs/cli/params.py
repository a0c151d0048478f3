"""Parameter types and options that several commands share."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click
from click.shell_completion import CompletionItem

from cryptfs.cli.configfile import ConfigFile, NamedVault, load, weaker
from cryptfs.cli.exit_codes import ConfigFileError, UsageProblem

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
    vault: of the command, for hints.   config: the config file, once it is read.
    reads_config: False for mount(8), which says all of it itself.
    """

    debug: bool = False
    quiet: bool = False
    vault: Path | None = None
    config: ConfigFile | None = None
    reads_config: bool = True


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

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        found = super().convert(value, param, ctx)
        if not math.isfinite(found):  # "nan" is beyond no bound
            self.fail("", param, ctx)
        return found

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
    """Some of the reasons to unmount, separated by commas; completion proposes the others."""

    name = "reasons"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        from cryptfs.mount.options import LEAVE_REASONS, reasons

        if isinstance(value, tuple):
            return value
        found = reasons(str(value))
        if not set(found) <= set(LEAVE_REASONS):
            self.fail(f"give one or more of {', '.join(LEAVE_REASONS)}, separated by commas", param, ctx)
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


def shell_word(path: Path | str) -> str:
    """A path as it can be pasted into a shell, and shown on a terminal."""
    from cryptfs.core.printable import shell_word

    return shell_word(path)


def shown(path: Path | str | bytes) -> str:
    """A path as it can be shown on a terminal and in JSON."""
    from cryptfs.core.printable import shown

    return shown(path)


# ---- vaults, by their paths or by their names in the config file


def config_file(ctx: click.Context) -> ConfigFile:
    """The config file, read once for a command. Raises: ConfigFileError."""
    settings = ctx.ensure_object(Settings)
    root = ctx.find_root().command
    if not settings.reads_config or not isinstance(root, click.Group):
        return ConfigFile()
    if settings.config is None:
        settings.config = load(root.commands)
    return settings.config


def named_vault(ctx: click.Context, text: str) -> NamedVault | None:
    """The vault that a word of the command line names.

    Raises: UsageProblem: it is also a vault in this directory.
    """
    from cryptfs.core.slots.checks import CONFIG_NAME

    found = config_file(ctx).named(text)
    if found is None or not os.path.lexists(Path(text) / CONFIG_NAME):
        return found
    if os.path.exists(found.vault) and os.path.samefile(text, found.vault):
        return found
    raise UsageProblem(
        f"{shown(text)} is a vault in this directory, and the config file has another one by this name. "
        f"Give its path: {shell_word('./' + text)} or {shell_word(found.vault)}"
    )


class VaultArgument(click.Argument):
    """A vault. Whatever the config file says of it becomes the default of the other parameters.

    Args: with_path: a path in the vault may follow, after a colon.
    """

    def __init__(self, *args: Any, with_path: bool = False, **attributes: Any) -> None:
        # Eager: its value decides about the defaults of all others.
        super().__init__(*args, is_eager=True, **attributes)
        self._with_path = with_path

    def handle_parse_result(
        self, ctx: click.Context, opts: Mapping[str, Any], args: list[str]
    ) -> tuple[Any, list[str]]:
        if ctx.resilient_parsing:
            return super().handle_parse_result(ctx, opts, args)
        given = opts.get(self.name or "")
        name, colon, rest = str(given).partition(":") if self._with_path else (str(given), "", "")
        named = named_vault(ctx, name) if isinstance(given, str) else None
        options = config_file(ctx).options_for(ctx.command.name or "", named)
        defaults = weaker(options, _keys_given(ctx, opts))
        if opts.get("option_texts") and "option_texts" in options and isinstance(opts, dict):
            opts["option_texts"] = [*options["option_texts"], *opts["option_texts"]]
        if named is not None:
            opts = {**opts, self.name or "": f"{named.vault}{colon}{rest}"}
            if named.mountpoint is not None:
                defaults["mountpoint"] = named.mountpoint
        ctx.default_map = {**(ctx.default_map or {}), **defaults}
        return super().handle_parse_result(ctx, opts, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Names of vaults, beside files."""
        found = [] if "/" in incomplete else vault_names(ctx)
        proposed = [CompletionItem(name) for name in found if name.startswith(incomplete)]
        return proposed or super().shell_complete(ctx, incomplete)


def vault_names(ctx: click.Context) -> list[str]:
    """Those of the config file that a shell takes as one word."""
    try:
        return [name for name in config_file(ctx).vaults if shell_word(name) == name]
    except ConfigFileError:
        return []


def _keys_given(ctx: click.Context, opts: Mapping[str, Any]) -> dict[str, Any]:
    """The options of the command line, and those in the texts of -o, by their keys."""
    from cryptfs.mount.options import split_options

    keys = {}
    for each in ctx.command.params:
        if isinstance(each, click.Option) and each.name in opts:
            keys[each.name or ""] = True
    for text in opts.get("option_texts") or ():
        with contextlib.suppress(ValueError):  # the command says what is wrong with it
            for item in split_options(text):
                keys[item.name] = keys[item.name.removeprefix("no")] = True
                if item.name in ("ro", "rw"):
                    keys["read_only"] = True
    return keys


def vault_argument(function: Decorated) -> Decorated:
    """The vault, made absolute by the command."""
    return _argument("vault", type=PLACE, metavar="VAULT", callback=_remember_vault)(function)


def optional_vault_argument(function: Decorated) -> Decorated:
    """The same for a command that works without."""
    return _argument("vault", type=PLACE, metavar="[VAULT]", required=False)(function)


def vault_path_argument(name: str, kind: click.ParamType[Any]) -> Callable[[Decorated], Decorated]:
    """A vault and a path in it."""
    return _argument(name, type=kind, metavar="VAULT[:PATH]", with_path=True)


def _argument(name: str, **attributes: Any) -> Callable[[Decorated], Decorated]:
    return click.argument(name, cls=VaultArgument, **attributes)


def _remember_vault(ctx: click.Context, _param: click.Parameter, value: Path) -> Path:
    ctx.ensure_object(Settings).vault = value
    return value
