"""A disk that is full or refuses, at each call of an operation: the caller is told, the file stays."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from cryptfs.errors import ChunkError
from tests.crash.backing_calls import CONTENT_CHANGES
from tests.crash.operations import (
    CHUNK,
    GROWTHS,
    OPERATIONS,
    SHRINKS,
    WRITES,
    Operation,
    assert_old_or_new,
    chunks_of,
)
from tests.crash.striking import TEARS, Strike, each_strike
from tests.support import CIPHERS, KIB, BareVault, open_descriptors, pattern

NAME = b"file"


def read_chunks(vault: BareVault) -> list[bytes | None]:
    """The file's chunks as they read now; None for one that does not authenticate."""
    found: list[bytes | None] = []
    with vault.opened(NAME, os.O_RDONLY) as file:
        with contextlib.suppress(ChunkError):
            file.read(0, 1)
        for start in range(0, file.state.size, CHUNK):
            try:
                found.append(file.read(start, CHUNK))
            except ChunkError:
                found.append(None)
    return found


def failing(at: int, error: int = errno.EIO, *, torn: bool = False, for_good: bool = False) -> Strike:
    """A torn write is a short one: the call for its rest fails."""
    tear = TEARS[1] if torn else ""
    return Strike(at, error, tear, short=torn, for_good=for_good, calls_of=CONTENT_CHANGES)


def calls_of(vault: BareVault, operation: Operation) -> list[int]:
    with vault.opened(NAME) as file:
        return list(each_strike(lambda: operation.run(file), CONTENT_CHANGES))


def assert_kept(found: list[bytes | None], operation: Operation, *, exactly: bool) -> None:
    """The old length; the old content but, after half a write, of chunks that were written over whole."""
    old, new = chunks_of(operation.old), chunks_of(operation.result)
    assert len(found) == len(old)
    for index, chunk in enumerate(found):
        if exactly or not operation.replaces(index):
            assert chunk == old[index]
        else:
            assert chunk in (None, old[index], new[index])


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
@pytest.mark.parametrize("torn", [False, True], ids=["at once", "after a page"])
@pytest.mark.parametrize("for_good", [False, True], ids=["once", "for good"])
def test_error_at_every_call(operation: Operation, torn: bool, for_good: bool, tmp_path: Path) -> None:
    vault = BareVault(tmp_path / "vault", cipher=CIPHERS[for_good])
    vault.put(NAME, operation.old)
    before = vault.backing(NAME).read_bytes()
    code = errno.ENOSPC if torn else errno.EIO
    for call in calls_of(vault, operation):
        vault.backing(NAME).write_bytes(before)
        file = vault.tree.open(vault.root, NAME, os.O_RDWR)
        file.read(0, 1)
        strike = failing(call, code, torn=torn, for_good=for_good)
        with strike.on_disk(), pytest.raises(OSError) as raised:
            operation.run(file)
        assert raised.value.errno == code
        found = read_chunks(vault)
        if for_good:
            assert_old_or_new(found, operation)  # not even what was there could be put back
        elif operation in WRITES or operation in GROWTHS:
            assert_kept(found, operation, exactly=not torn)
            assert vault.plain_size(NAME) == file.state.size
        else:
            assert None not in found
            assert_old_or_new(found, operation)
        # The disk is well again: so is the file.
        again = pattern(CHUNK, 9)
        file.write(0, again)
        vault.tree.release(file)
        vault.reopen()
        assert read_chunks(vault) == [again, *found[1:]]
        assert vault.header(NAME).is_clean
    vault.close()


def test_shrinks_never_fail_into_a_wrong_length(tmp_path: Path) -> None:
    """What memory holds for the length is what the disk has, whichever step failed."""
    vault = BareVault(tmp_path / "vault")
    for operation in SHRINKS:
        vault.put(NAME, operation.old)
        for call in calls_of(vault, operation):
            vault.put(NAME, operation.old)
            with vault.opened(NAME) as file:
                with failing(call).on_disk(), pytest.raises(OSError):
                    operation.run(file)
                size = file.state.size
                assert len(file.read(0, len(operation.old))) == size
            assert len(vault.get(NAME)) == size
    vault.close()


def test_error_at_the_close_reaches_the_caller_and_leaves_no_handle(tmp_path: Path) -> None:
    vault = BareVault(tmp_path / "vault")
    vault.put(NAME, b"1")
    before = open_descriptors()
    file = vault.tree.open(vault.root, NAME, os.O_RDWR)
    file.write(0, b"2")
    with failing(0).on_disk(), pytest.raises(OSError) as raised:
        vault.tree.release(file)
    assert raised.value.errno == errno.EIO
    assert open_descriptors() == before
    assert not vault.tree.files._states
    assert vault.get(NAME) == b"2"  # its length is found by recovery
    vault.close()


@pytest.mark.parametrize("step", [1, 7, 255, 4096])
def test_short_reads_and_writes(step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel may do less than it was asked in each call."""
    pwrite, preadv = os.pwrite, os.preadv

    def write_some(fd: int, data: bytes, offset: int) -> int:
        return pwrite(fd, bytes(data)[:step], offset)

    def write_vector_some(fd: int, pieces: Sequence[bytes], offset: int) -> int:
        return write_some(fd, b"".join(pieces), offset)

    def read_some(fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        return preadv(fd, (buffers[0][:step],), offset)

    monkeypatch.setattr(os, "pwrite", write_some)
    monkeypatch.setattr(os, "pwritev", write_vector_some)
    monkeypatch.setattr(os, "preadv", read_some)
    vault = BareVault(tmp_path / "vault")
    content = bytearray(pattern(10 * KIB))
    vault.put(NAME, bytes(content))
    with vault.opened(NAME) as file:
        file.write(4090, b"across the edge")
        file.truncate(9000)
    content[4090:4105] = b"across the edge"
    vault.put(b"l" * 255, b"")
    directory = vault.make_directory(b"d")
    vault.put(b"x", b"1", directory)
    vault.reopen()
    assert vault.get(NAME) == content[:9000]
    assert vault.names() == sorted([NAME, b"d", b"l" * 255])
    assert vault.get(b"x", vault.tree.directory(vault.root, b"d")) == b"1"
    vault.close()


def test_a_write_that_makes_no_progress_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that never returns would hang the mount."""
    vault = BareVault(tmp_path / "vault")
    vault.put(NAME, b"old")
    with vault.opened(NAME) as file:
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwritev", lambda *_: 0)
            patch.setattr(os, "pwrite", lambda *_: 0)
            with pytest.raises(OSError):
                file.write(0, b"new")
        assert file.read(0, 10) == b"old"
    vault.close()


def test_read_errors_reach_the_caller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vault = BareVault(tmp_path / "vault")
    vault.put(NAME, b"content")

    def fail(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with vault.opened(NAME) as file:
        with monkeypatch.context() as patch:
            patch.setattr(os, "preadv", fail)
            for action in (lambda: file.read(0, 1), lambda: file.write(1, b"x"), lambda: file.truncate(1)):
                with pytest.raises(OSError) as raised:
                    action()
                assert raised.value.errno == errno.EIO
        assert file.read(0, 10) == b"content"
    vault.close()
