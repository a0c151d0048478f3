"""Open directories: READDIR and READDIRPLUS with offsets that stay right while entries come and go.

The offset of an entry is the backing directory's own cookie, so that seekdir and telldir work as there,
and nothing is kept but what one system call returned.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Callable

from cryptfs.mount.native import structs
from cryptfs.mount.native.nodes import Node
from cryptfs.storage.dirs import open_for_listing
from cryptfs.vfs.attributes import Attributes
from cryptfs.vfs.directory import Directory
from cryptfs.vfs.tree import VaultTree

EntryOut = Callable[[Node, bytes, Attributes], tuple[Node, bytes]]

_BUFFER_SIZE = 64 * 1024
_RECORD = struct.Struct("=QqHB")  # d_ino d_off d_reclen d_type
_NO_ENTRY = bytes(structs.ENTRY_OUT.size + structs.ATTR.size)

_libc = ctypes.CDLL(None, use_errno=True)


class _Record:
    """One entry of the backing directory that is shown: already decrypted and verified."""

    __slots__ = ("inode", "kind", "name", "offset")

    def __init__(self, inode: int, offset: int, kind: int, name: bytes) -> None:
        self.inode, self.offset, self.kind, self.name = inode, offset, kind, name


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

    def close(self) -> None:
        """The last use."""
        os.close(self._fd)

    def read(self, offset: int, room: int, entry_out: EntryOut | None) -> bytes:
        """Entries behind `offset` that fit into `room` bytes; with attributes if entry_out is given."""
        if offset != self._returned:
            os.lseek(self._fd, offset, os.SEEK_SET)
            self._pending.clear()
            self._returned = offset
        head = len(_NO_ENTRY) if entry_out is not None else 0
        pieces: list[bytes] = []
        while self._pending or self._read_more():
            record = self._pending[-1]
            room -= head + structs.dirent_size(record.name)
            if room < 0:
                break
            if entry_out is not None:
                known = self._entry(record, entry_out)
                if known is None:
                    self._pending.pop()
                    continue
                pieces.append(known)
            pieces.append(structs.pack_dirent(record.inode, record.offset, record.kind, record.name))
            self._pending.pop()
            self._returned = record.offset
        return b"".join(pieces)

    def _entry(self, record: _Record, entry_out: EntryOut) -> bytes | None:
        """fuse_entry_out of an entry; None where it has gone meanwhile."""
        if record.name in (b".", b".."):
            return _NO_ENTRY
        try:
            found = self._tree.stat(self.directory, record.name)
        except OSError:
            return None
        return entry_out(self._node, record.name, found)[1]

    def _read_more(self) -> bool:
        """Fill `_pending` from the backing directory; False at its end."""
        # Not a buffer of its own: a program may have thousands of directories open, and read none.
        pool = self._tree.context.buffers
        buffer = pool.take(_BUFFER_SIZE)
        try:
            while not self._pending:
                size = self._getdents(buffer)
                if size == 0:
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
        found = []
        at = 0
        while at < len(raw):
            inode, offset, length, kind = _RECORD.unpack_from(raw, at)
            entry_name = raw[at + _RECORD.size : raw.index(b"\0", at + _RECORD.size)]
            at += length
            name = entry_name if entry_name in (b".", b"..") else self._open_name(entry_name)
            if name is not None:
                found.append(_Record(inode, offset, kind, name))
        return found

    def _open_name(self, raw_name: bytes) -> bytes | None:
        entry_name = raw_name.decode("utf-8", "surrogateescape")
        return self._tree.listed_name(self.directory, entry_name)
