"""Each field of a FileState is set in one module; others tell it what happened."""

from __future__ import annotations

from pathlib import Path

import pytest

import cryptfs
from tests.project.owners import OWNERS, PARTS, fields_of, strangers

PACKAGE_DIR = Path(cryptfs.__file__).parent


def test_every_field_has_one_owner() -> None:
    assert strangers(PACKAGE_DIR) == []


def test_the_owned_fields_exist() -> None:
    assert OWNERS.keys() <= fields_of(PACKAGE_DIR)


@pytest.mark.parametrize(
    "source", ["state.size = 1", "file.state.size += 1", "self._state.size, x = 1, 2", "del state.size"]
)
def test_a_stranger_is_found(tmp_path: Path, source: str) -> None:
    for part in PARTS:
        (tmp_path / part).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / part).write_text((PACKAGE_DIR / part).read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "a.py").write_text(source)
    assert len(strangers(tmp_path)) == 1
