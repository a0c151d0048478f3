"""Replays: of journals that are damaged, planted, old or of elsewhere; of vaults that changed meanwhile."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cryptfs.core.format.journal import ALIGNMENT, HEAD_SIZE, RECORD_MAGIC
from cryptfs.storage.journal import JOURNAL_NAMES
from cryptfs.storage.libc import FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE
from cryptfs.storage.sessions import SESSIONS_NAME
from cryptfs.vfs.content import ranges
from tests.crash.replay.scenes import (
    CHUNK,
    LOGGED,
    NAME,
    OLD,
    OTHER,
    PENDING,
    POWER,
    journal_files,
    pending_vault,
    put_back,
    redo_of,
    replaced,
    state_of,
    vault_with,
    writer,
)
from tests.support import MIB, BareVault, pattern

A, B = JOURNAL_NAMES
NEW, NEWER = pattern(CHUNK, 2), pattern(CHUNK, 3)
PUNCH = FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE


def record_places(raw: bytes) -> list[int]:
    """Offsets of the records in a journal file."""
    places = range(HEAD_SIZE, len(raw), ALIGNMENT)
    return [place for place in places if raw[place : place + len(RECORD_MAGIC)] == RECORD_MAGIC]


def assert_old_or_new_chunks(content: bytes, old: bytes, new: bytes) -> None:
    assert len(content) == len(old) == len(new)
    for start in range(0, len(content), CHUNK):
        assert content[start : start + CHUNK] in (old[start : start + CHUNK], new[start : start + CHUNK])


# ---- replays that are killed


class Killed(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("call", ["unlink", "ftruncate", "rename"])
def test_a_replay_killed_while_it_clears_the_journal_away_rolls_nothing_back(
    tmp_path: Path, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both files hold records of one chunk; the older ones must not be all that is left."""
    vault = vault_with(tmp_path / "vault")
    file = writer(vault)
    file.write(0, NEW)
    file.sync(data_only=False)
    redo_of(vault).take_turns()
    file.write(0, NEWER)
    file.sync(data_only=False)
    vault.die()
    real = getattr(os, call)

    def kill(what: object, *rest: object, **more: object) -> None:
        real(what, *rest, **more)
        if call == "ftruncate" or str(what).startswith("cryptfs."):
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(os, call, kill)
        with pytest.raises(Killed):
            vault._start(read_only=False)
    vault.die_and_reopen()
    assert vault.get(NAME)[:CHUNK] == NEWER
    vault.close()


# ---- journals that come back


def crash_then_unmount(vault: BareVault) -> None:
    vault.die_and_reopen()
    vault.reopen()


def write_and_unmount(vault: BareVault) -> None:
    file = writer(vault)
    file.write(0, pattern(2 * CHUNK, 8))
    vault.tree.release(file)
    vault.reopen()


def write_and_crash(vault: BareVault) -> None:
    writer(vault).write(0, pattern(2 * CHUNK, 8))
    vault.die_and_reopen()


@pytest.mark.parametrize("with_sessions", [False, True], ids=["journal", "journal and sessions"])
@pytest.mark.parametrize("later", [BareVault.reopen, write_and_unmount, write_and_crash])
@pytest.mark.parametrize("durability", LOGGED)
def test_an_old_journal_rolls_nothing_back(
    durability: object, later: Callable[[BareVault], None], with_sessions: bool, tmp_path: Path
) -> None:
    vault = vault_with(tmp_path / "vault", durability=durability)  # type: ignore[arg-type]
    file = writer(vault)
    file.write(0, NEW)
    file.truncate(3 * CHUNK + 1)
    saved = journal_files(vault.vault_dir)
    if with_sessions:
        saved[SESSIONS_NAME] = (vault.vault_dir / SESSIONS_NAME).read_bytes()
    file.write(0, NEWER)
    file.write(file.state.size, b"the end")
    vault.tree.release(file)
    vault.reopen()
    later(vault)
    expected = vault.get(NAME)
    vault.close()
    put_back(vault.vault_dir, saved)
    vault._start(read_only=False)
    assert vault.get(NAME) == expected
    vault.close()
    assert not journal_files(vault.vault_dir)


def test_an_old_journal_within_its_session_changes_nothing_below_the_floor(tmp_path: Path) -> None:
    """A copy from before a checkpoint; the file is still open and not CLEAN when the process is killed."""
    vault = vault_with(tmp_path / "vault")
    file = writer(vault)
    file.write(0, NEW)
    vault.tree.sync_file(file, data_only=True)
    saved = journal_files(vault.vault_dir)
    file.write(0, NEWER)
    vault.checkpoint()
    assert vault.header(NAME).journal_floor > file.state.overlay.last_seq
    put_back(vault.vault_dir, saved)
    vault.die_and_reopen()
    assert vault.get(NAME) == replaced(OLD, 0, NEWER)
    vault.close()


def test_records_below_the_floor_are_ignored(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    vault = pending_vault(tmp_path / "vault")
    state = state_of(vault)
    with state.lock:
        state.disown_records()
    vault.die_and_reopen()
    assert vault.get(NAME) == OLD
    assert vault.get(OTHER) == PENDING
    vault.close()


def test_a_floor_is_never_lowered(tmp_path: Path) -> None:
    """The checkpointer raises it to what it saw; a shrink came in between, and more behind the new end."""
    vault = vault_with(tmp_path / "vault")
    file = writer(vault)
    file.write(0, NEW)
    vault.tree.sync_file(file, data_only=True)  # so that bringing it home needs no sync of the header
    state = file.state
    sync_backing = state.sync_backing
    shrunk: list[bool] = []

    def shrink_meanwhile(*, data_only: bool) -> None:
        sync_backing(data_only=data_only)
        if not shrunk:
            shrunk.append(True)
            file.truncate(CHUNK)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(state, "sync_backing", shrink_meanwhile)
        vault.checkpoint()
    assert shrunk
    more = pattern(100 * CHUNK, 5)
    file.write(CHUNK, more)
    assert vault.header(NAME).journal_floor > state.overlay.last_seq
    vault.die_and_reopen()
    assert vault.get(NAME) == NEW + more
    vault.close()


# ---- journals of elsewhere


def test_a_journal_of_another_vault_changes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    other = pending_vault(tmp_path / "other")
    saved = journal_files(other.vault_dir)
    other.close()
    vault = BareVault(tmp_path / "vault", masterkey=b"k" * 32, durability=POWER)
    vault.put(NAME, OLD)
    vault.close()
    put_back(vault.vault_dir, saved)
    with caplog.at_level(logging.WARNING):
        vault._start(read_only=False)
    assert "without a valid head" in caplog.text
    assert vault.get(NAME) == OLD
    vault.close()


def test_one_file_of_an_earlier_session_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    vault = pending_vault(tmp_path / "vault")
    earlier = journal_files(vault.vault_dir)
    vault.reopen()
    file = writer(vault)
    file.write(CHUNK, NEW)
    put_back(vault.vault_dir, {B: earlier[A]})
    with caplog.at_level(logging.WARNING):
        vault.die_and_reopen()
    assert "belongs to another session" in caplog.text
    assert vault.get(NAME) == replaced(PENDING, CHUNK, NEW)
    assert vault.get(OTHER) == PENDING
    vault.close()


def test_the_files_of_a_journal_in_each_others_place_count_all_the_same(tmp_path: Path) -> None:
    vault = pending_vault(tmp_path / "vault")
    saved = journal_files(vault.vault_dir)
    put_back(vault.vault_dir, {A: saved[B], B: saved[A]})
    vault.die_and_reopen()
    assert vault.get(NAME) == vault.get(OTHER) == PENDING
    vault.close()


# ---- damage


def damaged_journals(raw: bytes) -> Iterator[tuple[str, bytes]]:
    """What may have become of a journal file: sectors zeroed, a byte flipped, cut, records moved about."""
    end = record_places(raw)[-1] + 2 * CHUNK
    for place in range(0, end, ALIGNMENT):
        yield f"zeroed at {place}", raw[:place] + bytes(ALIGNMENT) + raw[place + ALIGNMENT :]
        middle = place + 77 * (place % 5)
        if place > 4 * ALIGNMENT and place % 3:
            continue  # much the same further on
        yield f"cut at {place}", raw[:place]
        yield f"flipped at {middle}", raw[:middle] + bytes((raw[middle] ^ 1,)) + raw[middle + 1 :]
    places = record_places(raw)
    pieces = [raw[start:stop] for start, stop in zip(places, [*places[1:], end], strict=True)]
    yield "reversed", raw[: places[0]] + b"".join(reversed(pieces))
    yield "doubled", raw[: places[0]] + b"".join(piece * 2 for piece in pieces)
    yield "moved", raw[: places[0]] + bytes(ALIGNMENT) + b"".join(pieces)
    yield "without the first", raw[: places[0]] + bytes(len(pieces[0])) + b"".join(pieces[1:])


def test_a_damaged_journal_never_damages_a_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Each chunk is old or new; a record with no damage is redone unless one of its file before it has."""
    vault = pending_vault(tmp_path / "vault")
    files = [path for path in vault.vault_dir.iterdir() if path.is_file()]
    saved = {path.name: path.read_bytes() for path in files}
    raw = saved[A]
    places = record_places(raw)
    both = partial = 0
    for what, changed in damaged_journals(raw):
        for path in vault.vault_dir.iterdir():
            if path.name not in saved:  # the others keep their inode numbers, by which records find them
                path.unlink()
        put_back(vault.vault_dir, saved | {A: changed})
        vault.die_and_reopen()
        found = {name: vault.get(name) for name in (NAME, OTHER)}
        for content in found.values():
            assert_old_or_new_chunks(content, OLD, PENDING)
        if what.startswith(("zeroed", "flipped")):
            hit = int(what.split()[-1])
            if places[0] <= hit < places[2]:  # in a record of NAME
                assert found[OTHER] == PENDING, what
                partial += found[NAME] != PENDING
            elif hit >= places[2]:
                assert found[NAME] == PENDING, what
                partial += found[OTHER] != PENDING
            else:
                both += 1
                assert set(found.values()) == {OLD} or hit > 88
        vault.reopen()
        assert {name: vault.get(name) for name in (NAME, OTHER)} == found
        if vault.workers.unsettled is not None:  # else no head told which session crashed
            vault.workers.unsettled.sweep()
            assert vault.header(NAME).is_clean
            assert {name: vault.get(name) for name in (NAME, OTHER)} == found
    assert both
    assert partial > 20  # the damage did hit something
    vault.close()


def test_a_shorter_record_does_not_tear_what_came_after_it(tmp_path: Path) -> None:
    """A last chunk that grew twice and is in place: the second record is damaged, the first one is not."""
    vault = vault_with(tmp_path / "vault", OLD[:1000])
    file = writer(vault)
    file.write(1000, NEW[:500])
    file.write(1500, NEWER[:500])
    vault.tree.sync_file(file, data_only=True)
    assert ranges.seek(file, 0, os.SEEK_HOLE) == 2000  # which brings the overlay home
    raw = (vault.vault_dir / A).read_bytes()
    second = record_places(raw)[1]
    put_back(vault.vault_dir, {A: raw[:second] + bytes(ALIGNMENT) + raw[second + ALIGNMENT :]})
    vault.die_and_reopen()
    assert vault.get(NAME) == OLD[:1000] + NEW[:500] + NEWER[:500]
    vault.close()


# ---- what somebody may plant


def plant_fifo(path: Path) -> None:
    os.mkfifo(path)


def plant_symlink(path: Path) -> None:
    path.symlink_to("/dev/zero")


def plant_dangling(path: Path) -> None:
    path.symlink_to(path.parent.parent / "made by whoever follows")


def plant_directory(path: Path) -> None:
    path.mkdir()
    (path / "content").write_bytes(b"x")


def plant_sparse(path: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 40)


def plant_zeros_behind_a_head(path: Path) -> None:
    head = (path.parent / B).read_bytes()[:HEAD_SIZE] if path.name == A else bytes(HEAD_SIZE)
    path.write_bytes(head)
    os.truncate(path, 512 * MIB)


PLANTS = [plant_fifo, plant_symlink, plant_dangling, plant_directory, plant_sparse, plant_zeros_behind_a_head]


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.__name__[6:])
@pytest.mark.parametrize("name", [A, B])
def test_what_is_planted_for_a_journal_is_ignored_and_goes(
    name: str, plant: Callable[[Path], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    vault = pending_vault(tmp_path / "vault")
    (vault.vault_dir / name).unlink()
    plant(vault.vault_dir / name)
    with caplog.at_level(logging.WARNING):
        vault.die_and_reopen()
    assert caplog.records
    assert vault.get(NAME) == vault.get(OTHER) == (OLD if name == A else PENDING)
    with vault.opened(NAME) as file:  # and the next session has its own
        file.write(0, NEWER)
    vault.reopen()
    assert not set(JOURNAL_NAMES) & set(os.listdir(vault.vault_dir))
    assert not (tmp_path / "made by whoever follows").exists()
    vault.close()


@pytest.mark.parametrize("plant", PLANTS[:-1], ids=lambda plant: plant.__name__[6:])
def test_what_is_planted_for_the_sessions_is_replaced(
    plant: Callable[[Path], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    vault = pending_vault(tmp_path / "vault")
    (vault.vault_dir / SESSIONS_NAME).unlink()
    plant(vault.vault_dir / SESSIONS_NAME)
    with caplog.at_level(logging.WARNING):
        vault.die_and_reopen()
    assert "sessions" in caplog.text
    assert vault.get(NAME) == vault.get(OTHER) == PENDING
    vault.put(NAME, NEW)
    vault.reopen()
    assert (vault.vault_dir / SESSIONS_NAME).is_file()
    assert not (tmp_path / "made by whoever follows").exists()
    vault.close()


def test_a_damaged_list_of_sessions_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    vault = pending_vault(tmp_path / "vault")
    (vault.vault_dir / SESSIONS_NAME).write_bytes(b"\1" * 60)
    with caplog.at_level(logging.WARNING):
        vault.die_and_reopen()
    assert "does not authenticate" in caplog.text
    assert vault.get(NAME) == PENDING
    vault.close()
