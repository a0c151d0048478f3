"""The generated files are what their generator makes; the man pages leave nothing out."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
import pytest

from cryptfs.cli.exit_codes import ExitCode
from cryptfs.cli.main import every_command

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "share" / "man" / "man1"
GENERATOR = ROOT / "scripts" / "manpage.py"


def page_of(name: str) -> str:
    return (PAGES / f"cryptfs-{name.replace(' ', '-')}.1").read_text().replace("\\-", "-")


def test_they_are_up_to_date() -> None:
    done = subprocess.run([sys.executable, GENERATOR, "--check"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), "run: scripts/manpage.py"


@pytest.mark.parametrize("name", sorted(every_command()))
def test_every_command_has_a_page_with_its_options(name: str) -> None:
    section = page_of(name).partition(".SH OPTIONS")[2].partition("\n.SH")[0]
    for parameter in every_command()[name].params:
        if isinstance(parameter, click.Option):
            for spelling in (*parameter.opts, *parameter.secondary_opts):
                assert f"\\fB{spelling}\\fR" in section
    assert f"\\fBcryptfs {name}\\fR" in (PAGES / "cryptfs.1").read_text().replace("\\-", "-")


@pytest.mark.parametrize("code", list(ExitCode))
def test_every_exit_code_is_in_the_first_page(code: ExitCode) -> None:
    assert f"\n.B {int(code)}\n" in (PAGES / "cryptfs.1").read_text()
