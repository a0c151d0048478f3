"""Requests about open files: open, read, write, sync, close; and SYNCFS."""

from __future__ import annotations

import contextlib
import os
import struct

from cryptfs.mount.native import structs
from cryptfs.mount.native.context import MountContext
from cryptfs.mount.native.directio import PageTracker
from cryptfs.mount.native.request import LARGE, Notify, Payload, Request, Table
from cryptfs.mount.native.structs import Notification
from cryptfs.mount.opcodes import Op
from cryptfs.mount.statistics import Statistics
from cryptfs.vfs.content import ranges
from cryptfs.vfs.content.openfile import OpenFile
from cryptfs.vfs.tree.directory import SELF, HeldFile, Unnamed
from cryptfs.vfs.tree.identity import stale

_NO_CACHED_READS = os.O_ACCMODE | os.O_DIRECT | os.O_NOATIME


class FileHandlers:
    """Answers requests about open files.

    Args: statistics: count the bytes that are read and written.
    """

    def __init__(self, context: MountContext, statistics: Statistics) -> None:
        self._context = context
        self._tree = context.tree
        self._nodes = context.nodes
        self._files = context.files
        self._acls = context.acls
        self._privileges = context.privileges
        self._replies = context.replies
        self._kernel_owns_times = context.options.writeback
        self._statistics = statistics
        self._pages = PageTracker()
        self.table: Table = {
            Op.OPEN: self.open, Op.CREATE: self.create, Op.TMPFILE: self.tmpfile, Op.READ: self.read,
            Op.WRITE: self.write, Op.RELEASE: self.release, Op.FSYNC: self.fsync, Op.SYNCFS: self.syncfs,
            Op.FALLOCATE: self.fallocate, Op.LSEEK: self.lseek, Op.COPY_FILE_RANGE: self.copy_file_range,
        }  # fmt: skip

    def _opened(self, file: OpenFile, *, keep: bool = True) -> bytes:
        fh = self._context.new_handle()
        self._files[fh] = file
        return structs.OPEN_OUT.pack(fh, structs.FOPEN_KEEP_CACHE if keep else 0, 0)

    def open(self, request: Request) -> Payload:
        """Open by node."""
        flags, open_flags = structs.OPEN_IN.unpack_from(request.body)
        node = self._nodes.get(request.nodeid)
        if node.held is not None:
            file = self._tree.open_held(node.held.fd, flags)
        else:
            meant = (self._nodes.file_key(node), node)
            file = self._tree.open(*self._nodes.place(node), flags, meant)
            file.state.whereabouts.known = node
        if flags & os.O_TRUNC:
            self._privileges.written(file.state, kill=bool(open_flags & structs.OPEN_KILL_SUIDGID))
        keep = True
        if node.opened and not flags & _NO_CACHED_READS and file.atime_is_due:
            keep = self._touch_later(node.nodeid, file, request.notify)
        node.opened = True
        return self._opened(file, keep=keep)

    @staticmethod
    def _touch_later(nodeid: int, file: OpenFile, notify: Notify) -> bool:
        """The next read moves the time of access, but a kernel that has the pages asks for no byte.

        A small file is read again. A large one gets its time now, and the kernel forgets the old one.

        Returns: whether the kernel may keep its pages.
        """
        if file.state.size <= LARGE:
            return False
        file.touch_atime()
        with contextlib.suppress(OSError):  # the kernel has dropped the inode
            notify(Notification.INVAL_INODE, structs.INVAL_INODE_OUT.pack(nodeid, -1, 0))
        return True

    def create(self, request: Request) -> Payload:
        """Create and open."""
        flags, mode, umask, _ = structs.CREATE_IN.unpack_from(request.body)
        (name,) = structs.take_names(request.body, structs.CREATE_IN.size, 1)
        parent = self._nodes.get(request.nodeid)
        directory = self._nodes.directory(parent)
        mode, inherited = self._context.inherit(directory, mode, umask)
        try:
            exclusive, caller = flags | os.O_EXCL, self._context.caller(request)
            file, found = self._tree.create_new(directory, name, exclusive, mode, caller)
        except FileExistsError:
            if flags & os.O_EXCL:
                raise
            # The kernel may know that file, and keeps the size that it knows: ESTALE makes it look again.
            raise stale() from None
        self._nodes.made(found.st)
        if inherited is not None and self._acls is not None:
            self._acls.give(directory, name, inherited)
            found = self._tree.stat_open(file)
        node, entry = self._replies.entry(parent, name, found)
        node.opened = True
        file.state.whereabouts.known = node
        return entry + self._opened(file)

    def tmpfile(self, request: Request) -> Payload:
        """O_TMPFILE: a file without a name."""
        flags, mode, umask, _ = structs.CREATE_IN.unpack_from(request.body)
        parent = self._nodes.get(request.nodeid)
        directory = self._nodes.directory(parent)
        mode, inherited = self._context.inherit(directory, mode, umask)
        file = self._tree.create_unnamed(directory, flags, mode, self._context.caller(request))
        if inherited is not None and self._acls is not None:
            self._acls.give(Unnamed(file.state.fd), SELF, inherited)
        found = self._tree.stat_open(file)
        self._nodes.made(found.st)
        node, entry = self._replies.entry(parent, b"", found)
        node.held = HeldFile(os.open(f"/proc/self/fd/{file.state.fd}", os.O_PATH | os.O_CLOEXEC))
        return entry + self._opened(file)

    def read(self, request: Request) -> Payload:
        """Read straight into the reply."""
        fh, offset, size, read_flags, _, _, _ = structs.READ_IN.unpack_from(request.body)
        file = self._files[fh]
        if not read_flags & structs.READ_LOCKOWNER:
            self._pages.cached(request.nodeid)
        if size >= LARGE:
            request.make_way()
        room = request.room[:size]
        got = file.read_into(offset, room)
        self._statistics.bytes_read += got
        return room if got == size else room[:got]

    def write(self, request: Request) -> Payload:
        """Write straight from the request."""
        fh, offset, size, write_flags, _, _, _ = structs.WRITE_IN.unpack_from(request.body)
        data = request.body[structs.WRITE_IN.size :]
        if len(data) != size:
            raise struct.error("the request does not have as many bytes as it claims")
        file = self._files[fh]
        direct = write_flags & structs.WRITE_LOCKOWNER
        if not direct:
            self._pages.cached(request.nodeid)
        cached = write_flags & structs.WRITE_CACHE
        state = file.state
        moves_time = self._privileges.moves_time(state, cached=bool(cached))
        done = file.write(offset, data, moves_time=moves_time)
        self._statistics.bytes_written += done
        if not cached and (write_flags & structs.WRITE_KILL_SUIDGID or state.may_have_capability):
            self._privileges.written(state, kill=bool(write_flags & structs.WRITE_KILL_SUIDGID))
        if direct and not self._pages.has_none(request.nodeid):
            request.defer(self._pages.dropping(request.nodeid, offset, done, request.notify), in_turn=True)
            return None
        return structs.WRITE_OUT.pack(done, 0)

    def release(self, request: Request) -> Payload:
        """The last use of a handle."""
        self._tree.release(self._files.take(structs.RELEASE_IN.unpack_from(request.body)[0]))
        return b""

    def fsync(self, request: Request) -> Payload:
        """Bring the file to disk."""
        fh, flags, _ = structs.FSYNC_IN.unpack_from(request.body)
        self._tree.sync_file(self._files[fh], data_only=bool(flags & structs.FSYNC_FDATASYNC))
        return b""

    def syncfs(self, request: Request) -> Payload:
        """syncfs(2): bring the whole vault to disk."""
        self._tree.sync_all()
        return b""

    def fallocate(self, request: Request) -> Payload:
        """Reserve room, or punch a hole."""
        fh, offset, length, mode, _ = structs.FALLOCATE_IN.unpack_from(request.body)
        file = self._files[fh]
        moves_time = self._privileges.allocate_moves_time(file.state)
        ranges.allocate(file, mode, offset, length, moves_time=moves_time)
        return b""

    def lseek(self, request: Request) -> Payload:
        """SEEK_DATA and SEEK_HOLE.

        The kernel also asks about data that it has not written back yet, in a hole or at the end of the file.
        If it trusted such an answer, `cp --sparse` would leave that data out. So the engine makes it write
        first.
        """
        fh, offset, whence, _ = structs.LSEEK_IN.unpack_from(request.body)
        file, nodeid, notify = self._files[fh], request.nodeid, request.notify

        def seek() -> bytes:
            return structs.LSEEK_OUT.pack(ranges.seek(file, offset, whence))

        def write_back_and_seek() -> bytes:
            with contextlib.suppress(FileNotFoundError):  # the kernel has dropped the inode: nothing to write
                notify(Notification.INVAL_INODE, structs.INVAL_INODE_OUT.pack(nodeid, 0, 0))
            return seek()

        if self._kernel_owns_times and file.state.writable:
            request.defer(write_back_and_seek)
            return None
        return seek()

    def copy_file_range(self, request: Request) -> Payload:
        """Copy without sending the data to the caller: as much as fits into one reply."""
        fh_in, at_in, _, fh_out, at_out, length, _ = structs.COPY_FILE_RANGE_IN.unpack_from(request.body)
        room = request.room[: min(length, len(request.room))]
        got = self._files[fh_in].read_into(at_in, room)
        done = self._files[fh_out].write(at_out, room[:got]) if got else 0
        return structs.WRITE_OUT.pack(done, 0)
