"""Vaults with a passphrase that are unlocked after a crash: for writing, read-only, beside others."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cryptfs.errors import VaultLockedError
from cryptfs.vfs.content.redo import Durability
from cryptfs.vfs.vault import Vault
from tests.crash.replay.scenes import CHUNK, NAME, OLD, content, replaced
from tests.support import KIB, MIB, crash_in, make_old_vault, pattern, state_files

pytestmark = pytest.mark.waits

PASSPHRASE = b"of a vault that crashed"
NEW = pattern(CHUNK, 2)


@pytest.fixture(params=["0.1", "machine-state"])
def crashed(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A vault directory with a file whose first chunk is in the journal only."""
    vault_dir = tmp_path / "vault"
    make = make_old_vault if request.param == "0.1" else Vault.create
    make(vault_dir, PASSPHRASE, chunk_size=4 * KIB, kdf_memory=64 * MIB, kdf_passes=3)
    with Vault.unlock(vault_dir, PASSPHRASE) as one:
        file = one.tree.create(one.tree.root, NAME, os.O_RDWR, 0o600)
        file.write(0, OLD)
        one.tree.release(file)

    def write() -> None:
        one = Vault.unlock(vault_dir, PASSPHRASE)
        one.tree.open(one.tree.root, NAME, os.O_RDWR).write(0, NEW)

    crash_in(write)
    return vault_dir


@pytest.fixture
def unlocked() -> Iterator[list[Vault]]:
    """Vaults to close in the end."""
    vaults: list[Vault] = []
    yield vaults
    for one in vaults:
        one.close()


def has_journal(vault_dir: Path) -> bool:
    return bool(state_files(vault_dir, "journal"))


@pytest.mark.parametrize("durability", Durability)
def test_a_mount_at_any_level_replays(durability: Durability, crashed: Path) -> None:
    with Vault.unlock(crashed, PASSPHRASE, durability=durability) as one:
        assert not has_journal(crashed)
        assert content(one) == replaced(OLD, 0, NEW)


def test_a_read_only_mount_replays_where_it_can(crashed: Path) -> None:
    with Vault.unlock(crashed, PASSPHRASE, read_only=True) as one:
        assert not has_journal(crashed)
        assert content(one) == replaced(OLD, 0, NEW)
        assert one.context.redo is None


def test_a_read_only_medium_is_served_as_it_is(
    crashed: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was promised is in the journal still; nothing of it may be lost by looking."""
    before = {path.name: path.read_bytes() for path in crashed.iterdir()}
    opened = os.open

    def read_only(path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return opened(path, flags, mode, dir_fd=dir_fd)

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(os, "open", read_only)
        with Vault.unlock(crashed, PASSPHRASE, read_only=True) as one:
            assert content(one) == OLD
    assert "cannot be replayed now" in caplog.text
    assert {path.name: path.read_bytes() for path in crashed.iterdir()} == before
    with Vault.unlock(crashed, PASSPHRASE) as one:
        assert content(one) == replaced(OLD, 0, NEW)


def test_a_mount_that_cannot_replay_is_refused_and_loses_nothing(
    crashed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", full)
        with pytest.raises(OSError) as raised:
            Vault.unlock(crashed, PASSPHRASE)
        assert raised.value.errno == errno.ENOSPC
    assert has_journal(crashed)
    with Vault.unlock(crashed, PASSPHRASE) as one:  # the lock was let go
        assert content(one) == replaced(OLD, 0, NEW)


def test_a_read_only_mount_beside_another_keeps_its_lock(
    crashed: Path, tmp_path: Path, unlocked: list[Vault], caplog: pytest.LogCaptureFixture
) -> None:
    """It asks for the lock alone, does not get it, and must have the shared one as before."""
    journal = {name: (crashed / name).read_bytes() for name in state_files(crashed, "journal")}
    unlocked.append(Vault.unlock(crashed, PASSPHRASE, read_only=True))
    for name, raw in journal.items():
        (crashed / name).write_bytes(raw)
    with caplog.at_level(logging.WARNING):
        unlocked.append(Vault.unlock(crashed, PASSPHRASE, read_only=True))
    assert "cannot be replayed now" in caplog.text
    assert content(unlocked[1]) == replaced(OLD, 0, NEW)
    unlocked.pop(0).close()
    with pytest.raises(VaultLockedError):
        Vault.unlock(crashed, PASSPHRASE)
    unlocked.pop().close()
    Vault.unlock(crashed, PASSPHRASE).close()


def test_an_old_journal_beside_a_read_only_mount_is_none(crashed: Path) -> None:
    """Put back after its replay: the session is known to be over."""
    journal = {name: (crashed / name).read_bytes() for name in state_files(crashed, "journal")}
    with Vault.unlock(crashed, PASSPHRASE) as one:
        file = one.tree.open(one.tree.root, NAME, os.O_RDWR)
        file.write(0, OLD[:CHUNK])
        one.tree.release(file)
    for name, raw in journal.items():
        (crashed / name).write_bytes(raw)
    with Vault.unlock(crashed, PASSPHRASE, read_only=True) as one:
        assert content(one) == OLD
    assert not has_journal(crashed)


def test_the_default_level_is_power(crashed: Path) -> None:
    with Vault.unlock(crashed, PASSPHRASE) as one:
        assert one.context.redo is not None
        assert one.context.redo.durable
