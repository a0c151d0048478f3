"""The feature delta-journal in the config: new vaults, `cryptfs upgrade`, and configs from before it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cryptfs.cli import main as main_module
from cryptfs.core.slots.config import DELTA_JOURNAL, authenticate, decode_config, replace_fields
from cryptfs.errors import UnsupportedFormatError, VaultError
from cryptfs.unlock.table import changing_slots
from cryptfs.vfs.upgrade import upgrade
from cryptfs.vfs.vault import NEW_FEATURES, Vault, read_config
from tests.crash.replay import scenes
from tests.crash.replay.scenes import CHUNK, NAME, OLD, copy_of, replaced
from tests.crash.replay.test_upgrade import _Killed
from tests.crash.striking import Strike
from tests.support import KIB, MIB, crash_in, pattern, state_files

pytestmark = pytest.mark.waits

PASSPHRASE = b"of a vault"
BEFORE, AFTER = list(NEW_FEATURES), sorted([*NEW_FEATURES, DELTA_JOURNAL])
NEW, LATER = pattern(CHUNK, 2), pattern(50, 3)


@pytest.fixture
def vault_dir(tmp_path: Path) -> Path:
    """A vault without the feature, and a file in it."""
    place = tmp_path / "vault"
    Vault.create(place, PASSPHRASE, chunk_size=4 * KIB, kdf_memory=64 * MIB)
    with Vault.unlock(place, PASSPHRASE) as one:
        file = one.tree.create(one.tree.root, NAME, os.O_RDWR, 0o600)
        file.write(0, OLD)
        one.tree.release(file)
    return place


def content(vault_dir: Path) -> bytes:
    with Vault.unlock(vault_dir, PASSPHRASE) as one:
        return scenes.content(one)


def change(vault_dir: Path) -> None:
    """Two changes of a chunk, and the end of the process."""
    one = Vault.unlock(vault_dir, PASSPHRASE)
    file = one.tree.open(one.tree.root, NAME, os.O_RDWR)
    file.write(0, NEW)
    file.write(100, LATER)


CHANGED = replaced(replaced(OLD, 0, NEW), 100, LATER)


def at_rest(vault_dir: Path) -> bytes:
    return OLD


def crashed(vault_dir: Path) -> bytes:
    crash_in(lambda: change(vault_dir))
    assert state_files(vault_dir, "journal")
    return CHANGED


def unsettled(vault_dir: Path) -> bytes:
    expected = crashed(vault_dir)
    crash_in(lambda: Vault.unlock(vault_dir, PASSPHRASE))
    return expected


@pytest.mark.parametrize("state", [at_rest, crashed, unsettled])
def test_a_vault_gets_it_when_asked_and_keeps_it(state: Callable[[Path], bytes], vault_dir: Path) -> None:
    expected = state(vault_dir)
    assert upgrade(vault_dir, [PASSPHRASE]).added == ()
    assert upgrade(vault_dir, [PASSPHRASE], deltas=True).added == (DELTA_JOURNAL,)
    raw = (vault_dir / "cryptfs.json").read_bytes()
    for asked in (True, False):
        assert upgrade(vault_dir, [PASSPHRASE], deltas=asked).added == ()
        assert (vault_dir / "cryptfs.json").read_bytes() == raw
    assert read_config(vault_dir).features == AFTER
    assert content(vault_dir) == expected
    crashed(vault_dir)
    assert content(vault_dir) == CHANGED


def put_back_in_place(saved: Path, vault_dir: Path) -> None:
    """The directory stays: its inode number is a part of the machine's name."""
    for path in vault_dir.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    shutil.copytree(saved, vault_dir, symlinks=True, dirs_exist_ok=True)


@pytest.mark.parametrize("state", [at_rest, crashed])
def test_an_upgrade_killed_at_any_call(
    state: Callable[[Path], bytes], vault_dir: Path, tmp_path: Path
) -> None:
    expected = state(vault_dir)
    saved = copy_of(vault_dir, tmp_path / "saved")
    counted = Strike()
    with counted.without_syncs():
        upgrade(vault_dir, [PASSPHRASE], deltas=True)
    for call in range(len(counted.calls)):
        put_back_in_place(saved, vault_dir)
        child = os.fork()
        if not child:
            try:
                with _Killed(at=call).without_syncs():
                    upgrade(vault_dir, [PASSPHRASE], deltas=True)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9, call
        assert call % 2 or content(vault_dir) == expected, call  # a vault that nobody upgrades further works
        upgrade(vault_dir, [PASSPHRASE], deltas=True)
        assert read_config(vault_dir).features == AFTER, call
        assert content(vault_dir) == expected, call


def test_a_config_from_before_it_is_refused_beside_its_journal(vault_dir: Path) -> None:
    """A program that goes by that config would put the journal aside."""
    older = (vault_dir / "cryptfs.json").read_bytes()
    upgrade(vault_dir, [PASSPHRASE], deltas=True)
    newer = (vault_dir / "cryptfs.json").read_bytes()
    crashed(vault_dir)
    before = sorted(os.listdir(vault_dir))
    (vault_dir / "cryptfs.json").write_bytes(older)
    for read_only in (False, True):
        with pytest.raises(VaultError, match="older than the vault"):
            Vault.unlock(vault_dir, PASSPHRASE, read_only=read_only)
    assert sorted(os.listdir(vault_dir)) == before
    (vault_dir / "cryptfs.json").write_bytes(newer)
    assert content(vault_dir) == CHANGED


def test_a_config_from_before_it_opens_a_vault_at_rest(vault_dir: Path) -> None:
    """Nothing else in the vault is of this feature."""
    older = (vault_dir / "cryptfs.json").read_bytes()
    upgrade(vault_dir, [PASSPHRASE], deltas=True)
    crashed(vault_dir)
    assert content(vault_dir) == CHANGED
    (vault_dir / "cryptfs.json").write_bytes(older)
    assert content(vault_dir) == CHANGED


def test_a_journal_from_before_it_is_replayed(vault_dir: Path) -> None:
    """Another machine upgrades the vault, and the config arrives here after a crash."""
    crashed(vault_dir)
    with changing_slots(vault_dir, PASSPHRASE) as table:
        table.config = replace_fields(table.config, features=AFTER)
        table.save()
    assert read_config(vault_dir).has_delta_journal
    assert content(vault_dir) == CHANGED


def test_it_needs_machine_state(vault_dir: Path) -> None:
    config = read_config(vault_dir)
    with Vault.unlock(vault_dir, PASSPHRASE) as one:
        keys = one.context.keys
        wrong = authenticate(replace_fields(config, features=[DELTA_JOURNAL, "slots"]), keys)
    with pytest.raises(VaultError, match="feature"):
        decode_config(wrong.encode())


def test_a_program_that_does_not_know_it_names_it(vault_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upgrade(vault_dir, [PASSPHRASE], deltas=True)
    monkeypatch.setattr("cryptfs.core.slots.config.KNOWN_FEATURES", frozenset(NEW_FEATURES))
    with pytest.raises(UnsupportedFormatError, match=DELTA_JOURNAL):
        Vault.unlock(vault_dir, PASSPHRASE)


def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "pass").write_bytes(PASSPHRASE + b"\n")
    (tmp_path / "pass").chmod(0o600)
    given = ["--passfile", str(tmp_path / "pass")]
    for name, more, features in (("plain", [], BEFORE), ("deltas", ["--delta-journal"], AFTER)):
        words = ["init", str(tmp_path / name), *given, "--kdf-memory", "64m", *more]
        assert main_module.main(words) == 0
        assert read_config(tmp_path / name).features == features
    capsys.readouterr()
    words = ["upgrade", str(tmp_path / "plain"), *given, "--json"]
    assert main_module.main(words) == 0
    assert json.loads(capsys.readouterr().out)["added"] == []
    assert main_module.main([*words, "--delta-journal"]) == 0
    assert json.loads(capsys.readouterr().out)["added"] == [DELTA_JOURNAL]
