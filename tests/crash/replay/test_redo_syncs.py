"""What an fsync brings to disk, and what it need not: the calls that the kernel gets, by file."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cryptfs.storage.journal import JOURNAL_NAMES
from cryptfs.storage.libc import FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE
from cryptfs.vfs.content import ranges, redo
from cryptfs.vfs.content.openfile import OpenFile
from tests.crash.replay.scenes import (
    CHUNK,
    NAME,
    OLD,
    POWER,
    PROCESS,
    SyncCalls,
    copy_of,
    redo_of,
    vault_with,
    writer,
)
from tests.support import KIB, BareVault, pattern

JOURNAL = ("fdatasync", JOURNAL_NAMES[0])
SECOND = ("fdatasync", JOURNAL_NAMES[1])


class Scene:
    """A vault with one file, open, whose syncs are recorded."""

    def __init__(self, vault_dir: Path) -> None:
        self.vault = vault_with(vault_dir)
        self.file = writer(self.vault)
        self.data = ("fdatasync", self.vault.entry(NAME))
        self.whole = ("fsync", self.vault.entry(NAME))
        self.calls = SyncCalls()

    def of(self, *actions: Callable[[OpenFile], object]) -> list[tuple[str, str]]:
        """The syncs of some actions."""
        with self.calls.recorded():
            for action in actions:
                action(self.file)
        return self.calls.take()

    def fdatasync(self, file: OpenFile) -> None:
        self.vault.tree.sync_file(file, data_only=True)

    def fsync(self, file: OpenFile) -> None:
        self.vault.tree.sync_file(file, data_only=False)


def overwrite(file: OpenFile) -> None:
    file.write(CHUNK, pattern(2 * CHUNK, 3))


def append(file: OpenFile) -> None:
    end = file.state.size
    file.write(end + -end % CHUNK, pattern(400 * KIB, 4))


def test_the_journal_and_its_names_are_on_disk_before_its_first_record(tmp_path: Path) -> None:
    scene = Scene(tmp_path / "vault")
    calls = scene.of(overwrite)
    assert calls == [JOURNAL, SECOND, ("fsync", "vault")]
    assert scene.of(overwrite, overwrite) == []
    scene.vault.close()


def test_a_data_sync_of_what_was_overwritten_is_one_of_the_journal(tmp_path: Path) -> None:
    scene = Scene(tmp_path / "vault")
    scene.of(overwrite)
    assert scene.of(scene.fdatasync) == [JOURNAL, scene.data]  # the header names the journal now
    for _ in range(3):
        assert scene.of(overwrite, scene.fdatasync) == [JOURNAL]
        assert scene.of(scene.fdatasync) == []
    assert scene.of(overwrite, scene.fsync) == [JOURNAL, scene.whole]
    scene.vault.close()


def test_a_data_sync_of_new_chunks_is_one_of_the_file(tmp_path: Path) -> None:
    scene = Scene(tmp_path / "vault")
    scene.of(overwrite, scene.fdatasync)
    scene.of(append, scene.fdatasync)
    scene.file.truncate(100 * CHUNK)
    scene.of(scene.fdatasync)
    assert scene.of(append, scene.fdatasync) == [scene.data]
    assert scene.of(scene.fdatasync) == []
    scene.vault.close()


def test_one_sync_of_the_journal_is_for_all_files(tmp_path: Path) -> None:
    vault = vault_with(tmp_path / "vault")
    vault.put(b"other", OLD)
    vault.reopen()
    files = [writer(vault), writer(vault, b"other")]
    calls = SyncCalls()
    for _ in range(2):  # with the first one, the headers go to disk
        for file in files:
            overwrite(file)
        with calls.recorded():
            for file in files:
                vault.tree.sync_file(file, data_only=True)
        taken = calls.take()
    assert taken == [JOURNAL]
    vault.close()


def test_a_new_file_needs_no_sync_and_a_closed_one_none(tmp_path: Path) -> None:
    vault = BareVault(tmp_path / "vault", durability=POWER)
    vault.put(b"first", OLD)
    calls = SyncCalls()
    with calls.recorded():
        vault.put(NAME, OLD)
        vault.put(NAME, pattern(CHUNK, 2))
    assert calls.take() == []
    vault.close()


def streamed(file: OpenFile, content: bytes) -> None:
    """As the kernel writes a file back: pieces that end within a chunk, each larger than SMALL_GROWTH."""
    piece = 70 * CHUNK + 1000
    for start in range(0, len(content), piece):
        file.write(start, content[start : start + piece])


def test_a_stream_of_writes_that_end_within_a_chunk_needs_no_sync(tmp_path: Path) -> None:
    """The chunk that a write makes longer waits in the overlay, and a kill finds it in the journal."""
    content = pattern(600 * CHUNK + 77, 9)
    vault = BareVault(tmp_path / "vault", durability=POWER)
    vault.put(b"first", OLD)
    with SyncCalls().recorded() as calls:
        file = vault.tree.create(vault.root, NAME, os.O_RDWR, 0o600)
        streamed(file, content)
        assert calls.take() == []
    assert file.read(0, len(content)) == content
    assert vault.tree.stat(vault.root, NAME).size == len(content)
    killed = BareVault(copy_of(vault.vault_dir, tmp_path / "killed"), durability=POWER)
    assert killed.get(NAME) == content
    killed.close()
    vault.tree.sync_file(file, data_only=True)
    vault.tree.release(file)
    vault.reopen()
    assert vault.get(NAME) == content
    vault.close()


@pytest.mark.parametrize("through", ["place", "journal"])
def test_a_synced_end_is_home_before_the_file_reaches_beyond_it(through: str, tmp_path: Path) -> None:
    """Else a loss of power could leave the synced chunk unreadable, between others."""
    vault = vault_with(tmp_path / "vault")
    file = writer(vault)
    if through == "journal":
        file.write(len(OLD), b"a few bytes")
        vault.tree.sync_file(file, data_only=True)
    with SyncCalls().recorded() as calls:
        file.write(file.state.size, pattern(80 * CHUNK, 5))
        assert JOURNAL in calls.take() or through == "journal"
    assert not file.state.overlay.records
    vault.tree.release(file)
    vault.close()


def test_places_are_written_when_journal_and_header_are_on_disk(tmp_path: Path) -> None:
    """The order of it: journal, header, places, and the places before the journal takes turns."""
    scene = Scene(tmp_path / "vault")
    order: list[tuple[str, str]] = []
    pwritev, place = os.pwritev, scene.vault.geometry.record_offset(1)

    def write(fd: int, pieces: list[bytes], offset: int) -> int:
        if fd == scene.file.state.fd and offset == place:
            order.extend([*scene.calls.take(), ("write", "place")])
        return pwritev(fd, pieces, offset)

    scene.of(overwrite)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "pwritev", write)
        after = scene.of(lambda _: scene.vault.checkpoint())
    # The turn syncs both files of the journal; the places go to disk before the next turn.
    assert order == [SECOND, JOURNAL, scene.data, ("write", "place")]
    assert after == [scene.data]
    scene.vault.close()


SHRINKS = {
    "within a chunk": lambda file: file.truncate(CHUNK + 10),
    "between chunks": lambda file: file.truncate(2 * CHUNK),
}


@pytest.mark.parametrize("shrink", SHRINKS.values(), ids=SHRINKS.keys())
def test_a_shrink_of_what_is_on_disk_is_ordered(shrink: Callable[[OpenFile], object], tmp_path: Path) -> None:
    scene = Scene(tmp_path / "vault")
    scene.of(overwrite, scene.fdatasync)
    order: list[str] = []
    ftruncate = os.ftruncate

    def cut(fd: int, size: int) -> None:
        order.extend([what for _, what in scene.calls.take()] + ["cut"])
        ftruncate(fd, size)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "ftruncate", cut)
        after = scene.of(shrink)
    assert order[:3] == [JOURNAL_NAMES[0], scene.data[1], "cut"]
    assert after == [scene.data]  # before anything is written behind the new end
    scene.vault.close()


def test_a_shrink_of_a_growth_that_the_journal_alone_has_is_ordered(tmp_path: Path) -> None:
    """All of the file was promised by an fsync, none of it stands in its place."""
    vault = BareVault(tmp_path / "vault", durability=POWER)
    vault.put(b"first", OLD)
    file = vault.tree.create(vault.root, NAME, os.O_RDWR, 0o600)
    file.write(0, OLD[:1000])
    file.write(1000, OLD[1000:3000])
    vault.tree.sync_file(file, data_only=True)
    assert file.state.overlay.records
    assert file.state.has_durable_content
    calls = SyncCalls()
    with calls.recorded():
        file.truncate(500)
    taken = calls.take()
    assert taken.count(JOURNAL) == 1
    assert taken.count(("fdatasync", vault.entry(NAME))) == 2
    vault.close()


def test_a_truncate_to_zero_of_what_is_on_disk_syncs_its_header(tmp_path: Path) -> None:
    scene = Scene(tmp_path / "vault")
    scene.of(overwrite)
    assert scene.of(lambda file: file.truncate(0)) == [scene.data]
    assert scene.of(lambda file: file.write(0, b"new"), lambda file: file.truncate(0)) == []
    scene.vault.close()


def test_a_punch_of_what_is_on_disk_is_ordered(tmp_path: Path) -> None:
    scene = Scene(tmp_path / "vault")
    scene.of(overwrite, scene.fdatasync)
    mode = FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE
    calls = scene.of(lambda file: ranges.allocate(file, mode, CHUNK, CHUNK))
    # The header, SPARSE now, before the places; then the record and the places before the hole.
    assert calls == [scene.data, JOURNAL, scene.data]
    scene.vault.close()


@pytest.mark.parametrize("durability", [POWER, PROCESS])
def test_an_unmount_syncs_the_filesystem_at_level_power(
    durability: redo.Durability, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vault = vault_with(tmp_path / "vault", durability=durability)
    with vault.opened(NAME) as file:
        overwrite(file)
    journal_there: list[bool] = []

    def sync(fd: int) -> None:
        journal_there.append((vault.vault_dir / JOURNAL_NAMES[0]).exists())

    monkeypatch.setattr(redo, "syncfs", sync)
    vault.close()
    assert journal_there == ([True] if durability is POWER else [])
    assert not (vault.vault_dir / JOURNAL_NAMES[0]).exists()


def test_a_vault_that_nobody_changes_gets_no_journal(tmp_path: Path) -> None:
    vault = vault_with(tmp_path / "vault")
    before = sorted(os.listdir(vault.vault_dir))
    calls = SyncCalls()
    with calls.recorded():
        assert vault.get(NAME) == OLD
        vault.checkpoint()
        assert redo_of(vault).journal is None
        vault.close()
    assert calls.take() == []
    assert sorted(os.listdir(vault.vault_dir)) == before
