"""The disk, or the process, gives up at a chosen call: every call there is, in turn."""

from __future__ import annotations

import contextlib
import os
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.crash.backing_calls import CHANGES, SYNCS, Call, intercepted

PAGE = 4096
TEARS = ("", "first page", "some pages")


class ProcessDeath(BaseException):
    """Nothing catches it: what the process would have done next does not happen."""


@dataclass
class Strike:
    """Counts calls and ends them at one. Safe from many threads: a process dies in all of them.

    at:       number of the call that fails, from 0; None only counts.
    error:    what it raises: an errno, or an exception to raise; None kills the process: then every later
              call of any thread ends the same way.
    torn:     how much of itself a write does before that, one of TEARS. Less than a page is never written
              by a kernel.
    short:    whether a torn write returns with its part, as a kernel's does; the next call fails then.
    for_good: whether all later calls fail, too.
    calls_of: names of the calls that count.
    """

    at: int | None = None
    error: int | BaseException | None = None
    torn: str = ""
    short: bool = False
    for_good: bool = False
    calls_of: frozenset[str] = CHANGES
    calls: list[str] = field(default_factory=list)
    struck: str = ""
    """Name of the call that failed; '' while none has."""

    def __post_init__(self) -> None:
        self._lock = threading.Lock()

    def __call__(self, call: Call) -> Any:
        with self._lock:
            number = len(self.calls)
            self.calls.append(call.name)
            first = number == self.at
            if not first and not (self.struck and (self.for_good or self.error is None)):
                return call.proceed()
            self.struck = self.struck or call.name
        if first and self.torn and call.is_write and not isinstance(self.error, MemoryError):
            done = self._tear(call, number)
            if done and self.short:
                self.at, self.torn = number + 1, ""
                return done
        raise self.exception()

    def _tear(self, call: Call, number: int) -> int:
        """Write up to some boundary of a page of the file; returns the number of bytes."""
        offset, length = call.args[2], len(call.data)
        boundaries = range(PAGE - offset % PAGE, length, PAGE)
        if not boundaries:
            return 0
        some = random.Random(number).choice(boundaries)
        return call.write_only(boundaries[0] if self.torn == "first page" else some)

    def exception(self) -> BaseException:
        """How a call fails."""
        if self.error is None:
            return ProcessDeath()
        if isinstance(self.error, BaseException):
            return type(self.error)(*self.error.args)
        return OSError(self.error, os.strerror(self.error))

    @contextlib.contextmanager
    def on_disk(self) -> Iterator[Strike]:
        """In effect for a while."""
        with intercepted(self, self.calls_of):
            yield self

    @contextlib.contextmanager
    def without_syncs(self) -> Iterator[Strike]:
        """In effect for a while. Syncs do nothing: they take long, and a kill undoes none."""

        def handler(call: Call) -> Any:
            return None if call.name in SYNCS else self(call)

        with intercepted(handler, CHANGES):
            yield self

    def during(self, action: Callable[[], object]) -> BaseException | None:
        """Do something with this in effect; returns how it ended, if badly."""
        with self.on_disk():
            try:
                action()
            except (ProcessDeath, Exception) as error:  # noqa: BLE001 - the tests look at which one it is
                return error
        return None


def each_strike(action: Callable[[], object], calls_of: frozenset[str] = CHANGES) -> Iterator[int]:
    """The numbers of all calls that an action makes; it is carried out once for that."""
    counting = Strike(calls_of=calls_of)
    failed = counting.during(action)
    assert failed is None, failed
    yield from range(len(counting.calls))
