"""`cryptfs.mount_vault` on a real mount."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

import cryptfs
from cryptfs.unlock.keyfile import generate_key_file, new_key_file
from cryptfs.unlock.table import changing_slots
from cryptfs.vfs.vault import lock_holder
from tests.support import everything_below

pytestmark = pytest.mark.skipif(not Path("/dev/fuse").exists(), reason="needs /dev/fuse")

PASSPHRASE = b"correct horse"
TEXT = "A sentence that must not be found in the vault.\n"


@pytest.fixture
def vault_dir(tmp_path: Path) -> Path:
    cryptfs.Vault.create(tmp_path / "vault", PASSPHRASE, kdf_memory=64 * 1024 * 1024)
    (tmp_path / "private").mkdir()
    return tmp_path / "vault"


@pytest.fixture
def place(vault_dir: Path) -> Path:
    return vault_dir.parent / "private"


def test_mount_write_unmount_mount_read(vault_dir: Path, place: Path) -> None:
    with cryptfs.mount_vault(vault_dir, place, PASSPHRASE) as mounted:
        assert mounted.mountpoint == place
        assert mounted.is_mounted()
        assert mounted.pid != os.getpid()
        (place / "diary").write_text(TEXT)
    assert not mounted.is_mounted()
    assert list(place.iterdir()) == []
    stored = b"".join(path.read_bytes() for path in everything_below(vault_dir) if path.is_file())
    assert TEXT.encode() not in stored
    mounted = cryptfs.mount_vault(
        str(vault_dir), str(place), PASSPHRASE, cryptfs.MountOptions(read_only=True)
    )
    try:
        assert (place / "diary").read_text() == TEXT
        with pytest.raises(OSError, match="Read-only"):
            (place / "diary").write_text("")
    finally:
        mounted.unmount()


def test_another_key_mounts_it(vault_dir: Path, place: Path) -> None:
    key_file = generate_key_file(bytes(range(32)))
    with changing_slots(vault_dir, PASSPHRASE) as table:
        table.add(new_key_file(key_file))
        table.save()
    with cryptfs.mount_vault(vault_dir, place, cryptfs.Offer(key_file=key_file)):
        (place / "diary").write_text(TEXT)
    with pytest.raises(cryptfs.NoKeyError):
        cryptfs.mount_vault(vault_dir, place, cryptfs.Offer(key_file=b"another"))


def test_the_vault_is_free_while_this_process_lives_on(vault_dir: Path, place: Path) -> None:
    """The daemon's lock is the only one: after unmount the vault opens again in this very process."""
    with cryptfs.mount_vault(vault_dir, place, PASSPHRASE) as mounted:
        holder = lock_holder(vault_dir)
        assert holder is not None
        assert (holder.pid, holder.mountpoint) == (mounted.pid, str(place))
        with pytest.raises(cryptfs.VaultLockedError, match=str(mounted.pid)):
            cryptfs.Vault.unlock(vault_dir, PASSPHRASE)
    text: Any = PASSPHRASE.decode()
    told = re.escape("a passphrase is bytes, not str; encode text: passphrase.encode()")
    with pytest.raises(TypeError, match=told):
        cryptfs.Vault.unlock(vault_dir, text)
    with pytest.raises(TypeError, match=told):
        cryptfs.change_passphrase(vault_dir, PASSPHRASE, text)
    with pytest.raises(TypeError, match=told):
        cryptfs.Vault.create(vault_dir.parent / "never", text)
    with pytest.raises(ValueError, match="the passphrase is empty"):
        cryptfs.Vault.create(vault_dir.parent / "never", b"")
    with pytest.raises(ValueError, match="the passphrase is empty"):
        cryptfs.change_passphrase(vault_dir, PASSPHRASE, b"")
    assert not (vault_dir.parent / "never").exists()
    with cryptfs.Vault.unlock(vault_dir, PASSPHRASE) as vault:
        assert list(vault.tree.list(vault.tree.root)) == []


def test_it_says_who_keeps_it_busy(vault_dir: Path, place: Path) -> None:
    with cryptfs.mount_vault(vault_dir, place, PASSPHRASE) as mounted:
        with (place / "open").open("w"), pytest.raises(cryptfs.MountError, match="still in use"):
            mounted.unmount()
        assert mounted.is_mounted()


def test_a_mount_that_fails_leaves_the_vault_free(vault_dir: Path, place: Path) -> None:
    with pytest.raises(cryptfs.WrongPassphraseError):
        cryptfs.mount_vault(vault_dir, place, b"wrong")
    (place / "in the way").touch()
    with pytest.raises(cryptfs.MountError, match="not empty"):
        cryptfs.mount_vault(vault_dir, place, PASSPHRASE)
    with pytest.raises(FileNotFoundError):
        options = cryptfs.MountOptions(nonempty=True)
        cryptfs.mount_vault(vault_dir, place, PASSPHRASE, options, log_file="/nowhere/log")
    assert lock_holder(vault_dir) is None


def test_unmounting_twice_says_so(vault_dir: Path, place: Path) -> None:
    mounted = cryptfs.mount_vault(vault_dir, place, PASSPHRASE)
    mounted.unmount()
    with pytest.raises(cryptfs.MountError, match="nothing is mounted"):
        mounted.unmount()


def test_no_secret_shows_in_the_handle(vault_dir: Path, place: Path) -> None:
    with cryptfs.mount_vault(vault_dir, place, PASSPHRASE) as mounted:
        assert repr(mounted) == f"MountedVault({str(vault_dir)!r} at {str(place)!r}, daemon {mounted.pid})"


def test_paths_may_be_text(tmp_path: Path) -> None:
    vault, place = str(tmp_path / "vault"), str(tmp_path / "place")
    (tmp_path / "place").mkdir()
    cryptfs.Vault.create(vault, PASSPHRASE, kdf_memory=64 << 20)
    with cryptfs.Vault.unlock(vault, PASSPHRASE) as opened:
        assert opened.vault_dir == tmp_path / "vault"
    with cryptfs.mount_vault(vault, place, PASSPHRASE) as mounted:
        assert mounted.mountpoint == tmp_path / "place"
    with pytest.raises(cryptfs.NotAVaultError, match="already a vault"):
        cryptfs.Vault.create(vault, PASSPHRASE)
