"""The wheel: what is in it, and that two builds give the same bytes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PARTS = ("cryptfs", "share", "pyproject.toml", "README.md", "LICENSE")


def build(tree: Path, into: Path, **variables: str) -> Path:
    """A wheel of a copy of this tree, which has other times, and was copied with another umask."""
    tree.mkdir()
    for part in PARTS:
        place = ROOT / part
        if place.is_dir():
            shutil.copytree(place, tree / part, copy_function=shutil.copyfile)
        else:
            shutil.copyfile(place, tree / part)
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", into],
        cwd=tree,
        env=os.environ | variables,
        capture_output=True,
        check=True,
    )
    (wheel,) = into.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("first")
    return build(place / "tree", place / "out")


def test_a_second_build_gives_the_same_bytes(wheel: Path, tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        other = build(tmp_path / "a tree elsewhere", tmp_path / "out", PYTHONHASHSEED="7", TZ="Asia/Tokyo")
    finally:
        os.umask(before)
    assert other.name == wheel.name
    assert other.read_bytes() == wheel.read_bytes()


def test_all_files_for_the_system_are_in_it(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    here = {path.relative_to(ROOT).as_posix() for path in (ROOT / "share").rglob("*") if path.is_file()}
    data = f"{wheel.name.removesuffix('-py3-none-any.whl')}.data/data/"
    assert here
    assert {name.removeprefix(data) for name in names if name.startswith(data)} == here
    code = {path.relative_to(ROOT).as_posix() for path in (ROOT / "cryptfs").rglob("*.py")}
    assert code <= names
    assert not any(name.startswith(("tests/", "scripts/")) for name in names)
