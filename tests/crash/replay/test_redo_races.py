"""Threads that meet in the redo log at the worst moment, each arranged by hand."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from cryptfs.storage.journal import Journal
from tests.crash.replay.scenes import (
    CHUNK,
    NAME,
    OLD,
    vault_with,
    writer,
)
from tests.support import pattern

NEW, NEWER = pattern(CHUNK, 2), pattern(CHUNK, 3)


def test_a_file_unlinked_while_it_is_parked_does_not_stay_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the last close's look at the number of links and its note that the file stays open."""
    vault = vault_with(tmp_path / "vault")
    file = writer(vault)
    file.write(0, NEW)
    fstat = os.fstat
    threads: list[threading.Thread] = []

    def unlink_meanwhile(fd: int) -> os.stat_result:
        st = fstat(fd)
        if fd == file.state.fd and not threads:
            threads.append(threading.Thread(target=vault.tree.unlink, args=(vault.root, NAME)))
            threads[0].start()
            threads[0].join(0.3)
        return st

    with monkeypatch.context() as patch:
        patch.setattr(os, "fstat", unlink_meanwhile)
        vault.tree.release(file)
    threads[0].join(30)
    assert not threads[0].is_alive()
    assert not vault.tree.files._states
    vault.close()


def test_a_sync_that_meets_a_write_does_not_count_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fdatasync(2) may be skipped only where nothing was written since the last one began."""
    vault = vault_with(tmp_path / "vault", OLD[: 4 * CHUNK])
    file = writer(vault)
    file.write(4 * CHUNK, NEW)
    vault.tree.sync_file(file, data_only=True)
    state, pwritev, fdatasync = file.state, os.pwritev, os.fdatasync
    threads: list[threading.Thread] = []
    order: list[str] = []

    def sync(fd: int) -> None:
        order.append("sync")
        fdatasync(fd)

    def sync_first(fd: int, pieces: Sequence[bytes], offset: int) -> int:
        threads.append(threading.Thread(target=lambda: state.sync_backing(data_only=True)))
        threads[-1].start()
        threads[-1].join(0.3)
        order.append("write")
        return pwritev(fd, pieces, offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", sync)
        patch.setattr(os, "pwritev", sync_first)
        file.write(5 * CHUNK, NEWER)
        threads[0].join(30)
        assert not threads[0].is_alive()
        vault.tree.sync_file(file, data_only=True)
    assert order.count("write") == 1
    assert order[-1] == "sync"
    vault.tree.release(file)
    vault.close()


def test_no_record_comes_between_the_number_in_a_head_and_the_first_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The head's first_seq is that of the first record in its file: chains are told by it."""
    heads: list[int] = []

    def pack_head(first_seq: int) -> bytes:
        heads.append(first_seq)
        return bytes(512)

    vault_fd = os.open(tmp_path, os.O_RDONLY)
    journal = Journal(vault_fd, pack_head, durable=True)
    packed: list[tuple[int, int]] = []

    def pack(seq: int, place: int) -> list[bytes | memoryview]:
        packed.append((journal.turn, seq))
        return [b"record"]

    def append() -> None:
        journal.append(pack)

    append()
    fdatasync = os.fdatasync
    threads: list[threading.Thread] = []

    def append_meanwhile(fd: int) -> None:
        threads.append(threading.Thread(target=append))
        threads[-1].start()
        threads[-1].join(0.2)
        fdatasync(fd)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", append_meanwhile)
        journal.take_turns()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    append()
    in_second = [seq for turn, seq in packed if turn == 1]
    assert heads[-1] == min(in_second)
    assert sorted(seq for _, seq in packed) == list(range(1, len(packed) + 1))
    journal.remove()
    os.close(vault_fd)


def test_a_stat_that_meets_a_homecoming_has_the_right_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The backing file's length is read before the overlay reaches it, the size in the redo log after."""
    vault = vault_with(tmp_path / "vault")
    file = writer(vault)
    size = len(OLD) + 2 * CHUNK

    def grow() -> None:
        file.truncate(len(OLD))
        vault.checkpoint()
        file.write(len(OLD), pattern(2 * CHUNK, 4))
        assert os.fstat(file.state.fd).st_size < vault.geometry.cipher_size(size)

    real_stat, real_fstat = os.stat, os.fstat
    met, coming = 0, False

    def come_home_after(st: os.stat_result) -> os.stat_result:
        nonlocal met, coming
        if file.state.overlay.records and not coming:
            met, coming = met + 1, True
            vault.checkpoint()
            coming = False
        return st

    grow()
    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", lambda *args, **at: come_home_after(real_stat(*args, **at)))
        assert vault.tree.stat(vault.root, NAME).size == size
    grow()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fstat", lambda fd: come_home_after(real_fstat(fd)))
        assert vault.tree.stat_open(file).size == size
    assert met == 2
    vault.tree.release(file)
    vault.close()


def test_a_chmod_while_the_overlay_comes_home_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vault = vault_with(tmp_path / "vault")
    path = vault.backing(NAME)
    path.chmod(0o644)
    file = writer(vault)
    file.write(0, NEW)
    pwritev = os.pwritev

    def chmod_first(fd: int, pieces: Sequence[bytes], offset: int) -> int:
        if fd == file.state.fd and offset:
            path.chmod(0o600)
        return pwritev(fd, pieces, offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", chmod_first)
        vault.checkpoint()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    vault.tree.release(file)
    vault.close()
