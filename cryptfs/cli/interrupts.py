"""How a command ends when somebody tells it to: it leaves nothing half done."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator

from cryptfs.signals import ENDING, signal_soon


@contextlib.contextmanager
def heeds_interrupts() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt, at whatever moment it comes, and so may some other signals.

    Python drops what is raised in `__del__`, in a generator that is thrown away, or in a call from C. Then
    the signal comes again, a moment later, until it meets code that it can interrupt.
    """

    def again(what: sys.UnraisableHookArgs) -> None:
        if not issubclass(what.exc_type, KeyboardInterrupt):
            before(what)
            return
        for number in ENDING:
            if callable(signal.getsignal(number)):
                signal_soon(number)
                return

    takes = signal.getsignal(signal.SIGINT) is signal.SIG_DFL  # as `cryptfs.__main__` leaves it
    if takes:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    before, sys.unraisablehook = sys.unraisablehook, again
    try:
        yield
    finally:
        sys.unraisablehook = before
        if takes:
            signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextlib.contextmanager
def ends_in_order() -> Iterator[None]:
    """SIGTERM, and SIGHUP of a closed terminal, end a copy as Ctrl-C does. Then the process dies of it."""
    came: list[int] = []

    def interrupt(number: int, _: object) -> None:
        came.append(number)
        raise KeyboardInterrupt

    taken: list[int] = []
    if threading.current_thread() is threading.main_thread():
        taken = [each for each in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(each) is signal.SIG_DFL]
    for number in taken:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)
        if came:
            os.kill(os.getpid(), came[0])
