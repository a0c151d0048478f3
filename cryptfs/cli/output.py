"""What a person reads: the answer on stdout, everything else on stderr.

rich is loaded only where a table or bar is drawn; it honours NO_COLOR and falls back to plain text where
the stream is no terminal.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.console import Console


def warn(text: str) -> None:
    """One warning on stderr."""
    click.echo(f"cryptfs: warning: {text}", err=True)


def note(text: str) -> None:
    """Something worth knowing that is not the answer, on stderr."""
    click.echo(text, err=True)


def answer_json(value: object) -> None:
    """The answer as JSON, indented, on stdout."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def console(*, stderr: bool = False) -> Console:
    """A rich console; what is piped keeps its full width."""
    from rich.console import Console

    made = Console(stderr=stderr, highlight=False, soft_wrap=False)
    if not made.is_terminal:
        made = Console(stderr=stderr, highlight=False, width=160)
    return made


def size_text(size: int) -> str:
    """'16 KiB', '1 MiB', '300 MB' ... whichever is exact, bytes else."""
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if size >= unit and size % unit == 0:
            return f"{size // unit} {name}"
    if size >= 1_000_000 and size % 1_000_000 == 0:
        return f"{size // 1_000_000} MB"
    return f"{size} bytes"
