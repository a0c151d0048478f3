"""How long nobody has used a mount."""

from __future__ import annotations

import time
from collections.abc import Callable

_LOOKS = 20  # in the time of --idle: so much later than asked for, at most, the mount goes
_SHORTEST, _LONGEST = 0.05, 30.0  # seconds between two looks


class IdleClock:
    """Counts the seconds since a program last asked for something or had something open.

    The clock stands still while the machine sleeps (decision 27). So a person who wakes it in the middle of
    some work has the rest of the time, and the time goes on then.

    Args: seconds: without use, after which a mount is idle.
          requests: how many there were so far.   is_open: whether a program has a file or directory open.
    """

    def __init__(
        self,
        seconds: float,
        requests: Callable[[], int],
        is_open: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.seconds = seconds
        self.pause = min(max(seconds / _LOOKS, _SHORTEST), _LONGEST)
        self._requests = requests
        self._is_open = is_open
        self._clock = clock
        self.restart()

    def restart(self) -> None:
        """Count from now on."""
        self._seen = self._requests()
        self._last_use = self._clock()

    def is_idle(self) -> bool:
        """Look whether somebody used the mount since the last look, and whether the time is over."""
        if self._is_open() or self._requests() != self._seen:
            self.restart()
        return self._clock() - self._last_use >= self.seconds

    def left(self) -> float | None:
        """From any thread: seconds until it is idle, if nobody uses it; None while something is open."""
        if self._is_open():
            return None
        if self._requests() != self._seen:  # since the last look
            return self.seconds
        return max(0.0, self.seconds - (self._clock() - self._last_use))
