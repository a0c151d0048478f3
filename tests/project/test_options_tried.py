"""Every command and every option occurs in a test that runs the whole program as a process.

What the test asserts is for people to judge; that there is one is judged here. A new option needs one.
"""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import pytest

from cryptfs.cli import gocryptfs
from cryptfs.cli.main import every_command
from cryptfs.cli.offers import MOUNT_FLAGS, MOUNT_VALUES
from cryptfs.mount.options import _FLAGS, _VALUES, IGNORED_OPTIONS, KERNEL_OPTIONS
from tests.project.command_lines import (
    command_lines,
    mount_texts,
    options_in,
    runs_in_process,
    spellings,
    texts_of,
    tried,
)

TESTS = Path(__file__).parents[1]
END_TO_END = [
    file
    for room in ("cli", "e2e", "outside")
    for file in sorted((TESTS / room).glob("*.py"))
    if not runs_in_process(file.read_text("utf-8"))
]
COMMANDS = every_command()
SHARED = 25
"""An option of so many commands is one: they get it from one place, and it is tried with some of them.
tests/cli/test_ways_to_unlock.py and test_unattended.py go through all commands for these."""
_OF_ALL = Counter(option for command in COMMANDS.values() for option in set(spellings(command).values()))


def missing(found: dict[str, set[str]]) -> list[str]:
    """The commands and options that no command line has."""
    lacking = [name for name in COMMANDS if "" not in found[name]]
    for name, command in COMMANDS.items():
        own = {option for option in spellings(command).values() if _OF_ALL[option] < SHARED}
        lacking += [f"{name} {option}" for option in sorted(own - found[name])]
    anywhere = set().union(*found.values())
    return lacking + [
        option for option, count in _OF_ALL.items() if count >= SHARED and option not in anywhere
    ]


def test_every_command_and_option_is_tried() -> None:
    assert missing(tried(END_TO_END, COMMANDS)) == []


def test_every_option_within_o_is_tried() -> None:
    known = {*_FLAGS, *_VALUES, *KERNEL_OPTIONS, *IGNORED_OPTIONS, *MOUNT_VALUES, *MOUNT_FLAGS}
    known |= {"log_file", "log_size", "foreground", "debug", "quiet", "remount"}
    found = {name for file in END_TO_END for name in mount_texts(file.read_text("utf-8"))}
    assert known - found == set()


def test_every_flag_of_gocryptfs_is_tried() -> None:
    known = {*gocryptfs._SWITCHES, *gocryptfs._VALUED, *gocryptfs._ALIASES}
    source = (TESTS / "e2e" / "test_other_command_lines.py").read_text("utf-8")
    found = {word.partition("=")[0].lstrip("-") for word in texts_of(source) if word.startswith("-")}
    assert known - found == set()


def test_every_flag_of_the_mount_helper_is_tried() -> None:
    from cryptfs.cli import mounthelper

    source = (TESTS / "e2e" / "test_other_command_lines.py").read_text("utf-8")
    found = texts_of(source)
    assert {f"-{letter}" for letter in mounthelper._FLAGS} | {"-o", *mounthelper._WITH_VALUE} <= found


# ---- the check itself


def test_an_option_without_a_test_is_missed() -> None:
    found = tried(END_TO_END, COMMANDS)
    found["ls"] = found["ls"] - {"--null"}
    found["speed"] = set()
    assert missing(found) == [
        *("speed", "ls --null"),
        *("speed --json", "speed --repeat", "speed --size", "speed --threads"),
    ]


@pytest.mark.parametrize(
    ("line", "name", "options"),
    [
        ('desk("ls", "-lR", vault)', "ls", {"--long", "--recursive"}),
        ('run([*PROGRAM, "ls", vault, *("--json",)])', "ls", {"--json"}),
        ('desk(*(("key", "add", "keyfile", vault) + ("--generate",)))', "key add keyfile", {"--generate"}),
        ('new = ("--new", "x"); more = ("--all", "y"); desk("ls", vault, *more)', "ls", {"--all"}),
        (
            'for more in (("--all",), ("-d", "x"), "--json"): desk("ls", *more)',
            "ls",
            {"--all", "--directory", "--json"},
        ),
        ('@parametrize("more", [("-a",)])\ndef test(more): desk("ls", *more)', "ls", {"--all"}),
        ('@parametrize(("x", "more"), [(1, ("-a",))])\ndef test(more): desk("ls", *more)', "ls", {"--all"}),
        ('def one(): more = ["--all"]\ndef test(more): desk("ls", *more)', "ls", set()),
        ('words = [sys.executable, "-m", "cryptfs", "ls", "--null"]', "ls", {"--null"}),
        ('Terminal("init {} --no-recovery".split(), {})', "init", {"--no-recovery"}),
        ('Question(f"ls {place} --directory", "Passphrase: ")', "ls", {"--directory"}),
        ('place.mount("--idle", "1s", "-o", "ro")', "mount", {"--idle", "--options"}),
        ('desk("ls", vault, "--size=4")', "ls", set()),
    ],
)
def test_a_command_line_is_found(line: str, name: str, options: set[str]) -> None:
    lines = [words for found, words in command_lines(line, COMMANDS) if found == name]
    known = spellings(COMMANDS[name])
    assert lines and {option for words in lines for option in options_in(words, known)} == options


@pytest.mark.parametrize(
    "line",
    [
        'assert "ls --json" in told',
        'assert told.endswith("cryptfs ls --json")',
        'print("no command", "ls", "--json")',
        'name = "--json"',
    ],
)
def test_what_is_no_command_line(line: str) -> None:
    assert list(command_lines(line, COMMANDS)) == []


def test_what_runs_in_the_process_of_the_tests_does_not_count() -> None:
    assert runs_in_process("from tests.commands import Run, runner")
    assert runs_in_process("from cryptfs.cli.main import main")
    assert not runs_in_process("from tests.e2e.desk import Desk")
    names = {file.name for file in END_TO_END}
    assert "test_cli_commands.py" not in names and "test_cli_inside.py" in names


def test_texts_of_o() -> None:
    line = 'mount("-o", "ro,idle=1", *more, "-o", f"{first},noexec,log_file={place}")'
    assert mount_texts(line) == {"ro", "idle", "noexec", "log_file"}
    assert ast.parse(line)
