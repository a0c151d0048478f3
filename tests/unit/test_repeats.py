"""What a log says once, and what it says again."""

from __future__ import annotations

import logging

import pytest

from cryptfs.mount import repeats
from cryptfs.mount.repeats import RepeatFilter


class Clock:
    """In place of the module `time`."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(repeats, "time", made)
    return made


def record(text: str, *args: object, level: int = logging.ERROR, name: str = "a") -> logging.LogRecord:
    return logging.LogRecord(name, level, __file__, 1, text, args, None)


def test_the_same_line_is_said_once(clock: Clock) -> None:
    repeat = RepeatFilter()
    assert repeat.filter(record("%s: chunk %d", "x", 3))
    assert not repeat.filter(record("%s: chunk %d", "x", 3))
    assert not repeat.filter(record("x: chunk 3"))  # what counts is what a person would read
    clock.now += repeats.REPEAT_SECONDS - 0.1
    assert not repeat.filter(record("x: chunk 3"))


def test_another_line_is_another(clock: Clock) -> None:
    repeat = RepeatFilter()
    assert repeat.filter(record("x: chunk 3"))
    assert repeat.filter(record("x: chunk 4"))
    assert repeat.filter(record("y: chunk 3"))
    assert repeat.filter(record("x: chunk 3", level=logging.WARNING))
    assert repeat.filter(record("x: chunk 3", name="b"))


def test_it_is_said_again_later_with_the_number_of_those_between(clock: Clock) -> None:
    repeat = RepeatFilter()
    for _ in range(18):
        repeat.filter(record("x: %s", "damage"))
    clock.now += repeats.REPEAT_SECONDS
    again = record("x: %s", "damage")
    assert repeat.filter(again)
    assert again.getMessage() == "x: damage (and 17 more times since the last such line)"
    clock.now += repeats.REPEAT_SECONDS
    alone = record("x: %s", "damage")
    assert repeat.filter(alone)
    assert alone.getMessage() == "x: damage"


def test_tracebacks_always_pass(clock: Clock) -> None:
    repeat = RepeatFilter()
    failure = record("unforeseen")
    failure.exc_info = (ValueError, ValueError(), None)
    assert repeat.filter(failure)
    assert repeat.filter(failure)


def test_it_does_not_grow_for_ever(clock: Clock) -> None:
    repeat = RepeatFilter(most=10_000)
    for number in range(5000):
        assert repeat.filter(record(f"line {number}"))
    assert len(repeat._seen) == 1024
    assert repeat.filter(record("line 0"))
    assert not repeat.filter(record("line 4999"))


def test_a_flood_of_different_lines_is_bounded(clock: Clock) -> None:
    repeat = RepeatFilter(most=5)
    lines = [record(f"file {number}: damaged") for number in range(1000)]
    passed = [line for line in lines if repeat.filter(line)]
    assert len(passed) == 5
    assert passed[3].getMessage() == "file 3: damaged"
    assert passed[4].getMessage().startswith("file 4: damaged; further warnings are left out for a minute. ")
    assert repeat.filter(record("unmounted", level=logging.INFO))  # what is no damage is said all the same
    traceback = record("unforeseen")
    traceback.exc_info = (ValueError, ValueError(), None)
    assert not repeat.filter(traceback)
    clock.now += repeats.REPEAT_SECONDS
    after = record("file 1000: damaged")
    assert repeat.filter(after)
    assert after.getMessage() == ("file 1000: damaged (996 other lines were left out before this one)")
    assert repeat.filter(record("file 1001: damaged"))
