"""What somebody wants of a mount: from the command line, the texts of `-o`, and the config file."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from cryptfs.cli.configfile import NamedVault, weaker
from cryptfs.cli.offers import (
    MOUNT_FLAGS,
    MOUNT_VALUES,
    UNLOCK_OPTIONS,
    OfferSource,
    mount_source,
    offer_source,
)
from cryptfs.cli.params import ByteSize, Settings, config_file
from cryptfs.mount.options import KERNEL_OPTIONS, MountOptions, OptionItem, apply_options, split_options

if TYPE_CHECKING:
    from cryptfs.mount.daemon import LogTarget

# Options of the command that fstab can only give within -o.
_COMMAND_OPTIONS = (*MOUNT_VALUES, "log_file", "log_size")
_COMMAND_FLAGS = ("foreground", "debug", "quiet", *MOUNT_FLAGS)
_NOT_OF_MOUNT = ("option_texts", "foreground", "quiet", "log_file", "log_size")
"""Parameters of `cryptfs mount` that are no field of MountOptions."""


@dataclass(frozen=True, slots=True)
class Wish:
    """How to unlock, to mount, and to tell of it."""

    options: MountOptions
    source: OfferSource
    target: LogTarget
    foreground: bool
    quiet: bool


def wish_of(ctx: click.Context, source: OfferSource, values: Mapping[str, Any]) -> Wish:
    """The wish in the parameters of `cryptfs mount`.

    Args:   source: of the parameters that unlock.   values: of the others, by name; some may be missing.
    Raises: click.UsageError, UsageProblem: they are wrong.
    """
    from cryptfs.mount.daemon import MOST_LOG, LogTarget

    flags = {name: value for name, value in values.items() if name not in _NOT_OF_MOUNT}
    try:
        options, ours = collect_options(values.get("option_texts") or (), flags)
    except ValueError as error:
        raise click.UsageError(str(error), ctx) from None
    settings = ctx.ensure_object(Settings)
    settings.debug = settings.debug or "debug" in ours
    log_file = values.get("log_file") or (Path(ours["log_file"]) if "log_file" in ours else None)
    log_size = values.get("log_size")
    if log_file is None and ctx.get_parameter_source("log_size") == ParameterSource.COMMANDLINE:
        raise click.UsageError("--log-size works only with --log-file", ctx)
    if log_size is None and "log_size" in ours:
        log_size = ByteSize().convert(ours["log_size"], None, ctx)
    most = MOST_LOG if log_size is None else log_size
    return Wish(
        options,
        mount_source(source, ours),
        LogTarget(log_file.absolute() if log_file else None, settings.debug, most),
        bool(values.get("foreground")) or "foreground" in ours,
        bool(values.get("quiet")) or "quiet" in ours,
    )


def wish_from_config(ctx: click.Context, source: OfferSource, named: NamedVault | None) -> Wish:
    """The wish of a command that has only some of the parameters of `cryptfs mount`.

    What its command line says counts; all else is as in the config file.

    Args:   source: of its command line.   named: the vault, if the config file has it.
    Raises: click.UsageError, UsageProblem, ConfigFileError.
    """
    given = {
        name: value
        for name, value in ctx.params.items()
        if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE
    }
    root = ctx.find_root().command
    assert isinstance(root, click.Group)
    parameters = {each.name or "": each for each in root.commands["mount"].params}
    found = weaker(config_file(ctx).options_for("mount", named), given)
    values = {name: parameters[name].type_cast_value(ctx, value) for name, value in found.items()}
    unlocks = {name: values.pop(name) for name in UNLOCK_OPTIONS if name in values}
    if unlocks:
        source = offer_source({name: ctx.params.get(name) for name in UNLOCK_OPTIONS} | unlocks)
    fields = {field.name for field in dataclasses.fields(MountOptions)}
    return wish_of(ctx, source, values | {name: given[name] for name in given if name in fields})


def collect_options(texts: Iterable[str], flags: Mapping[str, object]) -> tuple[MountOptions, dict[str, str]]:
    """MountOptions from the -o strings, with the flags of the command line on top; and what is the command's.

    Of the command's own options those without a value have the value "".

    Raises: ValueError: an unknown or ill-formed option.
    """
    items: list[OptionItem] = []
    ours: dict[str, str] = {}
    for text in texts:
        for item in split_options(text):
            if item.name in _COMMAND_FLAGS:
                if item.value is not None:
                    raise ValueError(f"mount option {item.name!r} takes no value")
                ours[item.name] = ""
            elif item.name not in _COMMAND_OPTIONS:
                items.append(item)
            elif not item.value:
                raise ValueError(f"mount option {item.name!r} needs a value: {item.name}=...")
            else:
                ours[item.name] = item.value
    options = apply_options(MountOptions(), items)
    given = {name: value for name, value in flags.items() if value is not None}
    return replace(options, **given), ours  # type: ignore[arg-type]


def remount_options(texts: Iterable[str]) -> str | None:
    """What `-o remount,...` asks to change, without the command's own options; None if it does not."""
    names = [item.name for text in texts for item in split_options(text)]
    if "remount" not in names:
        return None
    known = KERNEL_OPTIONS | {"ro", "rw"}
    return ",".join(name for name in names if name in known)
