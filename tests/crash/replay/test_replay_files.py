"""Replays of files that were moved, copied, protected, changed again and again, or closed just before."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cryptfs.errors import HeaderError
from cryptfs.storage.libc import FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE
from cryptfs.vfs.content import ranges
from cryptfs.vfs.content.openfile import OpenFile
from tests.crash.replay.scenes import (
    CHUNK,
    LOGGED,
    NAME,
    OLD,
    OTHER,
    PENDING,
    POWER,
    PROCESS,
    journal_files,
    pending_vault,
    redo_of,
    replaced,
    vault_with,
    writer,
)
from tests.support import MIB, BareVault, pattern

NEW, NEWER = pattern(CHUNK, 2), pattern(CHUNK, 3)
PUNCH = FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE


# ---- files that went somewhere else


def test_files_that_were_renamed_moved_linked_or_removed(tmp_path: Path) -> None:
    vault = BareVault(tmp_path / "vault", durability=POWER)
    names = (b"renamed", b"moved", b"linked", b"removed", b"replaced", b"left")
    for name in names:
        vault.put(name, OLD)
    directory = vault.make_directory(b"directory")
    vault.reopen()
    for name in names:
        writer(vault, name).write(0, NEW)
    directory = vault.tree.directory(vault.root, b"directory")
    tree, root = vault.tree, vault.root
    tree.rename(root, b"renamed", root, b"another name")
    tree.rename(root, b"moved", directory, b"moved")
    tree.link(root, b"linked", directory, b"linked")
    tree.unlink(root, b"linked")
    tree.unlink(root, b"removed")
    vault.put(b"new", b"takes its place")
    tree.rename(root, b"new", root, b"replaced")
    vault.die_and_reopen()
    expected = replaced(OLD, 0, NEW)
    directory = vault.tree.directory(vault.root, b"directory")
    assert vault.get(b"another name") == vault.get(b"left") == expected
    assert vault.get(b"moved", directory) == vault.get(b"linked", directory) == expected
    assert vault.get(b"replaced") == b"takes its place"
    assert b"removed" not in vault.names()
    vault.close()


@pytest.mark.parametrize("durability", LOGGED)
def test_a_copy_of_the_vault_replays_what_it_has(durability: object, tmp_path: Path) -> None:
    """Other inode numbers, and names that changed after the record: the headers say which file it is."""
    vault = vault_with(tmp_path / "vault", durability=durability)  # type: ignore[arg-type]
    vault.put(OTHER, OLD)
    vault.make_directory(b"directory")
    vault.reopen()
    file, other = writer(vault), writer(vault, OTHER)
    for each in (file, other):
        each.write(0, NEW)
        each.truncate(3 * CHUNK)
    directory = vault.tree.directory(vault.root, b"directory")
    vault.tree.rename(vault.root, NAME, directory, b"elsewhere")
    (tmp_path / "takes an inode number").touch()
    shutil.copytree(vault.vault_dir, tmp_path / "copy", symlinks=True)
    vault.close()
    copy = BareVault(tmp_path / "copy", durability=POWER)
    expected = replaced(OLD, 0, NEW)[: 3 * CHUNK]
    assert copy.get(b"elsewhere", copy.tree.directory(copy.root, b"directory")) == expected
    assert copy.get(OTHER) == expected
    copy.close()


@contextlib.contextmanager
def unprivileged() -> Iterator[Path]:
    """As a user without privileges, where this is root: a directory of his own."""
    user = 65534 if os.geteuid() == 0 else os.geteuid()
    place = Path(tempfile.mkdtemp(prefix="replay-tests-"))
    before = os.geteuid()
    os.chown(place, user, -1)
    os.seteuid(user)
    try:
        yield place
    finally:
        os.seteuid(before)
        shutil.rmtree(place)


def test_a_file_that_was_made_read_only_is_replayed(caplog: pytest.LogCaptureFixture) -> None:
    """As git does with what it has written: the right to open it for writing is gone, its owner stays."""
    with unprivileged() as place:
        vault = pending_vault(place / "vault")
        vault.backing(NAME).chmod(0o444)
        vault.backing(OTHER).chmod(0)
        vault.die_and_reopen()
        assert [vault.backing(name).stat().st_mode & 0o777 for name in (NAME, OTHER)] == [0o444, 0]
        vault.backing(OTHER).chmod(0o600)
        assert vault.get(NAME) == vault.get(OTHER) == PENDING
        vault.close()


def test_a_file_that_cannot_be_opened_keeps_the_journal(tmp_path: Path) -> None:
    """Not even its records may be lost: the next attempt has them."""
    vault = pending_vault(tmp_path / "vault")

    def refuse(fd: int, flags: int) -> int:
        raise OSError(24, "Too many open files")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cryptfs.storage.backing.reopen", refuse)
        with pytest.raises(OSError, match="Too many"):
            vault.die_and_reopen()
    assert len(journal_files(vault.vault_dir)) == 2
    vault._start(read_only=False)
    assert vault.get(NAME) == vault.get(OTHER) == PENDING
    vault.close()


# ---- several operations, several sessions


def shrink_then_extend(file: OpenFile) -> None:
    file.truncate(CHUNK + 100)
    file.write(CHUNK + 100, pattern(3 * CHUNK, 4))


def shrink_then_extend_by_a_hole(file: OpenFile) -> None:
    file.truncate(CHUNK + 100)
    file.truncate(6 * CHUNK + 9)


def shrink_to_a_chunk_then_write_far(file: OpenFile) -> None:
    file.truncate(2 * CHUNK)
    file.write(9 * CHUNK + 5, NEWER)


def zero_then_write(file: OpenFile) -> None:
    file.write(0, NEW)
    file.truncate(0)
    file.write(0, NEWER[:100])
    file.write(100, NEW)


def punch_then_write(file: OpenFile) -> None:
    file.write(0, NEW + NEWER)
    ranges.allocate(file, PUNCH, 0, 2 * CHUNK)
    file.write(CHUNK, NEWER)


def punch_the_end_then_append(file: OpenFile) -> None:
    ranges.allocate(file, PUNCH, 3 * CHUNK, 2 * CHUNK)
    file.write(file.state.size, pattern(2 * CHUNK, 6))


def grow_in_steps_then_shrink(file: OpenFile) -> None:
    for _ in range(5):
        file.write(file.state.size, pattern(1500, 7))
    file.truncate(4 * CHUNK + 1200)
    file.write(file.state.size, pattern(10, 8))


SEQUENCES = [
    shrink_then_extend,
    shrink_then_extend_by_a_hole,
    shrink_to_a_chunk_then_write_far,
    zero_then_write,
    punch_then_write,
    punch_the_end_then_append,
    grow_in_steps_then_shrink,
]


@pytest.mark.parametrize("sequence", SEQUENCES, ids=lambda sequence: sequence.__name__)
@pytest.mark.parametrize("durability", LOGGED)
def test_a_kill_after_several_operations(
    durability: object, sequence: Callable[[OpenFile], None], tmp_path: Path
) -> None:
    vault = vault_with(tmp_path / "vault", durability=durability)  # type: ignore[arg-type]
    file = writer(vault)
    for _ in range(2):  # and two sessions in a row
        sequence(file)
        content = file.read(0, MIB)
        vault.die_and_reopen()
        assert vault.get(NAME) == content
        file = writer(vault)
    vault.close()


def test_a_crash_in_the_first_moment_of_a_session(tmp_path: Path) -> None:
    """Heads, and no record."""
    vault = vault_with(tmp_path / "vault")
    redo_of(vault).naming()
    assert len(journal_files(vault.vault_dir)) == 2
    vault.die_and_reopen()
    assert not journal_files(vault.vault_dir)
    assert vault.get(NAME) == OLD
    assert len(vault.context.crashed) == 1
    vault.close()


# ---- closed, never synced


def test_a_file_closed_before_the_power_went_may_be_shorter(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    vault = BareVault(tmp_path / "vault", durability=POWER)
    vault.put(NAME, OLD)
    assert vault.header(NAME).is_clean
    vault.die_and_reopen()
    vault.die_and_reopen()  # some sessions later, too
    os.truncate(vault.backing(NAME), vault.geometry.cipher_size(2 * CHUNK) + 100)
    with caplog.at_level(logging.WARNING):
        assert vault.get(NAME) == OLD[: 2 * CHUNK]
    assert "closed shortly before a crash" in caplog.text
    assert vault.entry(NAME) in caplog.text
    assert vault.workers.unsettled is not None
    vault.workers.unsettled.sweep()
    caplog.clear()
    vault.reopen()
    with caplog.at_level(logging.WARNING):
        assert vault.get(NAME) == OLD[: 2 * CHUNK]
    assert not caplog.records
    vault.close()


@pytest.mark.parametrize("durability", LOGGED)
def test_a_file_cut_after_an_unmount_is_an_error(durability: object, tmp_path: Path) -> None:
    vault = BareVault(tmp_path / "vault", durability=durability)  # type: ignore[arg-type]
    vault.put(NAME, OLD)
    vault.reopen()
    os.truncate(vault.backing(NAME), vault.geometry.cipher_size(2 * CHUNK))
    with pytest.raises(HeaderError, match="cut"):
        vault.get(NAME)
    vault.close()


def test_a_synced_file_cut_after_a_crash_is_an_error(tmp_path: Path) -> None:
    """What an fsync promised is not given up for a crash."""
    vault = BareVault(tmp_path / "vault", durability=POWER)
    with vault.opened(NAME, os.O_RDWR | os.O_CREAT) as file:
        file.write(0, OLD)
        vault.tree.sync_file(file, data_only=False)
    vault.die_and_reopen()
    os.truncate(vault.backing(NAME), vault.geometry.cipher_size(2 * CHUNK))
    with pytest.raises(HeaderError, match="cut"):
        vault.get(NAME)
    vault.close()


def test_a_crash_at_level_process_promises_the_length(tmp_path: Path) -> None:
    vault = BareVault(tmp_path / "vault", durability=PROCESS)
    vault.put(NAME, OLD)
    vault.die_and_reopen()
    os.truncate(vault.backing(NAME), vault.geometry.cipher_size(2 * CHUNK))
    with pytest.raises(HeaderError, match="cut"):
        vault.get(NAME)
    vault.close()
