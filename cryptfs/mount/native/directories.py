"""Open directories: READDIR and READDIRPLUS with offsets that stay right while entries come and go.

The offset of an entry is the backing directory's own cookie, so that seekdir and telldir work as there,
and nothing is kept but what one system call returned.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Callable
from typing import NamedTuple

from cryptfs.mount.native import structs
from cryptfs.mount.native.node import Node
from cryptfs.storage.dirs import open_for_listing
from cryptfs.vfs.attributes import Attributes
from cryptfs.vfs.directory import Directory
from cryptfs.vfs.leftout import LeftOut
from cryptfs.vfs.tree import VaultTree

EntryOut = Callable[[Node, bytes, Attributes], tuple[Node, bytes]]

_BUFFER_SIZE = 64 * 1024
_RECORD = struct.Struct("=QqHB")  # d_ino d_off d_reclen d_type
_DOTS = (b".", b"..")
_NO_ENTRY = bytes(structs.ENTRY_OUT.size + structs.ATTR.size)

_libc = ctypes.CDLL(None, use_errno=True)


class _Record(NamedTuple):
    """One entry of the backing directory that is shown: already decrypted and verified.

    dirent: of a READDIR reply.
    """

    offset: int
    name: bytes
    dirent: bytes


class DirectoryHandle:
    """One opendir(3). READDIR requests of one handle come one at a time.

    Args: directory, node: the same directory, for the vfs and for the kernel.
    Raises: OSError: no right to read it.
    """

    def __init__(self, tree: VaultTree, directory: Directory, node: Node) -> None:
        self.directory = directory
        self._tree = tree
        self._node = node
        self._fd = open_for_listing(directory.fd, keep_atime=tree.context.nodiratime)
        self._pending: list[_Record] = []  # read but not yet returned, the next one last
        self._returned = 0  # offset of the last entry that was returned
        self._left_out = LeftOut(directory.cipher_path)

    def close(self) -> None:
        """The last use."""
        os.close(self._fd)
        self._left_out.tell()

    def read(self, offset: int, room: int, entry_out: EntryOut | None) -> bytes:
        """Entries behind `offset` that fit into `room` bytes; with attributes if entry_out is given."""
        if offset != self._returned:
            os.lseek(self._fd, offset, os.SEEK_SET)
            self._pending.clear()
            self._returned = offset
            self._left_out.tell()  # before what is read again is counted again
        head = len(_NO_ENTRY) if entry_out is not None else 0
        pieces: list[bytes] = []
        while self._pending or self._read_more():
            offset, name, dirent = self._pending[-1]
            room -= head + len(dirent)
            if room < 0:
                break
            self._pending.pop()
            if entry_out is not None:
                known = self._entry(name, entry_out)
                if known is None:
                    continue
                pieces.append(known)
            pieces.append(dirent)
            self._returned = offset
        return b"".join(pieces)

    def _entry(self, name: bytes, entry_out: EntryOut) -> bytes | None:
        """fuse_entry_out of an entry; None where it has gone meanwhile."""
        if name in _DOTS:
            return _NO_ENTRY
        try:
            found = self._tree.stat(self.directory, name)
        except OSError:
            return None
        return entry_out(self._node, name, found)[1]

    def _read_more(self) -> bool:
        """Fill `_pending` from the backing directory; False at its end."""
        # Not a buffer of its own: a program may have thousands of directories open, and read none.
        pool = self._tree.context.buffers
        buffer = pool.take(_BUFFER_SIZE)
        try:
            while not self._pending:
                size = self._getdents(buffer)
                if size == 0:
                    self._left_out.tell()
                    return False
                self._pending = self._decode(bytes(buffer[:size]))
                self._pending.reverse()
        finally:
            pool.give(buffer)
        return True

    def _getdents(self, buffer: memoryview) -> int:
        size: int = _libc.getdents64(
            self._fd, (ctypes.c_char * _BUFFER_SIZE).from_buffer(buffer), _BUFFER_SIZE
        )
        if size < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        return size

    def _decode(self, raw: bytes) -> list[_Record]:
        directory, listed_name, left_out = self.directory, self._tree.listed_name, self._left_out
        found = []
        at = 0
        while at < len(raw):
            inode, offset, length, kind = _RECORD.unpack_from(raw, at)
            entry_name = raw[at + _RECORD.size : raw.index(b"\0", at + _RECORD.size)]
            at += length
            name: bytes | None = entry_name
            if entry_name not in _DOTS:
                name = listed_name(directory, entry_name.decode("utf-8", "surrogateescape"), left_out)
            if name is not None:
                found.append(_Record(offset, name, structs.pack_dirent(inode, offset, kind, name)))
        return found
