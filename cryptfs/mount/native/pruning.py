"""Asks the kernel to forget nodes, so that memory does not grow with every file that it has ever looked at.

The kernel keeps inodes and names as long as it has memory to spare, and the engine a node for each. Beyond a
limit the engine asks it to let go of the oldest unused ones. A file stays if it is open, mapped, watched,
mounted over or somebody's working directory; the kernel looks the rest up again when somebody wants it.

Kernels that speak 7.45 take a list of nodes for that. Older ones only have an invalidation of entries, which
also hits used ones and takes away mounts on them; or one that causes new lookups, but frees no memory. The
engine does not ask those.
"""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections.abc import Sequence

from cryptfs.mount.native import structs
from cryptfs.mount.native.node import Node
from cryptfs.mount.native.nodes import NodeTable
from cryptfs.mount.native.request import Notify
from cryptfs.mount.native.structs import Notification

log = logging.getLogger(__name__)

MAX_NODES = 100_000  # some 350 bytes each
_BATCH = 512  # nodes between two pauses; the kernel works on as many at a time
_PAUSE = 0.002  # seconds, for the requests of others, and for the FORGETs that follow
_PATIENCE = 0.02  # seconds that the FORGETs of a batch may take before the next batch


class Pruner:
    """Keeps a NodeTable near its limit. Its thread exists only while there is something to do.

    A notification waits for locks in the kernel, and a request that waits for us may hold them. So it never
    comes from a thread that answers requests.
    """

    def __init__(self, nodes: NodeTable, notify: Notify) -> None:
        self._nodes = nodes
        self._notify = notify
        self._limit = MAX_NODES
        self._thread: threading.Thread | None = None
        self._ended = False

    def start(self, minor: int) -> None:
        """Begin to watch the table, if the kernel takes such requests. minor: of its protocol."""
        if minor >= structs.PRUNE_MINOR:
            self._nodes.watch.begin(self._limit, self._wake)

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
        except RuntimeError:  # the system allows no thread now
            self._nodes.watch.begin(len(self._nodes) + self._limit // 4, self._wake)
            return
        self._thread = thread

    def _run(self) -> None:
        try:
            while not self._ended:
                # After a pass the rest is in use: ask again when as much has come on top of it.
                enough = max(self._limit, self._shrink() + self._limit // 4)
                if len(self._nodes) <= enough:
                    self._nodes.watch.begin(enough, self._wake)
                    return
        except OSError as error:  # nobody watches the table from now on
            if error.errno not in (errno.ENODEV, errno.EBADF, errno.ENOTCONN):
                log.info("the kernel cannot be asked to forget files: %s", error.strerror)

    def _shrink(self) -> int:
        """Make the kernel forget the oldest until a quarter is free.

        Returns: how many are in use, if it had to ask for all; else 0.
        """
        target = self._limit * 3 // 4
        nodes = self._nodes.oldest_first()
        for start in range(0, len(nodes), _BATCH):
            count = len(self._nodes)
            if count <= target or self._ended:
                return 0
            # Children before parents: a parent is in use as long as the kernel knows a child.
            self._prune(nodes[start : start + _BATCH][::-1])
            self._wait_for_forgets(count)
        return sum(node.lookups > 0 for node in nodes)

    def _wait_for_forgets(self, count: int) -> None:
        """Wait for the FORGETs of a batch; `count`: the nodes before it."""
        deadline = time.monotonic() + _PATIENCE
        time.sleep(_PAUSE)
        while len(self._nodes) > count - _BATCH and time.monotonic() < deadline:
            time.sleep(_PAUSE)

    def _prune(self, nodes: Sequence[Node]) -> None:
        numbers = b"".join(structs.NODEID.pack(node.nodeid) for node in nodes)
        self._notify(Notification.PRUNE, structs.PRUNE_OUT.pack(len(nodes)) + numbers)
