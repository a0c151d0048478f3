"""A change of the masterkey leaves a vault that shows the same, all of it under other keys."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cryptfs.core.slots.rekeying import REKEYING
from cryptfs.fsck.check import check_vault
from cryptfs.rekey.report import Report
from cryptfs.unlock.unlocking import open_vault
from cryptfs.vfs.vault import Vault, read_config
from tests.rekey.material import PASSPHRASE, change_masterkey, differences, furnish, make_vault, shown
from tests.support import CIPHERS


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
    before, config, masterkey = shown(vault_dir), read_config(vault_dir), masterkey_of(vault_dir)
    names = {path.name for path in vault_dir.rglob("*")}
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
    kept = names & {path.name for path in vault_dir.rglob("*")}
    assert {name for name in kept if not name.startswith("cryptfs.")} == set()
    assert not [name for name in os.listdir(vault_dir) if name.startswith(("cryptfs.rekey", "cryptfs.set"))]
