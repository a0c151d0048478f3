"""A bare pass-through on the native engine: what the engine can give at best, with no vfs and no cipher.

    python -m benchlib.passthrough DIRECTORY MOUNTPOINT

For measuring only: one user, absolute paths, no care for what other processes do to the directory.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import stat
import sys
import threading
from pathlib import Path
from typing import Any, cast

from benchlib.passthrough_nodes import VALID_FOR, PathNodes, attributes, entry
from cryptfs.mount.native import structs
from cryptfs.mount.native.connection import Connection
from cryptfs.mount.native.device import open_mount
from cryptfs.mount.native.request import Handler, Payload, Request
from cryptfs.mount.native.structs import SetAttr
from cryptfs.mount.opcodes import Op
from cryptfs.mount.options import MountOptions
from cryptfs.mount.statistics import Statistics

_UTIME_OMIT = (1 << 30) - 2
_libc = ctypes.CDLL(None, use_errno=True)


class PassThrough:
    """The handlers. A node is a path; an open file is its descriptor."""

    handles = False

    def __init__(self, directory: str) -> None:
        self.nodes = PathNodes(directory)
        self.statistics = Statistics("pass-through", {op: op.name.lower() for op in Op})
        self._listings: dict[int, list[tuple[bytes, int, int]]] = {}
        self._next_listing = itertools.count(1)
        self.handlers: dict[int, Handler] = {
            op: getattr(self, op.name.lower()) for op in Op if hasattr(self, op.name.lower())
        }

    def rest(self) -> None:
        """Nothing is kept that could go."""

    def agreed(self, chosen: structs.Cap) -> None:
        """Nothing here depends on it."""

    # ---- nodes

    def lookup(self, request: Request) -> Payload:
        name = structs.only_name(request.body)
        try:
            return self._entry(request.nodeid, name)
        except FileNotFoundError:
            return structs.ENTRY_OUT.pack(0, 0, VALID_FOR, 0, 0, 0) + bytes(structs.ATTR.size)

    def _entry(self, parent: int, name: bytes) -> bytes:
        st = os.lstat(self.nodes.child(parent, name))
        return entry(self.nodes.remember(parent, name, st), st)

    def forget(self, request: Request) -> Payload:
        self.nodes.forget(request.nodeid, structs.FORGET_IN.unpack_from(request.body)[0])
        return None

    def batch_forget(self, request: Request) -> Payload:
        count, _ = structs.BATCH_FORGET_IN.unpack_from(request.body)
        for index in range(count):
            at = structs.BATCH_FORGET_IN.size + index * structs.FORGET_ONE.size
            self.nodes.forget(*structs.FORGET_ONE.unpack_from(request.body, at))
        return None

    def _stat(self, nodeid: int) -> os.stat_result:
        fd = self.nodes.descriptor(nodeid)
        if fd is not None:
            return os.fstat(fd)
        return self.nodes.last(nodeid) or os.lstat(self.nodes.path(nodeid))

    def getattr(self, request: Request) -> Payload:
        return attributes(self._stat(request.nodeid))

    def setattr(self, request: Request) -> Payload:
        last = self.nodes.last(request.nodeid)
        if last is not None:
            return attributes(last)
        valid, _, _, size, _, atime, mtime, _, atime_ns, mtime_ns, _, mode, _, uid, gid, _ = (
            structs.SETATTR_IN.unpack_from(request.body)
        )
        fd = self.nodes.descriptor(request.nodeid)
        where: Any = self.nodes.path(request.nodeid) if fd is None else fd
        follow = fd is not None
        if valid & SetAttr.MODE:
            os.chmod(where, stat.S_IMODE(mode))
        if valid & (SetAttr.UID | SetAttr.GID):
            owner = uid if valid & SetAttr.UID else -1
            os.chown(where, owner, gid if valid & SetAttr.GID else -1, follow_symlinks=follow)
        if valid & SetAttr.SIZE:
            os.truncate(where, size)
        if valid & (SetAttr.ATIME | SetAttr.MTIME):
            now = self._stat(request.nodeid)
            times = (
                atime * 10**9 + atime_ns if valid & SetAttr.ATIME else now.st_atime_ns,
                mtime * 10**9 + mtime_ns if valid & SetAttr.MTIME else now.st_mtime_ns,
            )
            os.utime(where, ns=times, follow_symlinks=follow)
        return attributes(self._stat(request.nodeid))

    def statfs(self, _request: Request) -> Payload:
        found = os.statvfs(self.nodes.root)
        return structs.STATFS_OUT.pack(
            found.f_blocks, found.f_bfree, found.f_bavail, found.f_files, found.f_ffree, found.f_bsize, 255,
            found.f_frsize, 0,
        )  # fmt: skip

    # ---- entries

    def mknod(self, request: Request) -> Payload:
        mode, _, _, _ = structs.MKNOD_IN.unpack_from(request.body)
        (name,) = structs.take_names(request.body, structs.MKNOD_IN.size, 1)
        os.mknod(self.nodes.child(request.nodeid, name), mode)
        return self._entry(request.nodeid, name)

    def mkdir(self, request: Request) -> Payload:
        mode, _ = structs.MKDIR_IN.unpack_from(request.body)
        (name,) = structs.take_names(request.body, structs.MKDIR_IN.size, 1)
        os.mkdir(self.nodes.child(request.nodeid, name), mode)
        return self._entry(request.nodeid, name)

    def symlink(self, request: Request) -> Payload:
        name, target = structs.take_names(request.body, 0, 2)
        os.symlink(target, self.nodes.child(request.nodeid, name))
        return self._entry(request.nodeid, name)

    def readlink(self, request: Request) -> Payload:
        return os.readlink(self.nodes.path(request.nodeid))

    def link(self, request: Request) -> Payload:
        (old,) = structs.LINK_IN.unpack_from(request.body)
        (name,) = structs.take_names(request.body, structs.LINK_IN.size, 1)
        os.link(self.nodes.path(old), self.nodes.child(request.nodeid, name), follow_symlinks=False)
        return self._entry(request.nodeid, name)

    def unlink(self, request: Request) -> Payload:
        path = self.nodes.child(request.nodeid, structs.only_name(request.body))
        st = os.lstat(path)
        os.unlink(path)
        self.nodes.gone(st)
        return b""

    def rmdir(self, request: Request) -> Payload:
        path = self.nodes.child(request.nodeid, structs.only_name(request.body))
        st = os.lstat(path)
        os.rmdir(path)
        self.nodes.gone(st)
        return b""

    def rename(self, request: Request) -> Payload:
        return self._rename(request, structs.RENAME_IN.unpack_from(request.body)[0], structs.RENAME_IN.size)

    def rename2(self, request: Request) -> Payload:
        return self._rename(request, structs.RENAME2_IN.unpack_from(request.body)[0], structs.RENAME2_IN.size)

    def _rename(self, request: Request, new_parent: int, start: int) -> Payload:
        old, new = structs.take_names(request.body, start, 2)
        target = self.nodes.child(new_parent, new)
        with contextlib.suppress(FileNotFoundError):
            self.nodes.gone(os.lstat(target))
        os.rename(self.nodes.child(request.nodeid, old), target)
        self.nodes.moved(os.lstat(target), new_parent, new)
        return b""

    # ---- listings

    def opendir(self, request: Request) -> Payload:
        handle = next(self._next_listing)
        names = [(b".", 0, stat.S_IFDIR), (b"..", 0, stat.S_IFDIR)]
        with os.scandir(self.nodes.path(request.nodeid)) as entries:
            names += [(each.name, each.inode(), 0 if each.is_file() else stat.S_IFDIR) for each in entries]
        self._listings[handle] = names
        return structs.OPEN_OUT.pack(handle, 0, 0)

    def readdir(self, request: Request) -> Payload:
        return self._listing(request, plus=False)

    def readdirplus(self, request: Request) -> Payload:
        return self._listing(request, plus=True)

    def _listing(self, request: Request, *, plus: bool) -> bytes:
        handle, offset, room, *_ = structs.READ_IN.unpack_from(request.body)
        names = self._listings[handle]
        head = structs.ENTRY_OUT.size + structs.ATTR.size if plus else 0
        pieces: list[bytes] = []
        for index in range(offset, len(names)):
            name, inode, kind = names[index]
            dirent = structs.pack_dirent(inode, index + 1, kind >> 12, name)
            room -= head + len(dirent)
            if room < 0:
                break
            if plus:
                pieces.append(bytes(head) if index < 2 else self._entry(request.nodeid, name))
            pieces.append(dirent)
        return b"".join(pieces)

    def releasedir(self, request: Request) -> Payload:
        del self._listings[structs.RELEASE_IN.unpack_from(request.body)[0]]
        return b""

    def fsyncdir(self, request: Request) -> Payload:
        fd = os.open(self.nodes.path(request.nodeid), os.O_RDONLY | os.O_DIRECTORY)
        os.fsync(fd)
        os.close(fd)
        return b""

    # ---- files

    def _opened(self, nodeid: int, path: bytes, flags: int, mode: int = 0) -> bytes:
        """The kernel reads what was opened for writing, and writes in any order."""
        flags = flags & ~(os.O_ACCMODE | os.O_APPEND | os.O_NOFOLLOW) | os.O_RDWR
        try:
            fd = os.open(path, flags, mode)
        except PermissionError:
            fd = os.open(path, flags & ~os.O_ACCMODE)
        if nodeid:
            self.nodes.opened(nodeid, fd)
        return structs.OPEN_OUT.pack(fd, structs.FOPEN_KEEP_CACHE, 0)

    def open(self, request: Request) -> Payload:
        flags, _ = structs.OPEN_IN.unpack_from(request.body)
        return self._opened(request.nodeid, self.nodes.path(request.nodeid), flags & ~os.O_CREAT)

    def create(self, request: Request) -> Payload:
        flags, mode, _, _ = structs.CREATE_IN.unpack_from(request.body)
        (name,) = structs.take_names(request.body, structs.CREATE_IN.size, 1)
        reply = self._opened(0, self.nodes.child(request.nodeid, name), flags, mode)
        fd = structs.OPEN_OUT.unpack(reply)[0]
        st = os.fstat(fd)
        nodeid = self.nodes.remember(request.nodeid, name, st)
        self.nodes.opened(nodeid, fd)
        return entry(nodeid, st) + reply

    def read(self, request: Request) -> Payload:
        fd, offset, size, *_ = structs.READ_IN.unpack_from(request.body)
        room = request.room[:size]
        return room[: os.preadv(fd, (room,), offset)]

    def write(self, request: Request) -> Payload:
        fd, offset, *_ = structs.WRITE_IN.unpack_from(request.body)
        return structs.WRITE_OUT.pack(os.pwrite(fd, request.body[structs.WRITE_IN.size :], offset), 0)

    def release(self, request: Request) -> Payload:
        fd = structs.RELEASE_IN.unpack_from(request.body)[0]
        self.nodes.closed(request.nodeid, fd)
        os.close(fd)
        return b""

    def fsync(self, request: Request) -> Payload:
        os.fdatasync(structs.FSYNC_IN.unpack_from(request.body)[0])
        return b""

    def fallocate(self, request: Request) -> Payload:
        fd, offset, length, mode, _ = structs.FALLOCATE_IN.unpack_from(request.body)
        if _libc.fallocate(fd, mode, ctypes.c_int64(offset), ctypes.c_int64(length)):
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        return b""

    def lseek(self, request: Request) -> Payload:
        fd, offset, whence, _ = structs.LSEEK_IN.unpack_from(request.body)
        return structs.LSEEK_OUT.pack(os.lseek(fd, offset, whence))

    # ---- xattrs: answered, as every real filesystem here does, for the round trips that this brings

    def getxattr(self, request: Request) -> Payload:
        size, _ = structs.GETXATTR_IN.unpack_from(request.body)
        (name,) = structs.take_names(request.body, structs.GETXATTR_IN.size, 1)
        value = os.getxattr(self.nodes.path(request.nodeid), name, follow_symlinks=False)
        return value if size else structs.GETXATTR_OUT.pack(len(value), 0)

    def listxattr(self, request: Request) -> Payload:
        size, _ = structs.GETXATTR_IN.unpack_from(request.body)
        names = os.listxattr(self.nodes.path(request.nodeid), follow_symlinks=False)
        value = b"".join(os.fsencode(name) + b"\0" for name in names)
        return value if size else structs.GETXATTR_OUT.pack(len(value), 0)


def main() -> None:
    """Mount, serve until unmounted."""
    directory, mountpoint = sys.argv[1:]
    options = MountOptions()
    os.umask(0)
    fd = open_mount(directory, Path(mountpoint), options)
    ready = threading.Event()
    connection = Connection(fd, cast(Any, PassThrough(directory)), options, ready.set)
    connection.negotiate()
    connection.serve()
    os.close(fd)


if __name__ == "__main__":
    main()
