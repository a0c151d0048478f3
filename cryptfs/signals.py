"""Signals that come where Python would lose what their handler raises, or where it would do harm."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # without the enums of `signal`: a twentieth of the time
import _thread
import contextlib
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PATIENCE = 3  # signals, of which the last one ends also what should not be interrupted
_SOON = 0.001  # seconds
_NUMBERS = tuple(map(int, ENDING))
_owed: list[int] = []  # signals that came during work, and have not been sent again


def signal_soon(number: int) -> None:
    """Send this process's main thread a signal, a moment from now.

    It may be called at any moment, as by a hook for what Python drops: it takes no lock of Python's.
    """
    _thread.start_new_thread(_send_soon, (lambda: number,))


def _send_soon(number_of: Callable[[], int]) -> None:
    """In a thread of its own. number_of: asked at the last moment."""
    time.sleep(_SOON)
    thread = threading.main_thread().ident
    assert thread is not None  # it runs
    with contextlib.suppress(IndexError):  # what was owed has come before the next work
        signal.pthread_kill(thread, number_of())


class Undisturbed:
    """Signals that a handler takes come when this work is done: for short work, such as closing a vault.

    The third one comes at once: Ctrl-C still ends a program whose disk is too slow. In other threads than the
    main one this does nothing: Python calls no handler there.

    Args: seconds: the third one comes at once only if the first came so long ago.
          returns: this raises nothing at its end: the signal comes a moment later, or at the next work.
          begins: a signal that such earlier work still owes comes before this work, and not after it.
    """

    __slots__ = ("_begins", "_came", "_done", "_handlers", "_patient_until", "_returns", "_seconds")

    def __init__(self, *, seconds: float = 0.0, returns: bool = False, begins: bool = False) -> None:
        self._begins = begins
        self._seconds = seconds
        self._returns = returns
        self._came: list[int] = []
        self._handlers: dict[int, Callable[[int, Any], object]] = {}
        self._patient_until = 0.0
        self._done = False

    def __enter__(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        if _owed and self._begins:
            _pay()
        try:
            for number in _NUMBERS:
                handler = _signal.getsignal(number)
                if callable(handler):
                    self._handlers[number] = handler
                    _signal.signal(number, self._later)
            if _owed:
                _pay()
        except BaseException:
            self._give_back()
            raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *_: object) -> None:
        self._give_back()
        if self._came:
            _owed.append(self._came[0])
            if self._returns:
                with contextlib.suppress(RuntimeError):  # there are too many threads, or Python ends
                    _thread.start_new_thread(_send_soon, (_owed.pop,))
                    return
            _pay()

    def _later(self, number: int, frame: Any) -> None:
        if not self._done:
            if not self._came:
                self._patient_until = time.monotonic() + self._seconds
            self._came.append(number)
            if len(self._came) < _PATIENCE or time.monotonic() < self._patient_until:
                return
            self._came.clear()
        self._handlers[number](number, frame)

    def _give_back(self) -> None:
        self._done = True  # what comes from now on does no harm
        try:
            for number, handler in self._handlers.items():
                _signal.signal(number, handler)
        except BaseException:  # it came before all handlers were back
            for number, handler in self._handlers.items():
                _signal.signal(number, handler)
            raise


def _pay() -> None:
    with contextlib.suppress(IndexError):  # the other thread was faster
        signal.raise_signal(_owed.pop())


def interrupt_behind(error: BaseException) -> BaseException | None:
    """The interrupt whose cleaning up met an error, and so was lost; None if there was none."""
    behind = error.__context__
    while behind is not None:
        if not isinstance(behind, Exception | GeneratorExit):
            return behind
        behind = behind.__context__
    return None
