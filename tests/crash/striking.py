"""The disk, or the process, gives up at a chosen call: every call there is, in turn."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.crash.backing_calls import CHANGES, Call, intercepted
from tests.recovery.faults import PAGE, ProcessDeath


@dataclass
class Strike:
    """Counts calls and ends them at one. Safe from many threads: a process dies in all of them.

    at:       number of the call that fails, from 0; None only counts.
    error:    what it raises: an errno, or an exception to raise; None kills the process: then every later
              call of any thread ends the same way.
    torn:     whether a write does some of its pages before that. Less is never written by a kernel.
    for_good: whether all later calls fail, too.
    calls_of: names of the calls that count.
    """

    at: int | None = None
    error: int | BaseException | None = None
    torn: bool = False
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
        if first and self.torn and call.is_write:
            self._tear(call, number)
        raise self._exception()

    @staticmethod
    def _tear(call: Call, number: int) -> None:
        """Write up to some boundary of a page of the file."""
        offset, length = call.args[2], len(call.data)
        boundaries = range(PAGE - offset % PAGE, length, PAGE)
        if boundaries:
            call.write_only(random.Random(number).choice(boundaries))

    def _exception(self) -> BaseException:
        if self.error is None:
            return ProcessDeath()
        if isinstance(self.error, BaseException):
            return type(self.error)(*self.error.args)
        return OSError(self.error, os.strerror(self.error))

    def during(self, action: Callable[[], object]) -> BaseException | None:
        """Do something with this in effect; returns how it ended, if badly."""
        with intercepted(self, self.calls_of):
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
