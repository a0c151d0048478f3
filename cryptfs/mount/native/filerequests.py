"""Requests about what is open, files and directories, and about xattrs."""

from __future__ import annotations

import contextlib
import errno
import os
import struct

from cryptfs.mount.native import structs
from cryptfs.mount.native.directio import PageTracker
from cryptfs.mount.native.directories import DirectoryHandle
from cryptfs.mount.native.handlers import LARGE, Handlers, Later, Payload, Request, error
from cryptfs.mount.native.node import HeldFile
from cryptfs.mount.native.structs import Notification
from cryptfs.mount.options import MountOptions
from cryptfs.vfs import ranges
from cryptfs.vfs.directory import SELF, Unnamed
from cryptfs.vfs.identity import stale
from cryptfs.vfs.mtimes import before_write
from cryptfs.vfs.openfile import OpenFile
from cryptfs.vfs.vault import Vault
from cryptfs.vfs.xattrs import ACL_NAMES, CAPABILITY


class FileHandlers(Handlers):
    """Handlers of requests about open files, open directories and xattrs."""

    def __init__(self, vault: Vault, options: MountOptions) -> None:
        super().__init__(vault, options)
        self._pages = PageTracker()

    # ---- directories

    def opendir(self, request: Request) -> Payload:
        """A handle on a directory."""
        node = self.nodes.get(request.nodeid)
        directory = self.nodes.directory(node)
        self.nodes.require_present(node)
        handle = DirectoryHandle(self._tree, directory, node)
        fh = next(self._next_handle)
        self._directories[fh] = handle
        return structs.OPEN_OUT.pack(fh, 0, 0)

    def readdir(self, request: Request) -> Payload:
        """Entries from an offset on."""
        fh, offset, size, *_ = structs.READ_IN.unpack_from(request.body)
        return self._directories[fh].read(offset, size, None)

    def readdirplus(self, request: Request) -> Payload:
        """Entries with their attributes; each but '.' and '..' counts as a lookup."""
        fh, offset, size, *_ = structs.READ_IN.unpack_from(request.body)
        return self._directories[fh].read(offset, size, self.entry_out)

    def releasedir(self, request: Request) -> Payload:
        """The last use of a directory handle."""
        self._directories.take(structs.RELEASE_IN.unpack_from(request.body)[0]).close()
        return b""

    def fsyncdir(self, request: Request) -> Payload:
        """The entries of a directory are on disk when this returns."""
        fh, *_ = structs.FSYNC_IN.unpack_from(request.body)
        self._tree.sync_directory(self._directories[fh].directory)
        return b""

    # ---- files

    def _opened(self, file: OpenFile) -> bytes:
        fh = next(self._next_handle)
        self._files[fh] = file
        return structs.OPEN_OUT.pack(fh, structs.FOPEN_KEEP_CACHE, 0)

    def open(self, request: Request) -> Payload:
        """Open by node."""
        flags, open_flags = structs.OPEN_IN.unpack_from(request.body)
        node = self.nodes.get(request.nodeid)
        if node.held is not None:
            file = self._tree.open_held(node.held.fd, flags)
        else:
            meant = (self.nodes.file_key(node), node)
            file = self._tree.open(*self.nodes.place(node), flags, meant)
        if flags & os.O_TRUNC:
            self._setter.written(file.state, kill=bool(open_flags & structs.OPEN_KILL_SUIDGID))
        return self._opened(file)

    def create(self, request: Request) -> Payload:
        """Create and open."""
        flags, mode, umask, _ = structs.CREATE_IN.unpack_from(request.body)
        (name,) = structs.take_names(request.body, structs.CREATE_IN.size, 1)
        parent = self.nodes.get(request.nodeid)
        directory = self.nodes.directory(parent)
        mode, inherited = self._inherit(directory, mode, umask)
        try:
            exclusive = flags | os.O_EXCL
            file, found = self._tree.create_new(directory, name, exclusive, mode, self._caller(request))
        except FileExistsError:
            if flags & os.O_EXCL:
                raise
            # The kernel may know that file, and keeps the size that it knows: so it shall look again.
            raise stale() from None
        self.nodes.made(found.st)
        if inherited is not None and self._acls is not None:
            self._acls.give(directory, name, inherited)
            found = self._tree.stat_open(file)
        return self.entry_out(parent, name, found)[1] + self._opened(file)

    def tmpfile(self, request: Request) -> Payload:
        """O_TMPFILE: a file without a name."""
        flags, mode, umask, _ = structs.CREATE_IN.unpack_from(request.body)
        parent = self.nodes.get(request.nodeid)
        directory = self.nodes.directory(parent)
        mode, inherited = self._inherit(directory, mode, umask)
        file = self._tree.create_unnamed(directory, flags, mode, self._caller(request))
        if inherited is not None and self._acls is not None:
            self._acls.give(Unnamed(file.state.fd), SELF, inherited)
        found = self._tree.stat_open(file)
        self.nodes.made(found.st)
        node, entry = self.entry_out(parent, b"", found)
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
        self.statistics.bytes_read += got
        return room if got == size else room[:got]

    def write(self, request: Request) -> Payload:
        """Write straight from the request."""
        fh, offset, size, write_flags, _, _, _ = structs.WRITE_IN.unpack_from(request.body)
        data = request.body[structs.WRITE_IN.size :]
        if len(data) != size:
            raise struct.error("the request holds another number of bytes than it says")
        file = self._files[fh]
        direct = write_flags & structs.WRITE_LOCKOWNER
        if not direct:
            self._pages.cached(request.nodeid)
        if write_flags & structs.WRITE_CACHE and self._kernel_owns_mtime and file.state.kept_mtime_ns is None:
            file.state.keep_mtime()
        elif not (write_flags & structs.WRITE_CACHE and self._kernel_owns_mtime):
            before_write(file.state)
        done = file.write(offset, data)
        self.statistics.bytes_written += done
        # What comes from the page cache was written before, or through a mapping, which takes nothing away.
        if not write_flags & structs.WRITE_CACHE and (
            write_flags & structs.WRITE_KILL_SUIDGID or file.state.may_have_capability
        ):
            self._setter.written(file.state, kill=bool(write_flags & structs.WRITE_KILL_SUIDGID))
        if direct and not self._pages.has_none(request.nodeid):
            raise self._pages.dropping(request.nodeid, offset, done, self.notify)
        return structs.WRITE_OUT.pack(done, 0)

    def release(self, request: Request) -> Payload:
        """The last use of a handle."""
        self._tree.release(self._files.take(structs.RELEASE_IN.unpack_from(request.body)[0]))
        return b""

    def fsync(self, request: Request) -> Payload:
        """The file is on disk when this returns."""
        fh, flags, _ = structs.FSYNC_IN.unpack_from(request.body)
        self._tree.sync_file(self._files[fh], data_only=bool(flags & structs.FSYNC_FDATASYNC))
        return b""

    def syncfs(self, request: Request) -> Payload:
        """syncfs(2): the whole vault is on disk when this returns."""
        self._tree.sync_all()
        return b""

    def fallocate(self, request: Request) -> Payload:
        """Reserve room, or punch a hole."""
        fh, offset, length, mode, _ = structs.FALLOCATE_IN.unpack_from(request.body)
        file = self._files[fh]
        if self._kernel_owns_mtime:
            file.state.keep_mtime()
        ranges.allocate(file, mode, offset, length)
        return b""

    def lseek(self, request: Request) -> Payload:
        """SEEK_DATA and SEEK_HOLE.

        The kernel asks without a thought for what it has not written back yet, be it data in a hole or the
        end of the file: taken at our word, `cp --sparse` would leave that out. So it is made to write first.
        """
        fh, offset, whence, _ = structs.LSEEK_IN.unpack_from(request.body)
        file, nodeid = self._files[fh], request.nodeid

        def seek() -> bytes:
            return structs.LSEEK_OUT.pack(ranges.seek(file, offset, whence))

        def write_back_and_seek() -> bytes:
            with contextlib.suppress(FileNotFoundError):  # the kernel has dropped the inode: nothing to write
                self.notify(Notification.INVAL_INODE, structs.INVAL_INODE_OUT.pack(nodeid, 0, 0))
            return seek()

        if self._kernel_owns_mtime and file.state.writable:
            raise Later(write_back_and_seek)
        return seek()

    def copy_file_range(self, request: Request) -> Payload:
        """Copy without the way through the caller: as much as fits into one reply's room."""
        fh_in, at_in, _, fh_out, at_out, length, _ = structs.COPY_FILE_RANGE_IN.unpack_from(request.body)
        room = request.room[: min(length, len(request.room))]
        got = self._files[fh_in].read_into(at_in, room)
        done = self._files[fh_out].write(at_out, room[:got]) if got else 0
        return structs.WRITE_OUT.pack(done, 0)

    # ---- xattrs

    def getxattr(self, request: Request) -> Payload:
        """A value, or its size."""
        size, _ = structs.GETXATTR_IN.unpack_from(request.body)
        (name,) = structs.take_names(request.body, structs.GETXATTR_IN.size, 1)
        if name == CAPABILITY:  # asked for once for each file that is written
            state = self.nodes.open_state(self.nodes.get(request.nodeid))
            if state is not None and not state.may_have_capability:
                return errno.ENODATA
        value = self._tree.xattrs.get(*self._place(request.nodeid), name)
        return _sized(value, size)

    def listxattr(self, request: Request) -> Payload:
        """The names, or their size."""
        size, _ = structs.GETXATTR_IN.unpack_from(request.body)
        names = self._tree.xattrs.list(*self._place(request.nodeid))
        return _sized(b"".join(name + b"\0" for name in names), size)

    def setxattr(self, request: Request) -> Payload:
        """Set a value."""
        size, flags = structs.SETXATTR_IN.unpack_from(request.body)
        (name,) = structs.take_names(request.body, structs.SETXATTR_IN.size, 1)
        start = structs.SETXATTR_IN.size + len(name) + 1
        value = bytes(request.body[start : start + size])
        if len(value) != size:
            raise struct.error("the request holds another number of bytes than it says")
        self._tree.require_writable()
        if self._acls is not None and name in ACL_NAMES:
            self._acls.set(*self._place(request.nodeid), name, value, flags)
        else:
            self._tree.xattrs.set(*self._place(request.nodeid), name, value, flags)
            if name == CAPABILITY:
                node = self.nodes.get(request.nodeid)
                state = self.nodes.open_state(node)
                if state is not None:
                    state.may_have_capability = True
        return b""

    def removexattr(self, request: Request) -> Payload:
        """Remove an attribute."""
        self._tree.require_writable()
        name = structs.only_name(request.body)
        if self._acls is not None and name in ACL_NAMES:
            self._acls.remove(*self._place(request.nodeid), name)
        else:
            self._tree.xattrs.remove(*self._place(request.nodeid), name)
        return b""


def _sized(value: bytes, size: int) -> bytes:
    """An xattr reply: its size where the caller only asks, ERANGE where it has too little room."""
    if size == 0:
        return structs.GETXATTR_OUT.pack(len(value), 0)
    if len(value) > size:
        raise error(errno.ERANGE)
    return value
