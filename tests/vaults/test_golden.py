"""Every golden vault is readable in full, as git gives it back, and usable."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
from pathlib import Path

import pytest

from cryptfs.core.aead import SUITES
from cryptfs.core.format.header import HeaderFlag
from cryptfs.core.slots.checks import CONFIG_NAME
from cryptfs.vfs.upgrade import upgrade
from cryptfs.vfs.vault import Vault
from tests.support import everything_below
from tests.vaults.make_golden import (
    CHUNK_SIZES,
    MANIFEST,
    PASSPHRASE,
    VERSION,
    content,
    describe,
    fill,
    state_of_machine,
)

HERE = Path(__file__).parent
GOLDEN = sorted(path.parent.name for path in HERE.glob(f"*/{MANIFEST}"))


@pytest.fixture(params=GOLDEN)
def golden(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy: unlocking makes a lock file, reading may settle something."""
    return Path(shutil.copytree(HERE / request.param, tmp_path / "golden", symlinks=True))


def test_there_is_one_for_each_cipher() -> None:
    assert set(GOLDEN) == {f"{version}-{cipher}" for cipher in SUITES for version in ("v1", VERSION)}


@pytest.mark.parametrize("read_only", [False, True])
def test_manifest(golden: Path, read_only: bool) -> None:
    expected = json.loads((golden / MANIFEST).read_text())
    with Vault.unlock(golden / "vault", PASSPHRASE, read_only=read_only) as vault:
        assert describe(vault.tree, vault.tree.root) == expected


def test_reading_changes_nothing(golden: Path) -> None:
    before = {
        path: path.read_bytes()
        for path in everything_below(golden)
        if path.is_file() and not path.is_symlink()
    }
    with Vault.unlock(golden / "vault", PASSPHRASE) as vault:
        describe(vault.tree, vault.tree.root)
    for name in state_of_machine(golden / "vault"):
        (golden / "vault" / name).unlink()
    after = {
        path: path.read_bytes()
        for path in everything_below(golden)
        if path.is_file() and not path.is_symlink()
    }
    assert after == before


def test_contents_are_what_the_manifest_promises(golden: Path) -> None:
    """Independently of the reader that wrote the manifest: sizes and digests of known contents."""
    manifest = json.loads((golden / MANIFEST).read_text())
    sizes = [
        entry["size"] for path, entry in manifest.items() if path.endswith(" bytes") and path[1].isdigit()
    ]
    assert len(sizes) == 6
    for size in sizes:
        digest = hashlib.sha256(content(size)).hexdigest()
        assert manifest[f"/{size} bytes"]["sha256"] == digest
    chunk_size = CHUNK_SIZES[json.loads((golden / "vault" / CONFIG_NAME).read_text())["cipher"]]
    sparse = bytearray(30 * chunk_size + 3)
    sparse[:5] = b"start"
    sparse[20 * chunk_size : 20 * chunk_size + 6] = b"middle"
    assert manifest["/sparse"]["sha256"] == hashlib.sha256(sparse).hexdigest()
    assert manifest["/" + "d" * 200 + "/deeper/leaf"]["sha256"] == hashlib.sha256(b"leaf").hexdigest()
    assert manifest["/link"]["target"] == "../anywhere/\xff"
    assert manifest["/empty directory"] == {"kind": "directory"}


def test_nothing_of_the_plaintext_shows(golden: Path) -> None:
    manifest = json.loads((golden / MANIFEST).read_text())
    words = (b"directory", b"middle", b"name of", b"anywhere", b"#!/bin/sh", b"epoch", b"leaf")
    for path in everything_below(golden / "vault"):
        stored = os.fsencode(path.readlink()) if path.is_symlink() else path.is_file() and path.read_bytes()
        assert not stored or not any(word in stored for word in words)
        assert f"/{path.name}" not in manifest or path.name in ("cryptfs.dir",)


def test_old_files_can_be_changed(golden: Path) -> None:
    with Vault.unlock(golden / "vault", PASSPHRASE) as vault:
        tree = vault.tree
        file = tree.open(tree.root, b"sparse", os.O_RDWR)
        file.write(1, b"TART")
        file.truncate(10)
        tree.release(file)
        file = tree.open(tree.root, b"sparse", os.O_RDONLY)
        assert file.read(0, 100) == b"sTART" + bytes(5)
        tree.release(file)
        before = sorted(entry.name for entry in tree.list(tree.root))
        tree.unlink(tree.root, b"n" * 255)
        tree.rename(tree.root, b"L" * 255, tree.root, b"short")
        assert tree.symlinks.read(tree.root, b"short") == b"t" * 100
        after = sorted(entry.name for entry in tree.list(tree.root))
        assert set(before) - set(after) == {b"n" * 255, b"L" * 255}


def test_the_script_still_makes_such_vaults(tmp_path: Path) -> None:
    """What a new vault holds is what the last golden one holds, whatever its random parts."""
    cipher = next(iter(SUITES))
    expected = json.loads((HERE / f"{VERSION}-{cipher}" / MANIFEST).read_text())
    Vault.create(tmp_path / "vault", PASSPHRASE, cipher=cipher, kdf_memory=64 << 20)
    with Vault.unlock(tmp_path / "vault", PASSPHRASE) as vault:
        fill(vault.tree, CHUNK_SIZES[cipher])
        assert describe(vault.tree, vault.tree.root) == expected
    with Vault.unlock(tmp_path / "vault", PASSPHRASE) as vault:  # before, the redo log may have it open
        file = vault.tree.open(vault.tree.root, b"sparse", os.O_RDONLY)
        assert file.read(0, 1) == b"s"
        assert file.state.header is not None
        assert file.state.header.flags == HeaderFlag.CLEAN | HeaderFlag.SPARSE
        vault.tree.release(file)


def test_an_upgrade_keeps_everything(golden: Path) -> None:
    expected = json.loads((golden / MANIFEST).read_text())
    assert upgrade(golden / "vault", [PASSPHRASE]).left == ()
    with Vault.unlock(golden / "vault", PASSPHRASE) as vault:
        assert describe(vault.tree, vault.tree.root) == expected
        names = [entry.name for entry in vault.tree.list(vault.tree.root) if stat.S_ISDIR(entry.kind)]
        vault.tree.rename(vault.tree.root, names[0], vault.tree.root, b"moved")
        vault.tree.rename(vault.tree.root, b"moved", vault.tree.root, names[0])
        assert describe(vault.tree, vault.tree.root) == expected
