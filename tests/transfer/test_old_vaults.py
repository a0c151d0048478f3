"""Vaults of 0.1 by path, without a mount."""

from __future__ import annotations

import hashlib
import json
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest

import cryptfs
from tests.vaults.make_golden import MANIFEST, PASSPHRASE
from tests.vaults.test_golden import GOLDEN, HERE


@pytest.fixture(params=GOLDEN)
def golden(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return Path(shutil.copytree(HERE / request.param, tmp_path / "golden", symlinks=True))


@pytest.mark.parametrize("read_only", [True, False])
def test_everything_is_read(golden: Path, read_only: bool) -> None:
    expected: dict[str, Any] = json.loads((golden / MANIFEST).read_text())
    seen: dict[str, Any] = {}
    with cryptfs.Vault.unlock(golden / "vault", PASSPHRASE, read_only=read_only) as vault:
        for top, directories, others in vault.walk(b"/"):
            for name in directories + others:
                path = top + name if top == b"/" else top + b"/" + name
                found = vault.lstat(path)
                shown: dict[str, Any] = {"kind": "directory"}
                if stat.S_ISLNK(found.st_mode):
                    target = vault.readlink(path)
                    assert isinstance(target, bytes)
                    shown = {"kind": "symlink", "size": found.st_size, "target": target.decode("latin-1")}
                elif stat.S_ISREG(found.st_mode):
                    with vault.open(path, "rb") as file:
                        digest = hashlib.sha256(file.read()).hexdigest()
                    executable = bool(found.st_mode & stat.S_IXUSR)
                    shown = {
                        "kind": "file",
                        "size": found.st_size,
                        "executable": executable,
                        "sha256": digest,
                    }
                seen[path.decode("latin-1")] = shown
    assert seen == expected


def test_it_can_be_changed(golden: Path) -> None:
    with cryptfs.Vault.unlock(golden / "vault", PASSPHRASE) as vault:
        with vault.open("sparse", "r+b") as file:
            file.write(b"START")
        vault.makedirs("empty directory/new")
        vault.rename("empty directory", "renamed")
    with cryptfs.Vault.unlock(golden / "vault", PASSPHRASE, read_only=True) as vault:
        with vault.open("sparse", "rb") as file:
            assert file.read(6) == b"START\0"
        assert vault.listdir("renamed") == ["new"]
