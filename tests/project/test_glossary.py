"""One word for one thing: no name means two things, and words of other programs do not come in."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path

import pytest

import cryptfs

PACKAGE_DIR = Path(cryptfs.__file__).parent

# What the glossary of docs/ARCHITECTURE.md has another word for.
FOREIGN = re.compile(
    r"cipherdir|cipher_dir|plaindir|diriv|dir_iv|cleartext|clear_text|blockno|block_no|filekey_|"
    r"\bpassword|master_key\b|\bsession_key|\biv\b"
)
# A few words that meant several things: where each may be defined.
DEFINED = {
    r"^_?Session$": (),  # one mount is a life, one channel to the kernel a connection
    r"^_?settle(_.*)?$": ("fsck/mend_files.py", "vfs/content/others.py", "vfs/upgrade.py"),
}


def defined_in(source: str) -> list[str]:
    """The classes, functions and type aliases of a module, methods too."""
    tree, found = ast.parse(source), []
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            found.append(node.name)
    return found


def public_types(source: str) -> list[str]:
    """The classes and type aliases at the top of a module that others can import."""
    found = []
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef):
            found.append(node.name)
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            found.append(node.targets[0].id)
    return [name for name in found if re.fullmatch(r"[A-Z][A-Za-z0-9]*[a-z][A-Za-z0-9]*", name)]


def words_of(source: str) -> set[str]:
    """Every name that a module uses or defines."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        for field in ("id", "attr", "name", "arg"):
            value = getattr(node, field, None)
            if isinstance(value, str):
                found.add(value)
    return found


MODULES = {str(path.relative_to(PACKAGE_DIR)): path for path in sorted(PACKAGE_DIR.rglob("*.py"))}


def test_no_type_has_the_name_of_another() -> None:
    places = defaultdict(list)
    for place, path in MODULES.items():
        for name in public_types(path.read_text(encoding="utf-8")):
            places[name].append(place)
    assert {name: where for name, where in places.items() if len(where) > 1} == {}


@pytest.mark.parametrize("place", MODULES)
def test_no_foreign_word(place: str) -> None:
    words = words_of(MODULES[place].read_text(encoding="utf-8"))
    assert [word for word in sorted(words) if FOREIGN.search(word)] == []


@pytest.mark.parametrize("pattern", DEFINED)
def test_a_word_with_one_meaning_has_its_places(pattern: str) -> None:
    found = {
        place
        for place, path in MODULES.items()
        if any(re.search(pattern, name) for name in defined_in(path.read_text(encoding="utf-8")))
    }
    assert found == set(DEFINED[pattern])


@pytest.mark.parametrize("word", ["cipherdir", "diriv", "cleartext_size", "password", "master_key"])
def test_a_foreign_word_is_found(word: str) -> None:
    assert FOREIGN.search(word)


def test_types_are_seen() -> None:
    assert public_types("class Kind: ...\nPlace = tuple[int, int]\nLIMIT = 3\ndef f(): ...") == [
        "Kind",
        "Place",
    ]
