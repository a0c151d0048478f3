"""The thread pool that seals and opens large runs on several cores.

libsodium's calls release the interpreter lock, so threads scale; but handing work over costs some tens
of microseconds, and the few that Python needs for each chunk do not scale at all. So the pool measures,
and splits only runs from the length on at which splitting is faster here. For AEGIS-256 that is seldom;
for XChaCha20-Poly1305 it is nearly twice as fast from some tens of chunks on.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from cryptfs.core.aead import ChunkCipher
from cryptfs.core.sodium import Buffer

MEASURED_CHUNKS = (4, 8, 16, 32, 64)
WORTHWHILE = 1.15  # a split must be this much faster than one thread
_TRIALS = 4
_MEASURED_KEY = bytes(32)  # seals zeros into a scratch buffer that nobody sees


def usable_cores() -> int:
    """Processors that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class CipherPool:
    """As ChunkCipher, but splits large runs over threads where that pays.

    min_chunks: length of a run from which on it is split; None for never (before `measure`, too).
    Threads start with the first split: after daemonising, not before.
    """

    def __init__(self, cipher: ChunkCipher, workers: int | None = None) -> None:
        self.cipher = cipher
        self.workers = usable_cores() if workers is None else workers
        self.min_chunks: int | None = None
        self._executor: ThreadPoolExecutor | None = None
        if self.workers > 1:
            self._executor = ThreadPoolExecutor(self.workers - 1, thread_name_prefix="cryptfs-cipher")

    def close(self) -> None:
        """End the threads."""
        self.min_chunks = None
        if self._executor is not None:
            self._executor.shutdown()

    def measure(self) -> None:
        """Find min_chunks: some milliseconds of work. Where the other cores are busy, that counts too."""
        geometry, nonce_size = self.cipher.geometry, self.cipher.suite.nonce_size
        self.min_chunks = None
        if self._executor is None:
            return
        for chunks in MEASURED_CHUNKS:
            size = chunks * geometry.chunk_size
            if size > 4 * 1024 * 1024:
                return  # no request is that large
            plain, nonces = bytes(size), bytes(chunks * nonce_size)
            out = memoryview(bytearray(geometry.records_size(size)))

            def alone(plain: bytes = plain, nonces: bytes = nonces, out: memoryview = out) -> None:
                self.cipher.seal_run(_MEASURED_KEY, 0, plain, nonces, out)

            def split(plain: bytes = plain, nonces: bytes = nonces, out: memoryview = out) -> None:
                self._seal_split(_MEASURED_KEY, 0, plain, nonces, out)

            if _best_time(alone) > WORTHWHILE * _best_time(split):
                self.min_chunks = chunks
                return

    def seal_run(self, key: bytes, first_index: int, plain: Buffer, nonces: bytes, out: memoryview) -> int:
        """See ChunkCipher.seal_run."""
        if self.min_chunks is None or len(plain) < self.min_chunks * self.cipher.geometry.chunk_size:
            return self.cipher.seal_run(key, first_index, plain, nonces, out)
        return self._seal_split(key, first_index, plain, nonces, out)

    def open_run(
        self, key: bytes, first_index: int, sealed: memoryview, out: memoryview, *, holes: bool
    ) -> int:
        """See ChunkCipher.open_run."""
        if self.min_chunks is None or len(sealed) < self.min_chunks * self.cipher.geometry.record_size:
            return self.cipher.open_run(key, first_index, sealed, out, holes=holes)
        return self._open_split(key, first_index, sealed, out, holes=holes)

    def _seal_split(self, key: bytes, first_index: int, plain: Buffer, nonces: bytes, out: memoryview) -> int:
        geometry, nonce_size = self.cipher.geometry, self.cipher.suite.nonce_size
        view = memoryview(plain)

        def part(start: int, stop: int) -> int:
            return self.cipher.seal_run(
                key,
                first_index + start,
                view[start * geometry.chunk_size : stop * geometry.chunk_size],
                nonces[start * nonce_size : stop * nonce_size],
                out[start * geometry.record_size :],
            )

        return self._run_parts(geometry.chunk_count(len(view)), part)

    def _open_split(
        self, key: bytes, first_index: int, sealed: memoryview, out: memoryview, *, holes: bool
    ) -> int:
        geometry = self.cipher.geometry

        def part(start: int, stop: int) -> int:
            return self.cipher.open_run(
                key,
                first_index + start,
                sealed[start * geometry.record_size : stop * geometry.record_size],
                out[start * geometry.chunk_size :],
                holes=holes,
            )

        return self._run_parts(-(-len(sealed) // geometry.record_size), part)

    def _run_parts(self, chunks: int, part: Callable[[int, int], int]) -> int:
        """Call part(start, stop) for equal shares of the chunks, the first here; the sum of the results.

        All parts end before this returns or raises, because they use the caller's buffers. Of several
        errors the one with the lowest chunk is raised.
        """
        assert self._executor is not None  # nothing else leads here
        shares = min(self.workers, chunks)
        bounds = [chunks * share // shares for share in range(shares + 1)]
        futures: list[Future[int]] = [
            self._executor.submit(part, start, stop) for start, stop in itertools.pairwise(bounds[1:])
        ]
        try:
            done = part(bounds[0], bounds[1])
        finally:
            for future in futures:
                future.exception()  # waits
        return done + sum(future.result() for future in futures)


def _best_time(work: Callable[[], None]) -> float:
    best = float("inf")
    for _ in range(_TRIALS):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best
