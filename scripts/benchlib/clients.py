"""Several clients at once: processes, so that Python's own lock is not what is measured."""

from __future__ import annotations

import os
import pickle
import time
import traceback
from collections.abc import Callable
from typing import Any


def in_parallel(
    count: int,
    work: Callable[[int], float],
    prepare: Callable[[int], None] = lambda number: None,
    start: Callable[[], None] = lambda: None,
) -> tuple[list[float], float]:
    """Run `work(number)` in so many processes, all let go at once.

    Args:    prepare: each does it before, untimed.   start: called here when all are ready.
    Returns: what each returned, and the seconds from letting them go to the last answer.
    Raises: ChildProcessError: one failed; the text says how.
    """
    gate, opener = os.pipe()
    children = [_start(number, work, prepare, gate, opener) for number in range(count)]
    os.close(gate)
    try:
        for _, pipe in children:
            _receive(pipe)  # ready
        start()
    finally:
        begun = time.perf_counter()
        os.close(opener)  # lets them go, or ends them
    results, problems = [], []
    for _, pipe in children:
        try:
            results.append(float(_receive(pipe)))
        except ChildProcessError as error:
            problems.append(error)
    seconds = time.perf_counter() - begun
    for pid, pipe in children:
        os.close(pipe)
        os.waitpid(pid, 0)
    if problems:
        raise problems[0]
    return results, seconds


def _start(
    number: int, work: Callable[[int], float], prepare: Callable[[int], None], gate: int, opener: int
) -> tuple[int, int]:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writer)
        return pid, reader
    try:
        os.close(opener)
        prepare(number)
        _send(writer, True, "ready")
        os.read(gate, 1)
        _send(writer, True, work(number))
    except BaseException as error:  # noqa: BLE001 - goes to the parent as text
        _send(writer, False, "".join(traceback.format_exception_only(error)).strip())
    finally:
        os._exit(0)


def _send(pipe: int, good: bool, value: object) -> None:
    raw = pickle.dumps((good, value))
    os.write(pipe, len(raw).to_bytes(4, "little") + raw)


def _receive(pipe: int) -> Any:
    head = os.read(pipe, 4)
    if len(head) < 4:
        raise ChildProcessError("a client ended without a word")
    good, value = pickle.loads(_exactly(pipe, int.from_bytes(head, "little")))
    if not good:
        raise ChildProcessError(value)
    return value


def _exactly(pipe: int, size: int) -> bytes:
    raw = b""
    while len(raw) < size:
        raw += os.read(pipe, size - len(raw))
    return raw
