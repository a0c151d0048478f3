"""The thread pool that seals and opens large runs on several cores.

libsodium's calls release the interpreter lock, so threads scale; but handing work over costs some tens
of microseconds, and the few that Python needs for each chunk do not scale at all. So the pool measures,
and splits only runs from the length on at which splitting is faster here. For AEGIS-256 that is seldom;
for XChaCha20-Poly1305 it is nearly twice as fast from some tens of chunks on.

One measurement at the start of a mount would decide for its whole life, on a machine that may have been
busy just then. So large runs that come by later have it repeated now and then, a few times at most.
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
LARGEST_RUN = 1024 * 1024  # bytes; no request is larger, so no longer run needs to be timed
LARGE_RUN = 256 * 1024  # a run of so many bytes may set off another measurement ...
PAUSE = 20.0  # ... when the last one is so many seconds ago
ENOUGH_YES = 2  # measurements that found a split worthwhile; then it is settled
MAX_MEASUREMENTS = 10  # then it is settled, whatever they found
_TRIALS = 4
_MEASURED_KEY = bytes(32)  # seals zeros into a scratch buffer that nobody sees


def usable_cores() -> int:
    """Processors that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class CipherPool:
    """As ChunkCipher, but splits large runs over threads where that pays.

    min_chunks: length of a run from which on it is split; None for never (before `measure`, too).
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

    def measure(self) -> None:
        """Find min_chunks: some milliseconds of work. Where the other cores are busy, that counts too.

        After the first call it repeats itself when large runs come by, until the answer is settled.
        """
        if self._executor is None or not self._measuring.acquire(blocking=False):
            return
        try:
            found = None
            for chunks in MEASURED_CHUNKS:
                if chunks > MEASURED_CHUNKS[-1] and chunks * self.cipher.geometry.chunk_size > LARGEST_RUN:
                    continue
                if not self._split_pays(chunks):
                    break  # nor does it for fewer
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
        size = chunks * geometry.chunk_size
        plain, nonces = bytes(size), bytes(chunks * self.cipher.suite.nonce_size)
        out = memoryview(bytearray(geometry.records_size(size)))
        alone = _best_time(lambda: self.cipher.seal_run(_MEASURED_KEY, 0, plain, nonces, out))
        split = _best_time(lambda: self._seal_split(_MEASURED_KEY, 0, plain, nonces, out))
        return alone > WORTHWHILE * split

    def _splits(self, size: int, chunk_or_record_size: int) -> bool:
        """Whether to split a run of `size` bytes; measures again first where that is due."""
        if self._measure_at is not None and size >= LARGE_RUN and self._clock() >= self._measure_at:
            self.measure()
        return self.min_chunks is not None and size >= self.min_chunks * chunk_or_record_size

    def seal_run(self, key: bytes, first_index: int, plain: Buffer, nonces: bytes, out: memoryview) -> int:
        """See ChunkCipher.seal_run."""
        if self._splits(len(plain), self.cipher.geometry.chunk_size):
            return self._seal_split(key, first_index, plain, nonces, out)
        return self.cipher.seal_run(key, first_index, plain, nonces, out)

    def open_run(
        self, key: bytes, first_index: int, sealed: memoryview, out: memoryview, *, holes: bool
    ) -> int:
        """See ChunkCipher.open_run."""
        if self._splits(len(sealed), self.cipher.geometry.record_size):
            return self._open_split(key, first_index, sealed, out, holes=holes)
        return self.cipher.open_run(key, first_index, sealed, out, holes=holes)

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


def _best_time(work: Callable[[], object]) -> float:
    best = float("inf")
    for _ in range(_TRIALS):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best
