"""The redo log when something fails: nothing that was acknowledged is lost, and nothing old comes back."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cryptfs.storage.journal import JOURNAL_NAMES
from cryptfs.storage.libc import FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE
from cryptfs.vfs.content import lengths, ranges
from cryptfs.vfs.content.filestate import FileState
from cryptfs.vfs.content.redo import RedoLog
from cryptfs.vfs.recovery import redoing
from tests.crash.backing_calls import CONTENT_CHANGES
from tests.crash.replay.scenes import (
    CHUNK,
    LOGGED,
    NAME,
    OLD,
    OTHER,
    PENDING,
    POWER,
    PROCESS,
    SyncCalls,
    journal_of,
    journal_sync_fails,
    pending_vault,
    redo_of,
    replaced,
    state_of,
    vault_with,
    writer,
)
from tests.crash.striking import Strike
from tests.support import BareVault, pattern

PUNCH = FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE
NEW = pattern(CHUNK, 2)
NEWER = pattern(CHUNK, 3)


def broken_vault(vault_dir: Path) -> BareVault:
    """The journal holds NEW for chunk 0, and could not be synced."""
    vault = vault_with(vault_dir)
    vault.put(b"other", OLD)
    file = writer(vault)
    file.write(0, NEW)
    with journal_sync_fails(vault, errno.EIO) as failed:
        with pytest.raises(OSError) as raised:
            vault.tree.sync_file(file, data_only=True)
        assert raised.value.errno == errno.EIO
        vault.tree.sync_file(file, data_only=True)  # it was told once
        assert len(failed) == 1
    assert redo_of(vault).broken
    vault.tree.release(file)
    return vault


def test_after_a_failed_sync_of_the_journal_its_records_do_not_come_back(tmp_path: Path) -> None:
    vault = broken_vault(tmp_path / "vault")
    assert vault.get(NAME) == replaced(OLD, 0, NEW)
    file = writer(vault)
    file.write(0, NEWER)
    vault.tree.sync_file(file, data_only=False)
    vault.die_and_reopen()
    assert vault.get(NAME) == replaced(OLD, 0, NEWER)
    vault.close()


def test_after_a_failed_sync_of_the_journal_a_shrink_stays(tmp_path: Path) -> None:
    vault = broken_vault(tmp_path / "vault")
    file = writer(vault)
    file.truncate(100)
    file.write(100, b"behind the new end")
    vault.die_and_reopen()
    assert vault.get(NAME) == NEW[:100] + b"behind the new end"
    vault.close()


def test_after_a_failed_sync_of_the_journal_a_hole_stays(tmp_path: Path) -> None:
    vault = broken_vault(tmp_path / "vault")
    ranges.allocate(writer(vault), PUNCH, 0, CHUNK)
    vault.die_and_reopen()
    assert vault.get(NAME) == replaced(OLD, 0, bytes(CHUNK))
    vault.close()


def test_after_a_failed_sync_of_the_journal_the_unmount_ends_the_session(tmp_path: Path) -> None:
    vault = broken_vault(tmp_path / "vault")
    vault.put(b"other", NEWER)
    vault.checkpoint()
    assert vault.tree.files.closed_count == 0  # nothing waits for a journal that is no more used
    vault.reopen()
    assert not set(JOURNAL_NAMES) & set(os.listdir(vault.vault_dir))
    assert vault.get(NAME) == replaced(OLD, 0, NEW)
    assert vault.get(b"other") == NEWER
    assert vault.header(NAME).is_clean
    vault.close()


def test_a_journal_that_was_removed_is_not_relied_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """By a sync client, under the mount. The next sync brings what it is about to its place, and the rest."""
    vault = pending_vault(tmp_path / "vault")
    file, other = writer(vault), writer(vault, OTHER)
    vault.tree.sync_file(other, data_only=True)
    for name in JOURNAL_NAMES:
        (vault.vault_dir / name).unlink()
    file.write(CHUNK, NEW)
    vault.tree.sync_file(file, data_only=True)
    assert caplog.text.count("somebody removed the journal") == 1
    vault.checkpoint()  # at once, where its thread runs
    file.write(3 * CHUNK, NEWER)
    vault.tree.sync_file(file, data_only=True)
    vault.die_and_reopen()
    assert vault.get(NAME) == replaced(replaced(PENDING, CHUNK, NEW), 3 * CHUNK, NEWER)
    assert vault.get(OTHER) == PENDING
    vault.close()


def test_a_session_whose_journal_was_removed_ends(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    vault = pending_vault(tmp_path / "vault")
    for name in JOURNAL_NAMES:
        (vault.vault_dir / name).unlink()
    vault.reopen()
    assert "stays" not in caplog.text
    assert vault.get(NAME) == vault.get(OTHER) == PENDING
    assert vault.header(NAME).is_clean
    vault.close()


def test_a_failed_sync_while_the_journal_takes_turns_counts_as_well(tmp_path: Path) -> None:
    """The kernel reports it once: a later fdatasync that succeeds says nothing."""
    vault = vault_with(tmp_path / "vault")
    file = writer(vault)
    file.write(0, NEW)
    current = journal_of(vault)._fds[journal_of(vault).turn]
    fdatasync = os.fdatasync
    failed: list[int] = []

    def sync(fd: int) -> None:
        if fd == current and not failed:
            failed.append(fd)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        fdatasync(fd)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fdatasync", sync)
        vault.checkpoint()
    assert failed
    assert redo_of(vault).broken
    file.write(0, NEWER)
    vault.tree.sync_file(file, data_only=True)
    vault.die_and_reopen()
    assert vault.get(NAME) == replaced(OLD, 0, NEWER)
    vault.close()


@pytest.mark.parametrize("durability", LOGGED)
def test_a_shrink_that_could_not_be_synced_is_not_redone_later(durability: object, tmp_path: Path) -> None:
    """Its record is in the journal; what is written behind the end afterwards must not be cut by it."""
    for failing in range(6):
        vault = vault_with(tmp_path / f"vault {failing}", durability=durability)  # type: ignore[arg-type]
        file = writer(vault)
        file.write(0, NEW)
        content = replaced(OLD, 0, NEW)
        calls = 0

        def sync(fd: int, failing: int = failing) -> None:
            nonlocal calls
            calls += 1
            if calls == failing + 1:
                raise OSError(errno.EIO, os.strerror(errno.EIO))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "fdatasync", sync)
            try:
                file.truncate(CHUNK + 50)
                content = content[: CHUNK + 50]
            except OSError:
                content = content[: file.state.size]
        more = pattern(3 * CHUNK, 5)
        file.write(len(content), more)
        vault.die_and_reopen()
        assert vault.get(NAME) == content + more
        vault.close()


@pytest.mark.parametrize("durability", LOGGED)
def test_a_shrink_that_failed_in_place_is_not_redone_later(durability: object, tmp_path: Path) -> None:
    for failing in range(12):
        vault = vault_with(tmp_path / f"vault {failing}", durability=durability)  # type: ignore[arg-type]
        file = writer(vault)
        strike = Strike(at=failing, error=errno.EIO, calls_of=CONTENT_CHANGES)
        with strike.on_disk():
            try:
                file.truncate(CHUNK + 50)
            except OSError:
                assert strike.struck
        content = OLD[: file.state.size]
        assert file.read(0, len(OLD)) == content
        more = pattern(3 * CHUNK, 5)
        file.write(len(content), more)
        vault.die_and_reopen()
        assert vault.get(NAME) == content + more
        vault.close()


@pytest.mark.parametrize("durability", LOGGED)
def test_a_punch_that_the_filesystem_refused_is_not_redone(
    durability: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(fd: int, mode: int, offset: int, length: int) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(lengths, "fallocate", refuse)
    monkeypatch.setattr(redoing, "fallocate", refuse)
    vault = vault_with(tmp_path / "vault", durability=durability)  # type: ignore[arg-type]
    file = writer(vault)
    with pytest.raises(OSError):
        ranges.allocate(file, PUNCH, CHUNK, 2 * CHUNK)
    vault.die_and_reopen()
    assert vault.get(NAME) == OLD
    vault.close()


@pytest.mark.parametrize("durability", LOGGED)
def test_a_punch_is_redone_where_the_filesystem_cannot_punch(
    durability: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The vault may have been copied there; sealed content must go all the same."""
    vault = vault_with(tmp_path / "vault", durability=durability)  # type: ignore[arg-type]
    file = writer(vault)
    with monkeypatch.context() as patch:
        patch.setattr(lengths, "fallocate", lambda *_: None)  # killed right before
        ranges.allocate(file, PUNCH, CHUNK, 2 * CHUNK)

    def refuse(fd: int, mode: int, offset: int, length: int) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(redoing, "fallocate", refuse)
    vault.die_and_reopen()
    assert vault.get(NAME) == replaced(OLD, CHUNK, bytes(2 * CHUNK))
    vault.close()


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_what_cannot_be_brought_home_waits_in_the_journal(
    code: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """At a checkpoint, at the unmount: the next mount has it all."""
    vault = vault_with(tmp_path / "vault")
    vault.put(b"other", OLD)
    for name in (NAME, b"other"):
        with vault.opened(name) as file:
            file.write(0, NEW)
            file.write(len(OLD), NEWER)
    expected = replaced(replaced(OLD, 0, NEW), len(OLD), NEWER)
    failing = os.stat(vault.backing(NAME)).st_ino
    pwritev = os.pwritev

    def write(fd: int, pieces: list[bytes], offset: int) -> int:
        if os.fstat(fd).st_ino == failing:
            raise OSError(code, os.strerror(code))
        return pwritev(fd, pieces, offset)

    with pytest.MonkeyPatch.context() as patch, caplog.at_level(logging.ERROR):
        patch.setattr(os, "pwritev", write)
        vault.checkpoint()
        assert vault.get(NAME) == expected
        vault.close()
        assert "next mount" in caplog.text
    assert set(JOURNAL_NAMES) <= set(os.listdir(vault.vault_dir))
    vault._start(read_only=False)
    assert vault.get(NAME) == expected
    assert vault.get(b"other") == expected
    vault.close()
    assert not set(JOURNAL_NAMES) & set(os.listdir(vault.vault_dir))


@pytest.mark.parametrize("name", JOURNAL_NAMES)
def test_a_journal_that_cannot_be_made_leaves_nothing(name: str, tmp_path: Path) -> None:
    vault = vault_with(tmp_path / "vault")
    before = sorted(os.listdir(vault.vault_dir))
    opened, calls = os.open, 0

    def refuse(path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        nonlocal calls
        if path == name:
            calls += 1
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
        return opened(path, flags, mode, dir_fd=dir_fd)

    with pytest.MonkeyPatch.context() as patch, vault.opened(NAME) as file:
        patch.setattr(os, "open", refuse)
        with pytest.raises(OSError) as raised:
            file.write(0, NEW)
        assert raised.value.errno == errno.EDQUOT
        assert calls
    assert sorted(os.listdir(vault.vault_dir)) == before
    assert vault.get(NAME) == OLD
    with vault.opened(NAME) as file:
        file.write(0, NEW)
    vault.reopen()
    assert vault.get(NAME) == replaced(OLD, 0, NEW)
    vault.close()


def test_a_truncate_to_zero_whose_sync_fails_leaves_a_file_that_reads(tmp_path: Path) -> None:
    vault = vault_with(tmp_path / "vault")
    file = writer(vault)

    def fail(fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with pytest.MonkeyPatch.context() as patch:
        file.read(0, 1)
        redo_of(vault).naming()
        patch.setattr(os, "fdatasync", fail)
        with pytest.raises(OSError):
            file.truncate(0)
    content = file.read(0, len(OLD))
    assert content in (b"", OLD)
    file.write(0, NEW)
    assert file.read(0, CHUNK) == NEW
    vault.tree.release(file)
    vault.reopen()
    assert vault.get(NAME) == replaced(content, 0, NEW)
    vault.close()


def test_a_session_whose_end_cannot_be_written_is_replayed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    vault = vault_with(tmp_path / "vault")
    with vault.opened(NAME) as file:
        file.write(0, NEW)

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch, caplog.at_level(logging.ERROR):
        patch.setattr("cryptfs.vfs.content.redo.write_sessions_file", refuse)
        vault.close()
    assert "next mount" in caplog.text
    vault._start(read_only=False)
    assert vault.get(NAME) == replaced(OLD, 0, NEW)
    vault.close()


@pytest.mark.parametrize("plant", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/null", path)])
def test_something_else_in_the_place_of_the_journal_keeps_no_vault_open(
    plant: Callable[[Path], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Somebody who can write to the vault while it is mounted."""
    vault = vault_with(tmp_path / "vault")
    with vault.opened(NAME) as file:
        file.write(0, NEW)
    planted = vault.vault_dir / JOURNAL_NAMES[0]
    planted.unlink()
    plant(planted)
    with caplog.at_level(logging.ERROR):
        vault.close()
    assert "somebody removed the journal" in caplog.text
    assert not os.path.lexists(planted)
    vault._start(read_only=False)
    assert vault.get(NAME) == replaced(OLD, 0, NEW)
    vault.close()


def test_a_long_path_is_found_without_it(tmp_path: Path) -> None:
    """Cipher paths of more than 4096 bytes do not fit into a record."""
    vault = BareVault(tmp_path / "vault", durability=POWER)
    directory = vault.root
    for _ in range(25):
        directory = vault.make_directory(b"d" * 150, directory)
    vault.put(NAME, OLD, directory)
    vault.checkpoint()
    with vault.opened(NAME, os.O_RDWR, directory) as file:
        assert len(os.fsencode(file.state.cipher_path)) > 4096
        file.write(0, NEW)
    vault.die_and_reopen()
    directory = vault.root
    for _ in range(25):
        directory = vault.tree.directory(directory, b"d" * 150)
    assert vault.get(NAME, directory) == replaced(OLD, 0, NEW)
    vault.close()


def test_a_crash_at_level_process_needs_no_syncs(tmp_path: Path) -> None:
    vault = vault_with(tmp_path / "vault", durability=PROCESS)
    calls = SyncCalls()
    with calls.recorded(), vault.opened(NAME) as file:
        file.write(0, NEW)
        file.truncate(CHUNK + 5)
        file.truncate(0)
    assert calls.take() == []
    vault.close()


def test_state_of_a_broken_log_is_that_of_the_class(tmp_path: Path) -> None:
    """A guard for the helpers above: the file's state is the one that the log knows."""
    vault = broken_vault(tmp_path / "vault")
    file = writer(vault)
    assert state_of(vault) is file.state
    assert isinstance(redo_of(vault), RedoLog)
    vault.tree.release(file)
    vault.close()


def test_a_floor_that_comes_late_leaves_newer_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A header could not be written when a file had come home. The next change writes the floor of then."""
    vault = vault_with(tmp_path / "vault")
    file, state = writer(vault), state_of(vault)
    file.write(0, NEWER)
    floor = state.overlay.last_seq + 1
    file.write(0, NEW)
    file.sync(data_only=True)

    def refuse(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(FileState, "_put_header", refuse)
        with pytest.raises(OSError, match=os.strerror(errno.EIO)), state.lock:
            state.raise_floor(floor)
    file.write(2 * CHUNK, NEWER)
    assert vault.header(NAME).journal_floor == floor
    vault.die_and_reopen()
    assert vault.get(NAME) == replaced(replaced(OLD, 0, NEW), 2 * CHUNK, NEWER)
