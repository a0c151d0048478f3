"""Processes that die in the middle of an operation, after each call that changes the disk.

With the redo log each chunk is what it was or what it should become. Without it, a chunk overwritten in
place, or a partial last chunk that grows, can be lost: then it must be an IntegrityError for that chunk.
Never bytes that nobody wrote, and never the loss of a chunk that the operation had no business with.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from cryptfs.core.header import NO_FLAGS, HeaderFlag
from cryptfs.errors import ChunkError, HeaderError
from cryptfs.vfs.redo import Durability
from tests.recovery.faults import Faults, ProcessDeath
from tests.recovery.operations import CHUNK, OPERATIONS, Operation
from tests.support import CIPHERS, BareVault

NAME = b"file"


def chunks_of(content: bytes) -> list[bytes]:
    return [content[start : start + CHUNK] for start in range(0, len(content), CHUNK)]


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


def died(vault: BareVault, operation: Operation, faults: Faults) -> bool:
    """Open, do it, close; whether the process died on the way."""
    with faults.on_disk():
        try:
            file = vault.tree.open(vault.root, NAME, os.O_RDWR)
            operation.run(file)
            vault.tree.release(file)
        except ProcessDeath:
            return True
    return False


def assert_old_or_new(
    found: list[bytes | None], operation: Operation, durability: Durability = Durability.OFF
) -> None:
    """Each chunk is what it was or what it should become, as far as the file goes, or says it is lost."""
    old, new = chunks_of(operation.old), chunks_of(operation.result)
    for index, (before, after) in enumerate(zip(old, new, strict=False)):
        if before == after:
            assert found[index] == before
    for index, chunk in enumerate(found):
        if chunk is None:
            assert durability is Durability.OFF, "the redo log keeps every chunk"
            assert index < len(old), "a torn extension must be trimmed"
            continue
        expected = [content[index] for content in (old, new) if index < len(content)]
        assert any(content.startswith(chunk) for content in expected)


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
@pytest.mark.parametrize("durability", Durability)
@pytest.mark.parametrize("cipher", CIPHERS)
def test_death_at_every_call(
    cipher: str, durability: Durability, operation: Operation, tmp_path: Path
) -> None:
    vault = BareVault(tmp_path / "vault", cipher=cipher, durability=durability)
    vault.put(NAME, operation.old)
    vault.reopen()
    backing = vault.backing(NAME)
    before = backing.read_bytes()
    counting = Faults()
    assert not died(vault, operation, counting)
    assert vault.get(NAME) == operation.result
    assert counting.calls >= 2  # at least the change, and the header at the close
    for torn in (False, True):
        for call in range(counting.calls):
            backing.write_bytes(before)
            vault.die_and_reopen()
            assert died(vault, operation, Faults(at=call, torn=torn))
            vault.die_and_reopen()
            found = read_chunks(vault)
            assert_old_or_new(found, operation, durability)
            vault.reopen()
            assert read_chunks(vault) == found
            if vault.tree.unsettled is not None:
                vault.tree.unsettled.sweep()
                assert not backing.stat().st_size or vault.header(NAME).is_clean
                assert read_chunks(vault) == found
    vault.close()


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
@pytest.mark.parametrize("durability", (Durability.POWER, Durability.PROCESS))
def test_death_at_every_call_of_the_replay(
    durability: Durability, operation: Operation, tmp_path: Path
) -> None:
    """What was acknowledged is there, however often the replay of it is killed."""
    vault = BareVault(tmp_path / "vault", durability=durability)
    vault.put(NAME, operation.old)
    vault.reopen()
    operation.run(vault.tree.open(vault.root, NAME, os.O_RDWR))
    saved = {path.name: path.read_bytes() for path in vault.vault_dir.iterdir()}

    def restore() -> None:
        for path in vault.vault_dir.iterdir():
            if path.name not in saved:
                path.unlink()
        for name, content in saved.items():
            (vault.vault_dir / name).write_bytes(content)

    counting = Faults()
    with counting.on_disk():
        vault.die_and_reopen()
    for torn in (False, True):
        for call in range(counting.calls):
            restore()
            with Faults(at=call, torn=torn).on_disk(), pytest.raises(ProcessDeath):
                vault.die_and_reopen()
            vault.die_and_reopen()
            assert vault.get(NAME) == operation.result
    vault.close()


def test_death_before_the_first_call_changes_nothing(tmp_path: Path) -> None:
    """The faults do strike where they say."""
    vault = BareVault(tmp_path / "vault")
    vault.put(NAME, OPERATIONS[0].old)
    before = vault.backing(NAME).read_bytes()
    assert died(vault, OPERATIONS[0], Faults(at=0))
    assert vault.backing(NAME).read_bytes() == before
    vault.die_and_reopen()
    vault.close()


def test_synced_file_survives_the_death_of_a_later_extension(tmp_path: Path) -> None:
    """Whole chunks that were synced before the writer died are there, whatever it was doing behind them."""
    vault = BareVault(tmp_path / "vault")
    content = bytes(range(256)) * 64
    file = vault.tree.create(vault.root, NAME, os.O_RDWR, 0o600)
    file.write(0, content)
    vault.tree.sync_file(file, data_only=False)
    with Faults(at=0, torn=True).on_disk(), pytest.raises(ProcessDeath):
        file.write(len(content), b"x" * 3 * CHUNK)
    vault.die_and_reopen()
    assert vault.get(NAME) == content
    vault.close()


def test_a_cut_beside_a_dead_writer_is_noticed(tmp_path: Path) -> None:
    """size_min is the length that the file had when its writer began."""
    vault = BareVault(tmp_path / "vault")
    old = bytes(5 * CHUNK + 10)
    vault.put(NAME, old)
    vault.tree.open(vault.root, NAME, os.O_RDWR).write(len(old), b"more")
    vault.die_and_reopen()
    assert vault.header(NAME).size_min == len(old)
    os.truncate(vault.backing(NAME), vault.geometry.cipher_size(len(old) - 1))
    with pytest.raises(HeaderError):
        vault.get(NAME)
    vault.close()


def test_header_is_written_once_before_and_once_after_many_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vault = BareVault(tmp_path / "vault")
    vault.put(NAME, bytes(CHUNK))
    flags: list[int] = []
    whole = os.pwritev

    def watching(fd: int, pieces: Sequence[bytes], offset: int) -> int:
        if offset == 0:
            flags.append(vault.context.unpack_header(bytes(pieces[0])).flags)
        return whole(fd, pieces, offset)

    monkeypatch.setattr(os, "pwritev", watching)
    with vault.opened(NAME) as file:
        for index in range(1, 20):
            file.write(index * CHUNK, b"extended")
            file.write(index * 7, b"overwritten")
    assert flags == [NO_FLAGS, HeaderFlag.CLEAN]
    vault.close()
