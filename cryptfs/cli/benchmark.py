"""Measuring how fast the vault's ciphers seal and open in memory; what `cryptfs speed` shows.

Everything runs through CipherPool, as on a mount: fresh nonces from the system, one draw a run, and the
whole framing of records. Beside it stands libsodium alone: the AEAD over a reused buffer, nothing else.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from cryptfs.cli.output import size_text
from cryptfs.core.aead import SUITES, ChunkCipher, CipherSuite
from cryptfs.core.geometry import ChunkGeometry
from cryptfs.core.sodium import aead_calls
from cryptfs.vfs.content.cipherpool import CipherPool

CHUNK_SIZES = (4 * 1024, 16 * 1024, 64 * 1024, 1024 * 1024)
REQUEST_SIZE = 1024 * 1024  # the largest that FUSE hands over
RAW_BUFFER_SIZE = 16 * 1024 * 1024
_KEY = bytes(range(32))


@dataclass(frozen=True, slots=True)
class Result:
    """One figure; rates are 10**6 bytes a second.

    Args: layout: 'requests' of 1 MiB, or 'bulk', all in one run.
          min_chunks: runs that are shorter are not split over threads; None: none is, as the pool measured.
    """

    cipher: str
    chunk_size: int
    operation: str
    layout: str
    threads: int
    min_chunks: int | None
    rate: float


@dataclass(frozen=True, slots=True)
class RawResult:
    """libsodium alone, one thread."""

    cipher: str
    operation: str
    rate: float


Step = Callable[[], list[Result] | list[RawResult]]


class Benchmark:
    """Plans the work, so that a progress bar can be drawn over its steps.

    Args: size: plaintext bytes of each measurement.   repeat: the best of so many counts.
          workers: threads of the pool; None takes one for each core.
    """

    def __init__(self, size: int, repeat: int, workers: int | None = None) -> None:
        self.size = size
        self.repeat = repeat
        self.workers = workers
        # Touched by filling, so that no page fault is measured; the content makes no difference.
        self._plain = memoryview(
            bytearray(os.urandom(min(size, REQUEST_SIZE)) * (-(-size // REQUEST_SIZE)))[:size]
        )
        worst = max(
            ChunkGeometry(CHUNK_SIZES[0], suite.overhead).records_size(size) for suite in SUITES.values()
        )
        self._sealed = memoryview(bytearray(b"\1") * worst)
        self._opened = memoryview(bytearray(b"\1") * size)

    def steps(self) -> Iterator[tuple[str, Step]]:
        """(what is measured, the work) for each step."""
        for suite in filter(lambda suite: suite.is_offered, SUITES.values()):
            yield f"{suite.name}, libsodium alone", lambda suite=suite: self._raw(suite)  # type: ignore[misc]
            for chunk_size in CHUNK_SIZES:
                for threads in (1, self.workers):
                    words = "1 thread" if threads == 1 else "pool"
                    yield (
                        f"{suite.name}, chunks of {size_text(chunk_size)}, {words}",
                        lambda suite=suite, size=chunk_size, threads=threads: self._pool(  # type: ignore[misc]
                            suite, size, threads
                        ),
                    )

    def _rate(self, work: Callable[[], None], size: int) -> float:
        best = float("inf")
        for _ in range(self.repeat):
            start = time.perf_counter()
            work()
            best = min(best, time.perf_counter() - start)
        return size / best / 1e6

    def _pool(self, suite: CipherSuite, chunk_size: int, workers: int | None) -> list[Result]:
        geometry = ChunkGeometry(chunk_size, suite.overhead)
        pool = CipherPool(ChunkCipher(suite, geometry), workers)
        try:
            pool.measure()
            results = []
            for layout, run in (("requests", max(REQUEST_SIZE, chunk_size)), ("bulk", self.size)):
                for operation, work in (("seal", self._seal), ("open", self._open)):
                    rate = self._rate(lambda work=work, run=run: work(pool, geometry, suite, run), self.size)  # type: ignore[misc]
                    results.append(
                        Result(suite.name, chunk_size, operation, layout, pool.workers, pool.min_chunks, rate)
                    )
            return results
        finally:
            pool.close()

    def _seal(self, pool: CipherPool, geometry: ChunkGeometry, suite: CipherSuite, run: int) -> None:
        place = 0
        for start in range(0, self.size, run):
            plain = self._plain[start : start + run]
            nonces = os.urandom(suite.nonces_size(geometry.chunk_count(len(plain))))
            place += pool.seal_run(_KEY, geometry.chunk_at(start), plain, nonces, self._sealed[place:])

    def _open(self, pool: CipherPool, geometry: ChunkGeometry, _suite: CipherSuite, run: int) -> None:
        place = 0
        for start in range(0, self.size, run):
            length = geometry.records_size(min(run, self.size - start))
            sealed = self._sealed[place : place + length]
            pool.open_run(_KEY, geometry.chunk_at(start), sealed, self._opened[start:], holes=False)
            place += length

    def _raw(self, suite: CipherSuite) -> list[RawResult]:
        calls = aead_calls(suite.function)
        length = min(RAW_BUFFER_SIZE, self.size)
        rounds = max(1, self.size // length)
        plain, sealed = calls.pointer(self._plain), calls.pointer(self._sealed)
        opened, nonce = calls.pointer(self._opened), calls.pointer(bytearray(os.urandom(suite.nonce_size)))

        def seal() -> None:
            for _ in range(rounds):
                calls.seal(sealed, plain, length, b"", nonce, _KEY)

        def open_() -> None:
            for _ in range(rounds):
                if not calls.open(opened, sealed, length + suite.tag_size, b"", nonce, _KEY):
                    raise RuntimeError("libsodium does not open what it sealed")

        return [
            RawResult(suite.name, "seal", self._rate(seal, rounds * length)),
            RawResult(suite.name, "open", self._rate(open_, rounds * length)),
        ]
