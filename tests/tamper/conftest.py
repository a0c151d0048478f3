"""A vault with a file to tamper with and one that must not notice."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import CIPHERS, BareVault, open_descriptors, pattern
from tests.tamper.scene import BYSTANDER, SIZE, VICTIM, Scene


@pytest.fixture(params=CIPHERS)
def scene(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Scene]:
    """Both ciphers: victim and bystander closed, so that whoever opens them reads what is on disk."""
    vault = BareVault(tmp_path / "vault", cipher=request.param)
    vault.put(VICTIM, pattern(SIZE, 1))
    vault.put(BYSTANDER, pattern(SIZE, 2))
    gc.collect()  # what earlier tests left in reference loops
    before = open_descriptors()
    yield Scene(vault)
    gc.collect()
    assert open_descriptors() == before  # damage leaks no descriptor
    vault.close()
