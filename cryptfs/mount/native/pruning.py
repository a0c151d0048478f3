"""Asking the kernel to forget nodes, so that memory does not grow with the files that were ever looked at.

The kernel keeps inodes and names as long as it has memory to spare, and the engine a node for each. Beyond
a limit it is asked to let go of the oldest that nobody uses. What is open, mapped, watched, mounted over
or somebody's working directory stays; the rest is looked up anew when somebody wants it.

Kernels that speak 7.45 take a list of nodes for that. Older ones have only an invalidation of entries that
hits those in use, too, and takes away mounts on them; or one that has them looked up anew, but keeps them
in memory. They are not asked.
"""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections.abc import Callable, Sequence

from cryptfs.mount.native import structs
from cryptfs.mount.native.node import Node
from cryptfs.mount.native.nodes import NodeTable
from cryptfs.mount.native.structs import Notification

log = logging.getLogger(__name__)

MAX_NODES = 100_000  # some 350 bytes each
_BATCH = 512  # nodes between two pauses; the kernel works on as many at a time
_PAUSE = 0.002  # seconds, for the requests of others, and for the FORGETs that come of it
_PATIENCE = 0.02  # seconds that the FORGETs of a batch may take before the next one is asked for

Notify = Callable[[int, bytes], None]


class Pruner:
    """Keeps a NodeTable near its limit. Its thread exists only while there is something to do.

    Notifications wait for locks in the kernel that a request may hold that waits for us: so they never come
    from a thread that answers requests.
    """

    def __init__(self, nodes: NodeTable, notify: Notify) -> None:
        self._nodes = nodes
        self._notify = notify
        self._limit = MAX_NODES
        self._thread: threading.Thread | None = None
        self._ended = False

    def start(self, minor: int) -> None:
        """Begin to watch the table, where the kernel can be asked. minor: of the protocol that it speaks."""
        if minor >= structs.PRUNE_MINOR:
            self._nodes.watch_size(self._limit, self._wake)

    def stop(self) -> None:
        """After the mount is gone: returns when the thread has ended."""
        self._ended = True
        thread = self._thread
        if thread is not None:
            thread.join()

    def _wake(self) -> None:
        thread = threading.Thread(target=self._run, name="cryptfs-prune", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # no thread to be had now
            self._nodes.watch_size(len(self._nodes) + self._limit // 4, self._wake)
            return
        self._thread = thread

    def _run(self) -> None:
        try:
            while not self._ended:
                # What is left of those asked for is in use: asked again when as much came on top of it.
                enough = max(self._limit, self._shrink() + self._limit // 4)
                if len(self._nodes) <= enough:
                    self._nodes.watch_size(enough, self._wake)
                    return
        except OSError as error:  # the table is not watched any more
            if error.errno not in (errno.ENODEV, errno.EBADF, errno.ENOTCONN):
                log.info("the kernel cannot be asked to forget files: %s", error.strerror)

    def _shrink(self) -> int:
        """Have the oldest forgotten until a quarter is free.

        Returns: how many are in use, where all had to be asked for; else 0.
        """
        target = self._limit * 3 // 4
        nodes = self._nodes.oldest_first()
        for start in range(0, len(nodes), _BATCH):
            count = len(self._nodes)
            if count <= target or self._ended:
                return 0
            # Children before their parents, which are in use as long as the kernel knows a child.
            self._prune(nodes[start : start + _BATCH][::-1])
            self._wait_for_forgets(count)
        return sum(node.lookups > 0 for node in nodes)

    def _wait_for_forgets(self, count: int) -> None:
        """Let the FORGETs arrive that a batch leads to; `count` nodes were known before it."""
        deadline = time.monotonic() + _PATIENCE
        time.sleep(_PAUSE)
        while len(self._nodes) > count - _BATCH and time.monotonic() < deadline:
            time.sleep(_PAUSE)

    def _prune(self, nodes: Sequence[Node]) -> None:
        numbers = b"".join(structs.NODEID.pack(node.nodeid) for node in nodes)
        self._notify(Notification.PRUNE, structs.PRUNE_OUT.pack(len(nodes)) + numbers)
