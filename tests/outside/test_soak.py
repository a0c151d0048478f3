"""The random harness itself: its model is right where nothing happens outside; and some seconds of all."""

from __future__ import annotations

from pathlib import Path

import pytest

from soaklib.outside import main
from tests.e2e.conftest import ENGINES


@pytest.mark.waits
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("way", ["--calm", ""])
def test_random_changes(ground: Path, engine: str, way: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Programs alone; and with the outside actor."""
    assert ground.is_dir()
    words = ["--seed", "7", "--seconds", "2", "--engine", engine, *([way] if way else [])]
    found = main(words)
    assert not found, capsys.readouterr().out
