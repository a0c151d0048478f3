"""Files as a dead writer leaves them, built by hand: FORMAT.md, section 4, "Recovery"."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from cryptfs.core.format.header import NO_FLAGS, HeaderFlag
from cryptfs.core.geometry import HEADER_SIZE
from cryptfs.errors import ChunkError, HeaderError
from tests.crash.striking import TEARS, ProcessDeath, Strike
from tests.support import CIPHERS, KIB, BareVault, assert_detected, pattern

NAME = b"file"
CHUNK = 4 * KIB
SIZE = 3 * CHUNK + 1000
CONTENT = pattern(SIZE)


class Remains:
    """A file whose writer died: its backing bytes, and a header of one's choosing before them."""

    def __init__(self, vault: BareVault) -> None:
        self.vault = vault
        self.path = vault.backing(NAME)
        self.records = self.path.read_bytes()[HEADER_SIZE:]

    def leave(self, records: bytes, flags: int = NO_FLAGS, **fields: Any) -> None:
        """Write a header that is not CLEAN, and these records behind it."""
        header = self.vault.header(NAME).changed(flags=flags, **fields)
        self.path.write_bytes(self.vault.context.pack_header(header) + records)

    def cut(self, plain_size: int) -> int:
        """Bytes of records that hold so much plaintext."""
        return self.vault.geometry.records_size(plain_size)

    def found(self) -> bytes:
        """What readers find, who leave the file as it is; then a writer settles it, for good."""
        before = self.seen()
        got = self.vault.get(NAME)
        assert self.seen() == before
        self.vault.reopen()
        assert self.vault.get(NAME) == got
        assert self.seen() == before
        with self.vault.opened(NAME) as file:
            file.write(len(got), b"more")
        self.vault.reopen()
        assert self.vault.get(NAME) == got + b"more"
        header = self.vault.header(NAME)
        assert header.is_clean
        assert header.size == len(got) + 4 == self.vault.plain_size(NAME)
        return got

    def seen(self) -> tuple[int, int, int, bytes]:
        """What any write to the backing file would change."""
        st = self.path.stat()
        with self.path.open("rb") as file:
            return st.st_ctime_ns, st.st_mtime_ns, st.st_size, file.read(1 << 16)


@pytest.fixture(params=CIPHERS)
def remains(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Remains]:
    vault = BareVault(tmp_path / "vault", cipher=request.param)
    vault.put(NAME, CONTENT)
    yield Remains(vault)
    vault.close()


@pytest.mark.parametrize("size_min", [0, 1, CHUNK, 2 * CHUNK + 5, SIZE])
def test_whole_file(remains: Remains, size_min: int, caplog: pytest.LogCaptureFixture) -> None:
    remains.leave(remains.records, size_min=size_min)
    with caplog.at_level(logging.WARNING):
        assert remains.found() == CONTENT
    assert remains.vault.entry(NAME) in caplog.text


@pytest.mark.parametrize("kept", [1, 20, 500, CHUNK - 1])
@pytest.mark.parametrize("size_min", [0, CHUNK, 2 * CHUNK])
def test_torn_last_record_behind_size_min(remains: Remains, size_min: int, kept: int) -> None:
    """A record cut anywhere, also one too short for plaintext: it goes, what is before it stays."""
    remains.leave(remains.records[: remains.cut(2 * CHUNK) + kept], size_min=size_min)
    assert remains.found() == CONTENT[: 2 * CHUNK]


def test_torn_records_behind_size_min(remains: Remains) -> None:
    """The length reached the disk, the data of the last records did not."""
    remains.leave(remains.records[: remains.cut(CHUNK)] + os.urandom(remains.cut(SIZE - CHUNK)), size_min=0)
    assert remains.found() == CONTENT[:CHUNK]


def test_zeroed_tail(remains: Remains) -> None:
    """Zeros are torn records like others, but holes where the file has the flag for them."""
    zeroed = remains.records[: remains.cut(CHUNK)] + bytes(remains.cut(SIZE) - remains.cut(CHUNK))
    remains.leave(zeroed, size_min=100)
    assert remains.found() == CONTENT[:CHUNK]
    remains.leave(zeroed, HeaderFlag.SPARSE, size_min=100)
    assert remains.found() == CONTENT[:CHUNK] + bytes(SIZE - CHUNK)


@pytest.mark.parametrize("behind", [b"", b"rubbish"], ids=["nothing", "rubbish"])
@pytest.mark.parametrize("size_min", [0, 100, CHUNK])
def test_a_hole_of_terabytes_behind_the_end(remains: Remains, size_min: int, behind: bytes) -> None:
    """Anybody can make a file that long in one call; opening it takes no longer for that."""
    remains.leave(remains.records[: remains.cut(2 * CHUNK)], size_min=size_min)
    far = 1 << 42
    os.truncate(remains.path, far)
    with remains.path.open("r+b") as file:
        file.seek(far)
        file.write(behind)
    with remains.vault.opened(NAME, os.O_RDONLY) as opened:
        assert opened.read(0, SIZE) == CONTENT[: 2 * CHUNK]
    assert remains.found() == CONTENT[: 2 * CHUNK]


def test_damage_before_an_intact_tail_stays_damage(
    remains: Remains, caplog: pytest.LogCaptureFixture
) -> None:
    """A chunk overwritten in place, and torn: EIO for it, no byte of the others lost."""
    torn = bytearray(remains.records)
    torn[remains.cut(CHUNK) + 9] ^= 1
    remains.leave(bytes(torn), size_min=SIZE)
    vault = remains.vault
    assert_detected(lambda: vault.get(NAME), caplog, vault.entry(NAME), 1)
    with vault.opened(NAME, os.O_RDONLY) as file:
        assert file.read(2 * CHUNK, SIZE) == CONTENT[2 * CHUNK :]
        assert file.read(0, CHUNK) == CONTENT[:CHUNK]


@pytest.mark.parametrize("size", [0, 1, CHUNK, SIZE - 1])
def test_shorter_than_size_min(remains: Remains, size: int, caplog: pytest.LogCaptureFixture) -> None:
    """What was there before its writer began is never given up: somebody cut it."""
    remains.leave(remains.records[: remains.cut(size)], size_min=SIZE)
    vault = remains.vault
    evidence = remains.path.read_bytes()
    for flags in (os.O_RDONLY, os.O_RDWR):

        def read(flags: int = flags) -> None:
            with vault.opened(NAME, flags) as file:  # one that seems empty cannot even be opened
                file.read(0, 1)

        error = assert_detected(read, caplog, vault.entry(NAME))
        assert type(error) is HeaderError
    assert remains.path.read_bytes() == evidence  # a repair may still make something of it
    vault.tree.truncate(vault.root, NAME, 0)
    assert vault.get(NAME) == b""


def test_torn_chunk_that_holds_old_bytes(remains: Remains, caplog: pytest.LogCaptureFixture) -> None:
    """Growth of a partial last chunk that tore: no journal yet, so its bytes are lost, and it says so."""
    vault = remains.vault
    grown = bytearray(remains.records)
    grown[-1] ^= 1
    remains.leave(bytes(grown), size_min=3 * CHUNK + 10)
    assert_detected(lambda: vault.get(NAME), caplog, vault.entry(NAME), 3)
    assert vault.plain_size(NAME) == SIZE


def shrunk_record(vault: BareVault, index: int, length: int) -> bytes:
    """The record that a shrink puts in place of a longer one."""
    start = index * CHUNK
    suite = vault.config.suite
    out = memoryview(bytearray(vault.geometry.record_size))
    key = vault.context.content_key_of(vault.header(NAME))
    plain = CONTENT[start : start + length]
    done = vault.context.cipher.seal_run(key, index, plain, os.urandom(suite.nonce_size), out)
    return bytes(out[:done])


@pytest.mark.parametrize("target", [1, CHUNK - 1, CHUNK, CHUNK + 7, 3 * CHUNK + 7])
def test_interrupted_shrink(remains: Remains, target: int) -> None:
    """Header with the new size_min; cut behind the new last chunk; that chunk shorter; cut to length."""
    vault = remains.vault
    last = (target - 1) // CHUNK
    kept = target - last * CHUNK
    was = min(CHUNK, SIZE - last * CHUNK)
    start = remains.cut(last * CHUNK)
    cut_behind = remains.records[: remains.cut(last * CHUNK + was)]
    shorter = shrunk_record(vault, last, kept)
    steps = [
        (remains.records, SIZE),
        (cut_behind, last * CHUNK + was),
        (cut_behind[:start] + shorter + cut_behind[start + len(shorter) :], target),
        (cut_behind[:start] + shorter, target),
    ]
    for records, expected in steps:
        remains.leave(records, size_min=target)
        assert remains.found() == CONTENT[:expected]


@pytest.mark.parametrize("left", [SIZE, CHUNK, 1, 0])
def test_interrupted_truncate_to_zero(remains: Remains, left: int) -> None:
    """VOID, and the old records not gone yet."""
    epoch = remains.vault.header(NAME).epoch
    remains.leave(remains.records[: remains.cut(left)], HeaderFlag.VOID, size=0, size_min=0, epoch=epoch + 1)
    assert remains.found() == b""


def test_write_after_an_interrupted_truncate_to_zero(remains: Remains) -> None:
    epoch = remains.vault.header(NAME).epoch
    remains.leave(remains.records, HeaderFlag.VOID, size=0, size_min=0, epoch=epoch + 1)
    with remains.vault.opened(NAME) as file:
        file.write(CHUNK, b"new")
    assert remains.found() == bytes(CHUNK) + b"new"


def test_first_write_torn_in_the_header(remains: Remains, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing was there before; it says so, and can be emptied or removed."""
    vault = remains.vault
    whole = remains.path.read_bytes()
    for length in (1, 100, HEADER_SIZE - 1):
        remains.path.write_bytes(whole[:length])
        assert_detected(lambda: vault.get(NAME), caplog, vault.entry(NAME))
    vault.tree.unlink(vault.root, NAME)
    assert vault.names() == []


@pytest.mark.parametrize("flags", [NO_FLAGS, HeaderFlag.VOID])
def test_read_only_vaults_are_not_touched(remains: Remains, flags: int) -> None:
    """The length is found all the same, and closing has nothing to write.

    The header's epoch is that of the records: also where it says VOID they belong to it.
    """
    remains.leave(remains.records[: remains.cut(3 * CHUNK)] + b"torn", flags, size_min=0)
    intact = CONTENT[: 3 * CHUNK]
    before = remains.path.read_bytes()
    remains.vault.reopen(read_only=True)
    assert remains.vault.get(NAME) == intact
    assert remains.path.read_bytes() == before
    remains.vault.reopen()
    assert remains.found() == intact


def test_reader_who_may_not_write_then_a_writer(remains: Remains, monkeypatch: pytest.MonkeyPatch) -> None:
    """What readers leave as it is is settled by the writer who joins."""
    vault = remains.vault
    remains.leave(remains.records[: remains.cut(3 * CHUNK)] + b"torn", size_min=0)
    intact = CONTENT[: 3 * CHUNK]
    before = remains.path.read_bytes()

    def refuse(fd: int, flags: int) -> int:
        raise PermissionError

    monkeypatch.setattr("cryptfs.vfs.content.filestate.reopen", refuse)
    with vault.opened(NAME, os.O_RDONLY) as reader:
        assert reader.read(0, SIZE) == intact
        assert remains.path.read_bytes() == before
        with vault.opened(NAME) as writer:
            writer.write(len(intact), b"more")
            assert reader.read(0, SIZE) == intact + b"more"
    assert remains.found() == intact + b"more"


def test_recovered_file_keeps_refusing_foreign_records(remains: Remains) -> None:
    """Recovery never takes a record for the tail that is not of this place."""
    swapped = remains.records[: remains.cut(CHUNK)] + remains.records[: remains.cut(CHUNK)]
    remains.leave(swapped, size_min=0)
    assert remains.found() == CONTENT[:CHUNK]
    remains.leave(swapped, size_min=CHUNK + 1)
    with pytest.raises(ChunkError):
        remains.vault.get(NAME)


def test_synced_file_survives_the_death_of_a_later_extension(tmp_path: Path) -> None:
    """Whole chunks that were synced before the writer died are there, whatever it was doing behind them."""
    vault = BareVault(tmp_path / "vault")
    content = bytes(range(256)) * 64
    file = vault.tree.create(vault.root, NAME, os.O_RDWR, 0o600)
    file.write(0, content)
    vault.tree.sync_file(file, data_only=False)
    with Strike(at=0, torn=TEARS[1]).on_disk(), pytest.raises(ProcessDeath):
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
