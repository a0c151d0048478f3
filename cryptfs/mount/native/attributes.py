"""Requests about the attributes of a node: GETATTR, SETATTR, STATX, ACCESS; and STATFS."""

from __future__ import annotations

import os
import stat

from cryptfs.mount.native import structs
from cryptfs.mount.native.context import MountContext
from cryptfs.mount.native.node import Node
from cryptfs.mount.native.request import Payload, Request, Table
from cryptfs.mount.native.structs import SetAttr
from cryptfs.mount.opcodes import Op
from cryptfs.storage.libc import UTIME_NOW, UTIME_OMIT
from cryptfs.vfs.content.openfile import OpenFile
from cryptfs.vfs.tree.attributes import Attributes, birth_time, check_access
from cryptfs.vfs.tree.directory import HeldFile, Place
from cryptfs.vfs.tree.identity import is_regular, stale

_TIME_FIELDS = SetAttr.ATIME | SetAttr.MTIME | SetAttr.ATIME_NOW | SetAttr.MTIME_NOW
_FLUSHED = SetAttr.MTIME | SetAttr.CTIME  # the kernel sets these, maybe by a handle, when it flushes times

Fields = tuple[int, ...]
"""Of a SETATTR request, as structs.SETATTR_IN has them."""


class AttributeHandlers:
    """Answers requests about attributes."""

    def __init__(self, context: MountContext) -> None:
        self._context = context
        self._tree = context.tree
        self._nodes = context.nodes
        self._files = context.files
        self._privileges = context.privileges
        self._replies = context.replies
        self._kernel_owns_times = context.options.writeback
        self.table: Table = {
            Op.GETATTR: self.getattr,
            Op.SETATTR: self.setattr,
            Op.STATX: self.statx,
            Op.ACCESS: self.access,
            Op.STATFS: self.statfs,
        }

    def getattr(self, request: Request) -> Payload:
        """stat, fstat."""
        node = self._nodes.get(request.nodeid)
        return self._replies.attributes(node, self._nodes.attributes(node))

    def statx(self, request: Request) -> Payload:
        """statx; the kernel asks only if a program wants the time of birth."""
        node = self._nodes.get(request.nodeid)
        found = self._nodes.attributes(node)
        birth = birth_time(*self._context.place(request.nodeid))
        return structs.STATX_OUT.pack(*self._replies.attr_valid, 0) + structs.pack_statx(
            found.st, node.inode, found.size, birth
        )

    def access(self, request: Request) -> Payload:
        """access(2), if the kernel does not check permissions itself."""
        mask, _ = structs.ACCESS_IN.unpack_from(request.body)
        node = self._nodes.get(request.nodeid)
        if node.held is None:
            check_access(*self._nodes.place(node), mask)
        return b""

    def statfs(self, request: Request) -> Payload:
        """Room in the backing filesystem; names have up to 255 bytes here."""
        found = self._tree.statfs()
        return structs.STATFS_OUT.pack(
            found.f_blocks, found.f_bfree, found.f_bavail, found.f_files, found.f_ffree, found.f_bsize, 255,
            found.f_frsize, 0,
        )  # fmt: skip

    # ---- changes

    def setattr(self, request: Request) -> Payload:
        """chmod, chown, truncate, utimens, in one request."""
        node = self._nodes.get(request.nodeid)
        fields = structs.SETATTR_IN.unpack_from(request.body)
        place = self._nodes.file_of(node)
        if fields[0] == _FLUSHED and self._kernel_owns_times:
            found = self._tree.stat_of(place)
            if self._is_flush(node, found.st, fields):
                return self._replies.attributes(node, found)
        self._apply(node, place, fields, request.uid)
        return self._changed(node, place, fields[0])

    def _changed(self, node: Node, place: Place, valid: int) -> bytes:
        """Attributes after a change of our own; a later look must not take it for somebody else's.

        Args:   valid: which fields were set.
        Raises: OSError: ESTALE: others have changed the file, and the kernel has another size.
        """
        found = self._tree.stat_of(place)
        if not valid & SetAttr.SIZE and not self._has_told_size(node, found):
            if valid & ~SetAttr.FH != _FLUSHED:
                raise stale()
            return self._replies.attributes(node, found)  # no program has asked: none must get an error
        where = place[0]
        if isinstance(where, HeldFile) and found.size == node.size:
            node.kept(where.st, found.st)
        else:
            node.told(found)
        return self._replies.attributes(node, found)

    def _has_told_size(self, node: Node, found: Attributes) -> bool:
        """Whether a file has the size of our last answer, or another one by our writes; else it is retired.

        A kernel with the writeback cache keeps the size that it has, so it must look the name up again.
        """
        if found.size == node.size or self._tree.context.exclusive or not is_regular(found.st):
            return True
        if node.held is not None:  # nobody else can reach it
            return True
        state = self._nodes.open_state(node)
        if state is not None and state.was_changed:
            return True
        self._tree.files.find(found.st)  # waits for a last close, which notes the size that our writes left
        if found.size == node.size:
            return True
        self._nodes.retire(node)
        return False

    def _is_flush(self, node: Node, st: os.stat_result, fields: Fields) -> bool:
        """Whether to leave the times alone, as the kernel only sends them again after an unlink or rename.

        A kernel that owns the times moves ctime then, and sends its times at once. A file without a name that
        is not open here needs none: the kernel keeps its own times for programs that still see it by an
        O_PATH descriptor. And a renamed file has its ctime from the backing filesystem.
        """
        renamed, node.renamed = node.renamed, False
        if not stat.S_ISREG(st.st_mode) or self._nodes.open_state(node) is not None:
            return False
        if node.held is not None:
            return node.held.gone
        return renamed and st.st_mtime_ns == fields[6] * 1_000_000_000 + fields[9]

    def _apply(self, node: Node, place: Place, fields: Fields, caller: int) -> None:
        """Make the changes that the request names, in the order mode, owner, size, times.

        Args: place: of the node's file, surely that one.   caller: its uid.
        """
        (valid, _, fh, size, _, atime, mtime, _, atime_ns, mtime_ns, _, mode, _, uid, gid, _) = fields
        privileges = self._privileges
        self._tree.require_writable()
        if valid & SetAttr.MODE:
            privileges.set_mode(place, stat.S_IMODE(mode))
        if not valid & ~(SetAttr.CTIME | SetAttr.FH):
            # The kernel sends only this for a write to a set-id file, and for chown(-1, -1), which changes no
            # owner but takes the bits away. That chown sets ctime with the writeback cache; without it, the
            # request means a chown if nobody writes. Then nobody has checked yet whether the caller may do
            # so.
            privileges.give_up(place, caller, by_write=not valid & SetAttr.CTIME)
        if valid & (SetAttr.UID | SetAttr.GID):
            owner = uid if valid & SetAttr.UID else -1
            privileges.set_owner(place, owner, gid if valid & SetAttr.GID else -1)
        if valid & SetAttr.SIZE:
            handle = self._files.get(fh) if valid & SetAttr.FH else None
            # A kernel that keeps the times says so if a truncate moves them: it does not for the same size.
            keep = self._kernel_owns_times and not valid & SetAttr.MTIME
            self._set_size(node, handle, size, keep=keep, kill=bool(valid & SetAttr.KILL_SUIDGID))
        if valid & _TIME_FIELDS:
            times = (
                *_time(atime, atime_ns, valid & SetAttr.ATIME, valid & SetAttr.ATIME_NOW),
                *_time(mtime, mtime_ns, valid & SetAttr.MTIME, valid & SetAttr.MTIME_NOW),
            )
            privileges.set_times(place, times)

    def _set_size(self, node: Node, handle: OpenFile | None, size: int, *, keep: bool, kill: bool) -> None:
        if handle is not None and handle.writable:
            self._truncate(handle, size, keep=keep, kill=kill)
            return
        held = node.held
        if held is not None:
            file = self._tree.open_held(held.fd, os.O_WRONLY)
        else:
            meant = (self._nodes.file_key(node), node)
            file = self._tree.open(*self._nodes.place(node), os.O_WRONLY, meant)
        try:
            self._truncate(file, size, keep=keep, kill=kill)
        finally:
            self._tree.release(file)

    def _truncate(self, file: OpenFile, size: int, *, keep: bool, kill: bool) -> None:
        if not keep or self._tree.stat_open(file).size != size:
            file.truncate(size)
        self._privileges.written(file.state, kill=kill)


def _time(seconds: int, nanoseconds: int, wanted: int, now: int) -> tuple[int, int]:
    if now:
        return 0, UTIME_NOW
    if not wanted:
        return 0, UTIME_OMIT
    return seconds - 2**64 if seconds >= 2**63 else seconds, nanoseconds
