"""Changes to the vault while it is in use: what was read before is not read again, and nothing leads out."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cryptfs.core.geometry import HEADER_SIZE
from cryptfs.errors import IntegrityError
from cryptfs.storage.vaultdir import LOCK_NAME, VaultLock, open_vault_dir
from tests.support import BareVault, assert_detected, pattern
from tests.tamper.scene import CHUNK, SIZE, VICTIM, Scene
from tests.tamper.test_files import flipped


def test_header_changed_while_the_file_is_only_read(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    """The next read notices, and so does the next open."""
    with scene.vault.opened(VICTIM, os.O_RDONLY) as file:
        assert file.read(0, 10) == pattern(SIZE, 1)[:10]
        scene.plant(flipped(scene.original, 50))
        assert_detected(lambda: file.read(CHUNK, CHUNK), caplog, scene.path)
    assert_detected(scene.read, caplog, scene.path)
    scene.assert_contained()


def test_header_changed_while_the_file_is_written(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    """A sync and a read say so, and the last close does not write a good header over it."""
    with scene.vault.opened(VICTIM) as file:
        file.write(0, b"first")
        planted = bytes(HEADER_SIZE) + scene.backing.read_bytes()[HEADER_SIZE:]
        scene.plant(planted)
        assert_detected(lambda: file.read(CHUNK, 10), caplog, scene.path)
        with pytest.raises(IntegrityError):
            file.sync(data_only=False)
        with pytest.raises(IntegrityError):
            file.write(CHUNK, b"second")
    assert scene.backing.read_bytes() == planted
    assert_detected(scene.read, caplog, scene.path)
    scene.assert_contained()


def test_chunk_changed_while_the_file_is_open(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    """Chunks are not remembered: each read verifies anew."""
    with scene.vault.opened(VICTIM, os.O_RDONLY) as file:
        assert file.read(0, CHUNK) == pattern(SIZE, 1)[:CHUNK]
        scene.plant(flipped(scene.original, scene.record(0).start + 100))
        assert_detected(lambda: file.read(0, CHUNK), caplog, scene.path, 0)
        scene.plant(scene.original)
        assert file.read(0, CHUNK) == pattern(SIZE, 1)[:CHUNK]
    scene.assert_contained()


def test_file_replaced_while_it_is_open(scene: Scene) -> None:
    """The handle stays on what it was opened on, like any descriptor."""
    with scene.vault.opened(VICTIM, os.O_RDONLY) as file:
        assert file.read(0, 10) == pattern(SIZE, 1)[:10]
        other = scene.backing.with_name("elsewhere")
        other.write_bytes(b"nothing of ours")
        other.replace(scene.backing)
        assert file.read(0, SIZE) == pattern(SIZE, 1)
    scene.assert_contained()


@pytest.mark.parametrize("planted", ["link out", "other directory"])
def test_directory_on_the_way_replaced(tmp_path: Path, planted: str) -> None:
    """Operations go on in the directory that was opened; a new look refuses what stands there now."""
    vault = BareVault(tmp_path / "vault")
    outside = tmp_path / "outside"
    outside.mkdir()
    directory = vault.make_directory(b"d")
    path = vault.vault_dir / directory.cipher_path
    aside = tmp_path / "aside"
    path.rename(aside)
    if planted == "link out":
        path.symlink_to(outside)
    else:
        path.mkdir()
    vault.put(b"x", b"content", directory)
    assert vault.get(b"x", directory) == b"content"
    assert len([name for name in os.listdir(aside) if name != "cryptfs.dir"]) == 1
    assert os.listdir(outside) == []
    with pytest.raises(Exception, match=r"directory"):
        vault.tree.directory(vault.root, b"d")
    vault.close()


def test_lock_file_replaced(tmp_path: Path) -> None:
    """Not promised: the lock is against mistakes. Who can replace its file makes room for a second writer."""
    vault_fd = open_vault_dir(tmp_path)
    first = VaultLock(vault_fd, tmp_path, shared=False)
    (tmp_path / LOCK_NAME).unlink()
    second = VaultLock(vault_fd, tmp_path, shared=False)
    second.release()
    first.release()
    os.close(vault_fd)
