"""The progress bar of commands: on terminals only, and not redrawn for each of a million entries."""

from __future__ import annotations

import io
import time

import pytest
from rich.console import Console

from cryptfs.cli.progress import progress_bar


def a_screen(*, terminal: bool) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=80)


def shown(screen: Console) -> str:
    assert isinstance(screen.file, io.StringIO)
    return screen.file.getvalue()


@pytest.mark.parametrize("screen", [None, a_screen(terminal=False)])
def test_without_a_terminal_nothing_is_drawn(screen: Console | None) -> None:
    with progress_bar(screen, "words", 5) as bar:
        assert not bar.is_due()
        bar.expect(10)
        bar.show("more", 1)
    assert screen is None or shown(screen) == ""


def test_a_bar_says_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    screen = a_screen(terminal=True)
    with progress_bar(screen, "to begin with") as bar:
        assert bar.is_due()
        bar.expect(10)
        bar.show("half", 5)
        assert not bar.is_due()
        now[0] += 0.09
        assert not bar.is_due()
        now[0] += 0.02
        assert bar.is_due()
        bar.show("all", 10)
    drawn = shown(screen)
    assert "all" in drawn
