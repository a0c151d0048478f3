"""Output for a person: the answer on stdout, everything else on stderr.

rich is loaded only where a table or bar is drawn; it honours NO_COLOR and falls back to plain text where
the stream is no terminal.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import click

from cryptfs.cli.params import Settings
from cryptfs.core.printable import fit_for_terminal, for_vault

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

SCHEMA = 1  # of all JSON; a field that is removed or changes its meaning makes it 2, a new field does not
_FILLING = re.compile(r" +((?:\x1b\[[0-9;]*m)*)$", re.MULTILINE)


def warn(text: str) -> None:
    """One warning on stderr, also with --quiet."""
    say(f"cryptfs: warning: {text}")


def note(text: str) -> None:
    """Something worth knowing that is not the answer, on stderr; with --quiet it is left out."""
    if not is_quiet():
        say(text)


def say(text: str) -> None:
    """Errors, questions and warnings on stderr, also with --quiet."""
    click.echo(fit_for_terminal(with_paths(text)), err=True)


def is_quiet() -> bool:
    """Whether --quiet was given."""
    ctx = click.get_current_context(silent=True)
    settings = None if ctx is None else ctx.find_object(Settings)
    return settings is not None and settings.quiet


def with_paths(text: str) -> str:
    """A message with the vault of this command in its hints; see core/printable.py."""
    ctx = click.get_current_context(silent=True)
    settings = None if ctx is None else ctx.find_object(Settings)
    return text if settings is None or settings.vault is None else for_vault(text, settings.vault)


def answer_json(fields: dict[str, Any], *, indent: int | None = 2) -> None:
    """The answer as JSON on stdout. Paths in it must be `shown`: one may have bytes that are not text."""
    click.echo(json_text({"schema": SCHEMA, **fields}, indent=indent))


def json_text(value: Any, *, indent: int | None = None) -> str:
    """JSON in which nothing acts on a terminal: unprintable characters are \\u escapes."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    if text.replace("\n", "").isprintable():
        return text
    # Each of them stands within a string, where such an escape means the same.
    return "".join(each if each.isprintable() or each == "\n" else json.dumps(each)[1:-1] for each in text)


def console(*, stderr: bool = False) -> Console:
    """A rich console; what is piped keeps its full width."""
    from rich.console import Console

    made = Console(stderr=stderr, highlight=False, soft_wrap=False)
    if not made.is_terminal:
        made = Console(stderr=stderr, highlight=False, width=160)
    return made


def show(drawn: RenderableType) -> None:
    """A table or the like on stdout, without the blanks that fill its lines."""
    screen = console()
    with screen.capture() as captured:
        screen.print(drawn)
    click.echo(_FILLING.sub(r"\1", captured.get()), nl=False, color=screen.is_terminal)


def size_text(size: int) -> str:
    """'16 KiB', '1 MiB', '300 MB' ... whichever is exact, bytes else."""
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if size >= unit and size % unit == 0:
            return f"{size // unit} {name}"
    if size >= 1_000_000 and size % 1_000_000 == 0:
        return f"{size // 1_000_000} MB"
    return f"{size} bytes"
