"""Requests about open directories. Offsets of READDIR stay right while entries come and go.

The offset of an entry is the backing directory's own cookie. So seekdir and telldir work as they do there,
and a handle keeps no more than the result of one system call.
"""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Callable
from typing import NamedTuple

from cryptfs.mount.native import structs
from cryptfs.mount.native.context import Handles, MountContext
from cryptfs.mount.native.node import Node
from cryptfs.mount.native.request import Payload, Request, Table
from cryptfs.mount.opcodes import Op
from cryptfs.storage.backing import O_NOATIME
from cryptfs.storage.dirs import open_for_listing
from cryptfs.storage.libc import getdents64
from cryptfs.vfs.tree.attributes import Attributes
from cryptfs.vfs.tree.directory import Directory
from cryptfs.vfs.tree.leftout import LeftOut
from cryptfs.vfs.tree.tree import VaultTree

EntryOut = Callable[[Node, bytes, Attributes], tuple[Node, bytes]]

_BUFFER_SIZE = 64 * 1024
_LARGEST_RECORD = 280  # of getdents64(2): 19 bytes, a name of up to 255, a NUL, alignment
_AFTER_SEEK = 4  # entries of the first answer after a seek
_RECORD = struct.Struct("=QqHB")  # d_ino d_off d_reclen d_type
_LINK = 10  # DT_LNK
_DOTS = (b".", b"..")
_NO_ENTRY = bytes(structs.ENTRY_OUT.size + structs.ATTR.size)


class _Record(NamedTuple):
    """One entry that a listing shows, already decrypted and verified.

    dirent: of a READDIR reply.
    """

    offset: int
    name: bytes
    dirent: bytes


class DirectoryHandle:
    """One opendir(3). READDIR requests of one handle come one at a time.

    It decrypts a name when its turn comes. After a seek it reads and answers little, and then twice as much
    each time: a program may seek for each entry, and a large answer would cost as much as the whole listing.

    Args: directory, node: the same directory, for the vfs and for the kernel.
          shown_inode: the inode number that the kernel gets for a backing one.
          keep_atime: whether a listing leaves the time of access alone.
    Raises: OSError: no right to read it.
    """

    def __init__(
        self,
        tree: VaultTree,
        directory: Directory,
        node: Node,
        shown_inode: Callable[[int], int],
        *,
        keep_atime: bool,
    ) -> None:
        self.directory = directory
        self._shown_inode = shown_inode
        self._tree = tree
        self._node = node
        self._fd = open_for_listing(directory.fd, keep_atime=keep_atime)
        self._raw = b""  # records of the backing directory, and where the next one of them begins
        self._at = 0
        self._next: _Record | None = None  # taken from _raw but not yet returned
        self._returned = 0  # offset of the last entry that was returned
        self._most = sys.maxsize  # entries of the next answer
        self._left_out = LeftOut(directory.cipher_path)

    def close(self) -> None:
        """The last use."""
        os.close(self._fd)
        self._left_out.tell()

    def read(self, offset: int, room: int, entry_out: EntryOut | None) -> bytes:
        """Entries behind `offset` that fit into `room` bytes; with attributes if entry_out is given."""
        if offset != self._returned:
            self._seek(offset)
        head = len(_NO_ENTRY) if entry_out is not None else 0
        pieces: list[bytes] = []
        most = self._most
        self._most = min(2 * most, sys.maxsize)
        while most:
            record = self._next or self._take()
            if record is None:
                break
            self._next = record
            offset, name, dirent = record
            room -= head + len(dirent)
            if room < 0:
                break
            self._next = None
            if entry_out is not None:
                known = self._entry(name, entry_out)
                if known is None:
                    continue
                pieces.append(known)
            pieces.append(dirent)
            self._returned = offset
            most -= 1
        return b"".join(pieces)

    def _seek(self, offset: int) -> None:
        os.lseek(self._fd, offset, os.SEEK_SET)
        self._raw, self._at, self._next = b"", 0, None
        self._returned = offset
        self._most = _AFTER_SEEK if offset else sys.maxsize
        self._left_out.tell()  # before a second read of the same entries counts them again

    def _entry(self, name: bytes, entry_out: EntryOut) -> bytes | None:
        """fuse_entry_out of an entry, an empty one without the right to look; None if it has gone."""
        if name in _DOTS:
            return _NO_ENTRY
        try:
            found = self._tree.stat(self.directory, name)
        except PermissionError:
            return _NO_ENTRY
        except OSError:
            return None
        return entry_out(self._node, name, found)[1]

    def _take(self) -> _Record | None:
        """The next entry of the backing directory that a listing shows; None at its end."""
        directory, listed_name, left_out = self.directory, self._tree.listed_name, self._left_out
        while True:
            raw, at = self._raw, self._at
            if at >= len(raw):
                if not self._read_more():
                    return None
                continue
            inode, offset, length, kind = _RECORD.unpack_from(raw, at)
            entry_name = raw[at + _RECORD.size : raw.index(b"\0", at + _RECORD.size)]
            self._at = at + length
            name: bytes | None = entry_name
            if entry_name not in _DOTS:
                name = listed_name(directory, entry_name.decode("utf-8", "surrogateescape"), left_out)
            if name is not None:
                if kind == _LINK:  # a rename makes a new one of it
                    inode = self._shown_inode(inode)
                return _Record(offset, name, structs.pack_dirent(inode, offset, kind, name))

    def _read_more(self) -> bool:
        """Fill `_raw` from the backing directory; False at its end."""
        # From the pool: a program may have thousands of directories open, and read none.
        pool = self._tree.context.buffers
        buffer = pool.take(_BUFFER_SIZE)
        try:
            size = getdents64(self._fd, buffer[: min(self._most * _LARGEST_RECORD, _BUFFER_SIZE)])
            self._raw, self._at = bytes(buffer[:size]), 0
        finally:
            pool.give(buffer)
        if not size:
            self._left_out.tell()
        return size > 0


class DirectoryHandlers:
    """Answers requests about open directories.

    handles: the open directories.
    """

    def __init__(self, context: MountContext) -> None:
        self._context = context
        self._tree = context.tree
        self._nodes = context.nodes
        self._entry_out = context.replies.entry
        # The kernel may answer the next listing by itself. It drops its copy when it changes the directory,
        # but cannot know what others change.
        exclusive = context.tree.context.exclusive
        self._open_flags = structs.FOPEN_CACHE_DIR | structs.FOPEN_KEEP_CACHE if exclusive else 0
        self.handles: Handles[DirectoryHandle] = Handles()
        self.table: Table = {
            Op.OPENDIR: self.opendir,
            Op.READDIR: self.readdir,
            Op.READDIRPLUS: self.readdirplus,
            Op.RELEASEDIR: self.releasedir,
            Op.FSYNCDIR: self.fsyncdir,
        }

    def close(self) -> None:
        """After the mount is gone."""
        for handle in self.handles.values():
            handle.close()
        self.handles.clear()

    def opendir(self, request: Request) -> Payload:
        """A handle on a directory."""
        node = self._nodes.get(request.nodeid)
        directory = self._nodes.directory(node)
        node.require_present()
        flags, _ = structs.OPEN_IN.unpack_from(request.body)
        keep_atime = self._tree.context.nodiratime or bool(flags & O_NOATIME)
        shown_inode = self._nodes.shown_inode
        handle = DirectoryHandle(self._tree, directory, node, shown_inode, keep_atime=keep_atime)
        fh = self._context.new_handle()
        self.handles[fh] = handle
        return structs.OPEN_OUT.pack(fh, self._open_flags, 0)

    def readdir(self, request: Request) -> Payload:
        """Entries from an offset on."""
        fh, offset, size, *_ = structs.READ_IN.unpack_from(request.body)
        return self.handles[fh].read(offset, size, None)

    def readdirplus(self, request: Request) -> Payload:
        """Entries with their attributes; each but '.' and '..' counts as a lookup."""
        fh, offset, size, *_ = structs.READ_IN.unpack_from(request.body)
        return self.handles[fh].read(offset, size, self._entry_out)

    def releasedir(self, request: Request) -> Payload:
        """The last use of a directory handle."""
        self.handles.take(structs.RELEASE_IN.unpack_from(request.body)[0]).close()
        return b""

    def fsyncdir(self, request: Request) -> Payload:
        """Bring the entries of a directory to disk."""
        fh, *_ = structs.FSYNC_IN.unpack_from(request.body)
        self._tree.sync_directory(self.handles[fh].directory)
        return b""
