"""A vault with recovery words."""

from __future__ import annotations

from pathlib import Path

import pytest

from cryptfs.unlock.recovering import HeldSecret
from tests.unlock.vaults import make_vault, new_words


@pytest.fixture
def words() -> HeldSecret:
    """Recovery words that nobody has used."""
    return new_words()


@pytest.fixture
def vault_dir(tmp_path: Path, words: HeldSecret) -> Path:
    """A vault that those words open as well."""
    make_vault(tmp_path / "vault", words)
    return tmp_path / "vault"
