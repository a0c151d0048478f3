"""A furnished vault for each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fsck.scene import furnish
from tests.support import BareVault


@pytest.fixture
def vault(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[BareVault]:
    """Furnished and at rest, with bound directories; with the parameter False as 0.1 made it."""
    vault = BareVault(tmp_path / "vault", bound=getattr(request, "param", True))
    furnish(vault)
    vault.reopen()
    yield vault
    vault.close()
