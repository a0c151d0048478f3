"""A furnished vault for each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fsck.scene import furnish
from tests.support import BareVault


@pytest.fixture
def vault(tmp_path: Path) -> Iterator[BareVault]:
    """Furnished and at rest."""
    vault = BareVault(tmp_path / "vault")
    furnish(vault)
    vault.reopen()
    yield vault
    vault.close()
