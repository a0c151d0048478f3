"""How much Argon2id this machine does in a given time: the cost of a new passphrase slot, measured."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from cryptfs.core.keys import ARGON2_SALT_SIZE, passphrase_key
from cryptfs.core.slots.kdf import MAX_KDF_MEMORY, MAX_KDF_PASSES, MIN_KDF_MEMORY, MIN_KDF_PASSES

MOST_MEMORY = 1024**3  # bytes: smaller machines should also open the vault
_STEP = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Calibrated:
    """A cost of a try, and how long it took here. memory: bytes."""

    memory: int
    passes: int
    seconds: float


def calibrate(
    seconds: float, max_memory: int, measure: Callable[[int, int], float] | None = None
) -> Calibrated:
    """The cost whose try takes about so many seconds: as much memory as fits, and only then more passes.

    Args:   max_memory: bytes that this machine may use.   measure: (memory, passes) -> seconds.
    """
    take = measure or measured
    rate = MIN_KDF_MEMORY * MIN_KDF_PASSES / take(MIN_KDF_MEMORY, MIN_KDF_PASSES)
    limit = max(MIN_KDF_MEMORY, min(MOST_MEMORY, MAX_KDF_MEMORY, max_memory))
    wanted = int(rate * seconds / MIN_KDF_PASSES)
    memory = max(MIN_KDF_MEMORY, min(limit, wanted) // _STEP * _STEP)
    needed = take(memory, MIN_KDF_PASSES)  # large memory is slower than the rate says
    if needed > seconds and memory > MIN_KDF_MEMORY:
        memory = max(MIN_KDF_MEMORY, int(memory * seconds / needed) // _STEP * _STEP)
        needed = take(memory, MIN_KDF_PASSES)
    passes = int(seconds / needed * MIN_KDF_PASSES)
    passes = max(MIN_KDF_PASSES, min(MAX_KDF_PASSES, passes))
    return Calibrated(memory, passes, needed * passes / MIN_KDF_PASSES)


def measured(memory: int, passes: int) -> float:
    """Seconds that one try takes now."""
    start = time.perf_counter()
    passphrase_key(b"calibration", bytes(ARGON2_SALT_SIZE), memory, passes)
    return time.perf_counter() - start
