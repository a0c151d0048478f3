"""A log file of a bounded size: FILE is renamed to FILE.1 when it is full, FILE.1 to FILE.2, and so on.

A program such as logrotate may move it as well, and several mounts may write to one: before each line the
handler looks whether FILE is still the file that it has open.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
from pathlib import Path

KEPT = 3
"""Older files beside FILE."""


def open_log(file: Path) -> int:
    """A descriptor that appends to a log file. Raises: OSError, whose text says that it is the log file."""
    try:
        # The daemon's umask is 0, so the mode must be explicit.
        return os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY, 0o600)
    except OSError as error:
        raise OSError(error.errno, f"cannot open the log file: {error.strerror}", str(file)) from None


class LogFile(logging.Handler):
    """Appends lines to a file.

    Args:   most: bytes of a file; 0 is no bound.
    Raises: OSError: it cannot be opened.
    """

    def __init__(self, file: Path, most: int) -> None:
        self._file = file
        self._most = most
        self._descriptor = open_log(file)
        super().__init__()  # last: what is known to logging is closed when the process ends

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line, in one call. Called with the lock held; an error loses the line and nothing else."""
        try:
            line = f"{self.format(record)}\n".encode(errors="backslashreplace")
            self._follow()
            if self._is_full(len(line)):
                self._rotate()
            os.write(self._descriptor, line)
        except Exception:  # noqa: BLE001 - as the handlers of Python
            self.handleError(record)

    def _follow(self) -> None:
        """Open the file again if it is another one by now. If that is impossible, the old one goes on."""
        there = None
        with contextlib.suppress(OSError):
            there = self._file.stat()
        here = os.fstat(self._descriptor)
        if there is None or (there.st_dev, there.st_ino) != (here.st_dev, here.st_ino):
            with contextlib.suppress(OSError):
                self._open_again()

    def _open_again(self) -> None:
        fresh = open_log(self._file)
        os.close(self._descriptor)
        self._descriptor = fresh

    def _is_full(self, more: int) -> bool:
        st = os.fstat(self._descriptor)
        return bool(self._most and stat.S_ISREG(st.st_mode) and st.st_size and st.st_size + more > self._most)

    def _rotate(self) -> None:
        """If a rename is impossible, as in a directory of another user, the file grows on."""
        with contextlib.suppress(OSError):
            for number in range(KEPT - 1, 0, -1):
                with contextlib.suppress(FileNotFoundError):
                    os.rename(f"{self._file}.{number}", f"{self._file}.{number + 1}")
            os.rename(self._file, f"{self._file}.1")
            self._open_again()

    def close(self) -> None:
        """Close the file."""
        with contextlib.suppress(OSError):
            os.close(self._descriptor)
        super().close()
