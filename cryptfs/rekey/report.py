"""The progress of a change of the masterkey, and what did not authenticate."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple


class Unauthentic(NamedTuple):
    """Something that did not authenticate.

    cipher_path: where it was, relative to the vault, printable.   reason: in words.
    aside: its name in the directory of what was set aside; "" if it stays in its place, damaged as before.
    """

    cipher_path: str
    reason: str
    aside: str = ""


def _nobody_looks(_: Report) -> None:
    pass


@dataclass(slots=True)
class Report:
    """Counts and findings. Sizes are bytes of backing files. Safe from many threads.

    unreadable: places that the operating system refuses, with the reason.
    changed:    whether the present pass has found anything of the old masterkey.
    """

    files: int = 0
    size: int = 0
    total_files: int = 0
    total_size: int = 0
    directories: int = 0
    symlinks: int = 0
    others: int = 0
    damages: list[Unauthentic] = field(default_factory=list)
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    changed: bool = False
    on_progress: Callable[[Report], None] = _nobody_looks
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add_size(self, size: int) -> None:
        """So many bytes of files are done."""
        with self._lock:
            self.size += size

    def restart(self) -> None:
        """A pass begins: it counts everything."""
        self.files = self.size = self.directories = self.symlinks = self.others = 0
        self.changed = False
        self.unreadable.clear()

    def show(self) -> None:
        """In the caller's thread: tell about the progress."""
        self.on_progress(self)
