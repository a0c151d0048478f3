"""Ctrl-C before a command has begun: no traceback."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from tests.support import child_environment

EARLY = """
import signal, sys
from importlib.abc import MetaPathFinder

class Interrupts(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == {module!r}:
            print("here", flush=True)
            signal.raise_signal(signal.SIGINT)

signal.signal(signal.SIGINT, {handler})
sys.meta_path.insert(0, Interrupts())
from cryptfs.__main__ import {entry}
sys.argv[1:] = {words!r}
{entry}()
"""


def early(
    module: str, entry: str, *words: str, handler: str = "signal.default_int_handler"
) -> tuple[int, str]:
    """Exit code and what is on stderr, if Ctrl-C comes while this module is loaded."""
    program = EARLY.format(module=module, entry=entry, words=list(words), handler=handler)
    told = subprocess.run(
        [sys.executable, "-c", program],
        env=child_environment(), capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert told.stdout.startswith("here\n")
    return told.returncode, told.stderr


@pytest.mark.parametrize(
    ("module", "entry"),
    [
        ("cryptfs.cli.main", "run"),
        ("click", "run"),
        ("cryptfs.cli.main", "run_as_gocryptfs"),
        ("cryptfs.cli.gocryptfs", "run_as_gocryptfs"),
    ],
)
def test_while_the_program_is_loaded(module: str, entry: str) -> None:
    assert early(module, entry, "--version") == (-signal.SIGINT, "")


@pytest.mark.parametrize(
    ("module", "entry", "words"),
    [
        ("cryptfs.cli.main", "run", ["--version"]),
        ("cryptfs.cli.ls", "run", ["ls", "--help"]),
        ("cryptfs.cli.main", "run_as_gocryptfs", ["--version"]),
    ],
)
def test_where_it_is_ignored(module: str, entry: str, words: list[str]) -> None:
    assert early(module, entry, *words, handler="signal.SIG_IGN") == (0, "")


def test_while_a_command_is_loaded() -> None:
    code, said = early("cryptfs.cli.ls", "run", "ls", "--help")
    assert (code, said.strip()) == (130, "cryptfs: interrupted")
