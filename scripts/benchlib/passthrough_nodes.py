"""The nodes of the pass-through: which number is which path, and what is open of it."""

from __future__ import annotations

import errno
import os
import stat
import threading

from cryptfs.mount.native import structs
from cryptfs.mount.native.node import SizeWatch

VALID_FOR = 86_400  # seconds, as the engine has it for a vault
_BILLION = 10**9


class _Node:
    __slots__ = ("descriptors", "key", "last", "lookups", "name", "parent")

    def __init__(self, parent: int, name: bytes, key: tuple[int, int]) -> None:
        self.parent, self.name, self.key = parent, name, key
        self.lookups = 0
        self.descriptors: list[int] = []
        self.last: os.stat_result | None = None


class PathNodes:
    """All nodes, by number and by inode."""

    def __init__(self, root: str) -> None:
        self.root = os.fsencode(root)
        self._lock = threading.Lock()
        self._by_id: dict[int, _Node] = {}
        self._by_key: dict[tuple[int, int], int] = {}
        self._next = structs.ROOT_ID + 1
        self.watch = SizeWatch()  # nobody asks it, however many there are: a bench ends

    def path(self, nodeid: int) -> bytes:
        """Where it is now. Raises: OSError: ESTALE."""
        parts: list[bytes] = []
        while nodeid != structs.ROOT_ID:
            node = self._by_id.get(nodeid)
            if node is None:
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
            parts.append(node.name)
            nodeid = node.parent
        parts.append(self.root)
        return b"/".join(reversed(parts))

    def child(self, parent: int, name: bytes) -> bytes:
        """The path of an entry."""
        return self.path(parent) + b"/" + name

    def remember(self, parent: int, name: bytes, st: os.stat_result) -> int:
        """The number of an entry that the kernel is told of."""
        key = (st.st_dev, st.st_ino)
        with self._lock:
            nodeid = self._by_key.get(key)
            if nodeid is None:
                nodeid = self._next
                self._next += 1
                self._by_id[nodeid] = _Node(parent, name, key)
                self._by_key[key] = nodeid
            node = self._by_id[nodeid]
            node.parent, node.name = parent, name
            node.lookups += 1
        return nodeid

    def forget(self, nodeid: int, lookups: int) -> None:
        """The kernel gives back references."""
        with self._lock:
            node = self._by_id.get(nodeid)
            if node is None:
                return
            node.lookups -= lookups
            if node.lookups <= 0:
                del self._by_id[nodeid]
                if self._by_key.get(node.key) == nodeid:
                    del self._by_key[node.key]

    def gone(self, st: os.stat_result) -> None:
        """A name went: with the last one the inode number is free for another file.

        The kernel may still ask for the node, or set its times; what it was told last is good enough.
        """
        if st.st_nlink <= 1 or stat.S_ISDIR(st.st_mode):
            with self._lock:
                nodeid = self._by_key.pop((st.st_dev, st.st_ino), None)
                if nodeid is not None:
                    self._by_id[nodeid].last = st

    def last(self, nodeid: int) -> os.stat_result | None:
        """What was known of a file when it lost its last name; None where it has one."""
        node = self._by_id.get(nodeid)
        return None if node is None or node.descriptors else node.last

    def moved(self, st: os.stat_result, parent: int, name: bytes) -> None:
        """After a rename."""
        with self._lock:
            nodeid = self._by_key.get((st.st_dev, st.st_ino))
            if nodeid is not None:
                self._by_id[nodeid].parent, self._by_id[nodeid].name = parent, name

    def opened(self, nodeid: int, fd: int) -> None:
        """A descriptor more."""
        self._by_id[nodeid].descriptors.append(fd)

    def closed(self, nodeid: int, fd: int) -> None:
        """And one less."""
        node = self._by_id.get(nodeid)
        if node is not None:
            node.descriptors.remove(fd)

    def descriptor(self, nodeid: int) -> int | None:
        """One that is open, through which a file without a name can be reached."""
        node = self._by_id.get(nodeid)
        return node.descriptors[-1] if node is not None and node.descriptors else None


def _attr(st: os.stat_result) -> bytes:
    return structs.ATTR.pack(
        st.st_ino, st.st_size, st.st_blocks,
        st.st_atime_ns // _BILLION, st.st_mtime_ns // _BILLION, st.st_ctime_ns // _BILLION,
        st.st_atime_ns % _BILLION, st.st_mtime_ns % _BILLION, st.st_ctime_ns % _BILLION,
        st.st_mode, st.st_nlink, st.st_uid, st.st_gid, 0, st.st_blksize, 0,
    )  # fmt: skip


def attributes(st: os.stat_result) -> bytes:
    """fuse_attr_out."""
    return structs.ATTR_OUT.pack(VALID_FOR, 0, 0) + _attr(st)


def entry(nodeid: int, st: os.stat_result) -> bytes:
    """fuse_entry_out."""
    return structs.ENTRY_OUT.pack(nodeid, 0, VALID_FOR, VALID_FOR, 0, 0) + _attr(st)
