"""Signals that wait for the end of a piece of work."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from cryptfs import signals
from cryptfs.signals import Undisturbed


@pytest.fixture(autouse=True)
def handlers(sigint: None) -> Iterator[None]:
    """The handlers are the same afterwards, and no signal waits."""
    before = [signal.getsignal(number) for number in signals.ENDING]
    yield
    assert [signal.getsignal(number) for number in signals.ENDING] == before
    assert signals._owed == []


def interrupt(times: int = 1) -> None:
    for _ in range(times):
        signal.raise_signal(signal.SIGINT)


def work(done: list[str], *, times: int = 1, **options: Any) -> None:
    with Undisturbed(**options):
        interrupt(times)
        done.append("work")
    done.append("after")


def test_it_comes_at_the_end() -> None:
    done: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        work(done)
    assert done == ["work"]


def test_it_comes_soon() -> None:
    done: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        work(done, returns=True)
        for _ in range(5000):  # a signal does not end a sleep that begins just now
            time.sleep(0.001)
    assert done == ["work", "after"]


def test_it_comes_before_the_next_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "_SOON", 0.2)
    done: list[str] = []
    work(done, returns=True)
    with pytest.raises(KeyboardInterrupt):
        work(done, returns=True, begins=True)
    assert done == ["work", "after"]
    time.sleep(0.3)  # and it does not come twice


def test_what_is_due_is_done_before_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "_SOON", 0.2)
    done: list[str] = []
    work(done, returns=True)
    with pytest.raises(KeyboardInterrupt):
        work(done, times=0)
    assert done == ["work", "after", "work"]
    time.sleep(0.3)


def test_the_third_one_comes_at_once() -> None:
    done: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        work(done, times=3)
    assert done == []


def test_the_third_one_comes_not_so_soon() -> None:
    done: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        work(done, times=50, seconds=10)
    assert done == ["work"]


def test_an_error_of_the_work_does_not_hide_it() -> None:
    def fail() -> None:
        with Undisturbed():
            interrupt()
            raise OSError("the work")

    with pytest.raises(KeyboardInterrupt):
        fail()


def test_work_within_work() -> None:
    done: list[str] = []
    with pytest.raises(KeyboardInterrupt), Undisturbed():
        work(done, returns=True)
        work(done, times=0, returns=True, begins=True)
        work(done, times=0)
    assert done == ["work", "after"] * 3


def test_a_handler_of_the_program() -> None:
    called: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: called.append(number))
    try:
        with Undisturbed():
            signal.raise_signal(signal.SIGTERM)
            assert called == []
        assert called == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_another_thread_changes_no_handler() -> None:
    seen: list[object] = []

    def look() -> None:
        with Undisturbed():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGINT)]


def test_no_thread_can_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("_thread.start_new_thread", refuse)
    done: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        work(done, returns=True)
    assert done == ["work"]
