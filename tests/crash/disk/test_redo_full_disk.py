"""The redo log on a full disk: overwriting fails, losing content works, what failed does not come back."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from cryptfs.storage.libc import FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE
from cryptfs.vfs.content import ranges
from tests.crash.backing_calls import CONTENT_CHANGES
from tests.crash.replay.scenes import (
    CHUNK,
    LOGGED,
    NAME,
    OLD,
    redo_of,
    replaced,
    vault_with,
    writer,
)
from tests.crash.striking import Strike
from tests.support import KIB, BareVault, pattern

PUNCH = FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE
NEW = pattern(CHUNK, 2)
NEWER = pattern(CHUNK, 3)


class _FullJournal:
    """No room for another record, or for a journal at all."""

    def __init__(self, patch: pytest.MonkeyPatch, vault: BareVault) -> None:
        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        redo = redo_of(vault)
        if redo.journal is None:
            patch.setattr(redo, "_started", full)
        else:
            patch.setattr(redo.journal, "append", full)


@pytest.mark.parametrize("durability", LOGGED)
@pytest.mark.parametrize("begun", [False, True], ids=["no room for a journal", "none for a record"])
def test_on_a_full_disk_an_overwrite_fails_and_losing_content_works(
    begun: bool, durability: object, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    vault = vault_with(tmp_path / "vault", durability=durability)  # type: ignore[arg-type]
    for name in (b"shrunk", b"emptied", b"gone"):
        vault.put(name, OLD)
    vault.reopen()
    content = OLD
    if begun:
        with vault.opened(NAME) as file:
            file.write(0, NEW)
        content = replaced(OLD, 0, NEW)
    with pytest.MonkeyPatch.context() as patch:
        _FullJournal(patch, vault)
        with vault.opened(NAME) as file:
            with pytest.raises(OSError) as raised:
                file.write(CHUNK, NEWER)
            assert raised.value.errno == errno.ENOSPC
            assert file.read(0, len(OLD)) == content
        for name, size in ((b"shrunk", CHUNK + 7), (b"emptied", 0)):
            file = writer(vault, name)
            file.truncate(size)
            assert file.read(0, len(OLD)) == OLD[:size]
        vault.tree.unlink(vault.root, b"gone")
    copied = vault.get(NAME)
    assert copied == content
    # There is room again: what is overwritten now is as safe as ever.
    file = writer(vault, b"shrunk")
    file.write(0, NEWER)
    vault.die_and_reopen()
    assert vault.get(NAME) == content
    assert vault.get(b"shrunk") == replaced(OLD[: CHUNK + 7], 0, NEWER)
    assert vault.get(b"emptied") == b""
    assert b"gone" not in vault.names()
    vault.close()


@pytest.mark.parametrize("durability", LOGGED)
def test_content_that_went_without_the_journal_does_not_come_back(
    durability: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A record from before the disk was full must not undo a shrink or a punch that left none."""
    vault = vault_with(tmp_path / "vault", durability=durability)  # type: ignore[arg-type]
    vault.put(b"holes", OLD)
    vault.reopen()
    shrunk, holes = writer(vault), writer(vault, b"holes")
    for file in (shrunk, holes):
        file.write(CHUNK, NEW + NEWER)
        vault.tree.sync_file(file, data_only=True)
    with monkeypatch.context() as patch:
        _FullJournal(patch, vault)
        shrunk.truncate(CHUNK + 10)
        ranges.allocate(holes, PUNCH, CHUNK, CHUNK)
    vault.die_and_reopen()
    assert vault.get(NAME) == OLD[:CHUNK] + NEW[:10]
    assert vault.get(b"holes") == replaced(OLD, CHUNK, bytes(CHUNK) + NEWER)
    vault.close()


def test_overwritten_chunks_after_a_shrink_without_the_journal_are_logged(tmp_path: Path) -> None:
    """A header that names no journal must name it before a record counts for the file."""
    vault = vault_with(tmp_path / "vault")
    with pytest.MonkeyPatch.context() as patch:
        _FullJournal(patch, vault)
        file = writer(vault)
        file.truncate(3 * CHUNK)
    assert vault.header(NAME).journal_id != redo_of(vault).journal_id
    file.write(0, NEW)
    assert vault.header(NAME).journal_id == redo_of(vault).journal_id
    assert file.state.overlay.records
    vault.die_and_reopen()
    assert vault.get(NAME) == replaced(OLD[: 3 * CHUNK], 0, NEW)
    vault.close()


@pytest.mark.parametrize("durability", LOGGED)
def test_a_growth_that_failed_is_not_redone(durability: object, tmp_path: Path) -> None:
    """Its record holds a longer last chunk than the file kept; a shorter one written later must stand."""
    for failing in range(8):
        vault = vault_with(tmp_path / f"vault {failing}", OLD[:1000], durability)  # type: ignore[arg-type]
        file = writer(vault)
        strike = Strike(at=failing, error=errno.ENOSPC, calls_of=CONTENT_CHANGES)
        with strike.on_disk():
            try:
                file.write(500, pattern(300 * KIB, 7))
            except OSError:
                assert strike.struck
        content = file.read(0, 400 * KIB)
        file.write(len(content), b"appended")
        vault.die_and_reopen()
        assert vault.get(NAME) == content + b"appended"
        vault.close()


@pytest.mark.parametrize("durability", LOGGED)
def test_a_first_write_that_failed_is_not_redone(durability: object, tmp_path: Path) -> None:
    """As before, of a file that was empty: the gap before the data is filled, then the data fails."""
    for failing in range(10):
        vault = BareVault(tmp_path / f"vault {failing}", durability=durability)  # type: ignore[arg-type]
        file = vault.tree.create(vault.root, NAME, os.O_RDWR, 0o600)
        strike = Strike(at=failing, error=errno.ENOSPC, calls_of=CONTENT_CHANGES)
        with strike.on_disk():
            try:
                file.write(100, pattern(300 * KIB, 7))
            except OSError:
                assert strike.struck
        content = file.read(0, 400 * KIB)
        file.write(0, b"a later write")
        vault.die_and_reopen()
        assert vault.get(NAME) == replaced(content, 0, b"a later write")
        vault.close()


def test_a_pending_growth_that_finds_no_room_can_be_cut_off(tmp_path: Path) -> None:
    """On a full disk a file gets shorter, whatever waits for its place."""
    vault = vault_with(tmp_path / "vault")
    file = writer(vault)
    file.write(0, NEW)
    file.write(len(OLD), pattern(5 * CHUNK, 6))
    limit = vault.backing(NAME).stat().st_size
    pwritev = os.pwritev

    def write(fd: int, pieces: list[bytes], offset: int) -> int:
        if os.fstat(fd).st_ino == file.state.key[1] and offset + sum(map(len, pieces)) > limit:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return pwritev(fd, pieces, offset)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "pwritev", write)
        file.truncate(2 * CHUNK + 100)
    content = replaced(OLD, 0, NEW)[: 2 * CHUNK + 100]
    assert file.read(0, len(OLD)) == content
    vault.die_and_reopen()
    assert vault.get(NAME) == content
    vault.close()
