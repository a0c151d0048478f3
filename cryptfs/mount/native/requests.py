"""What each request does: the kernel's inode protocol on one side, the vfs on the other.

A protocol adapter only. A handler gets the node's number, the request's body and who asks, and returns
the reply's payload; None for no reply. Exceptions become errnos in session.py.
"""

from __future__ import annotations

import errno
import itertools
import os
import stat
import struct
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from cryptfs.mount.native import structs
from cryptfs.mount.native.directories import DirectoryHandle
from cryptfs.mount.native.nodes import HeldFile, Node, NodeTable
from cryptfs.mount.native.setattr import AttributeSetter
from cryptfs.mount.native.structs import Op
from cryptfs.mount.options import MountOptions
from cryptfs.storage.libc import RENAME_EXCHANGE
from cryptfs.vfs import ranges
from cryptfs.vfs.acls import Acls, Inherited
from cryptfs.vfs.attributes import Attributes, Caller, birth_time, check_access
from cryptfs.vfs.directory import SELF, Directory, Place, Unnamed
from cryptfs.vfs.openfile import OpenFile
from cryptfs.vfs.vault import Vault
from cryptfs.vfs.xattrs import ACL_NAMES, CAPABILITY

Payload = bytes | memoryview | None
Handle = TypeVar("Handle")

_VALID_FOR = 86_400  # seconds: nobody else changes the vault


class Request(NamedTuple):
    """One request, as the handlers see it. body: what follows the header; room: for a large reply."""

    nodeid: int
    body: memoryview
    uid: int
    gid: int
    room: memoryview


Handler = Callable[[Request], Payload]


def _error(code: int) -> OSError:
    return OSError(code, os.strerror(code))


class Handles(dict[int, Handle]):
    """What is open, by the number that the kernel was given. EBADF for another, which it never uses."""

    def __missing__(self, fh: int) -> Handle:
        raise _error(errno.EBADF)

    def take(self, fh: int) -> Handle:
        """The last use of a handle."""
        handle = self[fh]
        del self[fh]
        return handle


class Requests:
    """The handlers of one mount.

    Args: vault: unlocked.   options: what the mount was asked for.
    """

    def __init__(self, vault: Vault, options: MountOptions) -> None:
        self._tree = vault.tree
        vault.tree.context.noatime = "noatime" in options.extra
        vault.tree.context.nodiratime = "noatime" in options.extra or "nodiratime" in options.extra
        self.nodes = NodeTable(vault.tree)
        self._shared = options.allow_other
        self._kernel_owns_mtime = options.writeback
        self._files: Handles[OpenFile] = Handles()
        self._directories: Handles[DirectoryHandle] = Handles()
        self._next_handle = itertools.count(1)
        entry = _VALID_FOR if options.entry_timeout is None else options.entry_timeout
        attr = _VALID_FOR if options.attr_timeout is None else options.attr_timeout
        self._entry_valid = (int(entry), int(entry % 1 * 1e9))
        self._attr_valid = (int(attr), int(attr % 1 * 1e9))
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
        self.handlers = self._table(xattrs=options.xattrs)
        if options.kernel_checks_permissions:
            del self.handlers[Op.ACCESS]

    def _table(self, *, xattrs: bool) -> dict[int, Handler]:
        table: dict[int, Handler] = {
            Op.LOOKUP: self.lookup, Op.FORGET: self.forget, Op.BATCH_FORGET: self.batch_forget,
            Op.GETATTR: self.getattr, Op.SETATTR: self.setattr, Op.READLINK: self.readlink,
            Op.SYMLINK: self.symlink, Op.MKNOD: self.mknod, Op.MKDIR: self.mkdir, Op.UNLINK: self.unlink,
            Op.RMDIR: self.rmdir, Op.RENAME: self.rename, Op.RENAME2: self.rename2, Op.LINK: self.link,
            Op.OPEN: self.open, Op.CREATE: self.create, Op.TMPFILE: self.tmpfile, Op.READ: self.read,
            Op.WRITE: self.write, Op.RELEASE: self.release, Op.FSYNC: self.fsync, Op.STATFS: self.statfs,
            Op.OPENDIR: self.opendir, Op.READDIR: self.readdir, Op.READDIRPLUS: self.readdirplus,
            Op.RELEASEDIR: self.releasedir, Op.FSYNCDIR: self.fsyncdir, Op.ACCESS: self.access,
            Op.FALLOCATE: self.fallocate, Op.LSEEK: self.lseek, Op.COPY_FILE_RANGE: self.copy_file_range,
            Op.SYNCFS: self.syncfs, Op.STATX: self.statx,
        }  # fmt: skip
        if xattrs:
            table |= {
                Op.GETXATTR: self.getxattr, Op.SETXATTR: self.setxattr, Op.LISTXATTR: self.listxattr,
                Op.REMOVEXATTR: self.removexattr,
            }  # fmt: skip
        return table

    def _caller(self, request: Request) -> Caller | None:
        return Caller(request.uid, request.gid) if self._shared else None

    # ---- replies

    def pack_attributes(self, inode: int, found: Attributes) -> bytes:
        """fuse_attr."""
        st = found.st
        atime, atime_ns = divmod(st.st_atime_ns, 1_000_000_000)
        mtime, mtime_ns = divmod(st.st_mtime_ns, 1_000_000_000)
        ctime, ctime_ns = divmod(st.st_ctime_ns, 1_000_000_000)
        return structs.ATTR.pack(
            inode, found.size, st.st_blocks, atime & _U64, mtime & _U64, ctime & _U64, atime_ns, mtime_ns,
            ctime_ns, st.st_mode, st.st_nlink, st.st_uid, st.st_gid, _device(st.st_rdev), st.st_blksize, 0,
        )  # fmt: skip

    def _attr_out(self, node: Node, found: Attributes) -> bytes:
        return structs.ATTR_OUT.pack(*self._attr_valid, 0) + self.pack_attributes(node.inode, found)

    def entry_out(self, parent: Node, name: bytes, found: Attributes) -> tuple[Node, bytes]:
        """The node of an entry, one lookup more, and its fuse_entry_out."""
        node = self.nodes.remember(parent, name, found.st)
        (entry, entry_ns), (attr, attr_ns) = self._entry_valid, self._attr_valid
        head = structs.ENTRY_OUT.pack(node.nodeid, 0, entry, attr, entry_ns, attr_ns)
        return node, head + self.pack_attributes(node.inode, found)

    def _reply_entry(self, parent: Node, name: bytes) -> bytes:
        directory = self.nodes.directory(parent)
        return self.entry_out(parent, name, self._tree.stat(directory, name))[1]

    # ---- nodes

    def lookup(self, request: Request) -> Payload:
        """A name in a directory; a missing one is remembered by the kernel, too."""
        parent = self.nodes.get(request.nodeid)
        name = structs.only_name(request.body)
        try:
            return self._reply_entry(parent, name)
        except FileNotFoundError:
            entry, entry_ns = self._entry_valid
            return structs.ENTRY_OUT.pack(0, 0, entry, 0, entry_ns, 0) + bytes(structs.ATTR.size)

    def forget(self, request: Request) -> Payload:
        """References given back; no reply."""
        self.nodes.forget(request.nodeid, structs.FORGET_IN.unpack_from(request.body)[0])
        return None

    def batch_forget(self, request: Request) -> Payload:
        """Many of them."""
        count, _ = structs.BATCH_FORGET_IN.unpack_from(request.body)
        start = structs.BATCH_FORGET_IN.size
        for index in range(count):
            at = start + index * structs.FORGET_ONE.size
            self.nodes.forget(*structs.FORGET_ONE.unpack_from(request.body, at))
        return None

    def getattr(self, request: Request) -> Payload:
        """stat, fstat."""
        node = self.nodes.get(request.nodeid)
        return self._attr_out(node, self.nodes.attributes(node))

    def statx(self, request: Request) -> Payload:
        """statx, asked for only where a program wants the time of birth."""
        node = self.nodes.get(request.nodeid)
        found = self.nodes.attributes(node)
        birth = birth_time(*self._place(request.nodeid))
        return structs.STATX_OUT.pack(*self._attr_valid, 0) + structs.pack_statx(
            found.st, node.inode, found.size, birth
        )

    def setattr(self, request: Request) -> Payload:
        """chmod, chown, truncate, utimens, in one request."""
        node = self.nodes.get(request.nodeid)
        self._setter.apply(node, structs.SETATTR_IN.unpack_from(request.body), request.uid)
        return self._attr_out(node, self.nodes.attributes(node))

    def access(self, request: Request) -> Payload:
        """access(2), where the kernel does not check permissions itself."""
        mask, _ = structs.ACCESS_IN.unpack_from(request.body)
        node = self.nodes.get(request.nodeid)
        if node.held is None:
            check_access(*self.nodes.place(node), mask)
        return b""

    def statfs(self, request: Request) -> Payload:
        """Room in the backing filesystem; names have up to 255 bytes here."""
        found = self._tree.statfs()
        return structs.STATFS_OUT.pack(
            found.f_blocks, found.f_bfree, found.f_bavail, found.f_files, found.f_ffree, found.f_bsize, 255,
            found.f_frsize, 0,
        )  # fmt: skip

    # ---- entries

    def _inherit(self, directory: Directory, mode: int, umask: int) -> tuple[int, Inherited | None]:
        """The mode of a new entry, and the ACLs that it gets from its directory."""
        inherited = self._acls.inherited(directory, mode) if self._acls is not None else None
        return (mode & ~umask, None) if inherited is None else (inherited.mode, inherited)

    def _new_with_acl(
        self,
        request: Request,
        name: bytes,
        mode: int,
        umask: int,
        make: Callable[..., None],
        *details: object,
    ) -> bytes:
        parent = self.nodes.get(request.nodeid)
        directory = self.nodes.directory(parent)
        mode, inherited = self._inherit(directory, mode, umask)
        make(directory, name, mode, *details, self._caller(request))
        if inherited is not None and self._acls is not None:
            self._acls.give(directory, name, inherited)
        return self._reply_entry(parent, name)

    def mknod(self, request: Request) -> Payload:
        """A FIFO, socket, device or empty file."""
        mode, rdev, umask, _ = structs.MKNOD_IN.unpack_from(request.body)
        (name,) = structs.take_names(request.body, structs.MKNOD_IN.size, 1)
        device = os.makedev(rdev >> 8 & 0xFFF, rdev & 0xFF | rdev >> 12 & 0xFFF00)
        return self._new_with_acl(request, name, mode, umask, self._tree.make_node, device)

    def mkdir(self, request: Request) -> Payload:
        """A new directory."""
        mode, umask = structs.MKDIR_IN.unpack_from(request.body)
        (name,) = structs.take_names(request.body, structs.MKDIR_IN.size, 1)
        return self._new_with_acl(request, name, stat.S_IFDIR | mode, umask, self._tree.make_directory)

    def symlink(self, request: Request) -> Payload:
        """A new symlink."""
        name, target = structs.take_names(request.body, 0, 2)
        parent = self.nodes.get(request.nodeid)
        self._tree.make_symlink(self.nodes.directory(parent), name, target, self._caller(request))
        return self._reply_entry(parent, name)

    def readlink(self, request: Request) -> Payload:
        """What a symlink says."""
        return self._tree.symlinks.read(*self.nodes.place(self.nodes.get(request.nodeid)))

    def link(self, request: Request) -> Payload:
        """A further name."""
        (old_id,) = structs.LINK_IN.unpack_from(request.body)
        (name,) = structs.take_names(request.body, structs.LINK_IN.size, 1)
        node, parent = self.nodes.get(old_id), self.nodes.get(request.nodeid)
        directory = self.nodes.directory(parent)
        if node.held is not None:
            self._tree.link_open(node.held.fd, directory, name)
        else:
            source = self.nodes.place(node)
            _, old = self.nodes.hold(*source)
            self._tree.link(*source, directory, name)
            assert node.parent is not None  # the root cannot be linked: it is a directory
            self.nodes.moved(node, node.parent, node.name, self._tree.stat(*source).st, old)
        return self._reply_entry(parent, name)

    def unlink(self, request: Request) -> Payload:
        """Remove a name."""
        self._remove(request, self._tree.unlink)
        return b""

    def rmdir(self, request: Request) -> Payload:
        """Remove an empty directory."""
        self._remove(request, self._tree.remove_directory)
        return b""

    def _remove(self, request: Request, remove: Callable[..., None]) -> None:
        directory = self.nodes.directory(self.nodes.get(request.nodeid))
        name = structs.only_name(request.body)
        node, held = self.nodes.hold(directory, name)
        with self.nodes.displaced(node, held):
            remove(directory, name)
            self.nodes.lost(node, held)

    def rename(self, request: Request) -> Payload:
        """rename(2)."""
        (new_parent,) = structs.RENAME_IN.unpack_from(request.body)
        return self._rename(request, new_parent, 0, structs.RENAME_IN.size)

    def rename2(self, request: Request) -> Payload:
        """renameat2(2)."""
        new_parent, flags, _ = structs.RENAME2_IN.unpack_from(request.body)
        return self._rename(request, new_parent, flags, structs.RENAME2_IN.size)

    def _rename(self, request: Request, new_parent: int, flags: int, names_at: int) -> bytes:
        old_name, new_name = structs.take_names(request.body, names_at, 2)
        source, target = self.nodes.get(request.nodeid), self.nodes.get(new_parent)
        source_dir, target_dir = self.nodes.directory(source), self.nodes.directory(target)
        nodes = self.nodes
        moving, old = nodes.hold(source_dir, old_name)
        try:
            replaced, lost = nodes.hold(target_dir, new_name)
        except FileNotFoundError:
            replaced, lost = None, old
        with nodes.displaced(moving, old), nodes.displaced(replaced, lost):
            self._tree.rename(source_dir, old_name, target_dir, new_name, flags)
            if replaced is not None and replaced is moving:
                moving.held = None
                return b""  # two names of one file: nothing happened
            if flags == RENAME_EXCHANGE:
                nodes.moved(replaced, source, old_name, self._tree.stat(source_dir, old_name).st, lost)
            else:
                nodes.lost(replaced, lost)
            nodes.moved(moving, target, new_name, self._tree.stat(target_dir, new_name).st, old)
        return b""

    # ---- directories

    def opendir(self, request: Request) -> Payload:
        """A handle on a directory."""
        node = self.nodes.get(request.nodeid)
        handle = DirectoryHandle(self._tree, self.nodes.directory(node), node)
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
            file = self._tree.open(*self.nodes.place(node), flags)
        if flags & os.O_TRUNC:
            self._setter.written(file.state, kill=bool(open_flags & structs.OPEN_KILL_SUIDGID))
        return self._opened(file)

    def create(self, request: Request) -> Payload:
        """Create and open."""
        flags, mode, umask, open_flags = structs.CREATE_IN.unpack_from(request.body)
        (name,) = structs.take_names(request.body, structs.CREATE_IN.size, 1)
        parent = self.nodes.get(request.nodeid)
        directory = self.nodes.directory(parent)
        mode, inherited = self._inherit(directory, mode, umask)
        file = self._tree.create(directory, name, flags, mode, self._caller(request))
        if inherited is not None and self._acls is not None:
            self._acls.give(directory, name, inherited)
        if flags & os.O_TRUNC:  # for a file that was there after all
            self._setter.written(file.state, kill=bool(open_flags & structs.OPEN_KILL_SUIDGID))
        return self.entry_out(parent, name, self._tree.stat_open(file))[1] + self._opened(file)

    def tmpfile(self, request: Request) -> Payload:
        """O_TMPFILE: a file without a name."""
        flags, mode, umask, _ = structs.CREATE_IN.unpack_from(request.body)
        parent = self.nodes.get(request.nodeid)
        directory = self.nodes.directory(parent)
        mode, inherited = self._inherit(directory, mode, umask)
        file = self._tree.create_unnamed(directory, flags, mode, self._caller(request))
        if inherited is not None and self._acls is not None:
            self._acls.give(Unnamed(file.state.fd), SELF, inherited)
        node, entry = self.entry_out(parent, b"", self._tree.stat_open(file))
        node.held = HeldFile(os.open(f"/proc/self/fd/{file.state.fd}", os.O_PATH | os.O_CLOEXEC))
        return entry + self._opened(file)

    def read(self, request: Request) -> Payload:
        """Read straight into the reply."""
        fh, offset, size, *_ = structs.READ_IN.unpack_from(request.body)
        room = request.room[:size]
        return room[: self._files[fh].read_into(offset, room)]

    def write(self, request: Request) -> Payload:
        """Write straight from the request."""
        fh, offset, size, write_flags, *_ = structs.WRITE_IN.unpack_from(request.body)
        data = request.body[structs.WRITE_IN.size :]
        if len(data) != size:
            raise struct.error("the request holds another number of bytes than it says")
        file = self._files[fh]
        if write_flags & structs.WRITE_CACHE and file.state.kept_mtime_ns is None:
            file.state.keep_mtime()
        done = file.write(offset, data)
        # What comes from the page cache was written before, or through a mapping, which takes nothing away.
        if not write_flags & structs.WRITE_CACHE and (
            write_flags & structs.WRITE_KILL_SUIDGID or file.state.may_have_capability
        ):
            self._setter.written(file.state, kill=bool(write_flags & structs.WRITE_KILL_SUIDGID))
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
        """SEEK_DATA and SEEK_HOLE."""
        fh, offset, whence, _ = structs.LSEEK_IN.unpack_from(request.body)
        return structs.LSEEK_OUT.pack(ranges.seek(self._files[fh], offset, whence))

    def copy_file_range(self, request: Request) -> Payload:
        """Copy without the way through the caller: as much as fits into one reply's room."""
        fh_in, at_in, _, fh_out, at_out, length, _ = structs.COPY_FILE_RANGE_IN.unpack_from(request.body)
        room = request.room[: min(length, len(request.room))]
        got = self._files[fh_in].read_into(at_in, room)
        done = self._files[fh_out].write(at_out, room[:got]) if got else 0
        return structs.WRITE_OUT.pack(done, 0)

    # ---- xattrs

    def _place(self, nodeid: int) -> Place:
        return self.nodes.file_of(self.nodes.get(nodeid))

    def getxattr(self, request: Request) -> Payload:
        """A value, or its size."""
        size, _ = structs.GETXATTR_IN.unpack_from(request.body)
        (name,) = structs.take_names(request.body, structs.GETXATTR_IN.size, 1)
        if name == CAPABILITY:  # asked for once for each file that is written
            state = self._tree.files.find_key(self.nodes.get(request.nodeid).key)
            if state is not None and not state.may_have_capability:
                raise _error(errno.ENODATA)
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
                state = self._tree.files.find(self.nodes.attributes(node).st)
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

    def close(self) -> None:
        """After the mount is gone."""
        for handle in self._directories.values():
            handle.close()
        self._directories.clear()
        self.nodes.close()


_U64 = 2**64 - 1


def _device(rdev: int) -> int:
    """A device number as the protocol has it: the kernel's 32-bit new_encode_dev."""
    major, minor = os.major(rdev), os.minor(rdev)
    return minor & 0xFF | major << 8 | (minor & ~0xFF) << 12


def _sized(value: bytes, size: int) -> bytes:
    """An xattr reply: its size where the caller only asks, ERANGE where it has too little room."""
    if size == 0:
        return structs.GETXATTR_OUT.pack(len(value), 0)
    if len(value) > size:
        raise _error(errno.ERANGE)
    return value
