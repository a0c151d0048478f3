"""When files come home: at their time, again where it failed, and never as if they had."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from cryptfs.storage import libc
from cryptfs.storage.journal import JOURNAL_NAMES, Journal
from cryptfs.vfs.content import checkpoint, redo
from cryptfs.vfs.content.filestate import FileState
from cryptfs.vfs.content.parts import Overlay
from cryptfs.vfs.content.redo import RedoLog
from tests.crash.replay.scenes import (
    CHUNK,
    NAME,
    NEW,
    OLD,
    OTHER,
    redo_of,
    replaced,
    vault_with,
    writer,
)
from tests.crash.striking import ProcessDeath
from tests.support import KIB, BareVault

WAIT_SECONDS = 30.0


@contextlib.contextmanager
def thread_of(vault: BareVault) -> Iterator[checkpoint.Checkpointer]:
    """The checkpointer's thread, for a while; it ends where it is between two checkpoints."""
    checkpointer = vault.workers.checkpointer
    assert checkpointer is not None
    checkpointer.start()
    try:
        yield checkpointer
    finally:
        checkpointer._stopping = True
        checkpointer._wake.set()
        assert checkpointer._thread is not None
        checkpointer._thread.join(60)
        assert not checkpointer._thread.is_alive()
        checkpointer._thread = None


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@contextlib.contextmanager
def writes_fail(vault: BareVault, name: bytes = NAME) -> Iterator[list[float]]:
    """Each write to the backing file fails; the times of the attempts."""
    failing, pwritev = vault.backing(name).stat().st_ino, os.pwritev
    attempts: list[float] = []

    def write(fd: int, pieces: Sequence[bytes], offset: int) -> int:
        if os.fstat(fd).st_ino == failing:
            attempts.append(time.monotonic())
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return pwritev(fd, pieces, offset)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "pwritev", write)
        yield attempts


def overwrite(vault: BareVault, data: bytes = NEW, name: bytes = NAME) -> None:
    with vault.opened(name) as file:
        file.write(0, data)


def test_a_file_that_is_closed_often_comes_home_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first close sets the time, whatever the thread waited for until then."""
    monkeypatch.setattr(checkpoint, "CLOSED_SECONDS", 1.0)
    monkeypatch.setattr(checkpoint, "LOOK_SECONDS", 60.0)
    vault = vault_with(tmp_path / "vault")
    homecomings: list[float] = []
    came_home = RedoLog.came_home

    def noted(log: RedoLog, overlay: Overlay, floor: int, turn: int) -> None:
        homecomings.append(time.monotonic())
        came_home(log, overlay, floor, turn)

    monkeypatch.setattr(RedoLog, "came_home", noted)
    with thread_of(vault):
        time.sleep(0.1)  # it waits for somebody to wake it
        began = time.monotonic()
        for _ in range(5):
            overwrite(vault)
            time.sleep(0.02)
        wait_until(lambda: not any(redo_of(vault).touched))
        assert len(homecomings) == 1
        assert homecomings[0] - began >= 1.0
    vault.close()


def test_a_file_that_cannot_come_home_is_not_tried_without_a_pause(tmp_path: Path) -> None:
    """Also where the time of the files that wait is over and a checkpoint is wanted at once."""
    vault = vault_with(tmp_path / "vault")
    overwrite(vault)
    with writes_fail(vault) as attempts, thread_of(vault):
        vault.tree.files.on_waiting()
        (vault.vault_dir / JOURNAL_NAMES[0]).unlink()
        wait_until(lambda: len(attempts) > 0)
        time.sleep(1.5)
        assert len(attempts) < 40  # a few each half second
    assert redo_of(vault).broken
    vault.checkpoint()
    assert vault.get(NAME) == replaced(OLD, 0, NEW)
    vault.close()


def test_writes_go_on_once_the_file_that_could_not_be_written_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The journal is far over its limit then, and none of it waits for anything."""
    monkeypatch.setattr(checkpoint, "JOURNAL_LIMIT", 64 * KIB)
    vault = vault_with(tmp_path / "vault")
    with writes_fail(vault) as attempts:
        file = writer(vault)
        with contextlib.suppress(OSError):
            file.write(0, NEW)
        assert attempts
    file.write(0, NEW)
    with writes_fail(vault), pytest.raises(OSError, match="Input/output"):
        for _ in range(100):
            file.write(0, NEW)
    vault.tree.release(file)
    vault.tree.unlink(vault.root, NAME)
    assert not any(redo_of(vault).touched)
    vault.put(OTHER, OLD)
    overwrite(vault, name=OTHER)
    assert vault.get(OTHER) == replaced(OLD, 0, NEW)
    vault.close()


def test_a_journal_that_was_removed_is_noticed_without_a_sync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A database has its file open and does nothing: what it synced before is in the journal only."""
    monkeypatch.setattr(checkpoint, "LOOK_SECONDS", 0.05)
    vault = vault_with(tmp_path / "vault")
    file = writer(vault)
    file.write(0, NEW)
    vault.tree.sync_file(file, data_only=True)
    for name in JOURNAL_NAMES:
        (vault.vault_dir / name).unlink()
    with thread_of(vault):
        wait_until(lambda: not redo_of(vault).holds(file.state.overlay))
    vault.die_and_reopen()
    assert vault.get(NAME) == replaced(OLD, 0, NEW)
    vault.close()


def test_a_sync_that_meets_the_end_of_the_journal_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread finds that the journal cannot be synced, just when this sync begins."""
    vault = vault_with(tmp_path / "vault")
    file = writer(vault)
    file.write(0, NEW)
    commit = RedoLog.commit

    def late(log: RedoLog, overlay: Overlay) -> bool:
        log._give_up(OSError(errno.EIO, os.strerror(errno.EIO)))
        return commit(log, overlay)

    with monkeypatch.context() as patch:
        patch.setattr(RedoLog, "commit", late)
        vault.tree.sync_file(file, data_only=True)
    vault.die()
    for name in JOURNAL_NAMES:  # never synced
        (vault.vault_dir / name).unlink()
    vault._start(read_only=False)
    assert vault.get(NAME) == replaced(OLD, 0, NEW)
    vault.close()


@contextlib.contextmanager
def one_sync_fails(vault: BareVault) -> Iterator[list[int]]:
    """The next sync of the backing file fails, and what was written since the last one is gone.

    Linux says so once, and takes the pages for clean then: the next sync succeeds, and nothing is on disk.
    """
    path = vault.backing(NAME)
    inode, on_disk = path.stat().st_ino, path.read_bytes()
    fdatasync, fsync = os.fdatasync, os.fsync
    calls: list[int] = []

    def watched(sync: Callable[[int], None], fd: int) -> None:
        nonlocal on_disk
        if os.fstat(fd).st_ino != inode:
            sync(fd)
            return
        calls.append(fd)
        if len(calls) == 1:
            path.write_bytes(on_disk)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        on_disk = path.read_bytes()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fdatasync", lambda fd: watched(fdatasync, fd))
        patch.setattr(os, "fsync", lambda fd: watched(fsync, fd))
        yield calls


def test_a_failed_sync_of_a_file_leaves_the_journal_in_charge(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What an fsync(2) has promised stays in the journal until it is known to be in its place."""
    vault = vault_with(tmp_path / "vault")
    with vault.opened(NAME) as file:
        file.write(0, NEW)
        vault.tree.sync_file(file, data_only=True)
    with one_sync_fails(vault) as calls:
        for _ in range(4):
            vault.checkpoint()
        assert calls
        assert any(redo_of(vault).touched)
        vault.close()
    assert "next mount" in caplog.text
    vault._start(read_only=False)
    assert vault.get(NAME) == replaced(OLD, 0, NEW)
    vault.close()


def test_a_file_whose_sync_failed_comes_home_once_it_was_emptied(tmp_path: Path) -> None:
    """Until then it may grow and change, and a cut that would do without the journal's records is refused."""
    vault = vault_with(tmp_path / "vault")
    file = writer(vault)
    file.write(0, NEW)
    with one_sync_fails(vault), pytest.raises(OSError):
        vault.tree.sync_file(file, data_only=True)
    vault.tree.sync_file(file, data_only=True)  # the kernel says it once
    file.write(2 * CHUNK, NEW)
    with pytest.raises(OSError):
        file.truncate(CHUNK)
    vault.checkpoint()
    assert redo_of(vault).holds(file.state.overlay)
    file.truncate(0)
    file.write(0, NEW)
    vault.tree.sync_file(file, data_only=True)
    vault.tree.release(file)
    vault.checkpoint()
    assert not any(redo_of(vault).touched)
    assert vault.get(NAME) == NEW
    vault.close()


@pytest.mark.parametrize("size", [CHUNK + 50, 2 * CHUNK])
def test_a_shrink_whose_header_did_not_reach_the_disk_is_not_redone(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The power goes between the journal's sync and the file's, whose header vouches for more."""
    vault = vault_with(tmp_path / "vault")
    file = writer(vault)
    file.write(0, NEW)
    vault.tree.sync_file(file, data_only=True)
    vault.checkpoint()
    vault.tree.sync_file(file, data_only=True)
    on_disk = vault.backing(NAME).read_bytes()

    def cut(*_: object, **__: object) -> None:
        raise ProcessDeath

    with monkeypatch.context() as patch, pytest.raises(ProcessDeath):
        patch.setattr(FileState, "sync_backing", cut)
        file.truncate(size)
    vault.die()
    vault.backing(NAME).write_bytes(on_disk)
    vault._start(read_only=False)
    assert vault.get(NAME) == replaced(OLD, 0, NEW)
    vault.close()


def test_records_of_a_removed_file_stay_until_its_removal_is_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loss of power may bring the name back, and with it what an fsync(2) has promised."""
    vault = vault_with(tmp_path / "vault")
    vault.put(OTHER, OLD)
    vault.reopen()
    calls: list[str] = []
    take_turns, sync_all = Journal.take_turns, libc.syncfs

    def turn(journal: Journal) -> None:
        calls.append("turn")
        take_turns(journal)

    def sync_everything(fd: int) -> None:
        calls.append("syncfs")
        sync_all(fd)

    monkeypatch.setattr(Journal, "take_turns", turn)
    monkeypatch.setattr(redo, "syncfs", sync_everything)
    for name in (NAME, OTHER):
        with vault.opened(name) as file:
            file.write(0, NEW)
            vault.tree.sync_file(file, data_only=True)
    vault.tree.unlink(vault.root, NAME)
    vault.checkpoint()
    assert calls == ["syncfs", "turn"]
    overwrite(vault, name=OTHER)
    vault.checkpoint()
    assert calls == ["syncfs", "turn", "turn"]
    vault.close()


def test_a_growth_whose_header_did_not_reach_the_disk_is_not_redone(tmp_path: Path) -> None:
    """Its header is CLEAN. Redone, the growth was trimmed off, and part of the last chunk with it."""
    vault = vault_with(tmp_path / "vault")
    redo_of(vault).naming()
    held = vault.tree.create(vault.root, OTHER, os.O_RDWR, 0o600)
    held.write(0, OLD)
    vault.tree.make_clean(vault.root, OTHER)
    vault.tree.sync_file(held, data_only=True)
    assert vault.header(OTHER).is_clean
    on_disk = vault.backing(OTHER).read_bytes()
    held.write(len(OLD), NEW)
    overwrite(vault)
    redo_of(vault).commit(held.state.overlay)
    vault.die()
    vault.backing(OTHER).write_bytes(on_disk)
    vault._start(read_only=False)
    assert vault.get(OTHER) == OLD
    vault.close()
