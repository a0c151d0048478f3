"""Asynchronous direct I/O beside the page cache: Linux forgets to drop pages.

Before a direct write Linux drops the pages of its range; after an asynchronous one it does not (with
FUSE_ASYNC_DIO). If somebody reads a page in between, it keeps the old content for good. So the engine drops
the pages once the data is in its place, before it answers the write: a read that starts after the write has
returned sees the new data. During a read its page is locked; the notification waits for the answer to that
read, and another thread gives it.

Most files with direct writes have nothing in the page cache. After some direct writes without a request of
the page cache in between, the engine drops all pages of a file once. Then its writes cost nothing more until
it has a page again: every page begins with a request that PageTracker sees.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from queue import SimpleQueue

from cryptfs.mount.native import structs
from cryptfs.mount.native.request import Notify, Work
from cryptfs.mount.native.structs import Notification

QUIET_WRITES = 16  # direct writes without a request of the page cache between; then all pages go
_MAX_FILES = 4096  # with more, the tracker forgets all, which costs each a few notifications


class _Quiet:
    """How many direct writes a file has had since the last request of the page cache."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0


class PageTracker:
    """Which files of a mount may have pages in the kernel's cache, as far as direct writes need to know.

    An unknown file may have some.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._without: set[int] = set()  # nodes that have no pages
        self._quiet: dict[int, _Quiet] = {}  # by node; also for all in `_without`

    def cached(self, nodeid: int) -> None:
        """Before a request of the page cache: the file has pages from now on."""
        if nodeid in self._quiet:
            with self._lock:
                self._quiet.pop(nodeid, None)
                self._without.discard(nodeid)

    def has_none(self, nodeid: int) -> bool:
        """After a direct write reached its place: whether there is nothing to drop."""
        return nodeid in self._without

    def dropping(self, nodeid: int, offset: int, size: int, notify: Notify) -> Work:
        """The work before the answer to a direct write of `size` bytes, for a file that may have pages."""

        def work() -> bytes:
            self._drop(nodeid, offset, size, notify)
            return structs.WRITE_OUT.pack(size, 0)

        return work

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
                if self._quiet.get(nodeid) is quiet:  # else a page came during the drop
                    self._without.add(nodeid)


Answer = Callable[[int, Work], None]


class PageDropper:
    """The thread that drops pages and answers the writes that wait for it, one at a time.

    It is not a thread that reads the device: during a read its page is locked until one of those answers.

    Args: answer: does the work and replies to the request with that number.
    """

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._queue: SimpleQueue[tuple[int, Work] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="cryptfs-pages", daemon=True)

    def start(self) -> None:
        """Before the first request."""
        self._thread.start()

    def put(self, unique: int, work: Work) -> None:
        """Answer a write once its pages are dropped."""
        self._queue.put((unique, work))

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            self._answer(*item)

    def stop(self) -> None:
        """After the mount is gone."""
        self._queue.put(None)
        self._thread.join()
