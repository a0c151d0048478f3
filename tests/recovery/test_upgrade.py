"""`cryptfs upgrade`: a vault of 0.1 gets a machine's own state, at rest or crashed, and killed anywhere."""

from __future__ import annotations

import functools
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cryptfs.cli import main as main_module
from cryptfs.core.config import NewSlot, authenticate, decode_config, make_slot, replace_fields, unlock
from cryptfs.core.host import MACHINE_STATE
from cryptfs.core.keys import Subkeys, passphrase_key
from cryptfs.errors import UnsupportedFormatError, VaultError
from cryptfs.vfs.upgrade import upgrade
from cryptfs.vfs.vault import Vault, read_config
from tests.fsck.deaths import dying
from tests.recovery import scenes
from tests.recovery.faults import Faults
from tests.recovery.scenes import CHUNK, NAME, OLD, copy_of, replaced
from tests.support import KIB, MIB, crash_in, make_old_vault, pattern, state_files

PASSPHRASE, SECOND = b"of an old vault", b"of its second slot"
NEW = pattern(CHUNK, 2)
OLD_NAMES = {"cryptfs.sessions", "cryptfs.unsettled", "cryptfs.journal.a", "cryptfs.journal.b"}


def content(vault_dir: Path, passphrase: bytes = PASSPHRASE) -> bytes:
    with Vault.unlock(vault_dir, passphrase) as one:
        return scenes.content(one)


def at_rest(vault_dir: Path) -> bytes:
    with Vault.unlock(vault_dir, PASSPHRASE) as one:
        file = one.tree.open(one.tree.root, NAME, os.O_RDWR)
        file.write(0, NEW)
        one.tree.release(file)
    return replaced(OLD, 0, NEW)


def crashed(vault_dir: Path) -> bytes:
    def write() -> None:
        one = Vault.unlock(vault_dir, PASSPHRASE)
        one.tree.open(one.tree.root, NAME, os.O_RDWR).write(0, NEW)

    crash_in(write)
    assert state_files(vault_dir, "journal")
    return replaced(OLD, 0, NEW)


def unsettled(vault_dir: Path) -> bytes:
    """The journal was replayed, and nobody has looked at the files yet."""
    expected = crashed(vault_dir)
    crash_in(lambda: Vault.unlock(vault_dir, PASSPHRASE))
    assert state_files(vault_dir, "unsettled")
    return expected


@pytest.fixture(autouse=True)
def _deriving_takes_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each passphrase is derived once for each salt: a vault is unlocked some hundred times here."""
    monkeypatch.setattr("cryptfs.core.config.passphrase_key", functools.cache(passphrase_key))


@pytest.fixture
def old_vault(tmp_path: Path) -> Path:
    vault_dir = tmp_path / "vault"
    make_old_vault(vault_dir, PASSPHRASE, chunk_size=4 * KIB, kdf_memory=64 * MIB)
    with Vault.unlock(vault_dir, PASSPHRASE) as one:
        file = one.tree.create(one.tree.root, NAME, os.O_RDWR, 0o600)
        file.write(0, OLD)
        one.tree.release(file)
    return vault_dir


def add_slot(vault_dir: Path) -> None:
    path = vault_dir / "cryptfs.json"
    config = decode_config(path.read_bytes())
    masterkey, first = unlock(config, PASSPHRASE, 1 << 40)
    new = NewSlot(SECOND, os.urandom(16), os.urandom(24), label="spare", memory=64 * MIB)
    second = make_slot(config, 7, new, masterkey)
    fresh = replace_fields(config, slots=[first, second])
    path.write_bytes(authenticate(fresh, Subkeys.from_masterkey(masterkey)).encode())


@pytest.mark.parametrize("state", [at_rest, crashed, unsettled])
def test_a_vault_in_any_state_is_upgraded_once(state: Callable[[Path], bytes], old_vault: Path) -> None:
    expected = state(old_vault)
    before = read_config(old_vault)
    assert upgrade(old_vault, [PASSPHRASE]).added == (MACHINE_STATE,)
    config = read_config(old_vault)
    assert config.features == [MACHINE_STATE]
    assert config.generation == before.generation + 1
    assert not OLD_NAMES & set(os.listdir(old_vault))
    assert len(state_files(old_vault, "sessions")) == 1
    assert content(old_vault) == expected
    raw = (old_vault / "cryptfs.json").read_bytes()
    assert upgrade(old_vault, [PASSPHRASE]).added == ()
    assert (old_vault / "cryptfs.json").read_bytes() == raw
    with Vault.unlock(old_vault, PASSPHRASE) as one:
        file = one.tree.open(one.tree.root, NAME, os.O_RDWR)
        file.write(0, OLD[:CHUNK])
        one.tree.release(file)
        assert [name for name in state_files(old_vault, "journal") if name.startswith("cryptfs.host.")]
    assert content(old_vault) == OLD


class _Killed(Faults):
    def fail(self) -> BaseException:
        os._exit(9)


@pytest.mark.parametrize("state", [at_rest, crashed, unsettled])
def test_a_kill_at_any_call_leaves_a_vault_that_opens(
    state: Callable[[Path], bytes], old_vault: Path, tmp_path: Path
) -> None:
    expected = state(old_vault)
    saved = copy_of(old_vault, tmp_path / "saved")
    counted = Faults()
    with dying(counted):
        upgrade(old_vault, [PASSPHRASE])
    assert counted.calls >= 6
    states = set()
    for call in range(counted.calls):
        shutil.rmtree(old_vault)
        copy_of(saved, old_vault)
        child = os.fork()
        if not child:
            try:
                with dying(_Killed(at=call)):
                    upgrade(old_vault, [PASSPHRASE])
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9, call
        states.add(bool(read_config(old_vault).features))
        opened = copy_of(old_vault, tmp_path / "opened")
        assert content(opened) == expected, call
        shutil.rmtree(opened)
        upgrade(old_vault, [PASSPHRASE])
        assert read_config(old_vault).features == [MACHINE_STATE]
        assert not OLD_NAMES & set(os.listdir(old_vault)), call
        assert len(state_files(old_vault, "sessions")) == 1
        assert content(old_vault) == expected, call
    assert states == {False, True}


def test_every_slot_must_be_given(old_vault: Path) -> None:
    add_slot(old_vault)
    raw = (old_vault / "cryptfs.json").read_bytes()
    for given, missing in ((PASSPHRASE, r"slot 7 \(spare\)"), (SECOND, "slot 0")):
        with pytest.raises(VaultError, match=missing):
            upgrade(old_vault, [given])
        assert (old_vault / "cryptfs.json").read_bytes() == raw
    upgrade(old_vault, [SECOND, PASSPHRASE])
    for passphrase in (PASSPHRASE, SECOND):
        assert content(old_vault, passphrase) == OLD
    assert [(slot.id, slot.label) for slot in read_config(old_vault).slots] == [(0, ""), (7, "spare")]


def test_the_command(old_vault: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add_slot(old_vault)
    files = {"first": PASSPHRASE, "second": SECOND}
    for name, passphrase in files.items():
        (tmp_path / name).write_bytes(passphrase + b"\n")
        (tmp_path / name).chmod(0o600)
    words = ["upgrade", str(old_vault), "--passfile", str(tmp_path / "first")]
    assert main_module.main(words) == 11
    assert "7 (spare)" in capsys.readouterr().err
    words += ["--slot-passfile", str(tmp_path / "second")]
    assert main_module.main([*words, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["added"] == answer["features"] == [MACHINE_STATE]
    assert main_module.main(words) == 0
    assert "up to date" in capsys.readouterr().err
    with Vault.unlock(old_vault, PASSPHRASE):
        assert main_module.main(words) == 40


def test_a_config_from_before_the_upgrade_is_refused(old_vault: Path) -> None:
    """It is authentic; a list of a machine's own shows that it is older."""
    raw = (old_vault / "cryptfs.json").read_bytes()
    upgrade(old_vault, [PASSPHRASE])
    newer = (old_vault / "cryptfs.json").read_bytes()
    (old_vault / "cryptfs.json").write_bytes(raw)
    for read_only in (False, True):
        with pytest.raises(VaultError, match="older than the vault"):
            Vault.unlock(old_vault, PASSPHRASE, read_only=read_only)
    (old_vault / "cryptfs.json").write_bytes(newer)
    assert content(old_vault) == OLD


def test_a_program_that_does_not_know_the_feature_names_it(
    old_vault: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upgrade(old_vault, [PASSPHRASE])
    monkeypatch.setattr("cryptfs.core.config.KNOWN_FEATURES", frozenset())
    with pytest.raises(UnsupportedFormatError, match=MACHINE_STATE):
        Vault.unlock(old_vault, PASSPHRASE)
