"""Commands in messages can be pasted: they name the vault, or VAULT, where the command line puts its path."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import cryptfs
from cryptfs.cli.main import every_command
from cryptfs.core.printable import for_vault

PACKAGE_DIR = Path(cryptfs.__file__).parent
_VALUE = "\0"
_HINT = re.compile(rf": cryptfs ((?:[a-z-]+ ?)+)((?: ?(?:{_VALUE}|--?[a-z-]+|[A-Z_]+))*)")


def texts(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """The texts of a module; values in them are _VALUE. Not those of docstrings and of the help."""
    left_out: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg in ("help", "epilog"):
            left_out |= {id(each) for each in ast.walk(node.value)}
        elif isinstance(node, ast.Expr):
            left_out.add(id(node.value))
        elif isinstance(node, ast.JoinedStr):
            left_out |= {id(each) for each in ast.walk(node) if isinstance(each, ast.Constant)}
        if isinstance(node, ast.JoinedStr) and id(node) not in left_out:
            pieces = [str(each.value) if isinstance(each, ast.Constant) else _VALUE for each in node.values]
            yield node.lineno, "".join(pieces)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in left_out:
            yield node.lineno, node.value


def incomplete(text: str) -> Iterator[str]:
    """The commands in a message that lack an argument."""
    commands = every_command()
    for found in _HINT.finditer(text):
        words, rest = found[1].split(), found[2].split()
        name = next((" ".join(words[:end]) for end in (3, 2, 1) if " ".join(words[:end]) in commands), "")
        arguments = [each for each in rest if each == _VALUE or each.isupper()]
        needed = [
            each for each in commands[name].params if isinstance(each, click.Argument) and each.required
        ] if name else []  # fmt: skip
        if len(arguments) < len(needed):
            yield found[0].replace(_VALUE, "...")


@pytest.mark.parametrize(
    ("text", "is_whole"),
    [
        ("first run: cryptfs upgrade", False),
        ("first run: cryptfs upgrade VAULT", True),
        (f"once more: cryptfs fsck --repair {_VALUE}", True),
        ("once more: cryptfs fsck --repair --deep", False),
        (f"compare: cryptfs verify {_VALUE}", False),
        (f"compare: cryptfs verify {_VALUE} MANIFEST", True),
        (f"make some: cryptfs recovery words {_VALUE}", True),
        ("make some: cryptfs recovery words", False),
    ],
)
def test_the_check_itself(text: str, is_whole: bool) -> None:
    assert (list(incomplete(text)) == []) is is_whole


def test_no_hint_lacks_an_argument() -> None:
    found = [
        f"{file.relative_to(PACKAGE_DIR)}:{line}: {command}"
        for file in sorted(PACKAGE_DIR.rglob("*.py"))
        for line, text in texts(ast.parse(file.read_text("utf-8")))
        for command in incomplete(text)
    ]
    assert found == []


def test_a_command_gets_the_path_of_its_vault() -> None:
    text = "VAULT: first run: cryptfs key add keyfile VAULT --generate FILE"
    assert for_vault(text, "/my vault") == (
        "VAULT: first run: cryptfs key add keyfile '/my vault' --generate FILE"
    )
    assert for_vault("cryptfs rekey --take-over VAULT", "-v") == "cryptfs rekey --take-over ./-v"
    assert for_vault("in VAULT", "/v") == "in VAULT"
