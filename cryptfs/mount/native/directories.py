"""Requests about open directories. Offsets of READDIR stay right while entries come and go.

The offset of an entry is the backing directory's own cookie. So seekdir and telldir work as they do there,
and a handle keeps no more than the result of one system call.
"""

from __future__ import annotations

import array
import bisect
import os
import struct
import sys
import threading
from collections.abc import Callable
from typing import NamedTuple

from cryptfs.mount.native import structs
from cryptfs.mount.native.context import Handles, MountContext
from cryptfs.mount.native.node import Node
from cryptfs.mount.native.request import Payload, Request, Table
from cryptfs.mount.opcodes import Op
from cryptfs.storage.backing import O_NOATIME
from cryptfs.storage.dirs import holds_plaintext, open_for_listing
from cryptfs.storage.libc import getdents64
from cryptfs.vfs.tree.attributes import Attributes
from cryptfs.vfs.tree.directory import Directory
from cryptfs.vfs.tree.leftout import LeftOut

EntryOut = Callable[[Node, bytes, Attributes], tuple[Node, bytes]]

_BUFFER_SIZE = 64 * 1024
_KEPT_SIZE = 4 * 1024 * 1024  # bytes of what getdents64(2) gave, of all blocks together
_LARGEST_RECORD = 280  # of getdents64(2): 19 bytes, a name of up to 255, a NUL, alignment
_AFTER_SEEK = 4  # entries of the first answer after a seek
_RECORD = struct.Struct("=QqHB")  # d_ino d_off d_reclen d_type
_FILE, _LINK = 8, 10  # DT_REG, DT_LNK
_MANY = 32  # entries
_DOTS = (b".", b"..")
_NO_ENTRY = bytes(structs.ENTRY_OUT.size + structs.ATTR.size)


class Block(NamedTuple):
    """What a listing shows of the result of one getdents64(2).

    raw:     that result.
    dirents: the entries as READDIR replies them, decrypted and verified.
    ends:    where each of them ends.
    after:   the offset of its last record.
    """

    raw: bytes
    dirents: bytes
    ends: array.array[int]
    after: int


_NOTHING = Block(b"", b"", array.array("I"), 0)


class Blocks:
    """Blocks of directories that were listed before.

    They save no look at the disk: each listing reads the backing directory again. A block is here only if it
    follows from the dir_id and `raw` alone, and counts only where `raw` is the same to the last byte.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._blocks: dict[tuple[bytes, int], Block] = {}  # by dir_id and offset; last used last
        self._size = 0

    def find(self, place: tuple[bytes, int], raw: bytes) -> Block | None:
        """The block of a dir_id and the offset where it begins, if it is that of `raw`."""
        with self._lock:
            block = self._blocks.pop(place, None)
            if block is None:
                return None
            self._blocks[place] = block
            return block if block.raw == raw else None

    def keep(self, place: tuple[bytes, int], block: Block) -> None:
        """For the next listing. The blocks that were used longest ago make room."""
        with self._lock:
            old = self._blocks.pop(place, _NOTHING)
            self._blocks[place] = block
            self._size += len(block.raw) - len(old.raw)
            while self._size > _KEPT_SIZE:
                self._size -= len(self._blocks.pop(next(iter(self._blocks))).raw)


class DirectoryHandle:
    """One opendir(3). READDIR requests of one handle come one at a time.

    After a seek it reads and answers little, and then twice as much each time: a program may seek for each
    entry, and a large answer would cost as much as the whole listing.

    Args: directory, node: the same directory, for the vfs and for the kernel.
          shown_inode: the inode number that the kernel gets for a backing one.
          keep_atime: whether a listing leaves the time of access alone.
    Raises: OSError: no right to read it.
    withheld: how many entries of this answer may still be without attributes.
    """

    def __init__(
        self,
        context: MountContext,
        directory: Directory,
        node: Node,
        blocks: Blocks,
        *,
        keep_atime: bool,
    ) -> None:
        self.directory = directory
        self._shown_inode = context.nodes.shown_inode
        self._tree = context.tree
        self._node = node
        self._blocks = blocks
        self._fd = open_for_listing(directory.fd, keep_atime=keep_atime)
        self._block = _NOTHING
        self._count = 0  # entries of the block that were returned
        self._begin = 0  # the offset where the next block begins
        self._returned = 0  # offset of the last entry that was returned
        self._most = sys.maxsize  # entries of the next answer
        self.withheld = 0
        self._left_out = LeftOut(directory.cipher_path)

    def close(self) -> None:
        """The last use."""
        os.close(self._fd)
        self._left_out.tell()

    def read(self, offset: int, room: int, entry_out: EntryOut | None, withheld: int = 0) -> bytes:
        """Entries behind `offset` that fit into `room` bytes; with attributes if entry_out is given.

        Args: withheld: how many entries come without attributes; if it is one, a file among many entries.
        """
        self.withheld = withheld
        if offset != self._returned:
            self._seek(offset)
        most = self._most
        self._most = min(2 * most, sys.maxsize)
        pieces: list[bytes] = []
        while most and (self._count < len(self._block.ends) or self._read_more()):
            before = self._count
            if entry_out is None:
                room -= self._take(room, most, pieces)
            else:
                room -= self._take_with_attributes(room, most, pieces, entry_out)
            most -= self._count - before
            if self._count < len(self._block.ends):
                break
        return b"".join(pieces)

    def _take(self, room: int, most: int, pieces: list[bytes]) -> int:
        """Add entries of the block, as they are. Returns: their bytes."""
        dirents, ends, first = self._block.dirents, self._block.ends, self._count
        start = ends[first - 1] if first else 0
        stop = min(bisect.bisect_right(ends, start + room, first), first + most)
        if stop == first:
            return 0
        end = ends[stop - 1]
        pieces.append(dirents[start:end])
        self._count = stop
        self._returned = structs.DIRENT.unpack_from(dirents, ends[stop - 2] if stop > 1 else 0)[1]
        return end - start

    def _take_with_attributes(self, room: int, most: int, pieces: list[bytes], entry_out: EntryOut) -> int:
        """As _take, each behind its fuse_entry_out; without those that have gone."""
        dirents, ends, first = self._block.dirents, self._block.ends, self._count
        unpack, head, used = structs.DIRENT.unpack_from, structs.DIRENT.size, 0
        start = ends[first - 1] if first else 0
        for end in ends[first : first + most]:
            size = len(_NO_ENTRY) + end - start
            if used + size > room:
                break
            _, offset, length, kind = unpack(dirents, start)
            self._count += 1
            if self.withheld and (self.withheld > 1 or (kind == _FILE and len(ends) >= _MANY)):
                self.withheld -= 1
                known: bytes | None = _NO_ENTRY
            else:
                known = self._entry(dirents[start + head : start + head + length], entry_out)
            if known is not None:
                pieces += (known, dirents[start:end])
                used += size
                self._returned = offset
            start = end
        return used

    def _seek(self, offset: int) -> None:
        os.lseek(self._fd, offset, os.SEEK_SET)
        self._block, self._count = _NOTHING, 0
        self._returned = self._begin = offset
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

    def _read_more(self) -> bool:
        """Go to the next block that shows anything; False at the end of the backing directory."""
        while raw := self._read_raw():
            place = self.directory.dir_id, self._begin
            self._block = block = self._blocks.find(place, raw) or self._decrypted(raw, place)
            self._count, self._begin = 0, block.after
            if block.ends:
                return True
        self._left_out.tell()
        return False

    def _read_raw(self) -> bytes:
        # From the pool: a program may have thousands of directories open, and read none.
        pool = self._tree.context.buffers
        buffer = pool.take(_BUFFER_SIZE)
        try:
            size = getdents64(self._fd, buffer[: min(self._most * _LARGEST_RECORD, _BUFFER_SIZE)])
            return bytes(buffer[:size])
        finally:
            pool.give(buffer)

    def _decrypted(self, raw: bytes, place: tuple[bytes, int]) -> Block:
        """The block of a result of getdents64(2), which begins at a place."""
        directory, known_name, listed_name = self.directory, self.directory.known_name, self._tree.listed_name
        unpack, head, pack = _RECORD.unpack_from, _RECORD.size, structs.pack_dirent
        dirents, ends = bytearray(), array.array("I")
        at, size, offset, lasts = 0, len(raw), 0, True
        while at < size:
            inode, offset, length, kind = unpack(raw, at)
            entry = raw[at + head : raw.index(b"\0", at + head)]
            at += length
            if kind == _LINK:  # a rename makes a new one of it
                inode, lasts = self._shown_inode(inode), False
            name: bytes | None = entry
            if entry not in _DOTS:
                entry_name = entry.decode("utf-8", "surrogateescape")
                name = known_name(entry_name)
                if name is None:
                    name = listed_name(directory, entry_name, self._left_out)
                    # Another answer may change with what is on the disk beside the entry, as a sidecar.
                    if known_name(entry_name) is None and holds_plaintext(entry_name):
                        lasts = False
            if name is not None:
                dirents += pack(inode, offset, kind, name)
                ends.append(len(dirents))
        block = Block(raw, bytes(dirents), ends, offset)
        if lasts:
            self._blocks.keep(place, block)
        return block


class DirectoryHandlers:
    """Answers requests about open directories.

    handles: the open directories.
    """

    def __init__(self, context: MountContext) -> None:
        self._context = context
        self._tree = context.tree
        self._nodes = context.nodes
        self._entry_out = context.replies.entry
        self._blocks = Blocks()
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
        handle = DirectoryHandle(self._context, directory, node, self._blocks, keep_atime=keep_atime)
        fh = self._context.new_handle()
        self.handles[fh] = handle
        return structs.OPEN_OUT.pack(fh, self._open_flags, 0)

    def readdir(self, request: Request) -> Payload:
        """Entries from an offset on."""
        fh, offset, size, *_ = structs.READ_IN.unpack_from(request.body)
        return self.handles[fh].read(offset, size, None)

    def readdirplus(self, request: Request) -> Payload:
        """Entries with their attributes; each with any counts as a lookup. See Demand."""
        fh, offset, size, *_ = structs.READ_IN.unpack_from(request.body)
        handle, demand = self.handles[fh], self._context.demand
        if offset:  # the program has looked at an entry: else the kernel asks for names
            return handle.read(offset, size, self._entry_out)
        withheld = demand.withheld(request.pid)
        payload = handle.read(0, size, self._entry_out, withheld)
        if handle.withheld < withheld:
            demand.watch(request.pid, request.nodeid)
        return payload

    def releasedir(self, request: Request) -> Payload:
        """The last use of a directory handle."""
        self.handles.take(structs.RELEASE_IN.unpack_from(request.body)[0]).close()
        return b""

    def fsyncdir(self, request: Request) -> Payload:
        """Bring the entries of a directory to disk."""
        fh, *_ = structs.FSYNC_IN.unpack_from(request.body)
        self._tree.sync_directory(self.handles[fh].directory)
        return b""
