"""When the cipher pool decides to split, and when it asks itself again: fake clock, fake timings."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cryptfs.core.aead import XCHACHA20_POLY1305, ChunkCipher
from cryptfs.core.geometry import ChunkGeometry
from cryptfs.vfs.content import cipherpool
from cryptfs.vfs.content.cipherpool import CipherPool

CHUNK_SIZE = 16 * 1024
LARGE = cipherpool.LARGE_RUN // CHUNK_SIZE
KEY = bytes(32)


class FakePool(CipherPool):
    """Splitting pays from `pays_from` chunks on; `time` is what the clock shows."""

    def __init__(self, pays_from: float, chunk_size: int = CHUNK_SIZE, workers: int = 2) -> None:
        self.time = 1000.0
        self.pays_from = pays_from
        self.timed: list[int] = []
        suite = XCHACHA20_POLY1305
        cipher = ChunkCipher(suite, ChunkGeometry(chunk_size, suite.overhead))
        super().__init__(cipher, workers, clock=lambda: self.time)

    def _split_pays(self, chunks: int) -> bool:
        self.timed.append(chunks)
        return chunks >= self.pays_from

    def seal(self, chunks: int) -> None:
        """A run of so many chunks comes by."""
        geometry, suite = self.cipher.geometry, self.cipher.suite
        size = chunks * geometry.chunk_size
        out = memoryview(bytearray(geometry.records_size(size)))
        self.seal_run(KEY, 0, bytes(size), bytes(chunks * suite.nonce_size), out)

    def measured_by(self, chunks: int) -> bool:
        """Whether a run sets off a measurement."""
        self.timed.clear()
        self.seal(chunks)
        return bool(self.timed)


NEVER = float("inf")


@pytest.fixture
def slow() -> Iterator[FakePool]:
    """A pool that found at its start that a split does not pay."""
    pool = FakePool(NEVER)
    pool.measure()
    yield pool
    pool.close()


@pytest.mark.parametrize(
    ("pays_from", "min_chunks"), [(1, 4), (4, 4), (5, 8), (33, 64), (64, 64), (65, None)]
)
def test_the_shortest_run_that_pays(pays_from: int, min_chunks: int | None) -> None:
    pool = FakePool(pays_from)
    pool.measure()
    assert pool.min_chunks == min_chunks
    pool.close()


def test_where_it_never_pays_one_length_is_timed(slow: FakePool) -> None:
    assert slow.min_chunks is None
    assert slow.timed == [64]


def test_runs_longer_than_any_request_are_not_timed() -> None:
    pool = FakePool(1, chunk_size=1024 * 1024)
    pool.measure()
    assert pool.timed == [4]
    pool.close()


def test_one_core_never_measures() -> None:
    pool = FakePool(1, workers=1)
    pool.measure()
    pool.time += 10 * cipherpool.PAUSE
    assert not pool.measured_by(LARGE)
    assert pool.min_chunks is None


def test_the_first_large_run_measures() -> None:
    pool = FakePool(8)
    pool.measure_when_used()
    assert pool.timed == []  # a mount does not wait for it
    assert not pool.measured_by(LARGE // 8)
    assert pool.measured_by(LARGE)
    assert pool.min_chunks == 8
    assert not pool.measured_by(LARGE)  # the next one comes later
    pool.close()


def test_one_core_never_measures_when_used() -> None:
    pool = FakePool(1, workers=1)
    pool.measure_when_used()
    assert not pool.measured_by(LARGE)


def test_nothing_is_measured_before_the_start() -> None:
    pool = FakePool(1)
    pool.time += 10 * cipherpool.PAUSE
    assert not pool.measured_by(LARGE)
    pool.close()


def test_a_pool_that_started_on_a_busy_machine_finds_out_later(slow: FakePool) -> None:
    slow.pays_from = 8
    assert not slow.measured_by(LARGE)  # too early
    slow.time += cipherpool.PAUSE
    assert not slow.measured_by(LARGE - 1)  # too small
    assert slow.measured_by(LARGE)
    assert slow.min_chunks == 8


def test_opening_asks_too(slow: FakePool) -> None:
    geometry, suite = slow.cipher.geometry, slow.cipher.suite
    size = 64 * CHUNK_SIZE
    sealed = memoryview(bytearray(geometry.records_size(size)))
    nonces = bytes(range(64)) * suite.nonce_size
    slow.seal_run(KEY, 0, b"x" * size, nonces, sealed)
    slow.time += cipherpool.PAUSE
    slow.pays_from = 4
    out = memoryview(bytearray(size))
    assert slow.open_run(KEY, 0, sealed, out, holes=False) == size
    assert slow.min_chunks == 4
    assert bytes(out) == b"x" * size


def test_two_times_yes_settles_it(slow: FakePool) -> None:
    slow.pays_from = 8
    for _ in range(2):
        slow.time += cipherpool.PAUSE
        assert slow.measured_by(LARGE)
    slow.pays_from = NEVER
    slow.time += 100 * cipherpool.PAUSE
    assert not slow.measured_by(LARGE)
    assert slow.min_chunks == 8


def test_the_last_answer_counts_until_it_is_settled(slow: FakePool) -> None:
    for pays_from, min_chunks in ((8, 8), (NEVER, None), (16, 16)):
        slow.pays_from = pays_from
        slow.time += cipherpool.PAUSE
        slow.seal(LARGE)
        assert slow.min_chunks == min_chunks


def test_it_gives_up_after_some_measurements(slow: FakePool) -> None:
    count = 1
    for _ in range(3 * cipherpool.MAX_MEASUREMENTS):
        slow.time += cipherpool.PAUSE
        count += slow.measured_by(LARGE)
    assert count == cipherpool.MAX_MEASUREMENTS


def test_a_closed_pool_stays_quiet(slow: FakePool) -> None:
    slow.close()
    slow.time += cipherpool.PAUSE
    assert not slow.measured_by(LARGE)


def test_a_second_thread_does_not_measure_at_the_same_time(slow: FakePool) -> None:
    slow.time += cipherpool.PAUSE
    with slow._measuring:
        assert not slow.measured_by(LARGE)


def test_the_real_timing_answers() -> None:
    """Whatever the machine says, it says it in the terms of MEASURED_CHUNKS."""
    suite = XCHACHA20_POLY1305
    pool = CipherPool(ChunkCipher(suite, ChunkGeometry(4096, suite.overhead)), workers=2)
    pool.measure()
    assert pool.min_chunks in (None, *cipherpool.MEASURED_CHUNKS)
    pool.close()
