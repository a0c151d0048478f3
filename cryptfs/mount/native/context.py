"""The shared parts of one mount's handlers: tree and nodes, open handles, rules, and replies about nodes."""

from __future__ import annotations

import errno
import itertools
import os
import stat
import sys
from collections import OrderedDict
from typing import TypeVar

from cryptfs.mount.native import structs
from cryptfs.mount.native.node import Node
from cryptfs.mount.native.nodes import NodeTable
from cryptfs.mount.native.request import Request
from cryptfs.mount.options import MountOptions
from cryptfs.storage.libc import os_error
from cryptfs.vfs.content.openfile import OpenFile
from cryptfs.vfs.tree.acls import Acls, Inherited
from cryptfs.vfs.tree.attributes import Attributes, Caller
from cryptfs.vfs.tree.directory import Directory, Place
from cryptfs.vfs.tree.identity import is_regular
from cryptfs.vfs.tree.privileges import Privileges
from cryptfs.vfs.tree.tree import VaultTree

Handle = TypeVar("Handle")

_pack_entry, _pack_attr_out = structs.ENTRY.pack, structs.ATTRIBUTES.pack
_U64 = 2**64 - 1


class Handles(dict[int, Handle]):
    """Open files or directories, by the number that the kernel got. EBADF for others; it never uses one."""

    def __missing__(self, fh: int) -> Handle:
        raise os_error(errno.EBADF)

    def take(self, fh: int) -> Handle:
        """The last use of a handle."""
        handle = self[fh]
        del self[fh]
        return handle


_THREADS = 64  # whose demand is remembered
_YES = 4


class Demand:
    """Which threads want the attributes of what they list.

    Linux begins each listing with READDIRPLUS, whether the program will look at the files or only at their
    names, and attributes cost much more than names. So a listing may get none, or all but one: what Linux was
    not told, it looks up, and that shows whether somebody wants them. Then the thread that listed gets them
    for _YES listings, even if another thread looked. Lookups of directories show nothing.
    """

    def __init__(self) -> None:
        self._listings: OrderedDict[int, int] = OrderedDict()  # how many will still get them, by thread
        self._watched: OrderedDict[int, int] = OrderedDict()  # the thread of a listing, by nodeid

    def withheld(self, thread: int) -> int:
        """Of how many entries a listing that begins now gets no attributes. thread: 0: unknown."""
        left = self._listings.get(thread, 1) if thread else _YES
        if left > 1 and thread:
            self._listings[thread] = left - 1
        return (sys.maxsize, 1)[left] if left < 2 else 0

    def watch(self, thread: int, nodeid: int) -> None:
        """Attributes were withheld. Until somebody looks at an entry of that directory the answer is `no`."""
        for table, key, value in ((self._listings, thread, 0), (self._watched, nodeid, thread)):
            table.pop(key, None)
            table[key] = value  # as the last one
            if len(table) > _THREADS:
                table.popitem(last=False)

    def looked_up(self, nodeid: int, payload: bytes) -> None:
        """The kernel has looked up an entry of a directory. payload: the reply."""
        if nodeid in self._watched and not stat.S_ISDIR(structs.mode_in_entry(payload)):
            thread = self._watched.pop(nodeid, None)
            if thread is not None:
                self._listings[thread] = _YES


class MountContext:
    """The things that the handlers of one mount share.

    nodes:       the kernel has looked them up.
    files:       the open files, by handle.
    new_handle:  gives a number to a new open file or directory.
    privileges:  the effect of a change on the privileges and times of a file.
    acls:        None without xattrs. The kernel enforces them if it checks permissions.
    has_long_setxattr: the kernel sends SETXATTR_IN_EXT.
    replies:     make the parts of a reply that describe a node.
    demand:      for attributes in listings.
    """

    def __init__(self, tree: VaultTree, options: MountOptions) -> None:
        self.tree = tree
        options.apply_to(tree.context)
        self.options = options
        self.nodes = NodeTable(tree)
        self.files: Handles[OpenFile] = Handles()
        self.new_handle = itertools.count(1).__next__
        self.acls: Acls | None = None
        self.has_long_setxattr = False
        if options.xattrs:
            tree.xattrs.supports_acls = True
            self.acls = Acls(tree)
        self.privileges = Privileges(tree, self.acls, xattrs=options.xattrs)
        self.privileges.kernel_owns_times = options.writeback
        self.replies = Replies(tree, self.nodes, options)
        self.demand = Demand()

    def caller(self, request: Request) -> Caller | None:
        """The owner of a new entry of this request; None if only one user asks."""
        return Caller(request.uid, request.gid) if self.options.allow_other else None

    def place(self, nodeid: int) -> Place:
        """The file of a node, surely that one. Raises: OSError: ESTALE."""
        return self.nodes.file_of(self.nodes.get(nodeid))

    def inherit(self, directory: Directory, mode: int, umask: int) -> tuple[int, Inherited | None]:
        """The mode of a new entry, and the ACLs that it gets from its directory."""
        inherited = self.acls.inherited(directory, mode) if self.acls is not None else None
        return (mode & ~umask, None) if inherited is None else (inherited.mode, inherited)


class Replies:
    """Makes the parts of a reply that describe a node.

    no_entry: a fuse_entry_out after which the kernel remembers that there is no entry.
    """

    def __init__(self, tree: VaultTree, nodes: NodeTable, options: MountOptions) -> None:
        self._tree = tree
        self._nodes = nodes
        entry, attr = options.entry_seconds, options.attr_seconds
        self._entry_valid = (int(entry), int(entry % 1 * 1e9))
        self.attr_valid = (int(attr), int(attr % 1 * 1e9))
        nothing = (0,) * len(structs.ATTR.unpack(bytes(structs.ATTR.size)))
        self.no_entry = structs.ENTRY.pack(0, 0, int(entry), 0, int(entry % 1 * 1e9), 0, *nothing)

    def attributes(self, node: Node, found: Attributes) -> bytes:
        """fuse_attr_out."""
        return _pack_attr_out(*self.attr_valid, 0, *_fields(node.inode, found))

    def entry(self, parent: Node, name: bytes, found: Attributes) -> tuple[Node, bytes]:
        """The node of an entry, one lookup more, and its fuse_entry_out."""
        node = self._nodes.remember(parent, name, found)
        if found.size != node.size and is_regular(found.st):
            # Its length claims another size: we have found that out just now.
            found = self._tree.sized(found.st)
        (entry, entry_ns), (attr, attr_ns) = self._entry_valid, self.attr_valid
        fields = _fields(node.inode, found)
        return node, _pack_entry(node.nodeid, 0, entry, attr, entry_ns, attr_ns, *fields)

    def again(self, node: Node) -> bytes:
        """fuse_entry_out of a node, wherever its file is; one lookup more."""
        found = self._nodes.attributes(node)
        with self._nodes.lock:
            node.lookups += 1
        (entry, entry_ns), (attr, attr_ns) = self._entry_valid, self.attr_valid
        fields = _fields(node.inode, found)
        return _pack_entry(node.nodeid, 0, entry, attr, entry_ns, attr_ns, *fields)

    def look(self, parent: Node, name: bytes, *, made: bool = False) -> bytes:
        """fuse_entry_out of the present entry. made: the entry is a new file, just now."""
        directory = self._nodes.directory(parent)
        found = self._tree.stat(directory, name)
        if made:
            self._nodes.made(found.st)
        return self.entry(parent, name, found)[1]


def _fields(inode: int, found: Attributes) -> tuple[int, ...]:
    """The fields of fuse_attr."""
    st = found.st
    device = st.st_rdev
    atime, atime_ns = divmod(st.st_atime_ns, 1_000_000_000)
    mtime, mtime_ns = divmod(st.st_mtime_ns, 1_000_000_000)
    ctime, ctime_ns = divmod(st.st_ctime_ns, 1_000_000_000)
    return (
        inode, found.size, st.st_blocks, atime & _U64, mtime & _U64, ctime & _U64, atime_ns, mtime_ns,
        ctime_ns, st.st_mode, st.st_nlink, st.st_uid, st.st_gid,
        _device(device) if device else 0, st.st_blksize, 0,
    )  # fmt: skip


def _device(rdev: int) -> int:
    """A device number in the protocol's form: the kernel's 32-bit new_encode_dev."""
    major, minor = os.major(rdev), os.minor(rdev)
    return minor & 0xFF | major << 8 | (minor & ~0xFF) << 12
