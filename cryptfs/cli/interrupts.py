"""How a command ends when somebody tells it to: it leaves nothing half done."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from cryptfs.signals import signal_soon

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PATIENCE = 3  # interrupts, of which the last one ends also what should not be interrupted


@contextlib.contextmanager
def heeds_interrupts() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt, at whatever moment it comes, and some other signals may do so, too.

    Python drops what is raised in `__del__`, in a generator that is thrown away, or in a call from C. Then
    the signal comes again, a moment later, until it meets code that it can interrupt.
    """

    def again(what: sys.UnraisableHookArgs) -> None:
        if not issubclass(what.exc_type, KeyboardInterrupt):
            before(what)
            return
        for number in _ENDING:
            if callable(signal.getsignal(number)):
                signal_soon(number)
                return

    takes = signal.getsignal(signal.SIGINT) is signal.SIG_DFL  # of `silent_interrupts`
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


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Signals that a handler takes come when this work is done: for short work, such as closing a vault.

    The third one comes at once: Ctrl-C still ends a command whose disk is too slow.
    """
    came: list[int] = []
    handlers: dict[int, Callable[[int, Any], object]] = {}

    def later(number: int, frame: Any) -> None:
        came.append(number)
        if len(came) >= _PATIENCE:
            handlers[number](number, frame)

    if threading.current_thread() is threading.main_thread():
        for number in _ENDING:
            handler = signal.getsignal(number)
            if callable(handler):
                handlers[number] = handler
                signal.signal(number, later)
    try:
        yield
    finally:
        for each, handler in handlers.items():
            signal.signal(each, handler)
        if 0 < len(came) < _PATIENCE:
            signal.raise_signal(came[0])
