"""Requests about nodes and entries: look up, attributes, make, link, rename, remove."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable

from cryptfs.mount.native import structs
from cryptfs.mount.native.handlers import Handlers, Payload, Request, error
from cryptfs.mount.native.node import HeldFile, Node
from cryptfs.storage.libc import RENAME_EXCHANGE
from cryptfs.vfs.attributes import birth_time, check_access
from cryptfs.vfs.directory import Directory, Place

_FLUSHED = structs.SetAttr.MTIME | structs.SetAttr.CTIME  # what the kernel sets after an unlink or rename


class EntryHandlers(Handlers):
    """Handlers of requests about nodes and the entries of directories."""

    def lookup(self, request: Request) -> Payload:
        """A name in a directory; a missing one is remembered by the kernel, too."""
        parent = self.nodes.get(request.nodeid)
        name = structs.only_name(request.body)
        try:
            return self._reply_entry(parent, name)
        except FileNotFoundError:
            # Of a directory that others have removed nothing is remembered: the next request looks again.
            return self._no_entry if self.nodes.is_present(parent) else errno.ENOENT

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
        fields = structs.SETATTR_IN.unpack_from(request.body)
        place = self.nodes.file_of(node)
        if fields[0] != _FLUSHED or not self._kernel_owns_mtime:
            self._setter.apply(node, place, fields, request.uid)
            return self._changed(node, place)
        found = self._tree.stat_of(place)
        if not self._is_flush(node, found.st, fields):
            self._setter.apply(node, place, fields, request.uid)
            return self._changed(node, place)
        return self._attr_out(node, found)

    def _changed(self, node: Node, place: Place) -> bytes:
        """Attributes after a change of our own, which is not to be taken for somebody else's."""
        found = self._tree.stat_of(place)
        where = place[0]
        if isinstance(where, HeldFile) and found.size == node.size:
            node.kept(where.st, found.st)
        else:
            node.told(found)
        return self._attr_out(node, found)

    def _is_flush(self, node: Node, st: os.stat_result, fields: tuple[int, ...]) -> bool:
        """Whether times need not be set: the kernel only tells them again after an unlink or rename.

        A kernel that owns the times moves ctime then, and sends what it has at once. A file without a name
        that is not open here needs none: for whoever still looks at it through an O_PATH descriptor the
        kernel keeps its own. And a renamed one has got its ctime from the backing filesystem.
        """
        renamed, node.renamed = node.renamed, False
        if not stat.S_ISREG(st.st_mode) or self.nodes.open_state(node) is not None:
            return False
        if node.held is not None:
            return node.held.gone
        return renamed and st.st_mtime_ns == fields[6] * 1_000_000_000 + fields[9]

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
        return self._reply_entry(parent, name, made=True)

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
        return self._reply_entry(parent, name, made=True)

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
            found, old = self.nodes.hold(*source)
            assert node.parent is not None  # the root cannot be linked: it is a directory
            if found is not node:
                raise error(errno.ESTALE)
            self.nodes.require_meant(node, node.parent, node.name, old)
            self._tree.link(*source, directory, name)
            st = self._tree.stat(*source).st
            self.nodes.moved(node, node.parent, node.name, st, old)
            node.kept(old.st, st)
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
        parent = self.nodes.get(request.nodeid)
        directory = self.nodes.directory(parent)
        name = structs.only_name(request.body)
        node, held = self.nodes.hold(directory, name)
        self.nodes.require_meant(node, parent, name, held)
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
                return b""  # two names of one file: nothing happened
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
        """Stat of a renamed entry, as far as it matters: a symlink may have been made anew."""
        return self._tree.stat(directory, name).st if stat.S_ISLNK(st.st_mode) else st
