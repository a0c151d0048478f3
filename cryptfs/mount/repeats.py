"""Keeps a log from saying the same thing again and again.

One read(2) of a damaged chunk reaches a mount as several requests: the kernel reads ahead, fails, and asks
again for the page. A program that retries asks for ever. One line says it all.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict

REPEAT_SECONDS = 60.0
_REMEMBERED = 1024  # lines; whoever can plant more damage than that gets more lines


class RepeatFilter(logging.Filter):
    """Lets a line through once in `seconds`; the next one says how many were left out.

    Lines with a traceback always pass: they are of bugs, not of damage.
    """

    def __init__(self, seconds: float = REPEAT_SECONDS) -> None:
        super().__init__()
        self._seconds = seconds
        self._lock = threading.Lock()
        self._seen: OrderedDict[tuple[str, int, str], tuple[float, int]] = OrderedDict()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the line is new, or old enough to be said again."""
        if record.exc_info:
            return True
        line = record.getMessage()
        key = (record.name, record.levelno, line)
        now = time.monotonic()
        with self._lock:
            since, left_out = self._seen.get(key, (None, 0))
            if since is not None and now - since < self._seconds:
                self._seen[key] = (since, left_out + 1)
                return False
            self._seen[key] = (now, 0)
            self._seen.move_to_end(key)
            if len(self._seen) > _REMEMBERED:
                self._seen.popitem(last=False)
        if left_out:
            record.msg, record.args = f"{line} (and {left_out} times more since the last such line)", None
        return True
