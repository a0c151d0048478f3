"""After a crash, where a machine has a journal of its own: what counts, is kept aside, is left alone."""

from __future__ import annotations

import fcntl
import logging
import os
import time
from pathlib import Path

import pytest

from cryptfs.core.names.host import StateNames
from cryptfs.errors import VaultLockedError
from cryptfs.vfs.content.redo import Durability
from cryptfs.vfs.recovery.journals import replay_others
from cryptfs.vfs.vault import Vault
from tests.crash.replay.scenes import CHUNK, NAME, OLD, content, replaced
from tests.support import KIB, MIB, crash_in, pattern, state_files

pytestmark = pytest.mark.waits

PASSPHRASE = b"of one machine"
NEW, NEWER = pattern(CHUNK, 2), pattern(CHUNK, 3)


@pytest.fixture
def vault_dir(tmp_path: Path) -> Path:
    place = tmp_path / "vault"
    Vault.create(place, PASSPHRASE, chunk_size=4 * KIB, kdf_memory=64 * MIB)
    with Vault.unlock(place, PASSPHRASE) as one:
        file = one.tree.create(one.tree.root, NAME, os.O_RDWR, 0o600)
        file.write(0, OLD)
        one.tree.release(file)
    return place


def write(vault_dir: Path, offset: int, data: bytes) -> None:
    """In a session that crashes."""

    def work() -> None:
        one = Vault.unlock(vault_dir, PASSPHRASE)
        one.tree.open(one.tree.root, NAME, os.O_RDWR).write(offset, data)

    crash_in(work)


def aside(vault_dir: Path) -> list[str]:
    return [name for name in os.listdir(vault_dir) if ".aside." in name]


def test_the_list_is_there_before_the_first_journal(vault_dir: Path) -> None:
    write(vault_dir, 0, NEW)
    assert len(state_files(vault_dir, "journal")) == 2
    (journal, _), (listed,) = state_files(vault_dir, "journal"), state_files(vault_dir, "sessions")
    assert (vault_dir / listed).stat().st_mtime_ns <= (vault_dir / journal).stat().st_mtime_ns


def test_an_old_journal_beside_that_of_a_crash_takes_nothing_away(
    vault_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The list was removed in between. The old one ended more sessions, but has not the later time."""
    for _ in range(3):
        with Vault.unlock(vault_dir, PASSPHRASE) as one:
            file = one.tree.open(one.tree.root, NAME, os.O_RDWR)
            file.write(0, OLD[:CHUNK])
            one.tree.release(file)
            names = state_files(vault_dir, "journal")
            old = (vault_dir / names[0]).read_bytes()
    (vault_dir / state_files(vault_dir, "sessions")[0]).unlink()
    later = time.time() + 3600
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: later)
        write(vault_dir, 0, NEW)
    (vault_dir / names[1]).write_bytes(old)
    with caplog.at_level(logging.WARNING), Vault.unlock(vault_dir, PASSPHRASE) as one:
        assert content(one) == replaced(OLD, 0, NEW)
    assert "belongs to another session" in caplog.text
    assert [(vault_dir / name).read_bytes() for name in aside(vault_dir)] == [old]


@pytest.mark.parametrize("kind", ["journal", "sessions"])
def test_what_does_not_open_is_kept_aside(
    kind: str, vault_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Another machine's, renamed; a later version's; damage: never removed."""
    write(vault_dir, 0, NEW)
    contents = []
    for number, name in enumerate(state_files(vault_dir, kind)):
        contents.append(bytes((number + 1,)) * 600)
        (vault_dir / name).write_bytes(contents[-1])
    with caplog.at_level(logging.WARNING), Vault.unlock(vault_dir, PASSPHRASE) as one:
        assert content(one) == (OLD if kind == "journal" else replaced(OLD, 0, NEW))
    kept = [(vault_dir / name).read_bytes() for name in aside(vault_dir)]
    assert sorted(kept) == contents
    assert "kept as" in caplog.text


def test_a_journal_under_another_machines_name_is_nobodys(vault_dir: Path) -> None:
    write(vault_dir, 0, NEW)
    own, other = StateNames(state_files(vault_dir, "journal")[0].split(".")[2]), StateNames("B" * 16)
    for old, new in zip(own.journals, other.journals, strict=True):
        (vault_dir / old).rename(vault_dir / new)
    with Vault.unlock(vault_dir, PASSPHRASE, durability=Durability.OFF) as one:
        replay_others(one.context, one.descriptor)
        assert content(one) == OLD


def test_a_machine_that_is_running_is_not_replayed(vault_dir: Path, tmp_path: Path) -> None:
    """Another one on this computer, such as a container with an id of its own."""
    write(vault_dir, 0, NEW)
    other = StateNames("B" * 16)
    (vault_dir / other.journals[0]).touch()
    with (vault_dir / other.lock).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with Vault.unlock(vault_dir, PASSPHRASE, durability=Durability.OFF) as one:
            with pytest.raises(VaultLockedError):
                replay_others(one.context, one.descriptor)
            assert (vault_dir / other.journals[0]).exists()


def test_a_crash_between_list_and_journal_is_no_session(
    vault_dir: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work() -> None:
        monkeypatch.setattr("cryptfs.vfs.content.redo.Journal", lambda *_, **__: os._exit(0))
        one = Vault.unlock(vault_dir, PASSPHRASE)
        one.tree.open(one.tree.root, NAME, os.O_RDWR).write(0, NEW)

    crash_in(work)
    assert state_files(vault_dir, "sessions")
    with caplog.at_level(logging.WARNING), Vault.unlock(vault_dir, PASSPHRASE) as one:
        assert content(one) == OLD
    assert caplog.text == ""


def test_headers_name_their_journal_for_this_feature_alone(vault_dir: Path) -> None:
    """A reader that goes by an older config refuses them, instead of looking for 0.1's journal."""
    write(vault_dir, 0, NEW)
    (backing,) = (path for path in vault_dir.iterdir() if not path.name.startswith("cryptfs."))
    raw = backing.read_bytes()[:256]
    with Vault.unlock(vault_dir, PASSPHRASE, read_only=True, lock=False) as one:
        context = one.context
        assert not context.unpack_header(raw).is_clean
        context.owner = StateNames()
        with pytest.raises(Exception, match="does not know"):
            context.unpack_header(raw)
