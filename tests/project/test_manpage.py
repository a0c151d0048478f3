"""The man page is what its generator makes, and leaves nothing out."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
import pytest

from cryptfs.cli.exit_codes import ExitCode
from cryptfs.cli.main import every_command

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "cryptfs.1"


def test_the_page_is_up_to_date() -> None:
    made = subprocess.run(
        [sys.executable, ROOT / "scripts" / "manpage.py"], capture_output=True, text=True, check=True
    )
    assert PAGE.read_text() == made.stdout, "run: scripts/manpage.py > docs/cryptfs.1"


@pytest.mark.parametrize("name", sorted(every_command()))
def test_every_command_and_option_is_in_it(name: str) -> None:
    text = PAGE.read_text().replace("\\-", "-")
    section = text.partition(f".SS \\fBcryptfs {name}\\fR")[2].partition("\n.S")[0]
    assert section
    for parameter in every_command()[name].params:
        if isinstance(parameter, click.Option):
            for spelling in (*parameter.opts, *parameter.secondary_opts):
                assert f"\\fB{spelling}\\fR" in section


@pytest.mark.parametrize("code", list(ExitCode))
def test_every_exit_code_is_in_it(code: ExitCode) -> None:
    assert f"\n.B {int(code)}\n" in PAGE.read_text()
