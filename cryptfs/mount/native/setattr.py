"""SETATTR requests: mode, owner, size and times of a node, and the privileges that a change takes away."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import Any

from cryptfs.mount.native.node import Node
from cryptfs.mount.native.nodes import NodeTable
from cryptfs.mount.native.structs import SetAttr
from cryptfs.storage.libc import AT_FDCWD, UTIME_NOW, UTIME_OMIT, Times, utimensat
from cryptfs.vfs.acls import Acls
from cryptfs.vfs.attributes import change_mode, change_owner
from cryptfs.vfs.directory import SELF, Place, Unnamed
from cryptfs.vfs.filestate import FileState
from cryptfs.vfs.mtimes import times_were_set
from cryptfs.vfs.openfile import OpenFile
from cryptfs.vfs.tree import VaultTree
from cryptfs.vfs.xattrs import CAPABILITY

_TIME_FIELDS = SetAttr.ATIME | SetAttr.MTIME | SetAttr.ATIME_NOW | SetAttr.MTIME_NOW


class AttributeSetter:
    """Applies SETATTR requests.

    Args: files: the open files by handle, shared with the other requests.
          acls: to keep in step with modes, or None.   xattrs: whether the mount has them.
          writeback: whether the kernel keeps the times of files.
    """

    def __init__(
        self,
        tree: VaultTree,
        nodes: NodeTable,
        files: dict[int, OpenFile],
        acls: Acls | None,
        *,
        xattrs: bool,
        writeback: bool,
    ) -> None:
        self._tree = tree
        self._acls = acls
        self._xattrs = tree.xattrs if xattrs else None
        self._writeback = writeback
        self._nodes = nodes
        self._files = files

    def apply(self, node: Node, place: Place, fields: tuple[Any, ...], caller: int) -> None:
        """Change what the request names, in the order mode, owner, size, times.

        Args: place: of the node's file, surely that one.   caller: its uid.
        """
        (valid, _, fh, size, _, atime, mtime, _, atime_ns, mtime_ns, _, mode, _, uid, gid, _) = fields
        self._tree.require_writable()
        if valid & SetAttr.MODE:
            self._set_mode(place, stat.S_IMODE(mode))
        if not valid & ~(SetAttr.CTIME | SetAttr.FH):
            # All that the kernel says of a write to a set-id file, and of chown(-1, -1), which changes no
            # owner but takes the bits away. The latter sets ctime with the writeback cache; without it, it
            # is what comes while nobody writes. Then nobody has checked yet whether the caller may.
            st = self._tree.stat_of(place).st
            state = self._tree.files.find(st)
            if valid & SetAttr.CTIME or state is None or not state.writable:
                _require_owner_of_set_id(st, caller)
            self._set_owner(place, -1, -1)
        if valid & (SetAttr.UID | SetAttr.GID):
            self._set_owner(place, uid if valid & SetAttr.UID else -1, gid if valid & SetAttr.GID else -1)
        if valid & SetAttr.SIZE:
            handle = self._files.get(fh) if valid & SetAttr.FH else None
            # A kernel that keeps the times says so when a truncate moves them: not for the same size.
            keep = self._writeback and not valid & SetAttr.MTIME
            self._set_size(node, handle, size, keep=keep, kill=bool(valid & SetAttr.KILL_SUIDGID))
        if valid & _TIME_FIELDS:
            times = (
                *_time(atime, atime_ns, valid & SetAttr.ATIME, valid & SetAttr.ATIME_NOW),
                *_time(mtime, mtime_ns, valid & SetAttr.MTIME, valid & SetAttr.MTIME_NOW),
            )
            self._set_times(place, times)

    def _set_mode(self, place: Place, mode: int) -> None:
        change_mode(*place, mode)
        if self._acls is not None:
            self._acls.mode_changed(*place, mode)

    def _set_owner(self, place: Place, uid: int, gid: int) -> None:
        where, name = place
        if isinstance(where, Unnamed):
            os.chown(f"/proc/self/fd/{where.fd}", uid, gid)
        else:
            change_owner(where, name, uid, gid)
        if self._xattrs is not None:
            self._xattrs.drop(*place, CAPABILITY)

    def _set_times(self, place: Place, times: Times) -> None:
        where, name = place
        if isinstance(where, Unnamed):
            self._set_times_held(where.fd, times)
        else:
            self._tree.set_times(where, name, times)

    def _set_times_held(self, fd: int, times: Times) -> None:
        # Not opened: that fails for symlinks and sockets, and does something to devices.
        path = f"/proc/self/fd/{fd}"
        state = self._tree.files.find(os.fstat(fd))
        if state is None:
            utimensat(AT_FDCWD, path, times, follow=True)
            return
        with state.lock:  # as in VaultTree.set_times
            utimensat(AT_FDCWD, path, times, follow=True)
            times_were_set(state, times)

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
        self.written(file.state, kill=kill)

    def written(self, state: FileState, *, kill: bool) -> None:
        """After a change of content: the privileges that it takes away.

        Args: kill: the kernel says that set-id bits go; a security.capability goes always.
        """
        if kill:
            _drop_set_id_bits(state.fd)
        if state.may_have_capability:
            state.may_have_capability = False
            if self._xattrs is not None:
                self._xattrs.drop(Unnamed(state.fd), SELF, CAPABILITY)


def _require_owner_of_set_id(st: os.stat_result, caller: int) -> None:
    """Before suid, or sgid of a group-executable file, goes: EPERM for a stranger."""
    group = stat.S_ISGID | stat.S_IXGRP
    takes_away = st.st_mode & stat.S_ISUID or st.st_mode & group == group
    if takes_away and not stat.S_ISDIR(st.st_mode) and caller not in (0, st.st_uid):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))


def _drop_set_id_bits(fd: int) -> None:
    """Take away suid, and sgid of a group-executable file."""
    mode = stat.S_IMODE(os.fstat(fd).st_mode)
    kept = mode & ~stat.S_ISUID
    if mode & stat.S_IXGRP:
        kept &= ~stat.S_ISGID
    if kept != mode:
        with contextlib.suppress(PermissionError):  # not the owner: the backing write took them away
            os.fchmod(fd, kept)


def _time(seconds: int, nanoseconds: int, wanted: int, now: int) -> tuple[int, int]:
    if now:
        return 0, UTIME_NOW
    if not wanted:
        return 0, UTIME_OMIT
    return seconds - 2**64 if seconds >= 2**63 else seconds, nanoseconds
