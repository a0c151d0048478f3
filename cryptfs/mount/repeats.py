"""Keeps a log from saying the same thing again and again, and from growing without a bound.

One read(2) of a damaged chunk reaches a mount as several requests: the kernel reads ahead, fails, and asks
again for the page. A program that retries never stops asking. One line is enough.

An attacker on the vault can damage every file, and a search through the mount meets each of them. After
MOST_LINES lines within a minute the log says that there is more; fsck names all damage.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict

REPEAT_SECONDS = 60.0
MOST_LINES = 250  # warnings and errors within REPEAT_SECONDS
_REMEMBERED = 1024  # lines; an attacker who plants more damage than that gets more lines
_LAST = "; further warnings are left out for a minute. `cryptfs fsck --deep` names all damage"


class RepeatFilter(logging.Filter):
    """Lets a line pass once in `seconds`; the next one counts those that it left out.

    At most `most` warnings and errors pass within `seconds`, the last of which says so. Lines with a
    traceback are of bugs, not of damage: they pass again and again, but count.
    """

    def __init__(self, seconds: float = REPEAT_SECONDS, most: int = MOST_LINES) -> None:
        super().__init__()
        self._seconds = seconds
        self._most = most
        self._lock = threading.Lock()
        self._seen: OrderedDict[tuple[str, int, str], tuple[float, int]] = OrderedDict()
        self._since = float("-inf")  # when the lines that are counted began
        self._lines = 0
        self._silenced = 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the line is new, or old enough to appear again, and there is room for it."""
        line = record.getMessage()
        now = time.monotonic()
        with self._lock:
            repeated = 0
            if not record.exc_info:
                seen = self._look_up((record.name, record.levelno, line), now)
                if seen is None:
                    return False
                repeated = seen
            silenced = self._count(now) if record.levelno >= logging.WARNING else 0
            if silenced is None:
                return False
            last = self._lines == self._most and record.levelno >= logging.WARNING
        said = line
        if repeated:
            said += f" (and {repeated} more times since the last such line)"
        if silenced:
            said += f" ({silenced} other lines were left out before this one)"
        if last:
            said += _LAST
        if said != line:
            record.msg, record.args = said, None
        return True

    def _look_up(self, key: tuple[str, int, str], now: float) -> int | None:
        """How often a line was left out since it last appeared; None if it is too early for it."""
        since, left_out = self._seen.get(key, (None, 0))
        if since is not None and now - since < self._seconds:
            self._seen[key] = (since, left_out + 1)
            return None
        self._seen[key] = (now, 0)
        self._seen.move_to_end(key)
        if len(self._seen) > _REMEMBERED:
            self._seen.popitem(last=False)
        return left_out

    def _count(self, now: float) -> int | None:
        """How many lines were left out before this one; None if there is no room for it."""
        silenced = 0
        if now - self._since >= self._seconds:
            self._since, self._lines = now, 0
            silenced, self._silenced = self._silenced, 0
        self._lines += 1
        if self._lines > self._most:
            self._silenced += 1
            return None
        return silenced
