"""The effect of a change on a file's privileges and times. Every engine asks here, so all do the same.

Linux takes the set-id bits and security.capability of a file away when its content or its owner changes. With
the writeback cache the kernel owns the time of change of files and tells it; without it, a write sets it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path

from cryptfs.storage.dirs import open_directory
from cryptfs.storage.libc import AT_FDCWD, Times, os_error, utimensat
from cryptfs.storage.records import give_internal_files
from cryptfs.vfs.content import mtimes
from cryptfs.vfs.content.filestate import FileState
from cryptfs.vfs.tree.acls import Acls
from cryptfs.vfs.tree.attributes import backing_stat, change_mode, change_owner
from cryptfs.vfs.tree.directory import SELF, HeldFile, Place, Unnamed
from cryptfs.vfs.tree.tree import VaultTree
from cryptfs.vfs.tree.xattrs import CAPABILITY

_TRUSTED = b"trusted."
_CAP_SYS_ADMIN = 21


class Privileges:
    """Changes mode, owner and times of files, and follows each change of content.

    kernel_owns_times: the kernel has the writeback cache; the engine says so when it knows.

    Args: acls: to keep in step with modes, or None.   xattrs: whether the mount has them.
    """

    def __init__(self, tree: VaultTree, acls: Acls | None, *, xattrs: bool) -> None:
        self.kernel_owns_times = False
        self._tree = tree
        self._acls = acls
        self._xattrs = tree.xattrs if xattrs else None

    # ---- attributes

    def set_mode(self, place: Place, mode: int) -> None:
        """chmod(2). mode: the permission bits. Raises: OSError."""
        self._make_clean(place)
        change_mode(*place, mode)
        if self._acls is not None:
            self._acls.mode_changed(*place, mode)

    def set_owner(self, place: Place, uid: int, gid: int) -> None:
        """lchown(2), which takes a capability away; -1 leaves an id. Raises: OSError."""
        self._make_clean(place)
        where, name = place
        if isinstance(where, Unnamed):
            os.chown(f"/proc/self/fd/{where.fd}", uid, gid)
        else:
            change_owner(where, name, uid, gid)
        if self._xattrs is not None:
            self._xattrs.drop(*place, CAPABILITY)
        if uid != -1 and os.geteuid() == 0:
            _give_internal_files(place)

    def give_up(self, place: Place, caller: int, *, by_write: bool) -> None:
        """Take away set-id bits and a capability, as chown(-1, -1) and a write do.

        Args:   caller: its uid.
                by_write: it may be a write, which needs no right if somebody has the file open for writing.
        Raises: OSError: EPERM: the caller may not.
        """
        st = self._tree.stat_of(place).st
        state = self._tree.files.find(st)
        if not by_write or state is None or not state.writable:
            _require_owner_of_set_id(st, caller)
        self.set_owner(place, -1, -1)

    def set_times(self, place: Place, times: Times) -> None:
        """utimensat(2) of the file itself. Raises: OSError."""
        if not self.kernel_owns_times:
            self._make_clean(place)
        where, name = place
        if not isinstance(where, Unnamed):
            self._tree.set_times(where, name, times)
            return
        # By path, not by opening: open fails for symlinks and sockets, and has an effect on devices.
        path = f"/proc/self/fd/{where.fd}"
        st = where.st if isinstance(where, HeldFile) else os.fstat(where.fd)
        if self._tree.files.find(st) is None:
            utimensat(AT_FDCWD, path, times, follow=True)
            return
        with self._tree.files.sharing(st) as state:
            if state is None:
                utimensat(AT_FDCWD, path, times, follow=True)
                return
            with state.lock:  # as in VaultTree.set_times
                utimensat(AT_FDCWD, path, times, follow=True)
                mtimes.times_were_set(state, times)

    def _make_clean(self, place: Place) -> None:
        """Before the attributes of a file change: do now the work of its last close, which would move ctime.

        The kernel keeps our next answer for a second, and `tar` takes a ctime that moves for a change.
        """
        if self.kernel_owns_times:
            return
        where, name = place
        st = os.fstat(where.fd) if isinstance(where, Unnamed) else backing_stat(where, name)
        self._tree.files.make_clean(st)

    # ---- content

    def moves_time(self, state: FileState, *, cached: bool) -> bool:
        """Before a write: whether it moves the time of change. cached: it comes from the page cache."""
        if not (cached and self.kernel_owns_times):
            return True
        if state.kept_mtime_ns is None:
            state.keep_mtime()
        return False

    def allocate_moves_time(self, state: FileState) -> bool:
        """Before a program reserves room or punches a hole: whether that moves the time of change."""
        if self.kernel_owns_times:
            state.keep_mtime()
        return not self.kernel_owns_times

    def written(self, state: FileState, *, kill: bool = False) -> None:
        """After a change of content by a program: take away the privileges that Linux takes away.

        Not after a write from the page cache: the program wrote that before, or by a mapping, which takes
        nothing away.

        Args: kill: the kernel says that set-id bits go; a security.capability goes always.
        """
        if kill:
            _drop_set_id_bits(state.fd)
        if state.may_have_capability:
            state.note_capability(may_be_there=False)
            if self._xattrs is not None:
                self._xattrs.drop(Unnamed(state.fd), SELF, CAPABILITY)

    # ---- the capability

    @staticmethod
    def has_no_capability(state: FileState | None) -> bool:
        """Whether a file surely has no security.capability. state: None if the file is not open."""
        return state is not None and not state.may_have_capability

    @staticmethod
    def attribute_was_set(state: FileState | None, attribute: bytes) -> None:
        """After an xattr of a file was set. state: as in has_no_capability."""
        if state is not None and attribute == CAPABILITY:
            state.note_capability(may_be_there=True)


def shown_names(names: list[bytes], uid: int, pid: int) -> list[bytes]:
    """A list of attributes as Linux shows it: only CAP_SYS_ADMIN sees trusted ones.

    Args: uid, pid: of the thread that asks.
    """
    if not any(name.startswith(_TRUSTED) for name in names) or _is_administrator(uid, pid):
        return names
    return [name for name in names if not name.startswith(_TRUSTED)]


def _is_administrator(uid: int, pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/status").read_bytes()
        effective = next(line for line in status.splitlines() if line.startswith(b"CapEff:"))
    except (OSError, StopIteration):  # it has gone, or this system shows no processes of others
        return uid == 0
    return bool(int(effective.split()[1], 16) >> _CAP_SYS_ADMIN & 1)


def _give_internal_files(place: Place) -> None:
    """After the owner of a place changed. It does nothing to files."""
    where, name = place
    with contextlib.suppress(NotADirectoryError):
        if name == SELF or isinstance(where, Unnamed):
            if stat.S_ISDIR(os.fstat(where.fd).st_mode):
                give_internal_files(where.fd)
            return
        fd = open_directory(where.fd, where.entry_name(name))
        try:
            give_internal_files(fd)
        finally:
            os.close(fd)


def _require_owner_of_set_id(st: os.stat_result, caller: int) -> None:
    """Before suid, or sgid of a group-executable file, goes: EPERM for a stranger."""
    group = stat.S_ISGID | stat.S_IXGRP
    takes_away = st.st_mode & stat.S_ISUID or st.st_mode & group == group
    if takes_away and not stat.S_ISDIR(st.st_mode) and caller not in (0, st.st_uid):
        raise os_error(errno.EPERM)


def _drop_set_id_bits(fd: int) -> None:
    """Take away suid, and sgid of a group-executable file."""
    mode = stat.S_IMODE(os.fstat(fd).st_mode)
    kept = mode & ~stat.S_ISUID
    if mode & stat.S_IXGRP:
        kept &= ~stat.S_ISGID
    if kept != mode:
        with contextlib.suppress(PermissionError):  # not the owner: the backing write took them away
            os.fchmod(fd, kept)
