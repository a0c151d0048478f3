"""Attributes of entries: stat, mode, owner, times, access. Nothing here follows a symlink."""

from __future__ import annotations

import errno
import os
import stat
from typing import NamedTuple

from cryptfs.core.format.smallvalues import target_size
from cryptfs.storage.libc import AT_FDCWD, Times, os_error, statx_birth_time, utimensat
from cryptfs.vfs.content.context import FileContext
from cryptfs.vfs.tree.directory import SELF, Directory, Unnamed

_SET_ID = stat.S_ISUID | stat.S_ISGID


class Attributes(NamedTuple):
    """The stat of a file: the backing file's, with the plaintext size in its place."""

    st: os.stat_result
    size: int


class Caller(NamedTuple):
    """The user who asks, if several share a mount: new files belong to this user."""

    uid: int
    gid: int


def plain_attributes(st: os.stat_result, context: FileContext) -> Attributes:
    """Attributes from a backing stat: `ls -l` reads no header for it."""
    kind = stat.S_IFMT(st.st_mode)
    if kind == stat.S_IFREG:
        return Attributes(st, context.plain_size(st))
    if kind == stat.S_IFLNK:
        return Attributes(st, target_size(st.st_size))
    return Attributes(st, st.st_size)


def backing_stat(directory: Directory, name: bytes) -> os.stat_result:
    """The backing file's stat of an entry or, for SELF, of the directory."""
    if name == SELF:
        return os.fstat(directory.fd)  # "." would need the right to search, x
    return os.stat(directory.entry_name(name), dir_fd=directory.fd, follow_symlinks=False)


def change_mode(directory: Directory | Unnamed, name: bytes, mode: int) -> None:
    """chmod(2) of the entry itself."""
    if name == SELF or isinstance(directory, Unnamed):
        os.chmod(f"/proc/self/fd/{directory.fd}", mode)
        return
    flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(directory.entry_name(name), flags, dir_fd=directory.fd)
    try:
        if stat.S_ISLNK(os.fstat(fd).st_mode):
            raise os_error(errno.EOPNOTSUPP)
        os.chmod(f"/proc/self/fd/{fd}", mode)
    finally:
        os.close(fd)


def change_owner(directory: Directory, name: bytes, uid: int, gid: int) -> None:
    """lchown(2); -1 leaves an id as it is."""
    if name == SELF:
        os.chown(f"/proc/self/fd/{directory.fd}", uid, gid)
        return
    os.chown(directory.entry_name(name), uid, gid, dir_fd=directory.fd, follow_symlinks=False)


def change_times(directory: Directory, name: bytes, times: Times) -> None:
    """utimensat(2) of the entry itself."""
    if name == SELF:
        utimensat(AT_FDCWD, f"/proc/self/fd/{directory.fd}", times, follow=True)
        return
    utimensat(directory.fd, directory.entry_name(name), times)


def check_access(directory: Directory, name: bytes, mode: int) -> None:
    """access(2) with the rights of this process.

    Raises: OSError: EACCES if the rights do not suffice; ENOENT and the like.
    """
    entry_name = directory.entry_name(name)
    if os.access(entry_name, mode, dir_fd=directory.fd, follow_symlinks=False):
        return
    os.stat(entry_name, dir_fd=directory.fd, follow_symlinks=False)  # a missing entry is ENOENT
    read_only = mode & os.W_OK and os.fstatvfs(directory.fd).f_flag & os.ST_RDONLY
    raise os_error(errno.EROFS if read_only else errno.EACCES)


def birth_time(directory: Directory | Unnamed, name: bytes) -> int | None:
    """When a file was made, in nanoseconds; None if the backing filesystem does not know."""
    entry_name = "" if name == SELF or isinstance(directory, Unnamed) else directory.entry_name(name)
    return statx_birth_time(directory.fd, entry_name)


def give_to_caller(directory: Directory, entry_name: str, mode: int, caller: Caller | None) -> bool:
    """Make a new entry the caller's: owner, and group unless the directory passes on its own.

    Only root can do that. On an ordinary user's mount the entry stays that user's, without set-id bits, which
    would lend the caller the rights of that user.

    Returns: whether it changed anything.
    Raises:  OSError: the entry stays as it is; this process owns it.
    """
    if caller is None or caller == (os.geteuid(), os.getegid()):
        return False
    set_id = mode & (stat.S_ISUID | stat.S_ISGID) and not stat.S_ISLNK(mode)
    try:
        gid = _group_for(directory, caller)
        os.chown(entry_name, caller.uid, gid, dir_fd=directory.fd, follow_symlinks=False)
    except PermissionError:
        if set_id and not stat.S_ISDIR(mode):
            os.chmod(directory.proc_path(entry_name), stat.S_IMODE(mode) & ~_SET_ID)
        return True
    if set_id:
        os.chmod(directory.proc_path(entry_name), stat.S_IMODE(mode))  # chown took bits of it away
    return True


def give_open_to_caller(fd: int, directory: Directory, caller: Caller | None) -> None:
    """As give_to_caller, for a new file without a name."""
    if caller is None or caller == (os.geteuid(), os.getegid()):
        return
    try:
        os.fchown(fd, caller.uid, _group_for(directory, caller))
    except PermissionError:
        mode = stat.S_IMODE(os.fstat(fd).st_mode)
        if mode & _SET_ID:
            os.fchmod(fd, mode & ~_SET_ID)


def _group_for(directory: Directory, caller: Caller) -> int:
    """The group of a new entry; -1 leaves the one that the directory passes on."""
    return -1 if os.fstat(directory.fd).st_mode & stat.S_ISGID else caller.gid
