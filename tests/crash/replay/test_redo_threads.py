"""The redo log with many threads, the checkpointer among them, and limits that keep it at work."""

from __future__ import annotations

import os
import random
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cryptfs.core.format.header import FileHeader
from cryptfs.storage.libc import FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE
from cryptfs.vfs.content import checkpoint, ranges
from cryptfs.vfs.content.filestate import FileState
from cryptfs.vfs.content.mtimes import AHEAD_NS
from cryptfs.vfs.content.openfile import OpenFile
from cryptfs.vfs.content.redo import Durability
from tests.crash.replay.scenes import (
    CHUNK,
    LOGGED,
    NAME,
    OLD,
    OTHER,
    POWER,
    journal_of,
    redo_of,
    replaced,
    state_of,
    vault_with,
    writer,
)
from tests.property.test_threads import run_together
from tests.support import KIB, BareVault, open_descriptors, pattern

pytestmark = pytest.mark.waits

PUNCH = FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE
NEW, NEWER = pattern(CHUNK, 2), pattern(CHUNK, 3)


@pytest.fixture
def tiny_limits(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A checkpointer that is always behind, and threads that change places as often as they can."""
    monkeypatch.setattr(checkpoint, "JOURNAL_LIMIT", 64 * KIB)
    monkeypatch.setattr(checkpoint, "OVERLAY_LIMIT", 32 * KIB)
    monkeypatch.setattr(checkpoint, "MAX_CLOSED", 3)
    monkeypatch.setattr(checkpoint, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(checkpoint, "CLOSED_SECONDS", 0.01)
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(usual)


def started(vault: BareVault) -> checkpoint.Checkpointer:
    checkpointer = vault.workers.checkpointer
    assert checkpointer is not None
    checkpointer.start()
    return checkpointer


def kill(vault: BareVault, checkpointer: checkpoint.Checkpointer) -> None:
    """End the thread where it is between two checkpoints, and lose everything."""
    checkpointer._stopping = True
    checkpointer._wake.set()
    assert checkpointer._thread is not None
    checkpointer._thread.join(60)
    assert not checkpointer._thread.is_alive()
    vault.die_and_reopen()


class Worker:
    """Changes a file of its own in a seeded order, and a bytearray along with it."""

    def __init__(self, vault: BareVault, number: int, rounds: int) -> None:
        self.vault = vault
        self.name = b"file of %d" % number
        self.random = random.Random(number)
        self.rounds = rounds
        self.model = bytearray()

    def run(self) -> None:
        for _ in range(self.rounds):
            with self.vault.opened(self.name, os.O_RDWR | os.O_CREAT) as file:
                for _ in range(self.random.randrange(1, 6)):
                    self.step(file)
                assert file.read(0, len(self.model) + 1) == self.model
                assert self.vault.tree.stat_open(file).size == len(self.model)
            assert self.vault.tree.stat(self.vault.root, self.name).size == len(self.model)

    def step(self, file: OpenFile) -> None:
        size, choice = len(self.model), self.random.random()
        if choice < 0.55 or not size:
            offset = self.random.randrange(size + 500)
            data = self.random.randbytes(self.random.randrange(1, 3 * CHUNK))
            file.write(offset, data)
            self.model.extend(bytes(max(0, offset - size)))
            self.model[offset : offset + len(data)] = data
        elif choice < 0.7:
            length = self.random.randrange(min(2 * size, 12 * CHUNK))
            file.truncate(length)
            del self.model[length:]
            self.model.extend(bytes(length - len(self.model)))
        elif choice < 0.8:
            offset = self.random.randrange(size)
            end = min(size, offset + 2 * CHUNK)
            ranges.allocate(file, PUNCH, offset, 2 * CHUNK)
            self.model[offset:end] = bytes(end - offset)
        elif choice < 0.9:
            self.vault.tree.sync_file(file, data_only=choice < 0.85)
        elif choice < 0.95:
            os.utime(self.vault.backing(self.name))
        else:
            self.remove()

    def remove(self) -> None:
        """Unlink it while it is open, and go on with it under its name again."""
        self.vault.tree.rename(self.vault.root, self.name, self.vault.root, self.name + b" moved")
        self.vault.tree.rename(self.vault.root, self.name + b" moved", self.vault.root, self.name)


@pytest.mark.parametrize("durability", LOGGED)
def test_files_of_many_threads_against_bytearrays(
    durability: Durability, tmp_path: Path, tiny_limits: None
) -> None:
    vault = BareVault(tmp_path / "vault", durability=durability)
    checkpointer = started(vault)
    workers = [Worker(vault, number, 30) for number in range(4)]
    run_together(*(worker.run for worker in workers))
    for worker in workers:
        assert vault.get(worker.name) == worker.model
    kill(vault, checkpointer)
    for worker in workers:
        assert vault.get(worker.name) == worker.model
    vault.close()


def test_one_file_of_many_threads(tmp_path: Path, tiny_limits: None) -> None:
    """Each thread has a region that shares chunks with its neighbours; readers see no half write."""
    region, regions, rounds = 6000, 4, 60
    vault = vault_with(tmp_path / "vault", b"\1" * (region * regions))
    checkpointer = started(vault)
    writing = threading.Event()
    writing.set()

    def write(index: int) -> Callable[[], None]:
        def work() -> None:
            for stamp in range(2, rounds + 2):
                with vault.opened(NAME) as file:
                    file.write(index * region, bytes((stamp,)) * region)
                    if stamp % 7 == index:
                        vault.tree.sync_file(file, data_only=True)

        return work

    def read() -> None:
        index = 0
        while writing.is_set():
            with vault.opened(NAME, os.O_RDONLY) as file:
                got = file.read(index * region, region)
                assert got == got[:1] * region, sorted(set(got))
            assert vault.tree.stat(vault.root, NAME).size == region * regions
            index = (index + 1) % regions

    def write_all() -> None:
        try:
            run_together(*(write(index) for index in range(regions)))
        finally:
            writing.clear()

    run_together(write_all, read)
    expected = bytes((rounds + 1,)) * (region * regions)
    assert vault.get(NAME) == expected
    kill(vault, checkpointer)
    assert vault.get(NAME) == expected
    vault.close()


def test_everything_is_at_rest_after_the_last_close(tmp_path: Path, tiny_limits: None) -> None:
    """The counters come back to nothing, and no descriptor stays."""
    vault = vault_with(tmp_path / "vault")
    before = open_descriptors()
    checkpointer = started(vault)
    workers = [Worker(vault, number, 15) for number in range(3)]
    run_together(*(worker.run for worker in workers))
    deadline = time.monotonic() + 30
    while vault.tree.files._states and time.monotonic() < deadline:
        time.sleep(0.01)
    redo = redo_of(vault)
    assert not vault.tree.files._states
    assert redo.overlay_size == 0
    assert redo.grown == {}
    assert not any(redo.touched)
    assert checkpointer._thread is not None
    for worker in workers:
        assert not vault.backing(worker.name).stat().st_size or vault.header(worker.name).is_clean
    assert open_descriptors() - before == len(journal_of(vault)._fds)
    vault.close()


def test_unlinked_files_give_their_room_back(tmp_path: Path) -> None:
    vault = BareVault(tmp_path / "vault", durability=POWER)
    names = [b"%d" % number for number in range(5)]
    for name in names:
        vault.put(name, OLD)
    vault.reopen()
    before = open_descriptors()
    for name in names:
        with vault.opened(name) as file:
            file.write(0, NEW)
    held = writer(vault, names[0])
    assert open_descriptors() > before
    assert vault.tree.files.closed_count == len(names) - 1
    vault.tree.unlink(vault.root, names[0])
    vault.tree.unlink(vault.root, names[1])
    vault.put(b"x", OLD)
    vault.tree.rename(vault.root, b"x", vault.root, names[2])
    vault.checkpoint()
    assert held.read(0, CHUNK) == NEW
    held.write(CHUNK, NEWER)
    vault.tree.release(held)
    vault.checkpoint()
    assert not vault.tree.files._states
    assert redo_of(vault).overlay_size == 0
    vault.close()


def test_times_do_not_move_when_the_overlay_comes_home(tmp_path: Path) -> None:
    """The time of change is that of the write; set-id bits stay as they are.

    Until the file is at rest its backing file is ahead of that, and after a crash it stays so.
    """
    vault = vault_with(tmp_path / "vault")
    path = vault.backing(NAME)

    def shown() -> int:
        return vault.tree.stat(vault.root, NAME).st.st_mtime_ns

    path.chmod(0o4755)
    os.utime(path, ns=(1, 1))
    file = writer(vault)
    before = time.time_ns() - 10**8  # the kernel's clock for files moves in ticks
    file.write(0, NEW)
    written = shown()
    assert written >= before
    assert path.stat().st_mtime_ns == written + AHEAD_NS
    time.sleep(0.02)
    vault.checkpoint()
    assert not file.state.overlay.records
    assert shown() == written
    assert path.stat().st_mtime_ns == written + AHEAD_NS
    vault.tree.release(file)
    vault.reopen()
    assert shown() == path.stat().st_mtime_ns == written
    assert stat.S_IMODE(path.stat().st_mode) == 0o4755
    with vault.opened(NAME) as file:
        file.write(0, NEWER)
        written = shown()
    vault.die_and_reopen()
    assert path.stat().st_mtime_ns == written + AHEAD_NS
    assert vault.get(NAME) == replaced(OLD, 0, NEWER)
    vault.close()


def test_the_time_does_not_move_while_the_length_is_sealed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The header's own write moves the backing file's time for a moment; a stat may fall into that."""
    vault = vault_with(tmp_path / "vault")
    put_header, seen = FileState._put_header, []

    def watched(state: FileState, fd: int, header: FileHeader, records: memoryview | None = None) -> None:
        time.sleep(0.02)  # more than a tick of the kernel's clock for files
        put_header(state, fd, header, records)
        seen.append((header.is_clean, vault.tree.stat(vault.root, b"new").st.st_mtime_ns))

    monkeypatch.setattr(FileState, "_put_header", watched)
    with vault.opened(b"new", os.O_RDWR | os.O_CREAT) as file:
        file.write(0, NEW)
        written = vault.tree.stat(vault.root, b"new").st.st_mtime_ns
    assert (True, written) in seen
    assert {time_ns for is_clean, time_ns in seen if is_clean} == {written}
    assert vault.tree.stat(vault.root, b"new").st.st_mtime_ns == written
    vault.close()


def test_a_closed_file_is_brought_home_by_the_thread(tmp_path: Path, tiny_limits: None) -> None:
    vault = vault_with(tmp_path / "vault")
    checkpointer = started(vault)
    with vault.opened(NAME) as file:
        file.write(0, NEW)
    deadline = time.monotonic() + 30
    while not vault.header(NAME).is_clean and time.monotonic() < deadline:
        time.sleep(0.01)
    header = vault.header(NAME)
    assert header.is_clean
    assert header.journal_id == bytes(16)
    kill(vault, checkpointer)
    assert vault.get(NAME) == replaced(OLD, 0, NEW)
    vault.close()


def test_a_file_that_is_written_to_does_not_come_home_with_those_that_wait(tmp_path: Path) -> None:
    """Else a database would be written twice wherever somebody edits a file beside it."""
    vault = vault_with(tmp_path / "vault")
    vault.put(OTHER, OLD)
    vault.reopen()
    checkpointer = started(vault)
    held = writer(vault)
    held.write(0, NEW)
    with vault.opened(OTHER) as file:
        file.write(0, NEW)
    deadline = time.monotonic() + 30
    while not vault.header(OTHER).is_clean and time.monotonic() < deadline:
        time.sleep(0.01)
    assert vault.header(OTHER).is_clean
    assert held.state.overlay.records
    assert redo_of(vault).holds(held.state.overlay)
    kill(vault, checkpointer)
    for name in (NAME, OTHER):
        assert vault.get(name) == replaced(OLD, 0, NEW)
    vault.close()


def test_a_record_that_comes_while_its_file_is_brought_home_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes to the journal's file that is in use, which must not take turns before the record is home."""
    vault = vault_with(tmp_path / "vault")
    monkeypatch.setattr(checkpoint, "CLOSED_SECONDS", 0.0)
    with vault.opened(NAME) as file:
        file.write(0, NEW)
    state, sync = state_of(vault), FileState.sync_backing
    late: list[OpenFile] = []

    def synced(which: FileState, *, data_only: bool) -> None:
        sync(which, data_only=data_only)
        if not late and not which.overlay.records:  # it has just come home
            late.append(writer(vault))
            late[0].write(2 * CHUNK, NEWER)

    monkeypatch.setattr(FileState, "sync_backing", synced)
    checkpointer = started(vault)
    checkpointer._file_waits()
    deadline = time.monotonic() + 30
    while not late and time.monotonic() < deadline:
        time.sleep(0.01)
    with checkpointer._lock:
        assert redo_of(vault).holds(state.overlay)
    vault.tree.sync_file(late[0], data_only=True)
    kill(vault, checkpointer)
    assert vault.get(NAME) == replaced(replaced(OLD, 0, NEW), 2 * CHUNK, NEWER)
    vault.close()


def test_the_journal_stays_within_its_limit(tmp_path: Path, tiny_limits: None) -> None:
    """Also where nobody started the thread: then whoever writes does its work."""
    vault = vault_with(tmp_path / "vault", pattern(40 * CHUNK, 1))
    with vault.opened(NAME) as file:
        for number in range(300):
            file.write(number % 40 * CHUNK, NEW)
            assert journal_of(vault).size <= 64 * KIB + 2 * CHUNK
            assert redo_of(vault).overlay_size <= 32 * KIB + 2 * CHUNK
    vault.close()


def test_a_file_made_clean_in_the_middle_keeps_its_records(tmp_path: Path) -> None:
    """CLEAN is written while the file is open, and its places are not synced yet: a torn one is redone."""
    vault = vault_with(tmp_path / "vault")
    file = writer(vault)
    file.write(0, NEW)
    vault.tree.sync_file(file, data_only=True)
    assert ranges.seek(file, 0, os.SEEK_HOLE) == len(OLD)  # brings the overlay home, unsynced
    vault.tree.make_clean(vault.root, NAME)
    assert vault.header(NAME).is_clean
    file.write(2 * CHUNK, NEWER)
    path = vault.backing(NAME)
    raw = bytearray(path.read_bytes())
    raw[vault.geometry.record_offset(0) + 100 : vault.geometry.record_offset(1) - 100] = bytes(CHUNK - 136)
    path.write_bytes(bytes(raw))
    vault.die_and_reopen()
    assert vault.get(NAME) == replaced(replaced(OLD, 0, NEW), 2 * CHUNK, NEWER)
    vault.close()
