"""Each field of a FileState is set in one module; others tell it what happened."""

from __future__ import annotations

from pathlib import Path

import pytest

import cryptfs
from tests.project.owners import PARTS, fields_of, setters, shared

PACKAGE_DIR = Path(cryptfs.__file__).parent


def test_every_field_has_one_owner() -> None:
    assert shared(PACKAGE_DIR) == []


def test_few_fields_have_an_owner_elsewhere() -> None:
    """The count of its handles is the table's, which makes and forgets a FileState."""
    elsewhere = {
        name: sorted(places) for name, places in setters(PACKAGE_DIR).items() if places.keys() - PARTS.keys()
    }
    table = ["vfs/content/filetable.py"]
    assert elsewhere == {"birth": table, "handles": table, "writers": table}
    assert {"size", "header", "overtaken", "_marks"} <= fields_of(PACKAGE_DIR)


@pytest.mark.parametrize(
    "source", ["state.size = 1", "file.state.size += 1", "self._state.size, x = 1, 2", "del state.size"]
)
def test_a_stranger_is_found(tmp_path: Path, source: str) -> None:
    for part in PARTS:
        (tmp_path / part).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / part).write_text((PACKAGE_DIR / part).read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "a.py").write_text(source)
    assert [line.partition(":")[0] for line in shared(tmp_path)] == ["size"]


def test_a_base_and_its_heir_are_two_modules(tmp_path: Path) -> None:
    for part in PARTS:
        (tmp_path / part).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / part).write_text((PACKAGE_DIR / part).read_text(encoding="utf-8"), encoding="utf-8")
    state = tmp_path / "vfs/content/filestate.py"
    state.write_text(
        state.read_text(encoding="utf-8") + "\n    def f(self) -> None:\n        self._marks += 1\n"
    )
    assert [line.partition(":")[0] for line in shared(tmp_path)] == ["_marks"]
