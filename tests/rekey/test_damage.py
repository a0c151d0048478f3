"""What does not authenticate is never sealed again: it stays damaged, or goes aside as it is."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from cryptfs.core.names.dirrecord import RECORD_NAME
from cryptfs.core.names.names import SET_ASIDE_NAME
from cryptfs.fsck.check import check_vault
from cryptfs.rekey.report import Report
from cryptfs.rekey.tree import TreePass
from cryptfs.vfs.content.redo import Durability
from cryptfs.vfs.vault import Vault
from tests.rekey.material import (
    CHUNK,
    PASSPHRASE,
    change_masterkey,
    furnish,
    make_directory,
    make_vault,
    put,
    shown,
)
from tests.rekey.test_rekey import faults
from tests.support import KIB, everything_below, pattern


@pytest.fixture
def vault_dir(tmp_path: Path) -> Path:
    made = tmp_path / "vault"
    make_vault(made)
    return made


def paths_of(vault_dir: Path, *names: bytes) -> list[Path]:
    """The backing entries of names in the root."""
    with Vault.unlock(vault_dir, PASSPHRASE, read_only=True, lock=False) as vault:
        return [vault_dir / vault.tree.root.entry_name(name) for name in names]


def flip(path: Path, at: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(raw)


def aside(vault_dir: Path) -> list[Path]:
    return sorted(path for path in (vault_dir / SET_ASIDE_NAME).iterdir() if path.suffix != ".txt")


def fill(vault_dir: Path, *names: bytes, size: int = 5 * CHUNK) -> list[Path]:
    with Vault.unlock(vault_dir, PASSPHRASE) as vault:
        for name in names:
            put(vault, vault.tree.root, name, pattern(size))
    return paths_of(vault_dir, *names)


def read(vault_dir: Path, name: bytes, offset: int, size: int) -> bytes:
    with Vault.unlock(vault_dir, PASSPHRASE, read_only=True) as vault:
        file = vault.tree.open(vault.tree.root, name, os.O_RDONLY)
        try:
            return file.read(offset, size)
        finally:
            vault.tree.release(file)


def test_a_damaged_chunk_stays_damaged_and_the_rest_is_saved(vault_dir: Path) -> None:
    (path,) = fill(vault_dir, b"file")
    flip(path, 256 + 2 * (CHUNK + 64) + 100)
    record = path.read_bytes()[256 + 2 * (CHUNK + 64) : 256 + 3 * (CHUNK + 64)]
    before = faults(vault_dir)
    report = Report()
    change_masterkey(vault_dir, report=report)
    assert [(each.reason, each.aside) for each in report.damages] == [("chunk 2 does not open", "")]
    (path,) = paths_of(vault_dir, b"file")
    assert path.read_bytes()[256 + 2 * (CHUNK + 64) : 256 + 3 * (CHUNK + 64)] == record
    assert read(vault_dir, b"file", 0, 2 * CHUNK) == pattern(5 * CHUNK)[: 2 * CHUNK]
    assert read(vault_dir, b"file", 3 * CHUNK, 2 * CHUNK) == pattern(5 * CHUNK)[3 * CHUNK :]
    after = faults(vault_dir)
    assert [each.split()[0] for each in after] == [each.split()[0] for each in before] == ["chunks"]
    with Vault.unlock(vault_dir, PASSPHRASE, durability=Durability.OFF) as vault:
        list(check_vault(vault, deep=True, repair=True).run())
    saved = read(vault_dir, b"file", 0, 5 * CHUNK)
    assert saved == pattern(5 * CHUNK)[: 2 * CHUNK] + bytes(CHUNK) + pattern(5 * CHUNK)[3 * CHUNK :]


def test_a_cut_file_stays_cut(vault_dir: Path) -> None:
    (path,) = fill(vault_dir, b"file")
    os.truncate(path, 256 + 3 * (CHUNK + 64) + 200)
    report = Report()
    change_masterkey(vault_dir, report=report)
    assert ["instead of" in each.reason for each in report.damages] == [True, False]
    (path,) = paths_of(vault_dir, b"file")
    assert path.stat().st_size == 256 + 3 * (CHUNK + 64) + 200
    assert {each.split()[0] for each in faults(vault_dir)} == {"file-cut"}


def test_what_cannot_be_opened_at_all_goes_aside_as_it_is(vault_dir: Path) -> None:
    header, record, renamed, link, good = b"header", b"record", b"renamed", b"link", b"good"
    fill(vault_dir, header, renamed, good)
    with Vault.unlock(vault_dir, PASSPHRASE) as vault:
        inside = make_directory(vault, vault.tree.root, record)
        put(vault, inside, b"inside", b"lost")
        vault.tree.make_symlink(vault.tree.root, link, b"target")
    paths = paths_of(vault_dir, header, record, renamed, link)
    flip(paths[0], 200)
    flip(paths[1] / RECORD_NAME, 100)
    paths[2] = paths[2].rename(paths[2].with_name("A" * len(paths[2].name)))
    text = os.readlink(paths[3])
    paths[3].unlink()
    paths[3].symlink_to(text[:-4] + "AAAA")
    raw = paths[0].read_bytes()
    with Vault.unlock(vault_dir, PASSPHRASE, read_only=True) as vault:
        assert sorted(each.name for each in vault.tree.list(vault.tree.root)) == sorted(
            (good, header, record, link)
        )
    report = Report()
    change_masterkey(vault_dir, report=report)
    assert {each.cipher_path for each in report.damages} == {path.name for path in paths}
    by_path = {each.cipher_path: vault_dir / SET_ASIDE_NAME / each.aside for each in report.damages}
    assert sorted(by_path.values()) == aside(vault_dir)
    assert by_path[paths[0].name].read_bytes() == raw
    assert len(list(by_path[paths[1].name].iterdir())) == 2
    for cipher_path, place in by_path.items():
        assert f"path: {cipher_path}\n" in place.with_name(place.name + ".txt").read_text()
    found = faults(vault_dir)
    assert len(found) == 4
    assert all(each.startswith(f"set-aside {SET_ASIDE_NAME}/") for each in found)
    with Vault.unlock(vault_dir, PASSPHRASE, read_only=True) as vault:
        assert [each.name for each in vault.tree.list(vault.tree.root)] == [good]


def test_bad_attributes_stay_bad(vault_dir: Path) -> None:
    with Vault.unlock(vault_dir, PASSPHRASE) as vault:
        root = vault.tree.root
        put(vault, root, b"file", b"content")
        make_directory(vault, root, b"directory")
        for name in (b"file", b"directory"):
            vault.tree.xattrs.set(root, name, b"user.good", b"good", 0)
    for path in paths_of(vault_dir, b"file", b"directory"):
        os.setxattr(path, "user.cryptfs.bad", b"value")
    report = Report()
    change_masterkey(vault_dir, report=report)
    assert [each.aside for each in report.damages] == [""]  # that of the file
    for path in paths_of(vault_dir, b"file", b"directory"):
        assert os.getxattr(path, "user.cryptfs.bad") == b"value"
        assert len(os.listxattr(path)) == 2
    assert [each.split()[0] for each in faults(vault_dir)] == ["xattr"] * 2


def test_content_put_back_under_a_new_name_is_not_sealed_again(vault_dir: Path) -> None:
    """While a change is under way, an old version of what is done already counts for nothing."""
    furnish(vault_dir)
    (old,) = paths_of(vault_dir, b"file")
    raw, before = old.read_bytes(), shown(vault_dir)
    done = TreePass.run

    def put_back(one: TreePass) -> None:
        done(one)
        names = one._both.names_in(one._both.old.keys.root_dir_id, one._both.new.keys.root_dir_id)
        target = vault_dir / names._new.seal(b"file")
        if target.read_bytes() != raw:
            target.write_bytes(raw)

    report = Report()
    with pytest.MonkeyPatch.context() as patch:
        calls = iter((put_back, done, done, done))
        patch.setattr(TreePass, "run", lambda one: next(calls)(one))
        change_masterkey(vault_dir, report=report)
    assert [each.reason for each in report.damages] == [
        "not of the new masterkey: the file header does not authenticate"
    ]
    assert [path.read_bytes() for path in aside(vault_dir)] == [raw]
    assert before.keys() - shown(vault_dir).keys() == {b"/file"}


def test_an_old_version_beside_the_new_one_goes_aside(vault_dir: Path) -> None:
    """A sync client brings another version under the old name: neither is lost."""
    (path,) = fill(vault_dir, b"file")
    fill(vault_dir, *(b"other %d" % number for number in range(3)), size=10)
    raw = path.read_bytes()
    with Vault.unlock(vault_dir, PASSPHRASE) as vault:
        file = vault.tree.open(vault.tree.root, b"file", os.O_RDWR)
        file.write(0, b"newer")
        vault.tree.release(file)
    done = TreePass.run

    def bring(one: TreePass) -> None:
        done(one)
        path.write_bytes(raw)

    report = Report()
    with pytest.MonkeyPatch.context() as patch:
        calls = iter((bring, done, done, done))
        patch.setattr(TreePass, "run", lambda one: next(calls)(one))
        change_masterkey(vault_dir, report=report)
    assert [each.reason for each in report.damages] == ["another version has its name"]
    assert [each.read_bytes() for each in aside(vault_dir)] == [raw]
    assert read(vault_dir, b"file", 0, 5) == b"newer"


def test_the_space_is_that_of_the_largest_file(vault_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured at each sync, on a vault of many small files and a large one."""
    fill(vault_dir, *(b"%d" % number for number in range(300)), size=100 * KIB)
    fill(vault_dir, b"large", size=9000 * KIB)

    def taken() -> int:
        return sum(path.lstat().st_blocks * 512 for path in everything_below(vault_dir))

    before, most = taken(), [0]

    def look(_: int) -> None:
        most.append(taken())

    monkeypatch.setattr("cryptfs.rekey.change.syncfs", look)
    change_masterkey(vault_dir)
    assert len(most) > 5
    assert max(most) - before <= 9100 * KIB * 1.03 + 300 * KIB
    assert max(most) - before > 8000 * KIB  # it was looked at in the right moment
    shutil.rmtree(vault_dir)
