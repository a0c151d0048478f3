"""A change of the masterkey leaves a vault that shows the same, all of it under other keys."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cryptfs.core.names.dirrecord import BOUND_DIRS
from cryptfs.core.names.host import MACHINE_STATE
from cryptfs.core.slots.config import SLOTS
from cryptfs.core.slots.rekeying import REKEYING
from cryptfs.errors import UnsupportedFormatError
from cryptfs.fsck.check import check_vault
from cryptfs.rekey.report import Report
from cryptfs.unlock.unlocking import open_vault
from cryptfs.vfs.upgrade import upgrade
from cryptfs.vfs.vault import Vault, read_config
from tests.rekey.material import PASSPHRASE, change_masterkey, differences, furnish, make_vault, shown
from tests.support import CIPHERS, everything_below


def masterkey_of(vault_dir: Path) -> bytes:
    return open_vault(read_config(vault_dir), PASSPHRASE, 1 << 40).masterkey


def faults(vault_dir: Path) -> list[str]:
    """What a deep check finds, but for what is no fault."""
    with Vault.unlock(vault_dir, PASSPHRASE, read_only=True, lock=False) as vault:
        found = list(check_vault(vault, deep=True).run())
    return [f"{each.kind} {each.cipher_path} {each.detail}" for each in found if each.kind != "conflict-copy"]


@pytest.mark.parametrize("cipher", CIPHERS)
def test_everything_is_as_before(cipher: str, tmp_path: Path) -> None:
    vault_dir = tmp_path / "vault"
    make_vault(vault_dir, cipher)
    furnish(vault_dir)
    names = {path.name for path in everything_below(vault_dir)}
    before, config, masterkey = shown(vault_dir), read_config(vault_dir), masterkey_of(vault_dir)
    report = Report()
    after = change_masterkey(vault_dir, report=report)
    assert report.damages == []
    assert differences(before, shown(vault_dir)) == []
    assert faults(vault_dir) == []
    assert masterkey_of(vault_dir) != masterkey
    assert after == read_config(vault_dir)
    assert (after.features, after.vault_id) == (config.features, config.vault_id)
    assert after.generation == config.generation + 2
    assert REKEYING not in after.features
    kept = names & {path.name for path in everything_below(vault_dir)}
    assert {name for name in kept if not name.startswith("cryptfs.")} == set()
    assert not [name for name in os.listdir(vault_dir) if name.startswith(("cryptfs.rekey", "cryptfs.set"))]


@pytest.mark.parametrize("features", [(), (MACHINE_STATE, SLOTS), (BOUND_DIRS, MACHINE_STATE)], ids=str)
def test_a_vault_that_was_made_without_bound_directories(tmp_path: Path, features: tuple[str, ...]) -> None:
    """As it is if its slots are of all kinds, else after the upgrade that the command asks for."""
    vault_dir = tmp_path / "vault"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cryptfs.vfs.vault.NEW_FEATURES", features)
        make_vault(vault_dir, deltas=False)
    furnish(vault_dir)
    if SLOTS not in features:
        with pytest.raises(UnsupportedFormatError, match="cryptfs upgrade"):
            change_masterkey(vault_dir)
        assert not read_config(vault_dir).is_rekeying
        upgrade(vault_dir, [PASSPHRASE])
    before, config, masterkey = shown(vault_dir), read_config(vault_dir), masterkey_of(vault_dir)
    report = Report()
    after = change_masterkey(vault_dir, report=report)
    assert report.damages == []
    assert differences(before, shown(vault_dir)) == []
    assert faults(vault_dir) == []
    assert masterkey_of(vault_dir) != masterkey
    assert after.features == config.features
    if BOUND_DIRS not in after.features:
        before = shown(vault_dir, link_atimes=False)  # an upgrade reads links
        upgrade(vault_dir, [PASSPHRASE])
        assert BOUND_DIRS in read_config(vault_dir).features
        assert differences(before, shown(vault_dir, link_atimes=False)) == []
        assert faults(vault_dir) == []
