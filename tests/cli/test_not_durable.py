"""The config is replaced, and then its directory cannot be synced: "nothing was changed" would be wrong."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from cryptfs.cli.exit_codes import ExitCode
from cryptfs.vfs.vault import Vault, read_config
from tests.commands import runner

CHANGES = {
    "label": lambda vault, words: ("key", "label", vault, "0", "mine", *words),
    "passwd": lambda vault, words: (
        "passwd",
        vault,
        *words,
        "--new-passfile",
        words[1],
        "--kdf-memory",
        "64m",
    ),
}


@pytest.mark.parametrize("command", CHANGES)
def test_a_disk_that_fails_after_the_change(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    vault, passfile = tmp_path / "vault", tmp_path / "passfile"
    Vault.create(vault, b"five random words", kdf_memory=64 << 20)
    passfile.touch(mode=0o600)
    passfile.write_bytes(b"five random words\n")
    before = read_config(vault).generation
    fsync = os.fsync

    def failing(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        fsync(fd)

    run = runner(capsys)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing)
        told = run(*CHANGES[command](vault, ("--passfile", passfile)))
    assert told.code == ExitCode.CONFIG_UNWRITABLE
    assert "the vault config is changed, but the disk reported an error after that: Input/output" in told.err
    assert "nothing was changed" not in told.err
    assert read_config(vault).generation == before + 1
