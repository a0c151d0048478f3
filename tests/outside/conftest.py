"""Mounts on an ext4 of their own, which gives inode numbers again at once."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from soaklib.ground import AT_ONCE, ext4, mounted_on
from tests.crash.blockdevice import missing
from tests.e2e.conftest import ENGINES, require_fuse
from tests.e2e.mounting import MountSpec
from tests.outside.stage import Stage

StageMaker = Callable[..., contextlib.AbstractContextManager[Stage]]


@pytest.fixture(scope="session", autouse=True)
def _ended_in_order() -> Iterator[None]:
    """Whoever ends the tests with SIGTERM leaves no mount and no loop device behind."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="session")
def ground() -> Iterator[Path]:
    """A directory on ext4."""
    reason = missing()
    if reason:
        pytest.skip(reason)
    with ext4() as disk:
        yield disk


@contextlib.contextmanager
def staged(ground: Path, engine: str, options: str = "", allowed: Iterable[str] = ()) -> Iterator[Stage]:
    """A fresh vault, mounted, and its ciphertext. allowed: patterns of lines that the log may have."""
    spec = MountSpec(engine, options=options, constants=AT_ONCE)
    require_fuse(spec)
    with mounted_on(ground, spec) as mount:
        mount.allow_log(*allowed)
        stage = Stage(mount)
        try:
            yield stage
        finally:
            stage.close()


def allowed_in(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """The lines that a module expects."""
    allowed: tuple[str, ...] = getattr(request.module, "ALLOWED", ())
    return allowed


@pytest.fixture(scope="module", params=ENGINES)
def stage(request: pytest.FixtureRequest, ground: Path) -> Iterator[Stage]:
    """One mount for a module's tests, for each engine."""
    with staged(ground, request.param, allowed=allowed_in(request)) as stage:
        yield stage


@pytest.fixture(params=ENGINES)
def own_stage(request: pytest.FixtureRequest, ground: Path) -> Iterator[Stage]:
    """A mount for one test, for each engine."""
    with staged(ground, request.param, allowed=allowed_in(request)) as stage:
        yield stage


@pytest.fixture(autouse=True)
def _umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)
