"""A vault, and a filesystem of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cryptfs.fsspec.filesystem import CryptfsFileSystem
from tests.transfer.conftest import PASSPHRASE, made_vault, passfile, vault_dir

__all__ = ["made_vault", "passfile", "vault_dir"]


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but options opens a vault, where a test does not say so."""
    for name in ("CRYPTFS_PASSFILE", "CRYPTFS_KEYFILE", "CREDENTIALS_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def options(vault_dir: Path, passfile: Path) -> dict[str, Any]:
    """Storage options, as a person writes them."""
    return {"vault": str(vault_dir), "passfile": str(passfile)}


@pytest.fixture
def fs(vault_dir: Path) -> Iterator[CryptfsFileSystem]:
    """The filesystem of the fresh vault."""
    with CryptfsFileSystem(vault_dir, passphrase=PASSPHRASE) as made:
        yield made
