"""The number of sessions: a warning if this machine has seen more of them than the vault counts."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from cryptfs.core.slots.checks import CONFIG_NAME
from cryptfs.core.slots.kdf import MIN_KDF_MEMORY
from cryptfs.errors import UnexpectedVaultError
from cryptfs.storage.pins import Pin, pinned
from cryptfs.unlock.offer import Offer
from cryptfs.vfs.upgrade import upgrade
from cryptfs.vfs.vault import Vault
from tests.support import state_files
from tests.vaults.make_golden import PASSPHRASE as GOLDEN_PASSPHRASE

TOLD = "the vault has counted fewer sessions than this machine has seen"
PASSPHRASE = b"right"
GOLDEN = Path(__file__).parents[1] / "vaults" / "v1-aegis-256" / "vault"


class Scene:
    """A vault that is opened with a pin."""

    def __init__(self, base: Path) -> None:
        self.vault_dir = base / "vault"
        self.copy = base / "copy"
        Vault.create(self.vault_dir, PASSPHRASE, kdf_memory=MIN_KDF_MEMORY)

    def unlock(self, *, read_only: bool = False, lock: bool = True, is_off: bool = False) -> Vault:
        offer = Offer(passphrase=PASSPHRASE, pin=Pin(is_off=is_off))
        return Vault.unlock(self.vault_dir, offer, read_only=read_only, lock=lock)

    def session(self) -> None:
        """One that an unmount ends."""
        with self.unlock() as vault:
            assert vault.context.redo is not None
            vault.context.redo.naming()

    def take_copy(self) -> None:
        shutil.copytree(self.vault_dir, self.copy)

    def put_back_lists(self) -> None:
        """The lists of sessions of the copy, in the vault directory itself."""
        for name in state_files(self.copy, "sessions"):
            shutil.copyfile(self.copy / name, self.vault_dir / name)


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    made = Scene(tmp_path)
    made.session()
    made.take_copy()
    return made


def test_sessions_go_on(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        scene.session()
        scene.unlock(read_only=True).close()
    assert TOLD not in caplog.text


def test_an_older_list_is_told_once(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    """Also if the session that it lacks was the last one, which no later unlocking saw."""
    scene.session()
    scene.put_back_lists()
    scene.unlock(read_only=True, lock=False).close()
    scene.unlock(is_off=True).close()
    Vault.unlock(scene.vault_dir, PASSPHRASE).close()
    assert TOLD not in caplog.text
    scene.unlock().close()
    assert caplog.text.count(TOLD) == 1
    scene.unlock().close()
    assert caplog.text.count(TOLD) == 1


def test_a_list_that_is_gone_is_told(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    for name in state_files(scene.vault_dir, "sessions"):
        os.unlink(scene.vault_dir / name)
    scene.unlock().close()
    assert caplog.text.count(TOLD) == 1


def test_an_older_copy_in_a_new_directory_is_told(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    """There this machine has another name, and the copy has the list of the former one."""
    scene.session()
    scene.vault_dir.rename(scene.vault_dir.with_name("aside"))
    shutil.copytree(scene.copy, scene.vault_dir)
    scene.unlock().close()
    assert caplog.text.count(TOLD) == 1


def test_a_fresh_copy_in_a_new_directory_is_not(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    scene.vault_dir.rename(scene.vault_dir.with_name("aside"))
    shutil.copytree(scene.copy, scene.vault_dir)
    scene.unlock().close()
    scene.session()
    scene.unlock().close()
    assert TOLD not in caplog.text


def test_an_upgrade_is_no_step_back(scene: Scene, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It moves the list of sessions to another name. The config from before it is refused from then on."""
    scene.vault_dir = tmp_path / "old"
    shutil.copytree(GOLDEN, scene.vault_dir, symlinks=True)
    offer = Offer(passphrase=GOLDEN_PASSPHRASE, pin=Pin())
    with Vault.unlock(scene.vault_dir, offer) as vault:
        assert vault.context.redo is not None
        vault.context.redo.naming()
    config = scene.vault_dir / CONFIG_NAME
    old = config.read_bytes()
    done = upgrade(scene.vault_dir, [offer])
    assert done.added
    seen = pinned(scene.vault_dir)
    assert seen is not None
    assert seen.generation == done.config.generation > 1
    Vault.unlock(scene.vault_dir, offer).close()
    assert TOLD not in caplog.text
    config.write_bytes(old)
    with pytest.raises(UnexpectedVaultError):
        Vault.unlock(scene.vault_dir, offer)
