"""Files of somebody else that we may write: their times cannot be set, and that is no error."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from cryptfs.storage import libc
from cryptfs.vfs.content.redo import Durability
from tests.support import KIB, BareVault, pattern

CONTENT = pattern(20 * KIB)


@pytest.mark.parametrize("durability", Durability)
def test_writing_and_closing(durability: Durability, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = 0

    def refuse(fd: int, times: libc.Times) -> None:
        nonlocal refused
        refused += 1
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(libc, "futimens", refuse)
    vault = BareVault(tmp_path / "vault", durability=durability)
    vault.put(b"file", CONTENT)
    with vault.opened(b"file") as file:
        file.write(100, b"overwritten")
    vault.checkpoint()
    assert vault.header(b"file").is_clean
    expected = CONTENT[:100] + b"overwritten" + CONTENT[111:]
    assert vault.get(b"file") == expected
    vault.tree.open(vault.root, b"file", os.O_RDWR).write(5000, b"again")
    vault.die_and_reopen()
    assert vault.get(b"file") == expected[:5000] + b"again" + expected[5005:]
    assert refused
    vault.close()
