"""`cryptfs upgrade`: a vault of 0.1 gets a machine's own state, at rest or crashed, and killed anywhere."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cryptfs.cli import main as main_module
from cryptfs.core.keys import Subkeys
from cryptfs.core.names.dirrecord import BOUND_DIRS, RECORD_NAME, UPGRADING, open_directory_record
from cryptfs.core.names.host import MACHINE_STATE
from cryptfs.core.slots.config import SLOTS, authenticate, decode_config, replace_fields
from cryptfs.errors import UnsupportedFormatError, VaultError
from cryptfs.fsck.check import check_vault
from cryptfs.fsck.findings import State
from cryptfs.unlock.passphrase import new_passphrase
from cryptfs.unlock.table import sealed
from cryptfs.unlock.unlocking import open_vault
from cryptfs.vfs.tree.directory import Directory
from cryptfs.vfs.upgrade import upgrade
from cryptfs.vfs.vault import Vault, read_config
from tests.crash.replay import scenes
from tests.crash.replay.scenes import CHUNK, NAME, OLD, copy_of, replaced
from tests.crash.striking import Strike
from tests.support import KIB, MIB, crash_in, everything_below, make_old_vault, pattern, state_files

pytestmark = pytest.mark.waits

PASSPHRASE, SECOND = b"of an old vault", b"of its second slot"
NEW = pattern(CHUNK, 2)
FEATURES = [BOUND_DIRS, MACHINE_STATE, SLOTS]
DIRECTORIES = [(b"one",), (b"one", b"below"), (b"one", b"below", b"l" * 200), (b"two",)]
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


@pytest.fixture
def old_vault(tmp_path: Path) -> Path:
    vault_dir = tmp_path / "vault"
    make_old_vault(vault_dir, PASSPHRASE, chunk_size=4 * KIB, kdf_memory=64 * MIB)
    with Vault.unlock(vault_dir, PASSPHRASE) as one:
        file = one.tree.create(one.tree.root, NAME, os.O_RDWR, 0o600)
        file.write(0, OLD)
        one.tree.release(file)
        for path in DIRECTORIES:
            where = one.tree.root
            *above, name = path
            for each in above:
                where = one.tree.directory(where, each)
            one.tree.make_directory(where, name, 0o755)
            one.tree.make_symlink(one.tree.directory(where, name), b"link", name)
    return vault_dir


def directories_of(one: Vault) -> dict[tuple[bytes, ...], Directory]:
    """All directories of the vault, opened by their names."""
    found: dict[tuple[bytes, ...], Directory] = {(): one.tree.root}
    for path in DIRECTORIES:
        found[path] = one.tree.directory(found[path[:-1]], path[-1])
    return found


def versions_in(vault_dir: Path) -> list[int]:
    return [path.read_bytes()[8] for path in everything_below(vault_dir) if path.name == RECORD_NAME]


def assert_bound(vault_dir: Path) -> None:
    """Every directory is bound to its place, and nothing is left over."""
    assert versions_in(vault_dir) == [2] * len(DIRECTORIES)
    left = [path for path in everything_below(vault_dir) if path.name.startswith("cryptfs.tmp.")]
    assert not [path for path in left if path.parent != vault_dir]
    with Vault.unlock(vault_dir, PASSPHRASE, read_only=True) as one:
        for path, directory in directories_of(one).items():
            if path:
                raw = (vault_dir / directory.cipher_path / RECORD_NAME).read_bytes()
                above = directories_of(one)[path[:-1]]
                record = open_directory_record(raw, one.context.keys)
                assert record.places == (above.place_of(path[-1]),)
                assert one.tree.symlinks.read(directory, b"link") == path[-1]


def assert_works(vault_dir: Path) -> None:
    """A vault in the middle of an upgrade: directories can be reached, made and moved."""
    with Vault.unlock(vault_dir, PASSPHRASE) as one:
        tree = one.tree
        found = directories_of(one)
        tree.make_directory(found[b"one",], b"made", 0o755)
        tree.rename(tree.root, b"one", found[b"two",], b"moved")
        moved = tree.directory(found[b"two",], b"moved")
        assert {entry.name for entry in tree.list(moved)} == {b"link", b"below", b"made"}


def add_slot(vault_dir: Path) -> None:
    path = vault_dir / "cryptfs.json"
    config = decode_config(path.read_bytes())
    opened = open_vault(config, PASSPHRASE, 1 << 40)
    masterkey, first = opened.masterkey, opened.slot
    second = sealed(config, 7, "spare", new_passphrase(SECOND, 64 * MIB), masterkey)
    fresh = replace_fields(config, slots=[first, second])
    path.write_bytes(authenticate(fresh, Subkeys.from_masterkey(masterkey)).encode())


@pytest.mark.parametrize("state", [at_rest, crashed, unsettled])
def test_a_vault_in_any_state_is_upgraded_once(state: Callable[[Path], bytes], old_vault: Path) -> None:
    expected = state(old_vault)
    before = read_config(old_vault)
    done = upgrade(old_vault, [PASSPHRASE])
    assert done.added == tuple(FEATURES)
    assert done.left == ()
    config = read_config(old_vault)
    assert config.features == FEATURES
    assert config.generation == before.generation + 2
    assert_bound(old_vault)
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


class _Killed(Strike):
    def exception(self) -> BaseException:
        os._exit(9)


@pytest.mark.parametrize("state", [at_rest, crashed, unsettled])
def test_a_kill_at_any_call_leaves_a_vault_that_opens(
    state: Callable[[Path], bytes], old_vault: Path, tmp_path: Path
) -> None:
    expected = state(old_vault)
    saved = copy_of(old_vault, tmp_path / "saved")
    counted = Strike()
    with counted.without_syncs():
        upgrade(old_vault, [PASSPHRASE])
    assert len(counted.calls) >= 6
    states = set()
    for call in range(len(counted.calls)):
        shutil.rmtree(old_vault)
        copy_of(saved, old_vault)
        child = os.fork()
        if not child:
            try:
                with _Killed(at=call).without_syncs():
                    upgrade(old_vault, [PASSPHRASE])
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9, call
        states.add((tuple(read_config(old_vault).features), frozenset(versions_in(old_vault))))
        opened = copy_of(old_vault, tmp_path / "opened")
        assert content(opened) == expected, call
        assert_works(opened)
        shutil.rmtree(opened)
        upgrade(old_vault, [PASSPHRASE])
        assert read_config(old_vault).features == FEATURES
        assert_bound(old_vault)
        assert not OLD_NAMES & set(os.listdir(old_vault)), call
        assert len(state_files(old_vault, "sessions")) == 1
        assert content(old_vault) == expected, call
    upgrading = (*FEATURES, UPGRADING)
    assert states >= {
        *(((), frozenset({1})), (upgrading, frozenset({1}))),
        *((upgrading, frozenset({1, 2})), (upgrading, frozenset({2}))),
    }


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


def test_a_vault_of_config_version_1_gets_slots_alone(tmp_path: Path) -> None:
    """As cryptfs made them between 0.1 and now."""
    vault_dir = tmp_path / "vault"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cryptfs.vfs.vault.NEW_FEATURES", (BOUND_DIRS, MACHINE_STATE))
        Vault.create(vault_dir, PASSPHRASE, kdf_memory=64 * MIB)
    assert read_config(vault_dir).version == 1
    assert upgrade(vault_dir, [PASSPHRASE]).added == (SLOTS,)
    config = read_config(vault_dir)
    assert (config.version, config.features) == (2, FEATURES)
    assert upgrade(vault_dir, [PASSPHRASE]).added == ()
    with Vault.unlock(vault_dir, PASSPHRASE):
        pass


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
    assert answer["added"] == answer["features"] == FEATURES
    assert answer["left"] == []
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
    monkeypatch.setattr("cryptfs.core.slots.config.KNOWN_FEATURES", frozenset())
    with pytest.raises(UnsupportedFormatError, match=MACHINE_STATE):
        Vault.unlock(old_vault, PASSPHRASE)


def test_an_older_config_with_newer_directories_is_refused(old_vault: Path) -> None:
    """Also where nothing but a directory record is newer; and those directories cannot be reached by it."""
    upgrade(old_vault, [PASSPHRASE])
    newer = (old_vault / "cryptfs.json").read_bytes()
    config = decode_config(newer)
    masterkey = open_vault(config, PASSPHRASE, 1 << 40).masterkey
    keys = Subkeys.from_masterkey(masterkey)
    for features in ([], [MACHINE_STATE]):
        new = new_passphrase(PASSPHRASE, 64 * MIB)
        older = replace_fields(config, features=features, version=1)
        older = authenticate(replace_fields(older, slots=[sealed(older, 0, "", new, masterkey)]), keys)
        (old_vault / "cryptfs.json").write_bytes(older.encode())
        for name in state_files(old_vault, "sessions"):
            (old_vault / name).unlink()
        with pytest.raises(VaultError, match="older than the vault"):
            Vault.unlock(old_vault, PASSPHRASE)
    (old_vault / "cryptfs.json").write_bytes(newer)
    assert content(old_vault) == OLD


def test_an_unfinished_upgrade_is_told(old_vault: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cryptfs.vfs.upgrade._bind_directories", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            upgrade(old_vault, [PASSPHRASE])
    assert read_config(old_vault).is_upgrading
    with Vault.unlock(old_vault, PASSPHRASE):
        assert [line for line in caplog.messages if "cryptfs upgrade" in line]
    assert upgrade(old_vault, [PASSPHRASE]).added == ()
    assert_bound(old_vault)


def test_a_directory_that_nobody_can_reach_is_left_to_fsck(old_vault: Path) -> None:
    with Vault.unlock(old_vault, PASSPHRASE) as one:
        damaged = directories_of(one)[b"two",].cipher_path
    record = old_vault / damaged / RECORD_NAME
    record.write_bytes(record.read_bytes()[:-1] + b"!")
    assert upgrade(old_vault, [PASSPHRASE]).left == (damaged,)
    with Vault.unlock(old_vault, PASSPHRASE) as one:
        assert [finding.state for finding in check_vault(one, repair=True).run()] == [State.REPAIRED]
    assert set(versions_in(old_vault)) == {2}


def test_directories_keep_their_times_and_modes(old_vault: Path) -> None:
    with Vault.unlock(old_vault, PASSPHRASE) as one:
        paths = [old_vault / each.cipher_path for each in directories_of(one).values() if each.cipher_path]
    for number, path in enumerate(paths):
        path.chmod(0o500)
        os.utime(path, ns=(number, 10**18 + number))
    before = [(path.stat().st_mode, path.stat().st_mtime_ns) for path in paths]
    upgrade(old_vault, [PASSPHRASE])
    assert [(path.stat().st_mode, path.stat().st_mtime_ns) for path in paths] == before
    assert_bound(old_vault)
