"""Many changes at once, with few syncs: each change goes in steps, and one sync serves all of them.

A change is a generator. It yields SYNC where all that it has done so far must be on disk before it goes on,
and BEGUN where threads still work for it. So a power cut finds each change at one of its steps, as a kill
does, and a thousand small files cost some syncs of the filesystem instead of two thousand fsyncs.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from enum import Enum

MOST = 128  # changes under way; some hold two descriptors


class Pause(Enum):
    """Why a change waits."""

    BEGUN = "begun"
    SYNC = "sync"


BEGUN, SYNC = Pause.BEGUN, Pause.SYNC
Steps = Generator[Pause, None, None]


class _UnderWay:
    """One change. size: bytes on disk that it takes until it is over."""

    __slots__ = ("change", "on_done", "size", "step")

    def __init__(self, change: Steps, size: int, on_done: Callable[[], None]) -> None:
        self.change = change
        self.size = size
        self.on_done = on_done
        self.step: Pause | None = BEGUN

    def go_on(self) -> None:
        self.step = next(self.change, None)


class Pipeline:
    """Changes under way.

    Args: sync: brings everything to disk.   budget: bytes that changes may take beside the vault; a single
          change may take more, and is then alone.
    """

    def __init__(self, sync: Callable[[], None], budget: int) -> None:
        self._sync = sync
        self._budget = budget
        self._changes: list[_UnderWay] = []
        self._taken = 0

    def start(self, change: Steps, size: int, on_done: Callable[[], None]) -> None:
        """Begin a change, once there is room for it.

        Args: on_done: called after its last step.
        """
        while self._changes and (len(self._changes) >= MOST or self._taken + size > self._budget):
            self.advance()
        each = _UnderWay(change, size, on_done)
        each.go_on()
        if each.step is None:
            on_done()
            return
        self._changes.append(each)
        self._taken += size

    def advance(self) -> None:
        """One sync, and then one more step of each change."""
        changes = self._changes
        for each in changes:
            while each.step is BEGUN:
                each.go_on()
        if any(each.step is SYNC for each in changes):
            self._sync()
        done = []
        for each in changes:
            if each.step is SYNC:
                each.go_on()
            if each.step is None:
                done.append(each)
        self._changes = [each for each in changes if each.step is not None]
        self._taken = sum(each.size for each in self._changes)
        for each in done:
            each.on_done()

    def drain(self) -> None:
        """Until all changes are over, those included that others begin at their end."""
        while self._changes:
            self.advance()

    def abandon(self) -> None:
        """After an error: stop all changes where they are."""
        for each in self._changes:
            each.change.close()
        self._changes = []
