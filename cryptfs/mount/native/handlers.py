"""What all request handlers share: the state of a mount, and replies that tell of a node."""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Callable
from typing import TypeVar

from cryptfs.mount.native import structs
from cryptfs.mount.native.directories import DirectoryHandle
from cryptfs.mount.native.node import Node
from cryptfs.mount.native.nodes import NodeTable
from cryptfs.mount.native.setattr import AttributeSetter
from cryptfs.mount.options import MountOptions
from cryptfs.mount.statistics import Statistics
from cryptfs.vfs.acls import Acls, Inherited
from cryptfs.vfs.attributes import Attributes, Caller
from cryptfs.vfs.directory import Directory, Place
from cryptfs.vfs.identity import is_regular
from cryptfs.vfs.openfile import OpenFile
from cryptfs.vfs.vault import Vault

Payload = bytes | memoryview | int | None
"""What follows the header of a reply; an errno, where raising it would cost more than the request; None
for no reply."""

Handle = TypeVar("Handle")

_pack_entry, _pack_attr_out = structs.ENTRY.pack, structs.ATTRIBUTES.pack

LARGE = 256 * 1024  # bytes of a read or write that is worth a second thread beside it


class Request:
    """One request after another of one thread, as the handlers see it.

    body: what follows the header.   room: for a large reply.
    make_way: to be called before reading LARGE bytes or more. For a request that is so large it has been.
    """

    __slots__ = ("body", "gid", "make_way", "nodeid", "room", "uid")

    def __init__(self, room: memoryview, make_way: Callable[[], None]) -> None:
        self.nodeid = self.uid = self.gid = 0
        self.body = room[:0]
        self.room = room
        self.make_way = make_way


Handler = Callable[[Request], Payload]
Notify = Callable[[int, bytes], None]
"""Tells the kernel something unasked: the code and the payload. Raises: OSError: as the kernel answers."""


class Later(Exception):
    """Raised by a handler whose answer has to wait for other requests: `work` goes on in a thread of its own.

    Args: work: returns the payload; must not use the request, whose memory is used again.
    """

    def __init__(self, work: Callable[[], bytes]) -> None:
        self.work = work


def _unconnected(code: int, payload: bytes) -> None:
    raise error(errno.ENOTCONN)


def error(code: int) -> OSError:
    """An OSError of that errno, to be raised."""
    return OSError(code, os.strerror(code))


class Handles(dict[int, Handle]):
    """What is open, by the number that the kernel was given. EBADF for another, which it never uses."""

    def __missing__(self, fh: int) -> Handle:
        raise error(errno.EBADF)

    def take(self, fh: int) -> Handle:
        """The last use of a handle."""
        handle = self[fh]
        del self[fh]
        return handle


class Handlers:
    """State and helpers; the handlers stand in the subclasses, by what they are about."""

    def __init__(self, vault: Vault, options: MountOptions) -> None:
        self._tree = vault.tree
        vault.tree.context.noatime = "noatime" in options.extra
        vault.tree.context.nodiratime = "noatime" in options.extra or "nodiratime" in options.extra
        vault.tree.context.exclusive = options.exclusive
        self.nodes = NodeTable(vault.tree)
        self.statistics = Statistics("native", {op: op.name.lower() for op in structs.Op}, self._gauges)
        self.notify: Notify = _unconnected
        self._shared = options.allow_other
        self._kernel_owns_mtime = options.writeback
        self._files: Handles[OpenFile] = Handles()
        self._directories: Handles[DirectoryHandle] = Handles()
        self._next_handle = itertools.count(1)
        entry, attr = options.entry_seconds, options.attr_seconds
        self._entry_valid = (int(entry), int(entry % 1 * 1e9))
        self._attr_valid = (int(attr), int(attr % 1 * 1e9))
        nothing = (0,) * len(structs.ATTR.unpack(bytes(structs.ATTR.size)))
        self._no_entry = structs.ENTRY.pack(0, 0, int(entry), 0, int(entry % 1 * 1e9), 0, *nothing)
        self._acls: Acls | None = None
        if options.xattrs and options.kernel_checks_permissions:
            vault.tree.xattrs.supports_acls = True
            self._acls = Acls(vault.tree)
        self._setter = AttributeSetter(
            vault.tree,
            self.nodes,
            self._files,
            self._acls,
            xattrs=options.xattrs,
            writeback=options.writeback,
        )

    def _gauges(self) -> dict[str, dict[str, int]]:
        """For Statistics: what is there now."""
        counts = self.statistics.counts
        misses = self.nodes.opened_directories
        return {
            "open": {
                "files": len(self._files),
                "directories": len(self._directories),
                "nodes": len(self.nodes),
            },
            "directory_cache": {
                "hits": max(0, sum(counts[op] for op in structs.BY_NAME) - misses),
                "misses": misses,
            },
        }

    def _caller(self, request: Request) -> Caller | None:
        return Caller(request.uid, request.gid) if self._shared else None

    # ---- replies

    def _attributes_of(self, inode: int, found: Attributes) -> tuple[int, ...]:
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

    def _attr_out(self, node: Node, found: Attributes) -> bytes:
        return _pack_attr_out(*self._attr_valid, 0, *self._attributes_of(node.inode, found))

    def entry_out(self, parent: Node, name: bytes, found: Attributes) -> tuple[Node, bytes]:
        """The node of an entry, one lookup more, and its fuse_entry_out."""
        node = self.nodes.remember(parent, name, found)
        if found.size != node.size and is_regular(found.st):
            found = self._tree.sized(
                found.st
            )  # another size than its length claims: that was found out just now
        (entry, entry_ns), (attr, attr_ns) = self._entry_valid, self._attr_valid
        attributes = self._attributes_of(node.inode, found)
        return node, _pack_entry(node.nodeid, 0, entry, attr, entry_ns, attr_ns, *attributes)

    def _reply_entry(self, parent: Node, name: bytes, *, made: bool = False) -> bytes:
        """made: the entry is a new file, just now."""
        directory = self.nodes.directory(parent)
        found = self._tree.stat(directory, name)
        if made:
            self.nodes.made(found.st)
        return self.entry_out(parent, name, found)[1]

    def _inherit(self, directory: Directory, mode: int, umask: int) -> tuple[int, Inherited | None]:
        """The mode of a new entry, and the ACLs that it gets from its directory."""
        inherited = self._acls.inherited(directory, mode) if self._acls is not None else None
        return (mode & ~umask, None) if inherited is None else (inherited.mode, inherited)

    def _place(self, nodeid: int) -> Place:
        return self.nodes.file_of(self.nodes.get(nodeid))


_U64 = 2**64 - 1


def _device(rdev: int) -> int:
    """A device number as the protocol has it: the kernel's 32-bit new_encode_dev."""
    major, minor = os.major(rdev), os.minor(rdev)
    return minor & 0xFF | major << 8 | (minor & ~0xFF) << 12
