"""A node: a file that the kernel has looked up, what keeps it, and whether it is still the same."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
import threading
from collections import deque
from collections.abc import Callable, Container

from cryptfs.errors import IntegrityError
from cryptfs.mount.native.structs import ROOT_ID
from cryptfs.storage.backing import HELD_FILE_FLAGS
from cryptfs.storage.handles import BackingHandles
from cryptfs.vfs.content.filestate import FileState
from cryptfs.vfs.content.others import is_overtaken
from cryptfs.vfs.tree.attributes import Attributes
from cryptfs.vfs.tree.directory import Directory, HeldFile
from cryptfs.vfs.tree.identity import Known, is_regular, stale, was_told
from cryptfs.vfs.tree.tree import VaultTree

NodeKey = int
"""A backing inode: its number, and the device's above it if that is not the vault's own."""

MAX_OPEN_DIRECTORIES = 1024
MAX_KEPT_NUMBERS = 256  # of new symlinks after renames; then the oldest show their new number
INODE = 2**64 - 1
"""The bits of a NodeKey that hold the inode number."""


def key_of(st: os.stat_result, device: int) -> NodeKey:
    """The key of a backing file. Args: device: the vault's own."""
    return st.st_ino if st.st_dev == device else st.st_dev << 64 | st.st_ino


def file_key(key: NodeKey, device: int) -> tuple[int, int]:
    """Device and inode. Args: device: the vault's own."""
    return (device, key) if key <= INODE else (key >> 64, key & INODE)


class Node(Known):
    """One file, directory or other entry that the kernel has looked up.

    parent, name: one of its places; meaningless while held is set.
    children:     nodes whose parent this is; they keep it after the kernel has forgotten it.
    inode:        number for programs; stays the same when a rename makes a new backing symlink.
    first:        while the two differ: holds the backing file of that number, so that no other can get it.
    lookups:      references that the kernel holds.
    held:         descriptor of a file without a place known here.
    opened:       before, so the kernel may have pages of it.
    renamed:      since the kernel last told its times.
    stale:        another file has its place, or other content: only descriptors lead to it.
    anywhere:     a symlink that is known to have its target under every name.
    """

    __slots__ = (
        "anywhere",
        "children",
        "directory",
        "first",
        "held",
        "inode",
        "key",
        "lookups",
        "name",
        "nodeid",
        "opened",
        "parent",
        "renamed",
        "stale",
    )

    def __init__(self, nodeid: int, key: NodeKey, parent: Node | None, name: bytes) -> None:
        super().__init__()
        self.nodeid = nodeid
        self.key = key
        self.inode = key if key <= INODE else key & INODE  # one object for both, nearly always
        self.parent = parent
        self.name = name
        self.lookups = 0
        self.children = 0
        self.opened = self.renamed = False
        self.stale = False
        self.anywhere = False
        self.held: HeldFile | None = None
        self.first: HeldFile | None = None
        self.directory: Directory | None = None

    def is_elsewhere(self, parent: Node, name: bytes) -> bool:
        """Whether the node remembers another place of its file than this one."""
        return self.parent is not parent or self.name != name

    def is_present(self) -> bool:
        """Whether a directory is there; False if somebody else has removed it."""
        directory = self.directory
        return self.held is not None or directory is None or os.fstat(directory.fd).st_nlink > 0

    def require_present(self) -> None:
        """Raises: OSError: ESTALE: somebody else has removed the directory."""
        if not self.is_present():
            raise stale()


class Numbers:
    """Gives each new node a number that no other node has had, since the mount began."""

    def __init__(self, first: int = ROOT_ID + 1) -> None:
        self._next = first

    def of(self, parent: Node, name: bytes, st: os.stat_result, taken: Container[int]) -> int:
        """The number of a new node. Call with the table's lock held.

        Args: parent, name: its place.   st: of its file.   taken: the numbers of the present nodes.
        """
        number = self._next
        self._next += 1
        return number


class HandleNumbers(Numbers):
    """As Numbers; the number of a file leads to it, also after the kernel and the table have forgotten it.

    It is the handle of the backing file. A file has two nodes only if others have changed it: then the second
    one has a number that leads nowhere.

    Args: handles: of the filesystem that holds the vault.   device: of that.
    """

    def __init__(self, handles: BackingHandles, device: int) -> None:
        super().__init__(1 << 63)
        self.handles = handles
        self._device = device

    def of(self, parent: Node, name: bytes, st: os.stat_result, taken: Container[int]) -> int:
        """See Numbers.of."""
        directory = parent.directory
        if name and directory is not None and st.st_dev == self._device:
            number = self.handles.number_of(directory.fd, directory.entry_name(name), st.st_ino)
            if number is not None and number > ROOT_ID and number not in taken:
                return number
        number = super().of(parent, name, st, taken)
        while number in taken:
            number = super().of(parent, name, st, taken)
        return number


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


class OpenDirectories:
    """The nodes whose directory was opened for requests, oldest first. Call with the table's lock held.

    count: how often one was opened.
    """

    def __init__(self) -> None:
        self._by_id: dict[int, Node] = {}
        self.count = 0

    def opened(self, node: Node, directory: Directory) -> None:
        """Keep it with its node; too many close the older half."""
        if len(self._by_id) >= MAX_OPEN_DIRECTORIES:
            for nodeid in list(self._by_id)[: MAX_OPEN_DIRECTORIES // 2]:
                self._by_id.pop(nodeid).directory = None
        node.directory = directory
        self._by_id[node.nodeid] = node
        self.count += 1

    def forget(self, node: Node) -> None:
        """It stays open if the node keeps it, else it is closed."""
        self._by_id.pop(node.nodeid, None)

    def clear(self) -> None:
        """Forget all."""
        self._by_id.clear()


class Renumbered:
    """The nodes that show the inode number of a former backing file; it is held, so that no other gets it."""

    def __init__(self) -> None:
        self._nodes: deque[Node] = deque()

    def keep_number(self, node: Node, old: HeldFile) -> None:
        """A node has a new backing file. old: the former one."""
        node.first = old
        self._nodes.append(node)
        if len(self._nodes) > MAX_KEPT_NUMBERS:
            oldest = self._nodes.popleft()
            oldest.first, oldest.inode = None, oldest.key & INODE


class SizeWatch:
    """Notices a table with too many nodes. limit: how many are not too many."""

    def __init__(self) -> None:
        self.limit = sys.maxsize
        self._lock = threading.Lock()
        self._on_full: Callable[[], None] | None = None

    def begin(self, limit: int, on_full: Callable[[], None]) -> None:
        """Call `on_full`, once, when there are more nodes than `limit`."""
        self._on_full, self.limit = on_full, limit

    def full(self) -> None:
        """There are more."""
        with self._lock:
            on_full, self._on_full, self.limit = self._on_full, None, sys.maxsize
        if on_full is not None:
            on_full()


class Sameness:
    """The questions of a node table.

    Args: directory: leads to the open directory of a node, or raises.   device: of the vault.
          lock: the table's.
    """

    def __init__(
        self, tree: VaultTree, directory: Callable[[Node], Directory], device: int, lock: threading.Lock
    ) -> None:
        self._tree = tree
        self._directory = directory
        self._device = device
        self._lock = lock
        self._exclusive = tree.context.exclusive
        self._binds = tree.binding.is_on

    def is_still(self, node: Node, parent: Node, name: bytes, found: Attributes) -> bool:
        """Whether an entry with a node's inode number is its file, with the content that the kernel knows."""
        if node.directory is not None or node.held is not None or node.nodeid == ROOT_ID:
            return True  # it is open, so nobody else can have its number
        st = found.st
        state = self.open_state(node) if (regular := is_regular(st)) else None
        single = st.st_nlink == 1 and not (self._exclusive or stat.S_ISDIR(st.st_mode))
        if single and node.is_elsewhere(parent, name) and not (state is not None and state.handles):
            return False  # somebody else has moved it here, so its old name is not its own now
        if state is not None and self._tree.files.share(state):  # so nobody closes its descriptor meanwhile
            try:
                return not is_overtaken(state, st) and (self._exclusive or was_told(node, state))
            finally:
                with contextlib.suppress(OSError):  # nobody hears of it, as at any last close
                    self._tree.files.release(state)
        if self._exclusive:
            return not regular or found.size == node.size
        directory = self._directory(parent)
        try:
            held_fd = os.open(directory.entry_name(name), HELD_FILE_FLAGS, dir_fd=directory.fd)
        except OSError:
            return False  # it went meanwhile
        try:
            st = os.fstat(held_fd)
            if key_of(st, self._device) != node.key or not node.is_object(held_fd, st):
                return False
            if not regular:
                node.ctime, node.size = st.st_ctime_ns, found.size
                return True
            return self._tree.identity.has_content(node, held_fd, st)
        finally:
            os.close(held_fd)

    def is_of_another_name(self, node: Node, parent: Node, name: bytes, st: os.stat_result) -> bool:
        """Whether a symlink counts for one name only: the kernel keeps the target of a node, for any name."""
        if node.anywhere or not (stat.S_ISLNK(st.st_mode) and node.is_elsewhere(parent, name)):
            return False
        node.anywhere = self._tree.symlinks.is_the_same_anywhere(self._directory(parent), name)
        return not node.anywhere

    def belongs(self, node: Node, parent: Node, name: bytes) -> bool:
        """Whether a directory is where it was, or may be here by its record, which others have moved then.

        If not, the kernel must get another number: it knows entries below the present one.
        """
        if not self._binds or not node.is_elsewhere(parent, name) or node.nodeid == ROOT_ID:
            return True
        try:
            found = self._tree.directory(self._directory(parent), name)
        except (OSError, IntegrityError):
            return False
        with self._lock:
            if node.directory is not None:
                node.directory = found
        return True

    def open_state(self, node: Node) -> FileState | None:
        """The state of a node's file if it is open here; None if another file has its inode number now."""
        files = self._tree.files
        state = files.find_key(file_key(node.key, self._device))
        if state is None or self._exclusive or node.is_born(files.birth_of(state)):
            return state
        return None
