"""For all tests."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from cryptfs.mount import daemon
from tests import derived, support
from tests.e2e.mounting import LogWatch
from tests.support import BareVault, no_vault_left_open

PURE = Path(__file__).parent / "unit"
"""The room whose tests touch no disk."""

MOUNTED = (Path(__file__).parent / "e2e", Path(__file__).parent / "outside")
"""Rooms whose tests all mount something; those without a mark get `waits`."""


_state = pytest.StashKey[str]()


def pytest_configure(config: pytest.Config) -> None:
    """Commands remember vaults in a place of the tests, not of the person who runs them."""
    settings.register_profile("tests", deadline=None)  # machines are shared
    settings.load_profile("tests")
    config.stash[_state] = tempfile.mkdtemp(prefix="state-tests-")
    os.environ["XDG_STATE_HOME"] = config.stash[_state]
    os.environ.setdefault(derived.DIRECTORY, config.stash[_state])  # the workers share that of the first
    derived.begin()
    os.environ.pop("CRYPTFS_NO_PIN", None)
    os.environ["CRYPTFS_CONFIG"] = ""  # that of the person who runs them


def pytest_unconfigure(config: pytest.Config) -> None:
    """That place goes."""
    shutil.rmtree(config.stash.get(_state, ""), ignore_errors=True)


def pytest_collection_finish() -> None:
    """What pytest knows of thousands of tests is here to stay: Python looks there for garbage no more."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What mounts has company of its own kind at most; a test or a module says which with a mark."""
    for item in items:
        if any(item.get_closest_marker(mark) for mark in ("serial", "waits")):
            continue
        if any(room in item.path.parents for room in MOUNTED):
            item.add_marker("waits")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Before its fixtures, which may mount."""
    derived.first_salt(touches_disk=PURE not in item.path.parents)
    support.has_company = item.get_closest_marker("waits") is not None


_watch = pytest.StashKey[LogWatch]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """What a mount's daemon logs, and the test does not allow, fails the test; see Mounted.allow_log."""
    item.stash[_watch] = LogWatch()
    item.stash[_watch].before_the_call()
    yield
    item.stash[_watch].check()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    """As above, for what was logged while the fixtures ended."""
    yield
    item.stash.get(_watch, LogWatch()).after_the_teardown()


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


@pytest.fixture
def vault(tmp_path: Path) -> Iterator[BareVault]:
    """A vault without a mount. Modules that need another one have their own."""
    made = BareVault(tmp_path / "vault")
    yield made
    made.close()
