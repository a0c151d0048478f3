"""docs/THREAT_MODEL.md: every row names a test, and every test that is named exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
TEXT = (TESTS.parent / "docs" / "THREAT_MODEL.md").read_text(encoding="utf-8")
_REFERENCE = re.compile(r"`(test_\w+)::(test_\w+)`")


def functions(directory: Path = TESTS) -> set[tuple[str, str]]:
    """(file, function) of every test below a directory."""
    return {
        (path.stem, node.name)
        for path in directory.rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


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
    assert set(_REFERENCE.findall(TEXT)) - functions() == set()


def test_every_row_names_one() -> None:
    assert rows_without_a_test(TEXT) == []
    assert len(_REFERENCE.findall(TEXT)) > 80


def test_a_row_without_one_is_found() -> None:
    rows = ("| change | test |", "|---|---|", "| a | `test_x::test_y` |", "| b | later |", "")
    table = "\n".join((*rows, "| other | table |", "|---|---|", "| c | d |"))
    assert rows_without_a_test(table) == ["| b | later |"]


def test_every_case_of_tampering_is_in_the_table() -> None:
    """What is tried in tests/tamper/ is promised, or said not to be, in the document."""
    named = {function for _, function in _REFERENCE.findall(TEXT)}
    own = functions(Path(__file__).parent)
    tried = {function for file, function in own if file != Path(__file__).stem}
    about_the_tests = {
        "test_spelling_is_free",
        "test_flipped_bytes",  # a sample of what test_every_byte_of_the_config_matters does, with Argon2id
        "test_replaced_cost_of_a_slot",
        "test_missing_config",
        "test_empty_file_with_a_header_can_be_opened",
        "test_unreadable_sidecar_hides_nothing_else",
        "test_entry_that_goes_during_a_listing_is_no_damage",
    }
    assert tried - named == about_the_tests
