"""Inodes: the kernel knows a node by a number; this table knows its backing file.

The vault has names. A node remembers one name of its file, also through renames. The table finds it by the
backing inode, so that all names of a file share one node. Without that name the node gets a descriptor.

Others change the vault as well, and the filesystem gives a freed inode number to the next file. So every way
from a node to its backing file verifies that it is the right one (vfs/tree/identity.py). If another file has
the node's place, or its file has other content, the table retires the node: requests to it get ESTALE. The
kernel then looks the name up again and learns of a new node; open handles go on.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading

from cryptfs.errors import IntegrityError
from cryptfs.mount.native.node import (
    Displaced,
    Node,
    NodeKey,
    Numbers,
    OpenDirectories,
    Renumbered,
    Sameness,
    SizeWatch,
    file_key,
    key_of,
)
from cryptfs.mount.native.structs import ROOT_ID
from cryptfs.storage.backing import HELD_FILE_FLAGS
from cryptfs.storage.libc import statx_birth_time
from cryptfs.vfs.content.filestate import FileState
from cryptfs.vfs.tree.attributes import Attributes
from cryptfs.vfs.tree.directory import SELF, Directory, HeldFile, Place
from cryptfs.vfs.tree.identity import is_regular, stale
from cryptfs.vfs.tree.tree import VaultTree

_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE)


class NodeTable:
    """All nodes of a mount. Its lock covers the maps and the places, for moments only."""

    def __init__(self, tree: VaultTree) -> None:
        self._tree = tree
        self._exclusive = tree.context.exclusive
        self.lock = threading.Lock()
        st = os.fstat(tree.root.fd)
        self._device = st.st_dev
        self._sameness = Sameness(tree, self.directory, st.st_dev, self.lock)
        self.open_state = self._sameness.open_state
        root = Node(ROOT_ID, st.st_ino, None, SELF)
        root.lookups = 1
        root.directory = tree.root
        self.root = root
        self._by_id: dict[int, Node] = {ROOT_ID: root}
        self._by_key: dict[NodeKey, Node] = {root.key: root}
        self.numbers = Numbers()
        self._open_directories = OpenDirectories()
        self._renumbered = Renumbered()
        self.watch = SizeWatch()
        tree.files.on_left = self._left

    def __len__(self) -> int:
        return len(self._by_id)

    @property
    def opened_directories(self) -> int:
        """How often a directory was opened, since the mount began."""
        return self._open_directories.count

    def get(self, nodeid: int) -> Node:
        """The node of a request. Raises: OSError: ESTALE; the kernel never provokes it."""
        node = self._by_id.get(nodeid)
        if node is None:
            raise stale()
        return node

    def find(self, st: os.stat_result) -> Node | None:
        """The node of a backing file, or None."""
        return self._by_key.get(self._key(st))

    def shown_inode(self, inode: int) -> int:
        """The inode number that the kernel gets for a backing file on the disk of the vault."""
        node = self._by_key.get(inode)
        return inode if node is None else node.inode

    def file_key(self, node: Node) -> tuple[int, int]:
        """Device and inode of a node's backing file."""
        return file_key(node.key, self._device)

    def _key(self, st: os.stat_result) -> NodeKey:
        return key_of(st, self._device)

    def made(self, st: os.stat_result) -> None:
        """We have just made a file: an older node with its number is of a file that others have removed."""
        node = self._by_key.get(self._key(st))
        if node is not None:
            self.retire(node)

    def remember(self, parent: Node, name: bytes, found: Attributes) -> Node:
        """The node of an entry, for the reply that tells the kernel of it; counts as a lookup."""
        st = found.st
        key = st.st_ino if st.st_dev == self._device else st.st_dev << 64 | st.st_ino  # as key_of
        node = self._by_key.get(key)
        if node is not None and (
            ((st.st_ctime_ns != node.ctime or found.size != node.size)
             and not self._sameness.is_still(node, parent, name, found))
            or (stat.S_ISLNK(st.st_mode) and self._sameness.is_of_another_name(node, parent, name, st))
            or (stat.S_ISDIR(st.st_mode) and not self._sameness.belongs(node, parent, name))
        ):  # fmt: skip
            self.retire(node)
        with self.lock:
            node = self._by_key.get(key)
            if node is None:
                node = Node(self.numbers.of(parent, name, st, self._by_id), key, parent, name)
                node.saw(found)
                parent.children += 1
                self._by_id[node.nodeid] = node
                self._by_key[key] = node
            else:
                if node.held is not None or node.is_elsewhere(parent, name):
                    self._place(node, parent, name)
                if node.lookups == 0:  # only its children have kept it
                    self._by_id[node.nodeid] = node
            node.lookups += 1
        if len(self._by_id) > self.watch.limit:
            self.watch.full()
        return node

    def adopt(self, nodeid: int, held: HeldFile, directory: Directory | None) -> Node:
        """The node of a file that a handle leads to, without a place. Raises: OSError: ESTALE."""
        key = self._key(held.st)
        with self.lock:
            node = self._by_key.get(key)
            if node is None:
                node = self._by_key[key] = Node(nodeid, key, None, SELF)
                node.held, node.directory = held, directory
            if node.nodeid != nodeid:
                raise stale()
            self._by_id[nodeid] = node
        return node

    # ---- whether it is still the same

    def _hold_open(self, node: Node) -> int:
        state = self.open_state(node)
        held_fd = None if state is None else self._tree.files.hold(state)
        if held_fd is None:
            raise stale()
        return held_fd

    def retire(self, node: Node) -> None:
        """Another file has its place, or other content: now only open descriptors lead to the old one."""
        with self.lock:
            if self._by_key.get(node.key) is node:
                del self._by_key[node.key]
            node.stale = True

    def require_meant(self, node: Node | None, parent: Node, name: bytes, held: HeldFile) -> None:
        """Before an entry goes or moves: verify that the name still means the file that the kernel knows.

        If the file has several names, any of them will do: no content goes with it.

        Args:   held: the present file. node: the one that the kernel knows under this name.
        Raises: OSError: ESTALE: the present file is another one.
        """
        is_link = stat.S_ISLNK(held.st.st_mode)
        if node is not None and is_link and self._sameness.is_of_another_name(node, parent, name, held.st):
            raise stale()
        if self._exclusive:
            return
        if node is None:
            raise stale()
        elsewhere = node.held is None and node.is_elsewhere(parent, name)
        if elsewhere and (held.st.st_nlink == 1 or stat.S_ISDIR(held.st.st_mode)):
            raise stale()
        if node.directory is None and node.held is None and not node.is_object(held.fd, held.st):
            self.retire(node)
            raise stale()

    def _left(self, state: FileState) -> None:
        """After the close of a file that was written to here: the kernel knows its final state."""
        if not state.was_changed or state.overtaken:
            return
        device, inode = state.key
        node = self._by_key.get(inode if device == self._device else device << 64 | inode)
        if node is not None and (
            self._exclusive or state.whereabouts.known is node or node.is_born(statx_birth_time(state.fd, ""))
        ):
            node.ctime, node.mtime, _ = state.left
            node.size, node.version = state.size, state.version

    def _place(self, node: Node, parent: Node, name: bytes) -> None:
        if node.parent is not parent:
            parent.children += 1
            self._leave(node)
        node.parent, node.name, node.held = parent, name, None

    def _leave(self, node: Node) -> None:
        """A node goes, or moves away: perhaps it alone has kept its parent."""
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
        self._open_directories.forget(node)
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

    def oldest_first(self) -> list[Node]:
        """All nodes that the kernel knows now, except the root, in the order in which it learned of them."""
        with self.lock:
            return list(self._by_id.values())[1:]

    # ---- places

    def directory(self, node: Node) -> Directory:
        """The open directory of a node. Raises: OSError (ENOTDIR, ENOENT), IntegrityError."""
        found = node.directory
        if found is not None:
            if self._exclusive or node.held is not None or self._tree.opener.is_current(found):
                return found
            with self.lock:  # it has another record: so its names are others now
                node.directory = found = None
                self._open_directories.forget(node)
        # From the first open one down; not by recursion: there can be thousands.
        closed = []
        at = node
        while found is None:
            if at.held is not None or at.parent is None or at.stale:
                raise stale()
            closed.append(at)
            at = at.parent
            found = at.directory
        while closed:
            at = closed.pop()
            found = self._tree.directory(found, at.name)
            self._require_same_directory(at, found)
            with self.lock:
                self._open_directories.opened(at, found)
        return found

    def _require_same_directory(self, node: Node, found: Directory) -> None:
        if not self._exclusive:
            st = os.fstat(found.fd)
            if self._key(st) != node.key or not node.is_object(found.fd, st):
                self.retire(node)
                raise stale()

    def place(self, node: Node) -> tuple[Directory, bytes]:
        """The place of a node's file. Raises: OSError: ESTALE: it has none now."""
        if node.parent is None:
            return self._tree.root, SELF
        if node.held is not None or node.stale:
            raise stale()
        return self.directory(node.parent), node.name

    def file_of(self, node: Node) -> Place:
        """A node's file, surely that one: an open directory, or the file by a descriptor.

        Raises: OSError: ESTALE: another file has its place, and nobody has it open.
        """
        held, directory = node.held, node.directory
        if held is None and self._exclusive:
            return self.place(node)
        # A removed directory has lost its record: only this object knows its entries' names.
        return (directory, SELF) if directory is not None else (held or self.reach(node), SELF)

    def reach(self, node: Node) -> HeldFile:
        """A node's file by a descriptor: at its place, or as it is open here. Raises: OSError: ESTALE."""
        try:
            directory, name = self.place(node)
            entry_name = directory.entry_name(name)
            fd = os.open(entry_name, HELD_FILE_FLAGS, dir_fd=directory.fd)
            held = HeldFile(fd, directory.path_of(entry_name), (directory, name))
            if self._key(held.st) == node.key and node.is_object(held.fd, held.st):
                return held
        except OSError as error:
            if error.errno not in _GONE:
                raise
        return HeldFile(self._hold_open(node))

    def attributes(self, node: Node) -> Attributes:
        """Attributes now. Raises: OSError: ESTALE: another file has its place, or it has other content."""
        open_node = node.held or node.directory
        if open_node is not None:
            return self._tree.stat_descriptor(open_node.fd)
        try:
            found = self._tree.stat(*self.place(node))
        except OSError as error:
            if error.errno not in _GONE:
                raise
            return self._attributes_open(node)
        if self._key(found.st) != node.key:
            return self._attributes_open(node)
        if found.st.st_ctime_ns != node.ctime or found.size != node.size:
            assert node.parent is not None  # the root is open
            if not self._sameness.is_still(node, node.parent, node.name, found):
                self.retire(node)
                return self._attributes_open(node)
            if is_regular(found.st):
                found = self._tree.sized(found.st)
        return found

    def _attributes_open(self, node: Node) -> Attributes:
        """Of a file that has lost its place to another one: it exists while somebody has it open."""
        held_fd = self._hold_open(node)
        try:
            return self._tree.stat_descriptor(held_fd)
        finally:
            os.close(held_fd)

    # ---- changes

    def hold(self, directory: Directory, name: bytes) -> tuple[Node | None, HeldFile]:
        """The node of an entry, if the kernel knows it, and the entry's file, held."""
        held = HeldFile(os.open(directory.entry_name(name), HELD_FILE_FLAGS, dir_fd=directory.fd))
        if stat.S_ISLNK(held.st.st_mode):
            held.found_at = (directory, name)  # what it holds is bound to its place
        return self.find(held.st), held

    def displaced(self, node: Node | None, held: HeldFile) -> Displaced:
        """While its place changes, requests to a node go to the file itself; then call lost or moved."""
        if node is None or node.held is not None:
            return Displaced(None, held)
        if node.directory is None and stat.S_ISDIR(held.st.st_mode):
            with contextlib.suppress(OSError, IntegrityError):
                self.directory(node)  # for requests to its entries meanwhile
        return Displaced(node, held)

    def lost(self, node: Node | None, held: HeldFile) -> None:
        """After a name went: the node keeps its file by the descriptor."""
        if node is None:
            return
        # Its only name is gone: the kernel makes no other of the same file meanwhile.
        held.gone = held.st.st_nlink == 1 or os.fstat(held.fd).st_nlink == 0
        with self.lock:
            self._open_directories.forget(node)  # a directory stays open: it has no place
            if held.gone or node.directory is not None:
                self._by_key.pop(node.key, None)
            if node.lookups > 0:
                node.held = held

    def moved(self, node: Node | None, parent: Node, name: bytes, st: os.stat_result, old: HeldFile) -> None:
        """After a rename or link: set the node's place, and its new backing inode if the rename made one.

        Args: st: of the file in its new place.   old: the file as it was before.
        """
        if node is None:
            return
        if node.directory is not None and parent.directory is not None:
            node.directory.moved(parent.directory, name)
        with self.lock:
            self._place(node, parent, name)
            key = self._key(st)
            if key != node.key:
                node.birth, node.ctime, node.anywhere = -st.st_ctime_ns, 0, False
                self._by_key.pop(node.key, None)
                node.key = key
                self._by_key[key] = node
                if node.first is None:
                    self._renumbered.keep_number(node, old)

    def close(self) -> None:
        """After the mount is gone."""
        with self.lock:
            for node in (*self._by_id.values(), *self._by_key.values()):
                node.held = node.directory = node.first = None
            self._by_id.clear()
            self._by_key.clear()
            self._open_directories.clear()
