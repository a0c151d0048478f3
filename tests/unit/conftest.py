"""Fixtures of several modules here. Those that need another `vault` or `kernel` have one of their own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cryptfs.mount.native.nodes import NodeTable
from tests.support import BareVault
from tests.unit.native_kernel import FakeKernel, kernel_for


@pytest.fixture
def vault(tmp_path: Path) -> Iterator[BareVault]:
    """A vault without a mount."""
    made = BareVault(tmp_path / "vault")
    yield made
    made.close()


@pytest.fixture
def table(vault: BareVault) -> Iterator[NodeTable]:
    """What the native engine knows of it."""
    made = NodeTable(vault.tree)
    yield made
    made.close()


@pytest.fixture
def kernel(vault: BareVault) -> Iterator[FakeKernel]:
    """The native engine's session on it, with a test in the kernel's place."""
    with kernel_for(vault) as made:
        yield made
