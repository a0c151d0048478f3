"""Bulk encryption in memory on one thread and on two: the figure that CryptBuddy published for its pool."""

from __future__ import annotations

import os
import time
from statistics import median

from cryptfs.core.aead import XCHACHA20_POLY1305, ChunkCipher
from cryptfs.core.geometry import ChunkGeometry
from cryptfs.vfs.content.cipherpool import CipherPool

SIZE = 300_000_000  # bytes
_CHUNK = 64 * 1024
_KEY = bytes(range(32))
_MB = 1e6


def measure_bulk(size: int = SIZE, repeat: int = 3) -> dict[str, float]:
    """MB/s of sealing `size` bytes in one run with XChaCha20-Poly1305; '1' and '2' threads, medians.

    The two take turns, so that other work hits both.
    """
    suite = XCHACHA20_POLY1305
    geometry = ChunkGeometry(_CHUNK, suite.overhead)
    plain = memoryview(bytearray(os.urandom(_CHUNK) * (-(-size // _CHUNK)))[:size])
    out = memoryview(bytearray(b"\1") * geometry.records_size(size))
    nonces = os.urandom(geometry.chunk_count(size) * suite.nonce_size)
    pools = {threads: CipherPool(ChunkCipher(suite, geometry), threads) for threads in (1, 2)}
    pools[2].min_chunks = 2  # what a machine with two idle cores finds by itself
    seconds: dict[int, list[float]] = {1: [], 2: []}
    try:
        for _ in range(repeat):
            for threads, pool in pools.items():
                start = time.perf_counter()
                pool.seal_run(_KEY, 0, plain, nonces, out)
                seconds[threads].append(time.perf_counter() - start)
    finally:
        for pool in pools.values():
            pool.close()
    return {str(threads): round(size / median(times) / _MB, 1) for threads, times in seconds.items()}
