"""Commands of cryptfs, run in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import click
import pytest

from cryptfs.cli import main as main_module


@dataclass(frozen=True)
class Outcome:
    """Exit code, and what a command printed."""

    code: int
    out: str
    err: str


Run = Callable[..., Outcome]


def all_commands(group: click.Group, above: str = "") -> Iterator[tuple[str, click.Command]]:
    """Every command below a group that does something, with its name: 'fsck', 'key add passphrase'."""
    for name, command in sorted(group.commands.items()):
        if isinstance(command, click.Group):
            yield from all_commands(command, f"{above}{name} ")
        else:
            yield f"{above}{name}", command


def runner(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command with its arguments, and collects its output."""

    def run_command(*args: object) -> Outcome:
        code = main_module.main([str(arg) for arg in args])
        said = capsys.readouterr()
        return Outcome(code, said.out, said.err)

    return run_command
