"""Whether threads pay for small files: only where one thread waits for the disk. And how many processes do.

Python runs one thread at a time, and to pass the turn around costs more processor time than a small file
does. Where everything is in the page cache, one thread is as fast as four, and uses half of the processor.
"""

from __future__ import annotations

import resource
from collections.abc import Callable

PROBE = 32
"""Entries that one thread copies, to see how often it waits."""
TURN = 1024
"""Entries for many threads until the next look."""
_WAITS_EACH = 0.5  # for an entry, from which on threads pay

_LARGEST_CREW = 8
_LEAST_CREW = 4  # also on fewer cores: some of them wait for the disk


class WorkerDiedError(Exception):
    """A worker process was killed, or ended for a fault of its own."""


def crew_size(cores: int) -> int:
    """How many worker processes a copy has; 0 where one process does it all."""
    return 0 if cores < 2 else min(max(cores, _LEAST_CREW), _LARGEST_CREW)


def waits_of_this_thread() -> int:
    """How often the present thread has waited, for a disk or a lock, since it began."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw


class DiskWaits:
    """Belongs to one thread. waits: counts, as `waits_of_this_thread`."""

    def __init__(self, waits: Callable[[], int] = waits_of_this_thread) -> None:
        self._waits = waits
        self._before: int | None = None  # None: nobody has looked since the last turn of many threads
        self._left = 0  # entries until the next decision

    def pays(self, join: Callable[[], object]) -> bool:
        """Whether the next entry is for the threads.

        Args: join: called before this thread works alone after others did: waits for all of them.
        """
        if not self._left:
            self._decide(join)
        self._left -= 1
        return self._before is None

    def _decide(self, join: Callable[[], object]) -> None:
        if self._before is not None and self._waits() - self._before >= PROBE * _WAITS_EACH:
            self._before, self._left = None, TURN
            return
        if self._before is None:
            join()
        self._before, self._left = self._waits(), PROBE
