"""For all tests."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from cryptfs.mount import daemon
from tests.support import no_vault_left_open


@pytest.fixture(scope="session", autouse=True)
def _only_children_are_hardened() -> Iterator[None]:
    """Commands that run in this process would give up core dumps for good; later tests look for those."""
    this, harden = os.getpid(), daemon.harden_process

    def harden_children() -> None:
        if os.getpid() != this:
            harden()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(daemon, "harden_process", harden_children)
        yield


@pytest.fixture(scope="session", autouse=True)
def _ctrl_c_reaches_the_programs() -> Iterator[None]:
    """A shell ignores SIGINT for what it runs in the background: the tests, and so what they start."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def _no_vault_left_open() -> Iterator[None]:
    """Thousands of tests would have thousands of descriptors."""
    with no_vault_left_open():
        yield
