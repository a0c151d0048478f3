"""Buffers that are used again, so that a request allocates nothing large.

Free lists, not threading.local: libfuse gives every callback a new Python thread state, in which
thread-locals are empty each time: every 4 KiB read would allocate anew, and take about three times as long.
"""

from __future__ import annotations

KEPT_BUFFERS = 16  # of each size, one a request thread; more may be in use and are dropped afterwards
KEPT_BYTES = 32 << 20  # of each size
_SMALLEST_SHIFT = 15
_LARGEST_KEPT_SHIFT = 22


class BufferPool:
    """Writable memoryviews of at least the size asked for. Safe from many threads.

    list.append and list.pop are atomic in CPython, so no lock is needed.
    """

    def __init__(self) -> None:
        self._free: dict[int, list[memoryview]] = {
            shift: [] for shift in range(_SMALLEST_SHIFT, _LARGEST_KEPT_SHIFT + 1)
        }

    def take(self, size: int) -> memoryview:
        """A buffer of at least `size` bytes with arbitrary content; slice it."""
        shift = max((size - 1).bit_length(), _SMALLEST_SHIFT)
        try:
            return self._free[shift].pop()
        except (KeyError, IndexError):
            return memoryview(bytearray(1 << shift if shift <= _LARGEST_KEPT_SHIFT else size))

    def give(self, buffer: memoryview) -> None:
        """Give back what take returned (whole, not a slice)."""
        shift = len(buffer).bit_length() - 1
        kept = self._free.get(shift)
        if kept is None or len(buffer) != 1 << shift:
            return
        if len(kept) < KEPT_BUFFERS and len(kept) << shift < KEPT_BYTES:
            kept.append(buffer)

    def drop(self) -> None:
        """Keep none of those that are free now."""
        for kept in self._free.values():
            kept.clear()
