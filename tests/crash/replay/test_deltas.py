"""The data path with delta-journal: what goes to the journal, what readers find, what comes home."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cryptfs.core.format.journal import JournalHead, Operation
from cryptfs.core.geometry import HEADER_SIZE
from cryptfs.core.names.host import StateNames
from cryptfs.storage.libc import FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE
from cryptfs.vfs.content import homecoming, mtimes, ranges
from cryptfs.vfs.content.openfile import OpenFile
from cryptfs.vfs.content.redo import Durability, RedoLog
from tests.crash.replay.scenes import (
    NAME,
    POWER,
    PROCESS,
    journal_of,
    redo_of,
    replaced,
    state_of,
    writer,
)
from tests.support import KIB, BareVault, pattern

CHUNK = 16 * KIB
OWNER = StateNames("A" * 16)
OLD = pattern(3 * CHUNK + 1000, 1)
PIECE, LATER = pattern(4 * KIB, 2), pattern(100, 3)


def make(vault_dir: Path, *, deltas: bool = True, durability: Durability = POWER) -> BareVault:
    """A vault with a file that an earlier session closed."""
    vault = BareVault(vault_dir, chunk_size=CHUNK, durability=durability, owner=OWNER, deltas=deltas)
    vault.put(NAME, OLD)
    vault.reopen()
    return vault


@pytest.fixture
def vault(tmp_path: Path) -> Iterator[BareVault]:
    vault = make(tmp_path / "vault")
    yield vault


class Logged(list[Operation]):
    """The operations of the journal's records, as they are logged."""

    def take(self) -> list[Operation]:
        """Those since the last time."""
        taken = list(self)
        self.clear()
        return taken


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> Logged:
    real, noted = RedoLog._append, Logged()

    def append(self: RedoLog, file: object, operation: Operation, *rest: object, **more: object) -> None:
        real(self, file, operation, *rest, **more)  # type: ignore[arg-type]
        noted.append(operation)

    monkeypatch.setattr(RedoLog, "_append", append)
    return noted


WRITE, DELTA, SHRINK, PUNCH = Operation.WRITE, Operation.DELTA, Operation.SHRINK, Operation.PUNCH


def assert_everywhere(vault: BareVault, file: OpenFile, expected: bytes) -> None:
    """Readers of this session, the next one after a kill, and the places say the same."""
    assert file.read(0, len(expected) + 1) == expected
    assert vault.tree.stat_open(file).size == len(expected)
    vault.die_and_reopen()
    assert vault.get(NAME) == expected
    vault.reopen()
    assert vault.get(NAME) == expected
    assert vault.plain_size(NAME) == len(expected)


def test_the_second_change_of_a_chunk_is_a_delta(vault: BareVault, logged: Logged) -> None:
    file = writer(vault)
    file.write(CHUNK, PIECE)
    before = journal_of(vault).size
    file.write(CHUNK + 8 * KIB + 50, LATER)
    file.write(CHUNK + 8 * KIB + 50, LATER[::-1])
    assert logged.take() == [WRITE, DELTA, DELTA]
    assert journal_of(vault).size - before == 2 * 5 * KIB - 2 * 512  # a step of 4 KiB, and what is around it
    expected = replaced(replaced(OLD, CHUNK, PIECE), CHUNK + 8 * KIB + 50, LATER[::-1])
    assert_everywhere(vault, file, expected)


def test_a_last_chunk_grows_by_deltas(vault: BareVault, logged: Logged) -> None:
    file, expected = writer(vault), OLD
    for number in range(40):
        line = pattern(90, number)
        file.append(line)
        expected += line
    assert logged.take() == [WRITE] + [DELTA] * 39
    assert vault.tree.stat(vault.root, NAME).size == len(expected)
    assert_everywhere(vault, file, expected)


def test_larger_changes_and_those_of_two_chunks_are_whole(vault: BareVault, logged: Logged) -> None:
    file = writer(vault)
    file.write(0, PIECE)
    file.write(CHUNK, PIECE)
    logged.take()
    file.write(CHUNK - 10, LATER)
    file.write(0, pattern(9 * KIB, 4))
    file.write(0, pattern(CHUNK, 5))
    file.write(10, LATER)
    assert logged.take() == [WRITE, WRITE, WRITE, DELTA]
    expected = replaced(replaced(OLD, CHUNK, PIECE), CHUNK - 10, LATER)
    expected = replaced(replaced(expected, 0, pattern(CHUNK, 5)), 10, LATER)
    assert_everywhere(vault, file, expected)


def test_a_whole_record_over_deltas_begins_anew(vault: BareVault, logged: Logged) -> None:
    file = writer(vault)
    for offset in (0, 100, CHUNK - 50, 200):  # the third one reaches into the next chunk
        file.write(offset, LATER)
    assert logged.take() == [WRITE, DELTA, WRITE, DELTA]
    expected = OLD
    for offset in (0, 100, CHUNK - 50, 200):
        expected = replaced(expected, offset, LATER)
    assert_everywhere(vault, file, expected)


def test_in_the_other_journal_file_a_chunk_is_whole_first(vault: BareVault, logged: Logged) -> None:
    file = writer(vault)
    file.write(0, PIECE)
    file.write(0, LATER)
    redo_of(vault).take_turns()
    file.write(50, LATER)
    file.write(300, LATER)
    assert logged.take() == [WRITE, DELTA, WRITE, DELTA]
    expected = replaced(replaced(replaced(replaced(OLD, 0, PIECE), 0, LATER), 50, LATER), 300, LATER)
    assert_everywhere(vault, file, expected)


def test_turns_between_the_look_and_the_append(
    vault: BareVault, logged: Logged, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The journal begins its other file after a writer has chosen a delta: the chunk goes there whole."""
    file = writer(vault)
    file.write(0, PIECE)
    real = RedoLog.log_delta

    def log_delta(self: RedoLog, *rest: object) -> bool:
        self.take_turns()
        return real(self, *rest)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(RedoLog, "log_delta", log_delta)
        file.write(10, LATER)
    file.write(500, LATER)
    assert logged.take() == [WRITE, WRITE, DELTA]
    assert_everywhere(vault, file, replaced(replaced(replaced(OLD, 0, PIECE), 10, LATER), 500, LATER))


@pytest.mark.parametrize("turns", [False, True])
def test_after_coming_home_a_chunk_is_whole_first(vault: BareVault, logged: Logged, turns: bool) -> None:
    file = writer(vault)
    file.write(0, PIECE)
    file.write(10, LATER)
    assert vault.workers.checkpointer is not None
    if turns:
        vault.checkpoint()
    else:
        vault.workers.checkpointer._bring_home(0)
    assert not state_of(vault).overlay.records
    file.write(200, LATER)
    file.write(400, LATER)
    assert logged.take() == [WRITE, DELTA, WRITE, DELTA]
    expected = replaced(replaced(OLD, 0, PIECE), 10, LATER)
    assert_everywhere(vault, file, replaced(replaced(expected, 200, LATER), 400, LATER))


@pytest.mark.parametrize(
    ("cut", "length", "between"),
    [
        (lambda file: file.truncate(3000), 3000, [SHRINK]),
        (lambda file: file.truncate(0), 0, []),
        (lambda file: ranges.allocate(file, FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE, 0, CHUNK), None, [PUNCH]),
    ],
    ids=["shrink", "truncate to zero", "punch"],
)
def test_after_a_loss_a_chunk_is_whole_first(
    vault: BareVault, logged: Logged, cut: object, length: int | None, between: list[Operation]
) -> None:
    file = writer(vault)
    file.write(0, PIECE)
    file.write(10, LATER)
    cut(file)  # type: ignore[operator]
    expected = replaced(replaced(OLD, 0, PIECE), 10, LATER)[:length]
    if length is None:
        expected = bytes(CHUNK) + expected[CHUNK:]
    assert file.read(0, len(OLD)) == expected
    assert logged.take() == [WRITE, DELTA, *between]
    for offset in (0, 40, 300):
        file.write(offset, LATER)
        expected = replaced(expected, offset, LATER)
    found = logged.take()
    assert found.index(WRITE) == 0
    assert DELTA in found
    assert_everywhere(vault, file, expected)


@pytest.mark.parametrize("what", ["full disk", "time of change"])
def test_a_delta_that_fails_changes_nothing(
    vault: BareVault, logged: Logged, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of it may stand in the journal. What follows counts all the same."""
    file = writer(vault)
    file.write(0, PIECE)
    file.write(10, LATER)
    journal = journal_of(vault)
    expected = replaced(replaced(OLD, 0, PIECE), 10, LATER)

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def write_half(fd: int, pieces: list[memoryview], place: int) -> None:
        assert fd in journal._fds
        os.pwrite(fd, b"".join(pieces)[:700], place)
        refuse()

    with monkeypatch.context() as patch:
        if what == "full disk":
            patch.setattr("cryptfs.storage.journal.write_fully", write_half)
        else:
            patch.setattr(mtimes, "restore_mtime", refuse)
            file.state.note_time_moved()  # as a reservation of room does: else the time is ahead already
        for offset, data in ((0, LATER), (len(OLD), LATER)):
            with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
                file.write(offset, data)
    assert file.read(0, len(OLD) + 1) == expected
    logged.take()
    file.write(300, LATER)
    assert logged.take() == [DELTA]
    assert_everywhere(vault, file, replaced(expected, 300, LATER))


def test_a_whole_record_that_fails_late_leaves_no_base(
    vault: BareVault, logged: Logged, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is in the journal, and the overlay has the content before it: no delta may name what was before."""
    file = writer(vault)
    file.write(0, PIECE)
    file.write(10, LATER)

    def refuse(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(RedoLog, "keep", refuse)
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            file.write(0, pattern(CHUNK, 9))
    logged.take()
    file.write(300, LATER)
    file.write(600, LATER)
    assert logged.take() == [WRITE, DELTA]
    expected = replaced(replaced(OLD, 0, PIECE), 10, LATER)
    assert_everywhere(vault, file, replaced(replaced(expected, 300, LATER), 600, LATER))


def test_a_floor_above_the_base_takes_a_whole_record(vault: BareVault, logged: Logged) -> None:
    file = writer(vault)
    file.write(0, PIECE)
    state = state_of(vault)
    with state.lock:
        state.raise_floor(state.overlay.last_seq + 1)
    file.write(10, LATER)
    assert logged.take() == [WRITE, WRITE]
    assert_everywhere(vault, file, replaced(replaced(OLD, 0, PIECE), 10, LATER))


def test_plaintext_is_counted_bounded_and_wiped(vault: BareVault) -> None:
    file = writer(vault)
    file.write(0, PIECE)
    file.write(10, LATER)
    file.append(LATER)
    file.append(LATER)
    redo, chunks = redo_of(vault), list(state_of(vault).overlay.patched.values())
    assert len(chunks) == 2
    assert redo.overlay_size == 2 * CHUNK
    assert all(any(chunk.content) for chunk in chunks)
    vault.checkpoint()
    assert redo.overlay_size == 0
    assert not any(any(chunk.content) for chunk in chunks)
    expected = replaced(replaced(OLD, 0, PIECE), 10, LATER) + LATER + LATER
    assert_everywhere(vault, file, expected)


def test_an_unlinked_file_leaves_no_plaintext(vault: BareVault) -> None:
    file = writer(vault)
    file.write(0, PIECE)
    file.write(10, LATER)
    chunks = list(state_of(vault).overlay.patched.values())
    vault.tree.unlink(vault.root, NAME)
    vault.tree.release(file)
    assert chunks
    assert not any(any(chunk.content) for chunk in chunks)
    assert redo_of(vault).overlay_size == 0


def test_what_cannot_come_home_is_wiped_at_the_end(vault: BareVault, monkeypatch: pytest.MonkeyPatch) -> None:
    """The places cannot be written; the journal stays for the next mount."""
    file = writer(vault)
    file.write(0, PIECE)
    file.write(10, LATER)
    chunks = list(state_of(vault).overlay.patched.values())

    def refuse(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(homecoming, "write_fully", refuse)
        vault.close()
    assert chunks
    assert not any(any(chunk.content) for chunk in chunks)
    vault._start(read_only=False)
    assert vault.get(NAME) == replaced(replaced(OLD, 0, PIECE), 10, LATER)


def test_reads_across_plaintext_and_sealed_chunks(vault: BareVault) -> None:
    file = writer(vault)
    file.write(CHUNK, PIECE)
    file.write(CHUNK + 100, LATER)  # as plaintext
    file.write(2 * CHUNK, PIECE)  # sealed, in the overlay
    expected = replaced(replaced(replaced(OLD, CHUNK, PIECE), CHUNK + 100, LATER), 2 * CHUNK, PIECE)
    edges = [0, 1, CHUNK - 1, CHUNK, CHUNK + 99, 2 * CHUNK - 1, 2 * CHUNK, 3 * CHUNK, len(OLD) - 1, len(OLD)]
    for start in edges:
        for stop in edges:
            if start < stop:
                assert file.read(start, stop - start) == expected[start:stop]
    assert file.read(len(OLD) - 10, 100) == expected[-10:]


def test_a_read_of_plaintext_moves_the_time_of_access(vault: BareVault) -> None:
    file = writer(vault)
    file.write(0, PIECE)
    file.write(10, LATER)
    path = vault.backing(NAME)
    os.utime(path, ns=(10**18, path.stat().st_mtime_ns))
    file.read(0, 10)
    assert path.stat().st_atime_ns > 10**18


def test_damage_in_another_chunk_is_noticed_beside_plaintext(vault: BareVault) -> None:
    file = writer(vault)
    file.write(0, PIECE)
    file.write(10, LATER)
    path = vault.backing(NAME)
    with path.open("r+b") as raw:
        raw.seek(vault.geometry.record_offset(2) + 100)
        raw.write(b"damage")
    assert file.read(0, 2 * CHUNK) == replaced(replaced(OLD, 0, PIECE), 10, LATER)[: 2 * CHUNK]
    with pytest.raises(Exception, match="does not authenticate") as caught:
        file.read(0, len(OLD))
    assert getattr(caught.value, "chunk_index", None) == 2


def test_readers_beside_a_writer_and_the_checkpointer(vault: BareVault) -> None:
    """Each read finds one of the values that were written, whole, also while plaintext is wiped."""
    file = writer(vault)
    reader = vault.tree.open(vault.root, NAME, os.O_RDONLY)
    values = [bytes([number]) * 2000 for number in range(1, 6)]
    file.write(0, values[0])
    wrong: list[bytes] = []
    over = threading.Event()

    def read() -> None:
        while not over.is_set():
            found = reader.read(0, 2000)
            if found not in values:
                wrong.append(found)

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    for number in range(600):
        file.write(0, values[number % len(values)])
        if number % 7 == 0:
            vault.checkpoint()
    over.set()
    for thread in threads:
        thread.join()
    assert not wrong
    vault.tree.release(reader)


@pytest.mark.parametrize(
    ("deltas", "durability"), [(False, POWER), (True, PROCESS)], ids=["without the feature", "process"]
)
def test_where_there_are_no_deltas(
    tmp_path: Path, logged: Logged, deltas: bool, durability: Durability
) -> None:
    vault = make(tmp_path / "vault", deltas=deltas, durability=durability)
    file = writer(vault)
    for _ in range(3):
        file.write(0, LATER)
        file.append(LATER)
    assert set(logged.take()) == {WRITE}
    raw = (vault.vault_dir / OWNER.journals[0]).read_bytes()[:512]
    assert (JournalHead.unpack(raw, vault.keys, OWNER) is None) is deltas
    assert not state_of(vault).overlay.patched
    assert_everywhere(vault, file, replaced(OLD, 0, LATER) + 3 * LATER)


def test_the_file_has_one_record_of_each_chunk_after_many_changes(vault: BareVault) -> None:
    """A chunk that changed often comes home once, sealed under a fresh nonce."""
    file = writer(vault)
    path = vault.backing(NAME)
    size = vault.geometry.record_size
    before = path.read_bytes()[HEADER_SIZE:]
    for number in range(20):
        file.write(100 * number, LATER)
    assert path.read_bytes()[HEADER_SIZE:] == before
    vault.checkpoint()
    after = path.read_bytes()[HEADER_SIZE:]
    assert after[:size] != before[:size]
    assert after[size:] == before[size:]
    assert after[:32] != before[:32]
