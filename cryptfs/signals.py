"""Signals that come where Python would lose what their handler raises."""

from __future__ import annotations

import _thread
import signal
import threading
import time

_SOON = 0.001  # seconds


def signal_soon(number: int) -> None:
    """Send this process's main thread a signal, a moment from now.

    It may be called at any moment, as by a hook for what Python drops: it takes no lock of Python's.
    """
    thread = threading.main_thread().ident
    assert thread is not None  # it runs

    def send() -> None:
        time.sleep(_SOON)
        signal.pthread_kill(thread, number)

    _thread.start_new_thread(send, ())


def interrupt_behind(error: BaseException) -> BaseException | None:
    """The interrupt whose cleaning up met an error, and so was lost; None if there was none."""
    behind = error.__context__
    while behind is not None:
        if not isinstance(behind, Exception | GeneratorExit):
            return behind
        behind = behind.__context__
    return None
