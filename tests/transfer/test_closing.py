"""A command that is interrupted while it closes the vault closes it all the same."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

import cryptfs
from cryptfs.vfs.tree.tree import VaultTree
from tests.commands import Run
from tests.support import state_files
from tests.transfer.conftest import PASSPHRASE


def words_of(command: str, vault_dir: Path, tmp_path: Path) -> tuple[object, ...]:
    (tmp_path / "file").write_text("content")
    return {
        "import": ("import", tmp_path / "file", f"{vault_dir}:entry"),
        "mkdir": ("mkdir", vault_dir, "entry"),
    }[command]


@pytest.mark.parametrize("command", ["import", "mkdir"])
@pytest.mark.parametrize(("times", "closed"), [(1, True), (2, True), (3, False)])
def test_ctrl_c_comes_after_the_close(
    times: int, closed: bool, command: str, vault_dir: Path, tmp_path: Path, run: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The third one comes at once: nobody has to wait for a slow disk."""
    close, ended = VaultTree.close, []

    def interrupted(self: Any) -> None:
        for _ in range(times):
            signal.raise_signal(signal.SIGINT)
        close(self)
        ended.append(True)

    with monkeypatch.context() as patch:
        patch.setattr(VaultTree, "close", interrupted)
        told = run(*words_of(command, vault_dir, tmp_path))
    assert (told.code, told.err.strip()) == (130, "cryptfs: interrupted")
    assert bool(ended) == closed
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not closed:
        return  # the vault is still locked, by this process
    assert state_files(vault_dir, "journal") == []
    with cryptfs.Vault.unlock(vault_dir, PASSPHRASE) as vault:
        assert vault.listdir("") == ["entry"]
