"""Commands and groups of click that load what they need when they need it.

rich-click draws their help, and is loaded for that alone: with it, each start takes twice the time.
`CommandModules` has the commands of a group by name, and loads the module of the one that a person typed.
"""

from __future__ import annotations

import importlib
import keyword
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any, ClassVar

import click

from cryptfs.cli.params import add_quiet

OptionGroups = Mapping[str, tuple[str, ...]]


class Command(click.Command):
    """A command. option_groups: titles, each with the options below it, for a help of many options."""

    def __init__(self, *args: Any, option_groups: OptionGroups | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.option_groups = option_groups or {}
        add_quiet(self)

    def get_help(self, ctx: click.Context) -> str:
        """The help as rich-click draws it."""
        return _drawn(self, ctx, {})


class Group(click.Group):
    """A group of commands; its decorators make a `Command` and a `Group`."""

    command_class = Command
    option_groups: ClassVar[OptionGroups] = {}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        add_quiet(self)

    def get_help(self, ctx: click.Context) -> str:
        """The help as rich-click draws it."""
        return _drawn(self, ctx, dict(self.commands))


Group.group_class = Group


class CommandModules(MutableMapping[str, click.Command]):
    """The commands of a group by their names; the module of one is loaded when somebody asks for it.

    Args: modules: the module of each command. The command is called in it as here, with a _ behind it where
                   Python has the word for itself.
    """

    def __init__(self, modules: Mapping[str, str]) -> None:
        self._modules = modules
        self._loaded: dict[str, click.Command] = {}

    def __getitem__(self, name: str) -> click.Command:
        if name not in self._loaded:
            attribute = f"{name}_" if keyword.iskeyword(name) else name
            self._loaded[name] = getattr(importlib.import_module(self._modules[name]), attribute)
        return self._loaded[name]

    def __setitem__(self, name: str, command: click.Command) -> None:
        self._loaded[name] = command

    def __delitem__(self, name: str) -> None:
        raise TypeError("a command of the program stays")

    def __contains__(self, name: object) -> bool:
        return name in self._loaded or name in self._modules

    def __iter__(self) -> Iterator[str]:
        return iter({**self._modules, **self._loaded})

    def __len__(self) -> int:
        return len({**self._modules, **self._loaded})


def command(name: str | None = None, **attributes: Any) -> Callable[[Callable[..., Any]], Command]:
    """`@click.command` for a `Command`."""
    return click.command(name, Command, **attributes)


def group(name: str | None = None, **attributes: Any) -> Callable[[Callable[..., Any]], Group]:
    """`@click.group` for a `Group`."""
    return click.group(name, Group, **attributes)


def _drawn(command: Command | Group, ctx: click.Context, commands: dict[str, click.Command]) -> str:
    """Have rich-click draw the help of a command of its own, with the same content."""
    from rich_click import RichCommand, RichContext, RichGroup

    twin = RichCommand(name=command.name)
    if isinstance(command, Group):
        twin = RichGroup(name=command.name, commands=commands, subcommand_metavar=command.subcommand_metavar)
    twin.params, twin.callback, twin.context_settings = (
        command.params,
        command.callback,
        command.context_settings,
    )
    twin.help, twin.epilog, twin.options_metavar = command.help, command.epilog, command.options_metavar
    groups = [{"name": title, "options": list(names)} for title, names in command.option_groups.items()]
    drawing = RichContext(
        twin,
        parent=ctx.parent,
        info_name=ctx.info_name,
        rich_help_config={"option_groups": {ctx.command_path: groups}} if groups else {},
        help_option_names=ctx.help_option_names,
        max_content_width=ctx.max_content_width,
        terminal_width=ctx.terminal_width,
    )
    ctx.color = True  # rich has decided about colours: click shall leave what it drew
    return twin.get_help(drawing)
