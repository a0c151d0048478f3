"""CipherPool and BufferPool: the same results and errors as without them."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest

from cryptfs.core.aead import SUITES, ChunkCipher
from cryptfs.core.geometry import ChunkGeometry
from cryptfs.errors import ChunkError
from cryptfs.vfs.content.cipherpool import CipherPool
from cryptfs.vfs.content.context import KEPT_BUFFERS, BufferPool
from tests.support import CIPHERS, KIB, MIB, pattern

KEY = bytes(range(32))
CHUNK = 4 * KIB


@pytest.fixture(params=[(cipher, workers) for cipher in CIPHERS for workers in (2, 3, 5)], ids=str)
def pool(request: pytest.FixtureRequest) -> Iterator[CipherPool]:
    """A pool that splits whatever it gets."""
    cipher, workers = request.param
    suite = SUITES[cipher]
    pool = CipherPool(ChunkCipher(suite, ChunkGeometry(CHUNK, suite.overhead)), workers)
    pool.min_chunks = 0
    yield pool
    pool.close()


@pytest.mark.parametrize("chunks", [1, 2, 3, 4, 5, 7, 16, 33])
@pytest.mark.parametrize("tail", [0, 1, CHUNK - 1])
def test_splits_agree_with_one_thread(pool: CipherPool, chunks: int, tail: int) -> None:
    plain = pattern(chunks * CHUNK + tail)
    geometry = pool.cipher.geometry
    nonces = os.urandom(geometry.chunk_count(len(plain)) * pool.cipher.suite.nonce_size)
    alone = memoryview(bytearray(geometry.records_size(len(plain))))
    split = memoryview(bytearray(geometry.records_size(len(plain))))
    assert pool.cipher.seal_run(KEY, 5, plain, nonces, alone) == len(alone)
    assert pool.seal_run(KEY, 5, plain, nonces, split) == len(split)
    assert split == alone
    out = memoryview(bytearray(len(plain)))
    assert pool.open_run(KEY, 5, split, out, holes=False) == len(plain)
    assert out == plain


@pytest.mark.parametrize("damaged", [(0,), (4,), (8,), (1, 7), (8, 3, 5), tuple(range(9))])
def test_lowest_damaged_chunk_is_the_one_reported(pool: CipherPool, damaged: tuple[int, ...]) -> None:
    chunks, first = 9, 100
    geometry, suite = pool.cipher.geometry, pool.cipher.suite
    sealed = memoryview(bytearray(chunks * geometry.record_size))
    pool.cipher.seal_run(KEY, first, bytes(chunks * CHUNK), os.urandom(chunks * suite.nonce_size), sealed)
    for index in damaged:
        sealed[index * geometry.record_size + 40] ^= 1
    with pytest.raises(ChunkError) as raised:
        pool.open_run(KEY, first, sealed, memoryview(bytearray(chunks * CHUNK)), holes=False)
    assert raised.value.chunk_index == first + min(damaged)


def test_holes_and_bad_lengths_through_the_pool(pool: CipherPool) -> None:
    geometry = pool.cipher.geometry
    zeros = memoryview(bytearray(8 * geometry.record_size))
    out = memoryview(bytearray(b"\xff" * (8 * CHUNK)))
    assert pool.open_run(KEY, 0, zeros, out, holes=True) == 8 * CHUNK
    assert not any(out)
    with pytest.raises(ChunkError):
        pool.open_run(KEY, 0, zeros, out, holes=False)
    with pytest.raises(ValueError, match="room"):
        pool.open_run(KEY, 0, zeros, out[: 7 * CHUNK], holes=True)
    with pytest.raises(ValueError, match="nonce"):
        pool.seal_run(KEY, 0, bytes(8 * CHUNK), b"", zeros)


def test_threads_start_with_the_first_split_and_end_with_close() -> None:
    suite = SUITES[CIPHERS[0]]
    geometry = ChunkGeometry(CHUNK, suite.overhead)

    def pool_threads() -> int:
        return sum(thread.name.startswith("cryptfs-cipher") for thread in threading.enumerate())

    assert pool_threads() == 0
    pool = CipherPool(ChunkCipher(suite, geometry), workers=3)
    out = memoryview(bytearray(16 * geometry.record_size))
    nonces = os.urandom(16 * suite.nonce_size)
    pool.seal_run(KEY, 0, bytes(16 * CHUNK), nonces, out)
    assert pool_threads() == 0  # not measured yet: everything stays here
    pool.min_chunks = 4
    pool.seal_run(KEY, 0, bytes(3 * CHUNK), nonces[: 3 * suite.nonce_size], out)
    assert pool_threads() == 0
    pool.seal_run(KEY, 0, bytes(16 * CHUNK), nonces, out)
    assert 1 <= pool_threads() <= 2
    pool.close()
    assert pool_threads() == 0
    # A request that is still under way at the unmount is finished without them.
    assert pool.seal_run(KEY, 0, bytes(16 * CHUNK), nonces, out) == len(out)


def test_one_core_never_splits() -> None:
    suite = SUITES[CIPHERS[0]]
    pool = CipherPool(ChunkCipher(suite, ChunkGeometry(CHUNK, suite.overhead)), workers=1)
    pool.measure()
    assert pool.min_chunks is None
    pool.close()


def test_measure_decides_for_a_length_or_for_never() -> None:
    suite = SUITES["xchacha20-poly1305"]
    pool = CipherPool(ChunkCipher(suite, ChunkGeometry(16 * KIB, suite.overhead)), workers=2)
    pool.measure()
    assert pool.min_chunks is None or 2 <= pool.min_chunks <= 256
    pool.close()


# ---- buffers


@pytest.mark.parametrize("size", [1, 32 * KIB, 32 * KIB + 1, MIB, 4 * MIB, 4 * MIB + 1, 9 * MIB])
def test_buffers_have_room_and_come_back(size: int) -> None:
    pool = BufferPool()
    first = pool.take(size)
    assert len(first) >= size
    assert not first.readonly
    second = pool.take(size)
    first[0], second[0] = 1, 2
    assert first[0] == 1  # two at once are two
    pool.give(first)
    again = pool.take(size)
    assert (again is first) == (size <= 4 * MIB)  # larger ones are not kept


def test_few_buffers_are_kept() -> None:
    pool = BufferPool()
    taken = [pool.take(MIB) for _ in range(3 * KEPT_BUFFERS)]
    for buffer in taken:
        pool.give(buffer)
    kept = {id(buffer) for buffer in taken}
    reused = [pool.take(MIB) for _ in range(3 * KEPT_BUFFERS)]
    assert sum(id(buffer) in kept for buffer in reused) == KEPT_BUFFERS


def test_odd_buffers_are_not_taken_for_larger_ones() -> None:
    pool = BufferPool()
    pool.give(memoryview(bytearray(40 * KIB)))  # as long as no buffer that take makes
    assert len(pool.take(60 * KIB)) >= 60 * KIB
    pool.give(memoryview(bytearray(5 * MIB)))
    assert len(pool.take(4 * MIB)) == 4 * MIB


def test_buffers_from_many_threads_are_never_shared() -> None:
    pool = BufferPool()
    clashes: list[int] = []

    def work(stamp: int) -> None:
        for _ in range(2000):
            buffer = pool.take(100)
            buffer[:8] = bytes((stamp,)) * 8
            if bytes(buffer[:8]) != bytes((stamp,)) * 8:
                clashes.append(stamp)
            pool.give(buffer)

    threads = [threading.Thread(target=work, args=(stamp,)) for stamp in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not clashes
