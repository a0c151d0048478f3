"""Requests about the entries of directories: look up, make, link, rename, remove; and FORGET."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable

from cryptfs.mount.native import structs
from cryptfs.mount.native.context import MountContext
from cryptfs.mount.native.node import HandleNumbers
from cryptfs.mount.native.request import Payload, Request, Table
from cryptfs.mount.opcodes import Op
from cryptfs.storage.backing import DIRECTORY_FLAGS
from cryptfs.storage.libc import RENAME_EXCHANGE, os_error
from cryptfs.vfs.tree.directory import Directory, HeldFile
from cryptfs.vfs.tree.identity import held_of_vault, stale


class EntryHandlers:
    """Answers requests about entries."""

    def __init__(self, context: MountContext) -> None:
        self._context = context
        self._tree = context.tree
        self._nodes = context.nodes
        self._acls = context.acls
        self._replies = context.replies
        self.table: Table = {
            Op.LOOKUP: self.lookup, Op.FORGET: self.forget, Op.BATCH_FORGET: self.batch_forget,
            Op.MKNOD: self.mknod, Op.MKDIR: self.mkdir, Op.SYMLINK: self.symlink, Op.READLINK: self.readlink,
            Op.LINK: self.link, Op.UNLINK: self.unlink, Op.RMDIR: self.rmdir, Op.RENAME: self.rename,
            Op.RENAME2: self.rename2,
        }  # fmt: skip

    def lookup(self, request: Request) -> Payload:
        """A name in a directory; the kernel also remembers a missing one."""
        name = structs.only_name(request.body)
        if name in (b".", b".."):
            return self._by_handle(request.nodeid, name)
        parent = self._nodes.get(request.nodeid)
        try:
            payload = self._replies.look(parent, name)
            self._context.demand.looked_up(request.nodeid, payload)
            return payload
        except FileNotFoundError:
            # If others have removed the directory, the kernel remembers nothing, and looks again.
            return self._replies.no_entry if parent.is_present() else errno.ENOENT

    def _by_handle(self, nodeid: int, name: bytes) -> bytes:
        """ "." and "..": the kernel decodes a file handle, and may have dropped the inode long ago."""
        numbers, nodes = self._nodes.numbers, self._nodes
        if not isinstance(numbers, HandleNumbers):
            raise stale()
        try:
            node = nodes.get(nodeid)
        except OSError:
            node = nodes.adopt(nodeid, *self._held(numbers.handles.open(nodeid)))
            node.saw(nodes.attributes(node))
        if name == b".." and node is not nodes.root:
            above = HeldFile(os.open("..", DIRECTORY_FLAGS, dir_fd=nodes.directory(node).fd))
            found = nodes.find(above.st)
            if found is None:
                number = numbers.handles.number_of(above.fd, "", above.st.st_ino)
                if number is None:
                    raise stale()
                found = nodes.adopt(number, *self._held(os.dup(above.fd)))
                found.saw(nodes.attributes(found))
            node = found
        return self._replies.again(node)

    def _held(self, fd: int) -> tuple[HeldFile, Directory | None]:
        return held_of_vault(HeldFile(fd), self._tree.files, self._tree.opener)

    def forget(self, request: Request) -> Payload:
        """The kernel gives references back; no reply."""
        self._nodes.forget(request.nodeid, structs.FORGET_IN.unpack_from(request.body)[0])
        return None

    def batch_forget(self, request: Request) -> Payload:
        """Many forgets."""
        count, _ = structs.BATCH_FORGET_IN.unpack_from(request.body)
        start = structs.BATCH_FORGET_IN.size
        for index in range(count):
            at = start + index * structs.FORGET_ONE.size
            self._nodes.forget(*structs.FORGET_ONE.unpack_from(request.body, at))
        return None

    # ---- entries

    def _new_with_acl(
        self,
        request: Request,
        name: bytes,
        mode: int,
        umask: int,
        make: Callable[..., None],
        *details: object,
    ) -> bytes:
        parent = self._nodes.get(request.nodeid)
        directory = self._nodes.directory(parent)
        mode, inherited = self._context.inherit(directory, mode, umask)
        make(directory, name, mode, *details, self._context.caller(request))
        if inherited is not None and self._acls is not None:
            self._acls.give(directory, name, inherited)
        return self._replies.look(parent, name, made=True)

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
        parent = self._nodes.get(request.nodeid)
        self._tree.make_symlink(self._nodes.directory(parent), name, target, self._context.caller(request))
        return self._replies.look(parent, name, made=True)

    def readlink(self, request: Request) -> Payload:
        """The target of a symlink: of the node's own, whatever is at its place by now."""
        node = self._nodes.get(request.nodeid)
        place = self._nodes.place(node)
        return self._tree.symlinks.read(*place, self._nodes.reach(node))

    def link(self, request: Request) -> Payload:
        """A further name."""
        (old_id,) = structs.LINK_IN.unpack_from(request.body)
        (name,) = structs.take_names(request.body, structs.LINK_IN.size, 1)
        node, parent = self._nodes.get(old_id), self._nodes.get(request.nodeid)
        directory = self._nodes.directory(parent)
        if node.held is not None:
            self._tree.link_open(node.held.fd, directory, name)
        else:
            if node.parent is None:  # the root; Linux asks for a link to no directory
                return errno.EPERM
            source = self._nodes.place(node)
            found, old = self._nodes.hold(*source)
            if found is not node:
                raise os_error(errno.ESTALE)
            self._nodes.require_meant(node, node.parent, node.name, old)
            self._tree.link(*source, directory, name)
            st = self._tree.stat(*source).st
            self._nodes.moved(node, node.parent, node.name, st, old)
            node.anywhere = stat.S_ISLNK(st.st_mode)
            node.kept(old.st, st)
        return self._replies.look(parent, name)

    def unlink(self, request: Request) -> Payload:
        """Remove a name."""
        self._remove(request, self._tree.unlink)
        return b""

    def rmdir(self, request: Request) -> Payload:
        """Remove an empty directory."""
        self._remove(request, self._tree.remove_directory)
        return b""

    def _remove(self, request: Request, remove: Callable[..., None]) -> None:
        parent = self._nodes.get(request.nodeid)
        directory = self._nodes.directory(parent)
        name = structs.only_name(request.body)
        node, held = self._nodes.hold(directory, name)
        self._nodes.require_meant(node, parent, name, held)
        with self._nodes.displaced(node, held):
            remove(directory, name)
            self._nodes.lost(node, held)

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
        source, target = self._nodes.get(request.nodeid), self._nodes.get(new_parent)
        source_dir, target_dir = self._nodes.directory(source), self._nodes.directory(target)
        nodes = self._nodes
        moving, old = nodes.hold(source_dir, old_name)
        nodes.require_meant(moving, source, old_name, old)
        try:
            replaced, lost = nodes.hold(target_dir, new_name)
            nodes.require_meant(replaced, target, new_name, lost)
        except FileNotFoundError:
            replaced, lost = None, old
        with nodes.displaced(moving, old), nodes.displaced(replaced, lost):
            self._tree.rename(source_dir, old_name, target_dir, new_name, flags, old.st)
            if replaced is not None and replaced is moving:
                moving.held = None
                return b""  # two names of one file: nothing changed
            if flags == RENAME_EXCHANGE:
                nodes.moved(replaced, source, old_name, self._renamed(source_dir, old_name, lost.st), lost)
            else:
                nodes.lost(replaced, lost)
            nodes.moved(moving, target, new_name, self._renamed(target_dir, new_name, old.st), old)
            if moving is not None:
                moving.renamed = True
                moving.kept(old.st, os.fstat(old.fd))
        return b""

    def _renamed(self, directory: Directory, name: bytes, st: os.stat_result) -> os.stat_result:
        """Stat of a renamed entry, as far as it matters: a rename may have made a new symlink."""
        return self._tree.stat(directory, name).st if stat.S_ISLNK(st.st_mode) else st
