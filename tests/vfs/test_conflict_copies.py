"""Conflict copies in a vault: shown, and every operation works on them."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from cryptfs.vfs.content.redo import Durability
from cryptfs.vfs.tree.directory import SELF
from tests.support import KIB, BareVault, pattern

SYNCTHING = ".sync-conflict-20261129-131011-ABCDEFG"
LONG = b"L" * 190
SHOWN = {
    b"report.odt": b"report.sync-conflict-20261129-131011-ABCDEFG.odt",
    LONG: LONG + b".sync-conflict-20261129-131011-ABCDEFG",
}


def conflicting(vault: BareVault, name: bytes, content: bytes, suffix: str = SYNCTHING) -> None:
    """A file, and another version of it as a client leaves it beside: the loser is renamed."""
    vault.put(name, content)
    vault.reopen()
    original = vault.backing(name)
    raw = original.read_bytes()
    stem, dot, extension = original.name.rpartition(".")
    original.rename(original.with_name(f"{stem}{suffix}{dot}{extension}" if dot else original.name + suffix))
    original.write_bytes(raw)


@pytest.mark.parametrize("name", SHOWN)
def test_operations(vault: BareVault, name: bytes) -> None:
    conflicting(vault, name, b"other version")
    shown = SHOWN[name]
    tree, root = vault.tree, vault.root
    assert vault.names() == sorted([name, shown])
    assert vault.get(shown) == b"other version"
    with vault.opened(shown) as file:
        file.write(0, b"OTHER")
    assert vault.get(shown) == b"OTHER version"
    assert vault.get(name) == b"other version"
    tree.truncate(root, shown, 5)
    assert tree.stat(root, shown).size == 5
    tree.xattrs.set(root, shown, b"user.note", b"note", 0)
    assert tree.xattrs.get(root, shown, b"user.note") == b"note"
    tree.link(root, shown, root, b"linked")
    tree.unlink(root, b"linked")
    with pytest.raises(FileExistsError):
        tree.create(root, shown, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    tree.rename(root, shown, root, b"normal")
    assert vault.names() == sorted([name, b"normal"])
    assert root.entry_name(b"normal").isidentifier() or "-" in root.entry_name(b"normal")
    assert tree.xattrs.get(root, b"normal", b"user.note") == b"note"
    vault.reopen()
    assert vault.get(b"normal") == b"OTHER"


@pytest.mark.parametrize("name", SHOWN)
def test_unlink(vault: BareVault, name: bytes) -> None:
    conflicting(vault, name, b"other version")
    vault.tree.unlink(vault.root, SHOWN[name])
    assert vault.names() == [name]
    assert vault.get(name) == b"other version"
    vault.tree.unlink(vault.root, name)
    assert [each for each in os.listdir(vault.vault_dir) if not each.startswith("cryptfs.journal")] == []


def test_a_copy_keeps_the_sidecar_of_a_long_name(vault: BareVault) -> None:
    conflicting(vault, LONG, b"other version")
    vault.tree.unlink(vault.root, LONG)
    assert vault.names() == [SHOWN[LONG]]
    vault.reopen()
    assert vault.get(SHOWN[LONG]) == b"other version"
    vault.tree.rename(vault.root, SHOWN[LONG], vault.root, LONG)
    assert vault.names() == [LONG]
    vault.tree.unlink(vault.root, LONG)
    assert vault.internal_names() == []


def test_a_name_that_has_to_be_cut(vault: BareVault) -> None:
    name = b"n" * 240 + b".odt"
    conflicting(vault, name, b"other version")
    (shown,) = (each for each in vault.names() if each != name)
    assert len(shown) == 255 and shown.endswith(SYNCTHING.encode() + b".odt")
    vault.reopen()
    assert vault.get(shown) == b"other version"
    with vault.opened(shown) as file:
        file.write(0, b"OTHER")
    vault.tree.rename(vault.root, shown, vault.root, b"normal")
    assert vault.names() == sorted([name, b"normal"])
    assert vault.get(b"normal") == b"OTHER version"
    with pytest.raises(FileNotFoundError):
        vault.get(shown)


def test_what_was_made_here_wins_over_a_copy(vault: BareVault, caplog: pytest.LogCaptureFixture) -> None:
    vault.put(SHOWN[b"report.odt"], b"made here")
    conflicting(vault, b"report.odt", b"other version")
    with caplog.at_level(logging.WARNING):
        assert vault.names() == sorted([b"report.odt", SHOWN[b"report.odt"]])
    assert "another entry has its name" in caplog.text
    assert vault.get(SHOWN[b"report.odt"]) == b"made here"
    vault.tree.unlink(vault.root, SHOWN[b"report.odt"])
    assert vault.get(SHOWN[b"report.odt"]) == b"other version"


def test_a_name_made_while_there_was_no_copy_stays_its_own(vault: BareVault) -> None:
    shown = SHOWN[b"report.odt"]
    vault.put(shown, b"made here")
    assert vault.get(shown) == b"made here"
    vault.tree.unlink(vault.root, shown)
    assert not vault.names()
    conflicting(vault, b"report.odt", b"other version")
    assert vault.get(shown) == b"other version"


def test_a_directory(vault: BareVault) -> None:
    vault.make_directory(b"docs")
    docs = vault.tree.directory(vault.root, b"docs")
    vault.put(b"inner", b"inside", docs)
    shutil.copytree(
        vault.backing(b"docs"), str(vault.backing(b"docs")) + " (bob's conflicted copy 2026-11-29)"
    )
    shown = b"docs (bob's conflicted copy 2026-11-29)"
    assert vault.names() == [b"docs", shown]
    copy = vault.tree.directory(vault.root, shown)
    assert vault.get(b"inner", copy) == b"inside"
    vault.tree.rename(vault.root, shown, vault.root, b"moved")
    assert vault.get(b"inner", vault.tree.directory(vault.root, b"moved")) == b"inside"


def test_a_symlink_keeps_its_target(vault: BareVault) -> None:
    vault.tree.make_symlink(vault.root, b"link", b"target")
    path = vault.backing(b"link")
    os.symlink(os.readlink(path), str(path) + "-LAPTOP")
    shown = b"link (conflict copy of LAPTOP)"
    assert vault.tree.symlinks.read(vault.root, shown) == b"target"
    vault.tree.rename(vault.root, shown, vault.root, b"moved")
    assert vault.tree.symlinks.read(vault.root, b"moved") == b"target"
    assert vault.names() == [b"link", b"moved"]


def test_copies_from_another_directory_are_not_shown(
    vault: BareVault, caplog: pytest.LogCaptureFixture
) -> None:
    docs = vault.make_directory(b"docs")
    vault.put(b"file", b"x")
    shutil.copy(
        vault.backing(b"file"), vault.vault_dir / docs.cipher_path / (vault.entry(b"file") + SYNCTHING)
    )
    with caplog.at_level(logging.WARNING):
        assert vault.names(docs) == []
    assert "left out of the listing" in caplog.text


def test_a_directory_with_copies_of_its_record_can_be_removed(vault: BareVault) -> None:
    docs = vault.make_directory(b"docs")
    vault.put(LONG, b"x", docs)
    path = vault.backing(b"docs")
    sidecar = next(each for each in os.listdir(path) if each.endswith(".name"))
    shutil.copy(path / "cryptfs.dir", path / f"cryptfs{SYNCTHING}.dir")
    shutil.copy(path / sidecar, path / (sidecar.removesuffix(".name") + SYNCTHING + ".name"))
    assert vault.names(docs) == [LONG]
    vault.tree.unlink(docs, LONG)
    vault.tree.remove_directory(vault.root, b"docs")
    assert vault.names() == []


# ---- one file_id, two files


def test_a_copy_gets_its_own_file_id_at_its_first_write(vault: BareVault) -> None:
    vault.put(b"report.odt", pattern(50 * KIB))
    vault.tree.xattrs.set(vault.root, b"report.odt", b"user.note", b"note", 0)
    vault.reopen()
    shown, old = SHOWN[b"report.odt"], vault.backing(b"report.odt")
    shutil.copy2(old, str(old) + SYNCTHING)
    for name in os.listxattr(old):
        os.setxattr(str(old) + SYNCTHING, name, os.getxattr(old, name))
    os.chmod(str(old) + SYNCTHING, 0o640)
    os.utime(str(old) + SYNCTHING, (1_000_000, 2_000_000))
    assert vault.header(shown).file_id == vault.header(b"report.odt").file_id
    vault.get(shown)
    assert vault.header(shown).file_id == vault.header(b"report.odt").file_id, "a read changes nothing"
    with vault.opened(shown):
        pass
    own = vault.header(shown).file_id
    assert own != vault.header(b"report.odt").file_id
    assert vault.get(shown) == pattern(50 * KIB)
    assert vault.tree.xattrs.get(vault.root, shown, b"user.note") == b"note"
    st = vault.tree.stat(vault.root, shown).st
    assert (st.st_mode & 0o7777, st.st_mtime) == (0o640, 2_000_000)
    vault.reopen()
    inode = vault.backing(shown).stat().st_ino
    with vault.opened(shown):
        pass
    assert vault.header(shown).file_id == own and vault.backing(shown).stat().st_ino == inode


@pytest.mark.parametrize("opener", ["write", "truncate", "O_TRUNC"])
def test_two_files_at_rest_with_one_file_id(vault: BareVault, opener: str) -> None:
    vault.put(b"a", pattern(20 * KIB))
    vault.put(b"b", b"")
    vault.reopen()
    shutil.copy(vault.backing(b"a"), vault.backing(b"b"))
    with vault.opened(b"a") as file:
        file.write(0, b"A")
    if opener == "truncate":
        vault.tree.truncate(vault.root, b"b", 3)
    else:
        with vault.opened(b"b", os.O_RDWR | (os.O_TRUNC if opener == "O_TRUNC" else 0)) as file:
            file.write(0, b"B")
    assert vault.header(b"a").file_id != vault.header(b"b").file_id
    expected = {"write": b"B" + pattern(20 * KIB)[1:], "truncate": pattern(20 * KIB)[:3], "O_TRUNC": b"B"}
    assert vault.get(b"b") == expected[opener]
    assert vault.get(b"a") == b"A" + pattern(20 * KIB)[1:]


def test_a_file_that_is_still_open_since_it_was_made(vault: BareVault) -> None:
    with vault.opened(b"a", os.O_RDWR | os.O_CREAT) as file:
        file.write(0, pattern(20 * KIB))
        file.sync(data_only=False)
        shutil.copy(vault.backing(b"a"), vault.vault_dir / vault.root.entry_name(b"b"))
        with vault.opened(b"b") as other:
            other.write(0, b"B")
        file.write(0, b"A")
    assert vault.header(b"a").file_id != vault.header(b"b").file_id


def test_a_file_that_another_machine_replaced_is_left_as_it_is(vault: BareVault) -> None:
    vault.put(b"a", pattern(20 * KIB))
    vault.reopen()
    with vault.opened(b"a") as file:
        file.write(0, b"A")
    path = vault.backing(b"a")
    shutil.copy(path, path.with_name("new"))
    path.with_name("new").rename(path)
    file_id, inode = vault.header(b"a").file_id, path.stat().st_ino
    with vault.opened(b"a") as file:
        file.write(0, b"B")
    assert (vault.header(b"a").file_id, path.stat().st_ino) == (file_id, inode)


def test_holes_stay_holes(vault: BareVault) -> None:
    with vault.opened(b"a", os.O_RDWR | os.O_CREAT) as file:
        file.write(0, b"start")
        file.truncate(100 << 20)
        file.write(60 << 20, b"middle")
    vault.reopen()
    path = str(vault.backing(b"a"))
    subprocess.run(["cp", "--sparse=always", path, path + SYNCTHING], check=True)
    shown = b"a" + SYNCTHING.encode()
    with vault.opened(shown) as file:
        assert file.read(60 << 20, 6) == b"middle" and file.read(0, 6) == b"start\0"
        assert file.state.size == 100 << 20
    assert vault.backing(shown).stat().st_blocks * 512 < 8 << 20


def test_synced_data_of_both_outlives_a_kill(tmp_path: Path) -> None:
    vault = BareVault(tmp_path / "vault", durability=Durability.POWER)
    vault.put(b"a", pattern(20 * KIB))
    vault.put(b"b", b"")
    vault.reopen()
    shutil.copy(vault.backing(b"a"), vault.backing(b"b"))
    for name in (b"a", b"b"):
        with vault.opened(name) as file:
            file.write(100, name * 5000)
            vault.tree.sync_file(file, data_only=False)
    vault.die_and_reopen()
    for name in (b"a", b"b"):
        assert vault.get(name) == pattern(20 * KIB)[:100] + name * 5000 + pattern(20 * KIB)[5100:]
    vault.close()


def test_the_root_is_no_copy(vault: BareVault) -> None:
    assert not vault.root.is_copy(SELF)
