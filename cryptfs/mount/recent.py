"""The last findings of damage of a mount, for `cryptfs status`, also on a system without syslog.

This is a second handler of Python's logging, beside the one that writes the log. It keeps each finding once:
its cipher path and its reason, as in the log, and never a plaintext name. StatusServer shows them only to
root and to the user of the mount.
"""

from __future__ import annotations

import contextlib
import logging
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cryptfs.errors import IntegrityError

KEPT = 64
_SOURCES = ("cryptfs.vfs", "cryptfs.storage", "cryptfs.mount.errno_map")  # speak of what is in the vault
_MAX_PATH = 4096  # characters
_MAX_REASON = 500
_ROOT = logging.getLogger("cryptfs")


@dataclass(slots=True)
class Recent:
    """One finding, with its count. Times: seconds since 1970."""

    first: float
    last: float
    count: int


Key = tuple[str, int | None, str]  # cipher path or '', chunk index, reason


class RecentFindings(logging.Handler):
    """The last KEPT findings that the log has warned of. The lock is the handler's own."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._found: OrderedDict[Key, Recent] = OrderedDict()  # the newest last
        self._dropped = 0

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Listen from before the unlocking, which reads the journal. A daemon forked in here also listens."""
        _ROOT.addHandler(self)
        try:
            yield
        finally:
            _ROOT.removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the subject of a line. Called with the lock held."""
        if not logging.getLogger().handlers and logging.lastResort is not None:
            logging.lastResort.handle(record)  # Python calls it only if there is no handler at all
        if record.name.startswith(_SOURCES):
            self._keep(_key_of(record), record.created)

    def _keep(self, key: Key, now: float) -> None:
        known = self._found.get(key)
        if known is None:
            self._found[key] = Recent(now, now, 1)
        else:
            known.last = now
            known.count += 1
            self._found.move_to_end(key)
        if len(self._found) > KEPT:
            self._found.popitem(last=False)
            self._dropped += 1

    def snapshot(self) -> dict[str, Any]:
        """Fit for JSON: findings, the newest first, and the number of older ones that were dropped."""
        self.acquire()
        try:
            found = [
                {
                    "path": path or None,
                    "chunk": chunk,
                    "reason": reason,
                    "count": recent.count,
                    "first": round(recent.first, 3),
                    "last": round(recent.last, 3),
                }
                for (path, chunk, reason), recent in reversed(self._found.items())
            ]
            return {"findings": found, "findings_dropped": self._dropped}
        finally:
            self.release()


def _key_of(record: logging.LogRecord) -> Key:
    """The place in the vault that a line is about, and its reason."""
    args = record.args if isinstance(record.args, tuple) else ()
    if record.exc_info and record.exc_info[0] is not None:  # its text may hold anything
        return "", None, f"{record.getMessage()}: {record.exc_info[0].__name__}"[:_MAX_REASON]
    if args and isinstance(args[0], IntegrityError):
        error = args[0]
        return error.cipher_path[:_MAX_PATH], error.chunk_index, error.reason[:_MAX_REASON]
    said = record.getMessage()
    if args and record.msg.startswith("%s: "):  # a line about a file begins with its cipher path
        path = str(args[0])
        return path[:_MAX_PATH], None, said[len(path) + 2 :][:_MAX_REASON]
    return "", None, said[:_MAX_REASON]
