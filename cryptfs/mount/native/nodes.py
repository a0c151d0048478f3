"""Inodes: what the kernel calls a node by number, and where its backing file is.

The kernel knows inodes, the vault has names. A node remembers one name of its file, which is kept right
through renames, and is found by the backing inode, so that all names of a file share one node. A file
that loses the name that is known here gets a descriptor instead.

Others change the vault, too, and the filesystem gives a freed inode number to the next file. So every way
from a node to its backing file makes sure that it is the file that was meant (vfs/identity.py). A node whose
place has another file by now, or whose file has other content, is retired: requests to it say ESTALE. The
kernel then looks the name up again and learns of a new node; handles that are open go on.

Numbers are never used twice, so the generation is always 0.
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
from cryptfs.mount.native.node import INODE, Displaced, HeldFile, Node, NodeKey
from cryptfs.mount.native.structs import ROOT_ID
from cryptfs.storage.backing import HELD_FILE_FLAGS
from cryptfs.storage.libc import statx_birth_time
from cryptfs.vfs.attributes import Attributes
from cryptfs.vfs.directory import SELF, Directory, Place
from cryptfs.vfs.filestate import FileState
from cryptfs.vfs.identity import is_regular, stale
from cryptfs.vfs.overtaking import is_overtaken
from cryptfs.vfs.tree import VaultTree

MAX_OPEN_DIRECTORIES = 1024
MAX_KEPT_NUMBERS = 256  # of symlinks made anew; the oldest take their new number then
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE)


class NodeTable:
    """All nodes of a mount. Its lock covers the maps and the places, for moments only."""

    def __init__(self, tree: VaultTree) -> None:
        self._tree = tree
        self._exclusive = tree.context.exclusive
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
        tree.files.on_left = self._left

    def __len__(self) -> int:
        return len(self._by_id)

    def get(self, nodeid: int) -> Node:
        """The node of a request. Raises: OSError: ESTALE, which the kernel never provokes."""
        node = self._by_id.get(nodeid)
        if node is None:
            raise stale()
        return node

    def find(self, st: os.stat_result) -> Node | None:
        """The node of a backing file, where one is kept."""
        return self._by_key.get(self._key(st))

    def file_key(self, node: Node) -> tuple[int, int]:
        """Device and inode of a node's backing file."""
        key = node.key
        return (self._device, key) if key <= INODE else (key >> 64, key & INODE)

    def _key(self, st: os.stat_result) -> NodeKey:
        return st.st_ino if st.st_dev == self._device else st.st_dev << 64 | st.st_ino

    def made(self, st: os.stat_result) -> None:
        """A file was made here just now: a node with its number is of one that others have removed."""
        node = self._by_key.get(self._key(st))
        if node is not None:
            self.retire(node)

    def remember(self, parent: Node, name: bytes, found: Attributes) -> Node:
        """The node of an entry that the kernel is about to be told of; counts as a lookup."""
        st = found.st
        key = st.st_ino if st.st_dev == self._device else st.st_dev << 64 | st.st_ino
        node = self._by_key.get(key)
        if (
            node is not None
            and (st.st_ctime_ns != node.ctime or found.size != node.size)
            and not self._is_still(node, parent, name, found)
        ):
            self.retire(node)
        with self.lock:
            node = self._by_key.get(key)
            if node is None:
                node = Node(self._next_id, key, parent, name)
                node.saw(found)
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

    # ---- whether it is still the same

    def _is_still(self, node: Node, parent: Node, name: bytes, found: Attributes) -> bool:
        """Whether an entry with a node's inode number is its file, and has what the kernel knows of it."""
        if node.directory is not None or node.held is not None or node is self.root:
            return True  # it is open, so nobody else can have its number
        st = found.st
        regular = is_regular(st)
        state = self.open_state(node) if regular else None
        if self._was_moved(node, parent, name, st) and not (state is not None and state.handles):
            return False
        if state is not None and self._tree.files.share(state):  # nobody closes its descriptor meanwhile
            try:
                return not is_overtaken(state, st)
            finally:
                with contextlib.suppress(OSError):  # told to nobody, as at any last close
                    self._tree.files.release(state)
        if self._exclusive:
            return not regular or found.size == node.size
        directory = self.directory(parent)
        try:
            held_fd = os.open(directory.entry_name(name), HELD_FILE_FLAGS, dir_fd=directory.fd)
        except OSError:
            return False  # it went meanwhile
        try:
            st = os.fstat(held_fd)
            if self._key(st) != node.key or not node.is_object(held_fd, st):
                return False
            if not regular:
                node.ctime, node.size = st.st_ctime_ns, found.size
                return True
            return self._tree.identity.has_content(node, held_fd, st)
        finally:
            os.close(held_fd)

    def _was_moved(self, node: Node, parent: Node, name: bytes, st: os.stat_result) -> bool:
        """Whether somebody else has moved a file here, so that its old name is none of its."""
        single = st.st_nlink == 1 and not (self._exclusive or stat.S_ISDIR(st.st_mode))
        return single and (node.parent is not parent or node.name != name)

    def open_state(self, node: Node) -> FileState | None:
        """What is open here of a node's file; not of one that has got its inode number since."""
        files = self._tree.files
        state = files.find_key(self.file_key(node))
        if state is None or self._exclusive or node.is_born(files.birth_of(state)):
            return state
        return None

    def _hold_open(self, node: Node) -> int:
        state = self.open_state(node)
        held_fd = None if state is None else self._tree.files.hold(state)
        if held_fd is None:
            raise stale()
        return held_fd

    def retire(self, node: Node) -> None:
        """Another file has its place, or other content: only what is open leads to the old one now."""
        with self.lock:
            if self._by_key.get(node.key) is node:
                del self._by_key[node.key]
            node.stale = True

    def require_meant(self, node: Node | None, parent: Node, name: bytes, held: HeldFile) -> None:
        """Before an entry goes or moves: a request only names it, and means what the kernel was told.

        Of a file with several names any will do: no content goes with it.

        Args:   held: the file that is there. node: the one that the kernel knows under this name.
        Raises: OSError: ESTALE: that is something else by now.
        """
        if self._exclusive:
            return
        if node is None:
            raise stale()
        elsewhere = node.held is None and (node.parent is not parent or node.name != name)
        if elsewhere and (held.st.st_nlink == 1 or stat.S_ISDIR(held.st.st_mode)):
            raise stale()
        if node.directory is None and node.held is None and not node.is_object(held.fd, held.st):
            self.retire(node)
            raise stale()

    def _left(self, state: FileState) -> None:
        """A file that was written to here was closed: what it was left like is what the kernel knows."""
        if not state.was_changed or state.overtaken:
            return
        inode, device = state.key[1], state.key[0]
        node = self._by_key.get(inode if device == self._device else device << 64 | inode)
        if node is not None and (self._exclusive or node.is_born(statx_birth_time(state.fd, ""))):
            node.ctime, node.mtime, _ = state.left
            node.size, node.version = state.size, state.version

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
            if self._exclusive or node.held is not None or self._tree.opener.is_current(found):
                return found
            with self.lock:  # it has another record: its names are others now
                node.directory = found = None
                self._open_directories.pop(node.nodeid, None)
        # Down from the first that is open; not by recursion: there can be thousands.
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
                if len(self._open_directories) >= MAX_OPEN_DIRECTORIES:
                    self._close_oldest()
                at.directory = found
                self.opened_directories += 1
                self._open_directories[at.nodeid] = at
        return found

    def _close_oldest(self) -> None:
        for nodeid in list(self._open_directories)[: MAX_OPEN_DIRECTORIES // 2]:
            self._open_directories.pop(nodeid).directory = None

    def _require_same_directory(self, node: Node, found: Directory) -> None:
        if not self._exclusive:
            st = os.fstat(found.fd)
            if self._key(st) != node.key or not node.is_object(found.fd, st):
                self.retire(node)
                raise stale()

    def is_present(self, node: Node) -> bool:
        """Whether a directory is there; False where somebody else has removed it."""
        directory = node.directory
        return node.held is not None or directory is None or os.fstat(directory.fd).st_nlink > 0

    def require_present(self, node: Node) -> None:
        """Raises: OSError: ESTALE where a directory was removed by somebody else."""
        if not self.is_present(node):
            raise stale()

    def place(self, node: Node) -> tuple[Directory, bytes]:
        """Where a node's file is. Raises: OSError: ESTALE where it has no place any more."""
        if node.parent is None:
            return self._tree.root, SELF
        if node.held is not None or node.stale:
            raise stale()
        return self.directory(node.parent), node.name

    def file_of(self, node: Node) -> Place:
        """A node's file, surely that one: an open directory, or the file by a descriptor.

        Raises: OSError: ESTALE where its place has another one, and nobody has it open.
        """
        held, directory = node.held, node.directory
        if held is None and self._exclusive:
            return self.place(node)
        # A directory that was removed has lost its record: what it is called in there is known here only.
        return (directory, SELF) if directory is not None else (held or self.reach(node), SELF)

    def reach(self, node: Node) -> HeldFile:
        """A node's file by a descriptor: at its place, or as it is open here. Raises: OSError: ESTALE."""
        try:
            directory, name = self.place(node)
            entry_name = directory.entry_name(name)
            fd = os.open(entry_name, HELD_FILE_FLAGS, dir_fd=directory.fd)
            held = HeldFile(fd, directory.path_of(entry_name))
            if self._key(held.st) == node.key and node.is_object(held.fd, held.st):
                return held
        except OSError as error:
            if error.errno not in _GONE:
                raise
        return HeldFile(self._hold_open(node))

    def attributes(self, node: Node) -> Attributes:
        """Attributes now. Raises: OSError: ESTALE where another file has its place, or other content."""
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
            if not self._is_still(node, node.parent, node.name, found):
                self.retire(node)
                return self._attributes_open(node)
            if is_regular(found.st):
                found = self._tree.sized(found.st)
        return found

    def _attributes_open(self, node: Node) -> Attributes:
        """Of a file that has lost its place to another one: while somebody has it open, it is there."""
        held_fd = self._hold_open(node)
        try:
            return self._tree.stat_descriptor(held_fd)
        finally:
            os.close(held_fd)

    # ---- changes

    def hold(self, directory: Directory, name: bytes) -> tuple[Node | None, HeldFile]:
        """The node of an entry, where the kernel knows it, and the entry's file held."""
        held = HeldFile(os.open(directory.entry_name(name), HELD_FILE_FLAGS, dir_fd=directory.fd))
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
                node.birth, node.ctime = -st.st_ctime_ns, 0
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
            oldest.first, oldest.inode = None, oldest.key & INODE

    def close(self) -> None:
        """After the mount is gone."""
        with self.lock:
            for node in (*self._by_id.values(), *self._by_key.values()):
                node.held = node.directory = node.first = None
            self._by_id.clear()
            self._by_key.clear()
            self._open_directories.clear()
