"""The progress bar of commands that may take long."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from cryptfs.cli.output import is_quiet

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

_REDRAW = 0.1  # seconds between changes of the bar


class ProgressBar:
    """A bar with words beside it; without a terminal it shows nothing, and is never due."""

    def __init__(self, bar: Progress | None, task: TaskID | None) -> None:
        self._bar = bar
        self._task = task
        self._changed = 0.0

    def expect(self, total: int) -> None:
        """Say how much there is to do, so that the bar can tell what is left."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, total=total)

    @property
    def is_drawn(self) -> bool:
        """Whether a person sees it."""
        return self._bar is not None

    def is_due(self) -> bool:
        """Whether it is time to show something new. Ask before making the words."""
        return self._bar is not None and time.monotonic() - self._changed >= _REDRAW

    def show(self, words: str, completed: int | None = None) -> None:
        """Show how far it is. completed: in the unit of the total; None leaves the bar as it is."""
        if self._bar is not None and self._task is not None:
            self._changed = time.monotonic()
            self._bar.update(self._task, description=words, completed=completed)


@contextlib.contextmanager
def progress_bar(screen: Console | None, words: str, total: int | None = None) -> Iterator[ProgressBar]:
    """A bar for as long as something takes; it is gone afterwards.

    Args: screen: a terminal, else nothing is drawn.   words: to begin with.   total: None is not known.
    """
    if screen is None or not screen.is_terminal or is_quiet():
        yield ProgressBar(None, None)
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), TextColumn("{task.description}"), TimeRemainingColumn(elapsed_when_finished=True))
    with Progress(*columns, console=screen, transient=True, redirect_stdout=False) as bar:
        yield ProgressBar(bar, bar.add_task(words, total=total))
