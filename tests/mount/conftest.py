"""Fixtures of several modules here. Those that need another `kernel` have one of their own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cryptfs.mount.native.nodes import NodeTable
from tests.mount.native_kernel import FakeKernel, kernel_for
from tests.support import BareVault


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
