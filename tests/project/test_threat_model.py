"""docs/THREAT_MODEL.md: every row names a test, and every test that is named exists.

Every row about a vault that somebody changes at rest names a test on a mount as well, or says here why not.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.conftest import MOUNTED

TESTS = Path(__file__).parents[1]
TEXT = (TESTS.parent / "docs" / "THREAT_MODEL.md").read_text(encoding="utf-8")
TAMPER = TESTS / "tamper"
_REFERENCE = re.compile(r"`(test_\w+)::(test_\w+)`")
_LIKE_ONE = re.compile(r"`([^`\s]*(?:::|\btest_)[^`\s]*)`")


def functions(directory: Path = TESTS) -> set[str]:
    """`file::function` of every test below a directory."""
    return {
        f"{path.stem}::{node.name}"
        for path in directory.rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def wrong_names(text: str, existing: set[str]) -> list[str]:
    """What a text names as a test, in whatever spelling, and is none; one line more if it names no test."""
    named = _LIKE_ONE.findall(text)
    return [name for name in named if name not in existing] or ([] if named else ["it names no test"])


def rows_without_a_test(text: str) -> list[str]:
    """Rows of tables that have a column `test`, and nothing in it that is one."""
    found = []
    column = None
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        if not cells:
            column = None
        elif "test" in cells:
            column = cells.index("test")
        elif column is not None and not set(line) <= set("|- ") and not _REFERENCE.search(cells[column]):
            found.append(line)
    return found


def test_every_named_test_exists() -> None:
    assert wrong_names(TEXT, functions()) == []


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("| a | `test_x::test_y` |", []),
        ("| a | `test_x::test_y`, `test_x::test_z` |", ["test_x::test_z"]),
        ("| a | `test_z::test_y` |", ["test_z::test_y"]),
        ("| a | `test_y` |", ["test_y"]),
        ("| a | `x::test_y` |", ["x::test_y"]),
        ("| a | `cryptfs mount` |", ["it names no test"]),
        ("", ["it names no test"]),
    ],
)
def test_a_name_that_does_not_exist_is_found(text: str, wrong: list[str]) -> None:
    assert wrong_names(text, {"test_x::test_y"}) == wrong


def test_every_row_names_one() -> None:
    assert rows_without_a_test(TEXT) == []
    assert len(_REFERENCE.findall(TEXT)) > 80


def section(number: int) -> str:
    """The text of a section."""
    return TEXT.partition(f"\n## {number}. ")[2].partition("\n## ")[0]


def rows_off_a_mount(text: str, on_a_mount: set[str]) -> list[str]:
    """First cells of the rows of tables with a column `test` that name no test of a mount."""
    found = []
    for line in text.splitlines():
        named = {"::".join(each) for each in _REFERENCE.findall(line)}
        if line.startswith("| ") and named and not named & on_a_mount:
            found.append(line.strip("| ").partition(" |")[0])
    return found


BELOW_A_MOUNT = {
    "the config deleted, with a recovery record of another vault or another masterkey beside it": "without a "
    "config there is no mount, and restore-config decides",
    "the config deleted, with the recovery record from before an upgrade put back": "as the row above",
    "the config deleted, and the recovery record from before new words put back": "as the row above",
}
"""Rows of section 3 whose tests do without a mount, and why."""


def test_every_change_at_rest_is_tried_on_a_mount() -> None:
    on_a_mount = set().union(*map(functions, MOUNTED))
    assert set(rows_off_a_mount(section(3), on_a_mount)) == set(BELOW_A_MOUNT)


def test_a_row_off_a_mount_is_found() -> None:
    both = "`test_x::test_y`, `test_z::test_m`"
    rows = ("| change | test |", "|---|---|", "| a | `test_x::test_y` |", f"| b | {both} |")
    assert rows_off_a_mount("\n".join(rows), {"test_z::test_m"}) == ["a"]


def test_a_row_without_one_is_found() -> None:
    rows = ("| change | test |", "|---|---|", "| a | `test_x::test_y` |", "| b | later |", "")
    table = "\n".join((*rows, "| other | table |", "|---|---|", "| c | d |"))
    assert rows_without_a_test(table) == ["| b | later |"]


def test_every_case_of_tampering_is_in_the_table() -> None:
    """What is tried in tests/tamper/ is promised, or said not to be, in the document."""
    named = {function for _, function in _REFERENCE.findall(TEXT)}
    tried = {name.partition("::")[2] for name in functions(TAMPER)}
    about_the_tests = {
        "test_spelling_is_free",
        "test_every_kind_is_here",
        "test_flipped_bytes",  # a sample of what test_every_byte_of_the_config_matters does, with Argon2id
        "test_replaced_cost_of_a_slot",
        "test_missing_config",
        "test_empty_file_with_a_header_can_be_opened",
        "test_unreadable_sidecar_hides_nothing_else",
        "test_entry_that_goes_during_a_listing_is_no_damage",
    }
    assert tried - named == about_the_tests
