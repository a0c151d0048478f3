"""An unlock that fails or is interrupted leaves what the lock file says of a session that crashed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NoReturn

import pytest

from cryptfs.errors import WrongPassphraseError
from cryptfs.vfs import vault as vault_module
from cryptfs.vfs.vault import Vault
from tests.support import MIB, state_files

PASSPHRASE = b"of a vault that crashed"


def crash(vault_dir: Path) -> None:
    """A process that writes to a new vault is killed, and its journal gets lost."""
    Vault.create(vault_dir, PASSPHRASE, kdf_memory=64 * MIB)
    child = os.fork()
    if not child:
        tree = Vault.unlock(vault_dir, PASSPHRASE).tree
        file = tree.create(tree.root, b"file", os.O_RDWR, 0o600)
        for _ in range(2):
            file.write(0, bytes(100_000))
        os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    journals = state_files(vault_dir, "journal")
    assert journals
    for name in journals:
        (vault_dir / name).unlink()


@pytest.mark.parametrize("way", ["wrong passphrase", "Ctrl-C"])
def test_the_next_unlock_says_that_the_journal_is_gone(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> NoReturn:
        raise KeyboardInterrupt

    crash(tmp_path / "vault")
    if way == "Ctrl-C":
        with monkeypatch.context() as patch:
            patch.setattr(vault_module, "open_vault", interrupted)
            with pytest.raises(KeyboardInterrupt):
                Vault.unlock(tmp_path / "vault", PASSPHRASE)
    else:
        with pytest.raises(WrongPassphraseError):
            Vault.unlock(tmp_path / "vault", b"another one")
    with Vault.unlock(tmp_path / "vault", PASSPHRASE) as vault:
        assert "its journal is gone" in " ".join(vault._notices)
