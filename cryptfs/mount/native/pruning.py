"""Asking the kernel to forget nodes, so that memory does not grow with the files that were ever looked at.

The kernel keeps inodes and names as long as it has memory to spare, and the engine a node for each. Beyond
a limit it is asked to let go of the oldest that nobody uses. What is open, mapped, watched, mounted over
or somebody's working directory stays; the rest is looked up anew when somebody wants it.

Kernels that speak 7.45 take a list of nodes. Since 7.38 the name of an entry can be made to expire, which
has the same effect where nobody uses it. Older ones have only an invalidation that hits entries in use,
too: it takes away mounts on them. They are not asked.
"""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections.abc import Callable, Sequence

from cryptfs.mount.native import structs
from cryptfs.mount.native.nodes import Node, NodeTable
from cryptfs.mount.native.structs import Cap, Notification

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
        self._send: Callable[[Sequence[Node]], None] | None = None
        self._thread: threading.Thread | None = None
        self._ended = False

    def start(self, minor: int, flags: Cap) -> None:
        """Begin to watch the table, where the kernel can be asked. minor, flags: what it said in INIT."""
        if minor >= structs.PRUNE_MINOR:
            self._send = self._prune
        elif flags & Cap.HAS_EXPIRE_ONLY:
            self._send = self._expire
        else:
            return
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
        assert self._send is not None
        target = self._limit * 3 // 4
        nodes = self._nodes.oldest_first()
        for start in range(0, len(nodes), _BATCH):
            count = len(self._nodes)
            if count <= target or self._ended:
                return 0
            # Children before their parents, which are in use as long as the kernel knows a child.
            self._send(nodes[start : start + _BATCH][::-1])
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

    def _expire(self, nodes: Sequence[Node]) -> None:
        for node in nodes:
            parent, name = node.parent, node.name
            if parent is None or node.held is not None:
                continue
            head = structs.INVAL_ENTRY_OUT.pack(parent.nodeid, len(name), structs.EXPIRE_ONLY)
            try:
                self._notify(Notification.INVAL_ENTRY, head + name + b"\0")
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ENOTDIR):  # the kernel knows no such entry
                    raise
