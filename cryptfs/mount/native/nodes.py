"""Inodes: what the kernel calls a node by number, and where its backing file is.

The kernel knows inodes, the vault has names. A node remembers one name of its file, which is kept right
through renames, and is found by the backing inode, so that all names of a file share one node. A file
that loses the name that is known here gets a descriptor instead.

Numbers are never used twice, so the generation is always 0 and an inode number that the backing
filesystem uses again is never taken for the old file.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
import threading
from collections import deque
from collections.abc import Callable

from cryptfs.errors import IntegrityError
from cryptfs.mount.native.structs import ROOT_ID
from cryptfs.vfs.attributes import Attributes
from cryptfs.vfs.directory import SELF, Directory, Place, Unnamed
from cryptfs.vfs.tree import VaultTree

MAX_OPEN_DIRECTORIES = 1024
MAX_KEPT_NUMBERS = 256  # of symlinks made anew; the oldest take their new number then

NodeKey = int
"""A backing inode: its number, and the device's above it where that is not the vault's own."""


_INODE = 2**64 - 1


class HeldFile:
    """An O_PATH descriptor, closed with its last reference: never under a request that uses it.

    st: of when it was opened.   gone: the file has lost its last name since.
    """

    __slots__ = ("fd", "gone", "st")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.gone = False
        self.st = os.fstat(fd)

    def __del__(self) -> None:
        os.close(self.fd)


class Node:
    """One file, directory or other, that the kernel has looked up.

    parent, name: one of its places; meaningless while held is set.
    children:     nodes whose parent this is; with any it is kept after the kernel has forgotten it.
    inode:        number shown to programs; stays although a symlink that is renamed is made anew.
    first:        while they differ: holds the backing file of that number, so that no other can get it.
    lookups:      references that the kernel holds.
    held:         descriptor of a file without a place known here.
    renamed:      since the kernel told its times last.
    """

    __slots__ = (
        "children",
        "directory",
        "first",
        "held",
        "inode",
        "key",
        "lookups",
        "name",
        "nodeid",
        "parent",
        "renamed",
    )

    def __init__(self, nodeid: int, key: NodeKey, parent: Node | None, name: bytes) -> None:
        self.nodeid = nodeid
        self.key = key
        self.inode = key if key <= _INODE else key & _INODE  # one object for both, nearly always
        self.parent = parent
        self.name = name
        self.lookups = 0
        self.children = 0
        self.renamed = False
        self.held: HeldFile | None = None
        self.first: HeldFile | None = None
        self.directory: Directory | None = None


class Displaced:
    """See NodeTable.displaced. A class: a generator would cost as much again as the unlink itself."""

    __slots__ = ("_held", "_node")

    def __init__(self, node: Node | None, held: HeldFile) -> None:
        self._node = node
        self._held = held

    def __enter__(self) -> None:
        if self._node is not None:
            self._node.held = self._held

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and self._node is not None:
            self._node.held = None


class NodeTable:
    """All nodes of a mount. Its lock covers the maps and the places, for moments only."""

    def __init__(self, tree: VaultTree) -> None:
        self._tree = tree
        self.lock = threading.Lock()
        st = os.fstat(tree.root.fd)
        self._device = st.st_dev
        root = Node(ROOT_ID, st.st_ino, None, SELF)
        root.lookups = 1
        root.directory = tree.root
        self.root = root
        self._by_id: dict[int, Node] = {ROOT_ID: root}
        self._by_key: dict[NodeKey, Node] = {root.key: root}
        self._next_id = ROOT_ID + 1
        self._open_directories: dict[int, Node] = {}
        self._renumbered: deque[Node] = deque()
        self.opened_directories = 0  # how often, since the mount began
        self._full_at = sys.maxsize
        self._on_full: Callable[[], None] | None = None

    def __len__(self) -> int:
        return len(self._by_id)

    def get(self, nodeid: int) -> Node:
        """The node of a request. Raises: OSError: ESTALE, which the kernel never provokes."""
        node = self._by_id.get(nodeid)
        if node is None:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return node

    def find(self, st: os.stat_result) -> Node | None:
        """The node of a backing file, where one is kept."""
        return self._by_key.get(self._key(st))

    def file_key(self, node: Node) -> tuple[int, int]:
        """Device and inode of a node's backing file."""
        key = node.key
        return (self._device, key) if key <= _INODE else (key >> 64, key & _INODE)

    def _key(self, st: os.stat_result) -> NodeKey:
        return st.st_ino if st.st_dev == self._device else st.st_dev << 64 | st.st_ino

    def remember(self, parent: Node, name: bytes, st: os.stat_result) -> Node:
        """The node of an entry that the kernel is about to be told of; counts as a lookup."""
        key = st.st_ino if st.st_dev == self._device else st.st_dev << 64 | st.st_ino
        with self.lock:
            node = self._by_key.get(key)
            if node is None:
                node = Node(self._next_id, key, parent, name)
                self._next_id += 1
                parent.children += 1
                self._by_id[node.nodeid] = node
                self._by_key[key] = node
            else:
                if node.parent is not parent or node.name != name or node.held is not None:
                    self._place(node, parent, name)
                if node.lookups == 0:  # was kept for its children's sake
                    self._by_id[node.nodeid] = node
            node.lookups += 1
        if len(self._by_id) > self._full_at:
            self._full()
        return node

    def _place(self, node: Node, parent: Node, name: bytes) -> None:
        if node.parent is not parent:
            parent.children += 1
            self._leave(node)
        node.parent, node.name, node.held = parent, name, None

    def _leave(self, node: Node) -> None:
        """A node goes, or goes elsewhere: its parent may have been kept for its sake alone."""
        parent = node.parent
        while parent is not None:
            parent.children -= 1
            if parent.children or parent.lookups:
                return
            self._drop(parent)
            parent = parent.parent

    def _drop(self, node: Node) -> None:
        if self._by_key.get(node.key) is node:
            del self._by_key[node.key]
        self._open_directories.pop(node.nodeid, None)
        node.directory = node.held = node.first = None

    def forget(self, nodeid: int, lookups: int) -> None:
        """The kernel gives back references; the node goes with the last."""
        with self.lock:
            node = self._by_id.get(nodeid)
            if node is None or node is self.root:
                return
            node.lookups -= lookups
            if node.lookups > 0:
                return
            del self._by_id[nodeid]
            if node.children:
                return
            self._drop(node)
            parent = node.parent
            if parent is not None and parent.lookups:
                parent.children -= 1
            else:
                self._leave(node)

    # ---- how many there are

    def watch_size(self, limit: int, on_full: Callable[[], None]) -> None:
        """Have `on_full` called, once, when there are more nodes than `limit`."""
        self._on_full, self._full_at = on_full, limit

    def _full(self) -> None:
        with self.lock:
            on_full, self._on_full, self._full_at = self._on_full, None, sys.maxsize
        if on_full is not None:
            on_full()

    def oldest_first(self) -> list[Node]:
        """What the kernel knows now but the root, in the order in which it was told."""
        with self.lock:
            return list(self._by_id.values())[1:]

    # ---- places

    def directory(self, node: Node) -> Directory:
        """The open directory of a node. Raises: OSError (ENOTDIR, ENOENT), IntegrityError."""
        found = node.directory
        if found is not None:
            return found
        # Down from the first that is open; not by recursion: there can be thousands.
        closed = []
        at = node
        while found is None:
            if at.held is not None or at.parent is None:
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
            closed.append(at)
            at = at.parent
            found = at.directory
        while closed:
            at = closed.pop()
            found = self._tree.directory(found, at.name)
            with self.lock:
                if len(self._open_directories) >= MAX_OPEN_DIRECTORIES:
                    self._close_oldest()
                at.directory = found
                self.opened_directories += 1
                self._open_directories[at.nodeid] = at
        return found

    def _close_oldest(self) -> None:
        for nodeid in list(self._open_directories)[: MAX_OPEN_DIRECTORIES // 2]:
            self._open_directories.pop(nodeid).directory = None

    def place(self, node: Node) -> tuple[Directory, bytes]:
        """Where a node's file is. Raises: OSError: ESTALE where it has no place any more."""
        if node.parent is None:
            return self._tree.root, SELF
        if node.held is not None:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return self.directory(node.parent), node.name

    def file_of(self, node: Node) -> Place:
        """Where a node's file is or, without a place, the file itself."""
        held, directory = node.held, node.directory
        if held is None:
            return self.place(node)
        # A directory that was removed has lost its record: what it is called in there is known here only.
        return (Unnamed(held.fd), SELF) if directory is None else (directory, SELF)

    def attributes(self, node: Node) -> Attributes:
        """Attributes now. Raises: OSError: ESTALE where another file has taken its place."""
        open_node = node.held or node.directory
        if open_node is not None:
            return self._tree.stat_descriptor(open_node.fd)
        found = self._tree.stat(*self.place(node))
        if self._key(found.st) != node.key:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return found

    # ---- changes

    def hold(self, directory: Directory, name: bytes) -> tuple[Node | None, HeldFile]:
        """The node of an entry, where the kernel knows it, and the entry's file held."""
        entry_name = directory.entry_name(name)
        fd = os.open(entry_name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory.fd)
        held = HeldFile(fd)
        return self.find(held.st), held

    def displaced(self, node: Node | None, held: HeldFile) -> Displaced:
        """While its place changes, what comes for a node goes to the file itself; then see lost or moved."""
        if node is None or node.held is not None:
            return Displaced(None, held)
        if node.directory is None and stat.S_ISDIR(held.st.st_mode):
            with contextlib.suppress(OSError, IntegrityError):
                self.directory(node)  # for what comes for its entries meanwhile
        return Displaced(node, held)

    def lost(self, node: Node | None, held: HeldFile) -> None:
        """After a name went: the node keeps its file by the descriptor."""
        if node is None:
            return
        # The only name was removed: the kernel makes no other of the same file meanwhile.
        held.gone = held.st.st_nlink == 1 or os.fstat(held.fd).st_nlink == 0
        with self.lock:
            self._open_directories.pop(node.nodeid, None)  # a directory stays open: it has no place
            if held.gone or node.directory is not None:
                self._by_key.pop(node.key, None)
            if node.lookups > 0:
                node.held = held

    def moved(self, node: Node | None, parent: Node, name: bytes, st: os.stat_result, old: HeldFile) -> None:
        """After a rename or link: the node's place, and its new backing inode if it was made anew.

        Args: st: of the file in its new place.   old: the file as it was before.
        """
        if node is None:
            return
        with self.lock:
            self._place(node, parent, name)
            key = self._key(st)
            if key != node.key:
                self._by_key.pop(node.key, None)
                node.key = key
                self._by_key[key] = node
                if node.first is None:
                    self._keep_number(node, old)

    def _keep_number(self, node: Node, old: HeldFile) -> None:
        node.first = old
        self._renumbered.append(node)
        if len(self._renumbered) > MAX_KEPT_NUMBERS:
            oldest = self._renumbered.popleft()
            oldest.first, oldest.inode = None, oldest.key & _INODE

    def close(self) -> None:
        """After the mount is gone."""
        with self.lock:
            for node in (*self._by_id.values(), *self._by_key.values()):
                node.held = node.directory = node.first = None
            self._by_id.clear()
            self._by_key.clear()
            self._open_directories.clear()
