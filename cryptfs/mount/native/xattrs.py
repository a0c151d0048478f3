"""Requests about extended attributes and ACLs."""

from __future__ import annotations

import contextlib
import errno
import struct

from cryptfs.mount.native import structs
from cryptfs.mount.native.context import MountContext
from cryptfs.mount.native.request import Payload, Request, Table
from cryptfs.mount.opcodes import Op
from cryptfs.storage.libc import os_error
from cryptfs.vfs.tree.privileges import shown_names
from cryptfs.vfs.tree.xattrs import ACL_NAMES, CAPABILITY


class XattrHandlers:
    """Answers requests about extended attributes."""

    def __init__(self, context: MountContext) -> None:
        self._context = context
        self._tree = context.tree
        self._nodes = context.nodes
        self._acls = context.acls
        self._privileges = context.privileges
        self.table: Table = {
            Op.GETXATTR: self.getxattr,
            Op.SETXATTR: self.setxattr,
            Op.LISTXATTR: self.listxattr,
            Op.REMOVEXATTR: self.removexattr,
        }

    def getxattr(self, request: Request) -> Payload:
        """A value, or its size."""
        size, _ = structs.GETXATTR_IN.unpack_from(request.body)
        (name,) = structs.take_names(request.body, structs.GETXATTR_IN.size, 1)
        if name == CAPABILITY:  # the kernel asks for it once for each file that a program writes
            state = self._nodes.open_state(self._nodes.get(request.nodeid))
            if self._privileges.has_no_capability(state):
                return errno.ENODATA
        place = self._context.place(request.nodeid)
        if self._acls is not None and name in ACL_NAMES:
            return _sized(self._acls.get(*place, name), size)
        return _sized(self._tree.xattrs.get(*place, name), size)

    def listxattr(self, request: Request) -> Payload:
        """The names, or their size."""
        size, _ = structs.GETXATTR_IN.unpack_from(request.body)
        found = self._tree.xattrs.list(*self._context.place(request.nodeid))
        names = shown_names(found, request.uid, request.pid)
        return _sized(b"".join(name + b"\0" for name in names), size)

    def setxattr(self, request: Request) -> Payload:
        """Set a value."""
        layout = structs.SETXATTR_IN_EXT if self._context.has_long_setxattr else structs.SETXATTR_IN
        size, flags, *more = layout.unpack_from(request.body)
        (name,) = structs.take_names(request.body, layout.size, 1)
        start = layout.size + len(name) + 1
        value = bytes(request.body[start : start + size])
        if len(value) != size:
            raise struct.error("the request does not have as many bytes as it claims")
        self._tree.require_writable()
        place = self._context.place(request.nodeid)
        if self._acls is not None and name in ACL_NAMES:
            kill = bool(more and more[0] & structs.SETXATTR_ACL_KILL_SGID)
            self._acls.set(*place, name, value, flags, kill_sgid=kill)
            if not self._context.options.kernel_checks_permissions:  # then it forgets the mode by itself
                with contextlib.suppress(OSError):  # it has dropped the inode
                    payload = structs.INVAL_INODE_OUT.pack(request.nodeid, -1, 0)
                    request.notify(structs.Notification.INVAL_INODE, payload)
        else:
            self._tree.xattrs.set(*place, name, value, flags)
            state = self._nodes.open_state(self._nodes.get(request.nodeid))
            self._privileges.attribute_was_set(state, name)
        return b""

    def removexattr(self, request: Request) -> Payload:
        """Remove an attribute."""
        self._tree.require_writable()
        name = structs.only_name(request.body)
        place = self._context.place(request.nodeid)
        if self._acls is not None and name in ACL_NAMES:
            self._acls.remove(*place, name)
        else:
            self._tree.xattrs.remove(*place, name)
        return b""


def _sized(value: bytes, size: int) -> bytes:
    """An xattr reply: its size if the caller only asks for that, ERANGE if it has too little room."""
    if size == 0:
        return structs.GETXATTR_OUT.pack(len(value), 0)
    if len(value) > size:
        raise os_error(errno.ERANGE)
    return value
