"""Decides when a mount goes by itself: nobody uses it, or the machine sleeps, locks, or its user logs out.

The caller says how: see Attempt.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Protocol

from cryptfs.mount.leaving.idle import IdleClock

IDLE = "idle"
RETRY = 5.0  # seconds, while the reason lasts and a program keeps the mount busy


class Outcome(Enum):
    """Of an attempt to unmount."""

    GONE = auto()
    BUSY = auto()
    """A program uses it."""
    REFUSED = auto()
    """The user's command failed, or the system refuses."""


@dataclass(slots=True)
class Want:
    """A reason to unmount, which lasts.

    tries: so far.   prepared: the user's command has run.
    """

    reason: str
    tries: int = 0
    prepared: bool = False


class Attempt(Protocol):
    """Tries to unmount; lazily: even if a program uses the mount."""

    def __call__(self, want: Want, /, *, lazily: bool) -> Outcome: ...


class Leaver:
    """The thread that waits for a reason to unmount.

    Args: attempt: called from that thread.   idle: None if nobody asked for that.
          lazily: whether a mount in use goes at once, if the machine sleeps and so on.
          tried: called after each attempt for such a reason, unless the mount is gone.
    """

    def __init__(
        self,
        attempt: Attempt,
        idle: IdleClock | None = None,
        *,
        lazily: bool = False,
        tried: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._attempt = attempt
        self._idle = idle
        self._lazily = lazily
        self._tried = tried
        self._wants: dict[str, Want] = {}
        self._again = 0.0  # when to try again for one of them
        self._events: queue.SimpleQueue[tuple[str, bool] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="cryptfs-leaving", daemon=True)

    def start(self) -> None:
        """Begin to wait."""
        self._thread.start()

    def begin(self, reason: str) -> None:
        """From any thread: there is a reason to unmount, until `end` is called with it."""
        self._events.put((reason, True))

    def end(self, reason: str) -> None:
        """From any thread: the reason is gone."""
        self._events.put((reason, False))

    @property
    def waiting(self) -> tuple[str, ...]:
        """From any thread: reasons that last, and for which the mount has not gone yet."""
        return tuple(self._wants)

    def stop(self) -> None:
        """Wait no longer. An attempt that runs goes on."""
        self._events.put(None)

    def _run(self) -> None:
        while True:
            try:
                event = self._events.get(timeout=self._pause())
            except queue.Empty:
                if self._leave():
                    return
                continue
            if event is None:
                return
            reason, begins = event
            if not begins:
                self._wants.pop(reason, None)
            elif self._try(self._wants.setdefault(reason, Want(reason)), lazily=self._lazily):
                return

    def _pause(self) -> float | None:
        """Seconds until the next look; None is until something happens."""
        pauses = [max(0.0, self._again - time.monotonic())] if self._wants else []
        return min(pauses + ([self._idle.pause] if self._idle is not None else []), default=None)

    def _leave(self) -> bool:
        """Try again for a reason that lasts, or because nobody uses the mount; True if the mount is gone."""
        lasting = next(iter(self._wants.values()), None)
        if lasting is not None and time.monotonic() >= self._again:
            return self._try(lasting, lazily=False)
        if self._idle is None or not self._idle.is_idle():
            return False
        if self._try(Want(IDLE), lazily=False):
            return True
        self._idle.restart()  # the attempt itself may have made requests
        return False

    def _try(self, want: Want, *, lazily: bool) -> bool:
        outcome = self._attempt(want, lazily=lazily)
        want.tries += 1
        self._again = time.monotonic() + RETRY
        if outcome is Outcome.GONE:
            return True
        if want.reason != IDLE:
            self._tried(want.reason)
        return False
