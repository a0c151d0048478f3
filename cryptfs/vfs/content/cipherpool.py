"""The thread pool that seals and opens large runs on several cores.

libsodium's calls release the interpreter lock, so threads scale; but handing work over costs some tens of
microseconds, and Python's few for each chunk do not scale at all. So the pool measures from which length on
a split is faster on this machine, and splits only such runs. For AEGIS-256 that is seldom; for
XChaCha20-Poly1305 a split is nearly twice as fast from some tens of chunks on.

The first large run of a mount sets off the measurement, so the mount does not wait for it. One alone would
decide for its whole life, and the machine may have been busy just then. So later large runs repeat it now
and then, a few times at most.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from cryptfs.core.aead import ChunkCipher
from cryptfs.core.sodium import Buffer

MEASURED_CHUNKS = (64, 32, 16, 8, 4)
WORTHWHILE = 1.15  # a split must be this much faster than one thread
LARGEST_RUN = 1024 * 1024  # bytes; no request is larger, so there is no need to time a longer run
LARGE_RUN = 256 * 1024  # bytes; such a run may start another measurement ...
PAUSE = 20.0  # ... if the last one is so many seconds ago
ENOUGH_YES = 2  # measurements that found a split worthwhile; then the answer is final
MAX_MEASUREMENTS = 10  # then the answer is final, whatever they found
_TRIALS = 4
_MEASURED_KEY = bytes(32)  # seals zeros into a scratch buffer that nobody sees


def usable_cores() -> int:
    """Processors that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class CipherPool:
    """As ChunkCipher, but splits large runs over threads if that pays.

    min_chunks: the pool splits a run of this length or more; None for never (also before `measure`).
    Threads start with the first split: after daemonising, not before.

    Args: workers: threads that share a run, the caller's included; None takes one for each core.
          clock: seconds from any beginning.
    """

    def __init__(
        self,
        cipher: ChunkCipher,
        workers: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.cipher = cipher
        self.workers = usable_cores() if workers is None else workers
        self.min_chunks: int | None = None
        self._clock = clock
        self._measuring = threading.Lock()
        self._measure_at: float | None = None  # when the next measurement is due; None for never
        self._measurements = self._yes = 0
        self._executor: ThreadPoolExecutor | None = None
        if self.workers > 1:
            self._executor = ThreadPoolExecutor(self.workers - 1, thread_name_prefix="cryptfs-cipher")

    def close(self) -> None:
        """End the threads."""
        self.min_chunks = self._measure_at = None
        if self._executor is not None:
            self._executor.shutdown()

    def measure_when_used(self) -> None:
        """Have the first large run measure."""
        if self._executor is not None:
            self._measure_at = self._clock()

    def measure(self) -> None:
        """Find min_chunks: some milliseconds of work. If the other cores are busy, that counts.

        After the first call, large runs repeat it until the answer is final.
        """
        if self._executor is None or not self._measuring.acquire(blocking=False):
            return
        try:
            found = None
            for chunks in MEASURED_CHUNKS:
                if chunks > MEASURED_CHUNKS[-1] and self.cipher.geometry.chunk_start(chunks) > LARGEST_RUN:
                    continue
                if not self._split_pays(chunks):
                    break  # then it does not for fewer
                found = chunks
            self.min_chunks = found
            self._measurements += 1
            self._yes += found is not None
            settled = self._yes >= ENOUGH_YES or self._measurements >= MAX_MEASUREMENTS
            self._measure_at = None if settled else self._clock() + PAUSE
        finally:
            self._measuring.release()

    def _split_pays(self, chunks: int) -> bool:
        """Time one run on one thread and split, sealing zeros."""
        geometry = self.cipher.geometry
        size = geometry.chunk_start(chunks)
        plain, nonces = bytes(size), bytes(self.cipher.suite.nonces_size(chunks))
        out = memoryview(bytearray(geometry.records_size(size)))
        alone = _best_time(lambda: self.cipher.seal_run(_MEASURED_KEY, 0, plain, nonces, out))
        split = _best_time(lambda: self._seal_split(_MEASURED_KEY, 0, plain, nonces, out))
        return alone > WORTHWHILE * split

    def _splits(self, size: int, size_of: Callable[[int], int]) -> bool:
        """Whether to split a run of `size` bytes; measures again first if that is due.

        Args: size_of: the bytes of so many whole chunks, or records.
        """
        if self._measure_at is not None and size >= LARGE_RUN and self._clock() >= self._measure_at:
            self.measure()
        return self.min_chunks is not None and size >= size_of(self.min_chunks)

    def seal_run(self, key: bytes, first_index: int, plain: Buffer, nonces: bytes, out: memoryview) -> int:
        """See ChunkCipher.seal_run."""
        if self._splits(len(plain), self.cipher.geometry.chunk_start):
            return self._seal_split(key, first_index, plain, nonces, out)
        return self.cipher.seal_run(key, first_index, plain, nonces, out)

    def open_run(
        self, key: bytes, first_index: int, sealed: memoryview, out: memoryview, *, holes: bool
    ) -> int:
        """See ChunkCipher.open_run."""
        if self._splits(len(sealed), self.cipher.geometry.record_start):
            return self._open_split(key, first_index, sealed, out, holes=holes)
        return self.cipher.open_run(key, first_index, sealed, out, holes=holes)

    def _seal_split(self, key: bytes, first_index: int, plain: Buffer, nonces: bytes, out: memoryview) -> int:
        geometry, nonces_size = self.cipher.geometry, self.cipher.suite.nonces_size
        view = memoryview(plain)

        def part(start: int, stop: int) -> int:
            return self.cipher.seal_run(
                key,
                first_index + start,
                view[geometry.chunk_start(start) : geometry.chunk_start(stop)],
                nonces[nonces_size(start) : nonces_size(stop)],
                out[geometry.record_start(start) :],
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
                sealed[geometry.record_start(start) : geometry.record_start(stop)],
                out[geometry.chunk_start(start) :],
                holes=holes,
            )

        return self._run_parts(geometry.record_count(len(sealed)), part)

    def _run_parts(self, chunks: int, part: Callable[[int, int], int]) -> int:
        """Call part(start, stop) for equal shares of the chunks, the first here; the sum of the results.

        All parts end before this returns or raises, because they use the caller's buffers. If several
        fail, it raises the error of the lowest chunk.
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


def _best_time(work: Callable[[], object]) -> float:
    best = float("inf")
    for _ in range(_TRIALS):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best
