"""After a fork, the vault and its lock belong to the other process."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from cryptfs.core.slots.kdf import MIN_KDF_MEMORY
from cryptfs.errors import VaultLockedError
from cryptfs.vfs.vault import Vault, lock_holder

pytestmark = pytest.mark.waits

PASSPHRASE = b"correct horse"


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    Vault.create(tmp_path / "vault", PASSPHRASE, kdf_memory=MIN_KDF_MEMORY)
    return Vault.unlock(tmp_path / "vault", PASSPHRASE)


def fork_holder(vault: Vault) -> int:
    """A child that holds the vault, says so, and waits to be killed."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        vault.announce("/mnt/somewhere")
        os.write(writer, b".")
        while True:
            signal.pause()
    os.close(writer)
    assert os.read(reader, 1) == b"."
    os.close(reader)
    return child


def test_the_other_process_keeps_the_lock_and_its_end_frees_it(vault: Vault) -> None:
    child = fork_holder(vault)
    try:
        vault.hand_over()
        holder = lock_holder(vault.vault_dir)
        assert holder is not None
        assert (holder.pid, holder.mountpoint) == (child, "/mnt/somewhere")  # the announcement stands
        with pytest.raises(VaultLockedError):
            Vault.unlock(vault.vault_dir, PASSPHRASE)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert lock_holder(vault.vault_dir) is None
    Vault.unlock(vault.vault_dir, PASSPHRASE).close()


def test_keys_are_gone_here_and_descriptors_closed(vault: Vault) -> None:
    vault.hand_over()
    assert vault.context.keys.content_key == bytes(32)
    assert lock_holder(vault.vault_dir) is None


def test_closing_afterwards_does_nothing(vault: Vault) -> None:
    vault.hand_over()
    vault.hand_over()
    vault.close()
    Vault.unlock(vault.vault_dir, PASSPHRASE).close()


def test_a_closed_vault_has_nothing_to_hand_over(vault: Vault) -> None:
    vault.close()
    vault.hand_over()
