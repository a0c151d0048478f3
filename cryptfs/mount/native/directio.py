"""Asynchronous direct I/O beside the page cache: the pages that Linux forgets to drop.

Before a direct write Linux drops the pages of its range; after an asynchronous one it does not (with
FUSE_ASYNC_DIO). A page that somebody read in between holds what was there before, for good. So the
engine drops them once the data is in its place, before it answers the write: a read that starts after the
write has returned sees what it wrote. A page that is being read then is locked; the notification waits for
its answer, which another thread gives.

Most files that are written past the page cache have nothing in it. After some direct writes, with nothing
through the page cache in between, all pages of a file are dropped once, and its writes cost nothing more
until there is a page again: every page begins with a request that comes by here.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from queue import SimpleQueue

from cryptfs.mount.native import structs
from cryptfs.mount.native.handlers import Later, Notify
from cryptfs.mount.native.structs import Notification

QUIET_WRITES = 16  # direct writes without a request of the page cache between, after which all pages go
_MAX_FILES = 4096  # that are remembered; with more all are forgotten, which costs each a few notifications


class Dropping(Later):
    """The answer of a direct write, after the pages of its range were dropped; for PageDropper."""


class _Quiet:
    """How many direct writes a file has had since the last request of the page cache."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0


class PageTracker:
    """Which files of a mount may have pages in the kernel's cache, as far as direct writes want to know.

    A file of which nothing is known may have some.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._without: set[int] = set()  # nodes that have no pages
        self._quiet: dict[int, _Quiet] = {}  # by node; all that are in `_without`, too

    def cached(self, nodeid: int) -> None:
        """Before a request of the page cache is served: the file has pages from here on."""
        if nodeid in self._quiet:
            with self._lock:
                self._quiet.pop(nodeid, None)
                self._without.discard(nodeid)

    def has_none(self, nodeid: int) -> bool:
        """After a direct write reached its place: whether there is nothing to drop."""
        return nodeid in self._without

    def dropping(self, nodeid: int, offset: int, size: int, notify: Notify) -> Dropping:
        """The answer of a direct write of `size` bytes to a file that may have pages."""

        def work() -> bytes:
            self._drop(nodeid, offset, size, notify)
            return structs.WRITE_OUT.pack(size, 0)

        return Dropping(work)

    def _drop(self, nodeid: int, offset: int, size: int, notify: Notify) -> None:
        with self._lock:
            if len(self._quiet) >= _MAX_FILES:
                self._quiet.clear()
                self._without.clear()
            quiet = self._quiet.setdefault(nodeid, _Quiet())
            quiet.count += 1
        everything = quiet.count >= QUIET_WRITES
        where = (0, 0) if everything else (offset, size)
        with contextlib.suppress(FileNotFoundError):  # the kernel has dropped the inode: there are no pages
            notify(Notification.INVAL_INODE, structs.INVAL_INODE_OUT.pack(nodeid, *where))
        if everything:
            with self._lock:
                if self._quiet.get(nodeid) is quiet:  # else a page came while they were dropped
                    self._without.add(nodeid)


Answer = Callable[[int, Later], None]


class PageDropper:
    """The thread that drops pages and answers the writes that wait for it, one at a time.

    Not one of those that read the device: a page that is being read is locked until one of these answers.

    Args: answer: does the work of a Dropping and replies to the request with that number.
    """

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._queue: SimpleQueue[tuple[int, Dropping] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="cryptfs-pages", daemon=True)

    def start(self) -> None:
        """Before the first request."""
        self._thread.start()

    def put(self, unique: int, dropping: Dropping) -> None:
        """Answer a write when its pages are dropped."""
        self._queue.put((unique, dropping))

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            self._answer(*item)

    def stop(self) -> None:
        """After the mount is gone."""
        self._queue.put(None)
        self._thread.join()
