"""Replays of deltas: whatever is in the places, wherever a first replay is killed, one content comes out."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cryptfs.core.format.delta import Delta, DeltaCipher, delta_key
from cryptfs.core.format.header import FileHeader
from cryptfs.core.format.journal import (
    JournalRecord,
    Operation,
    counted_size,
    payload_digest,
)
from cryptfs.core.geometry import HEADER_SIZE
from cryptfs.core.keys import Subkeys
from cryptfs.core.slots.config import DELTA_JOURNAL
from cryptfs.errors import ChunkError
from cryptfs.storage.backing import write_fully
from cryptfs.vfs.content.context import FileContext
from cryptfs.vfs.recovery import redoing, replay
from cryptfs.vfs.recovery.redoing import FileRedo, FoundRecord
from tests.crash.replay.scenes import NAME, writer
from tests.crash.replay.test_deltas import LATER, OLD, PIECE, make
from tests.support import KIB, bare_config, pattern

CHUNK = 4 * KIB
CHUNKS = 3


class Scene:
    """A file of three chunks and its journal, made record by record as a writer does."""

    def __init__(self, length: int) -> None:
        config = bare_config("xchacha20-poly1305", CHUNK, [DELTA_JOURNAL])
        self.context = FileContext(Subkeys.from_masterkey(b"m" * 32), config, False)
        self.geometry = self.context.geometry
        self.header = FileHeader(
            config.suite.cipher_id, self.context.log2_chunk_size, b"i" * 32, generation=1
        )
        self.key = self.context.content_key_of(self.header)
        self.cipher = DeltaCipher(config.suite, self.geometry)
        self.plain = [bytearray(pattern(CHUNK, index)) for index in range(CHUNKS)]
        del self.plain[-1][length:]
        self.versions = [{bytes(plain)} for plain in self.plain]
        self.ends: dict[int, bytes] = {}
        self.found: list[FoundRecord] = []
        self.journal = tempfile.TemporaryFile()  # noqa: SIM115 - the scene closes it
        self.file = tempfile.TemporaryFile()  # noqa: SIM115

    def close(self) -> None:
        self.journal.close()
        self.file.close()
        self.context.cipher.close()

    def sealed(self, index: int, plain: bytes) -> bytes:
        out = memoryview(bytearray(self.geometry.record_length(len(plain))))
        self.context.cipher.seal_run(self.key, index, plain, self.context.nonces(1), out)
        return bytes(out)

    def change(self, index: int, start: int, data: bytes, *, whole: bool) -> None:
        """Change a part of a chunk; a whole record where the journal has none of it."""
        plain = self.plain[index]
        length = len(plain)
        start = min(start, length)
        data = data[: CHUNK - start if index == CHUNKS - 1 else length - start]
        if not data:
            return
        plain[start : start + len(data)] = data
        self.versions[index].add(bytes(plain))
        if whole or index not in self.ends:
            payload, operation = self.sealed(index, bytes(plain)), Operation.WRITE
        else:
            delta = Delta(length, start, self.ends[index], data)
            nonce = self.context.nonces(1)
            payload = self.cipher.seal(delta_key(self.key), index, delta, nonce)
            operation = Operation.DELTA
        self.ends[index] = self.cipher.ends(payload)
        self.log(operation, index, payload)

    def log(self, operation: Operation, index: int, payload: bytes) -> None:
        suite, seq = self.context.suite, len(self.found) + 1
        counted = counted_size(operation, len(payload), self.geometry.record_size)
        digest = payload_digest(b"", payload, counted, suite.nonce_size, suite.tag_size)
        size = self.geometry.chunk_start(index) + len(self.plain[index])
        record = JournalRecord(seq, seq - 1, operation, 0, b"i" * 32, 1, index, size, b"", digest)
        place = self.journal.seek(0, os.SEEK_END)
        self.journal.write(payload)
        self.journal.flush()
        self.found.append(FoundRecord(record, self.journal.fileno(), place, len(payload)))

    def lay_out(self, places: list[bytes]) -> None:
        """Put records, or what is left of them, into the places."""
        raw = bytes(HEADER_SIZE) + b"".join(
            place.ljust(self.geometry.record_size, b"?") for place in places[:-1]
        )
        self.file.seek(0)
        self.file.truncate()
        self.file.write(raw + places[-1])
        self.file.flush()

    def replay(self) -> list[bool]:
        redo = FileRedo(self.context, self.file.fileno(), self.header, self.found)
        return [redo.redo(found) for found in self.found]

    def content(self, index: int) -> bytes | None:
        """The plaintext of the record that stands in a place; None if it does not verify."""
        record = memoryview(bytearray(self.geometry.record_length(len(self.plain[index]))))
        got = os.preadv(self.file.fileno(), [record], self.geometry.record_offset(index))
        plain = memoryview(bytearray(CHUNK))
        try:
            opened = self.context.cipher.open_run(self.key, index, record[:got], plain, holes=False)
        except ChunkError:
            return None
        return bytes(plain[:opened])


@contextlib.contextmanager
def killed_after(calls: int) -> Iterator[None]:
    """The process ends at a write to the file, half of which arrives."""
    real, left = write_fully, [calls]

    class Killed(BaseException):
        pass

    def write(fd: int, pieces: tuple[memoryview, ...], place: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            real(fd, (pieces[0][: len(pieces[0]) // 2],), place)
            raise Killed
        real(fd, pieces, place)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(redoing, "write_fully", write)
        with contextlib.suppress(Killed):
            yield


changes = st.tuples(
    st.integers(0, CHUNKS - 1),
    st.integers(0, CHUNK - 1),
    st.integers(1, 1500),
    st.integers(0, 5).map(lambda number: number == 0),
)


@settings(max_examples=150, deadline=None)
@given(
    length=st.integers(1, CHUNK),
    steps=st.lists(changes, min_size=1, max_size=12),
    torn=st.lists(st.integers(0, 2), min_size=CHUNKS, max_size=CHUNKS),
    which=st.integers(0, 2**30),
    kills=st.lists(st.integers(0, 6), max_size=3),
)
def test_a_replay_makes_the_newest_content(
    length: int, steps: list[tuple[int, int, int, bool]], torn: list[int], which: int, kills: list[int]
) -> None:
    """The places have any version of their chunks, whole or torn; replays are killed; the last one ends."""
    scene = Scene(length)
    try:
        untouched = [bytes(plain) for plain in scene.plain]
        for number, (index, start, size, whole) in enumerate(steps):
            scene.change(index, start, pattern(size, number + 10), whole=whole)
        places = []
        for index, versions in enumerate(scene.versions):
            known = sorted(versions)
            record = scene.sealed(index, known[which % len(known)])
            touched = index in scene.ends
            if not touched:
                record = scene.sealed(index, untouched[index])
            elif torn[index] == 1:
                record = record[: len(record) // 2] + bytes(len(record) - len(record) // 2)
            elif torn[index] == 2 and index == CHUNKS - 1:
                record = record[: len(record) // 2]
            places.append(record)
        scene.lay_out(places)
        for calls in kills:
            with killed_after(calls):
                scene.replay()
        assert all(scene.replay())
        assert [scene.content(index) for index in range(CHUNKS)] == [bytes(plain) for plain in scene.plain]
        assert os.fstat(scene.file.fileno()).st_size == scene.geometry.cipher_size(
            scene.geometry.chunk_start(CHUNKS - 1) + len(scene.plain[-1])
        )
    finally:
        scene.close()


@settings(max_examples=60, deadline=None)
@given(steps=st.lists(changes, min_size=2, max_size=10), gone=st.integers(0, 9))
def test_without_a_record_no_later_one_of_its_chunk_is_redone(
    steps: list[tuple[int, int, int, bool]], gone: int
) -> None:
    """Also without the chain of the file's records: a delta applies to its own base and to nothing else."""
    scene = Scene(CHUNK)
    try:
        for number, (index, start, size, whole) in enumerate(steps):
            scene.change(index, start, pattern(size, number + 10), whole=whole)
        scene.lay_out([scene.sealed(index, bytes(CHUNK)) for index in range(CHUNKS)])
        if not scene.found:
            return
        missing = scene.found.pop(gone % len(scene.found)).record
        healed = False
        for found, redone in zip(scene.found, scene.replay(), strict=True):
            record = found.record
            follows = record.first == missing.first and record.seq > missing.seq
            healed = healed or (follows and record.operation is Operation.WRITE)
            assert redone is not (follows and not healed)
    finally:
        scene.close()


def test_a_replay_of_deltas_twice_seals_afresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A replay that was killed at its end is done again: the same content, under other nonces."""
    vault = make(tmp_path / "vault")
    file = writer(vault)
    file.write(0, PIECE)
    file.write(10, LATER)
    expected = file.read(0, len(OLD))
    vault.die()

    class Killed(BaseException):
        pass

    def kill(*_: object) -> None:
        raise Killed

    path, places = vault.backing(NAME), []
    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(replay, "drop_records", kill)
            with pytest.raises(Killed):
                vault._start(read_only=False)
        places.append(path.read_bytes()[HEADER_SIZE : HEADER_SIZE + vault.geometry.record_size])
    assert places[0] != places[1]
    vault._start(read_only=False)
    assert vault.get(NAME) == expected
