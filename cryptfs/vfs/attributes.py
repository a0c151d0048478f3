"""Attributes of entries: stat, mode, owner, times, access. Nothing here follows a symlink."""

from __future__ import annotations

import errno
import os
import stat
from typing import NamedTuple

from cryptfs.core.smallvalues import target_size
from cryptfs.storage.libc import Times, statx_birth_time, utimensat
from cryptfs.vfs.context import FileContext
from cryptfs.vfs.directory import SELF, Directory, Unnamed


class Attributes(NamedTuple):
    """What stat says of a file: the backing file's stat, and the plaintext size in its place."""

    st: os.stat_result
    size: int


class Caller(NamedTuple):
    """Who asks, where several users share a mount: new files are theirs."""

    uid: int
    gid: int


def plain_attributes(st: os.stat_result, context: FileContext) -> Attributes:
    """Attributes from a backing stat: no header is read on the way of `ls -l`."""
    kind = stat.S_IFMT(st.st_mode)
    if kind == stat.S_IFREG:
        return Attributes(st, context.plain_size(st))
    if kind == stat.S_IFLNK:
        return Attributes(st, target_size(st.st_size))
    return Attributes(st, st.st_size)


def backing_stat(directory: Directory, name: bytes) -> os.stat_result:
    """The backing file's stat of an entry or, for SELF, of the directory."""
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
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        os.chmod(f"/proc/self/fd/{fd}", mode)
    finally:
        os.close(fd)


def change_owner(directory: Directory, name: bytes, uid: int, gid: int) -> None:
    """lchown(2); -1 leaves an id as it is."""
    os.chown(directory.entry_name(name), uid, gid, dir_fd=directory.fd, follow_symlinks=False)


def change_times(directory: Directory, name: bytes, times: Times) -> None:
    """utimensat(2) of the entry itself."""
    utimensat(directory.fd, directory.entry_name(name), times)


def check_access(directory: Directory, name: bytes, mode: int) -> None:
    """access(2) with the rights of this process.

    Raises: OSError: EACCES where they do not suffice; ENOENT and the like.
    """
    entry_name = directory.entry_name(name)
    if os.access(entry_name, mode, dir_fd=directory.fd, follow_symlinks=False):
        return
    os.stat(entry_name, dir_fd=directory.fd, follow_symlinks=False)  # a missing entry is ENOENT
    read_only = mode & os.W_OK and os.fstatvfs(directory.fd).f_flag & os.ST_RDONLY
    raise OSError(code := errno.EROFS if read_only else errno.EACCES, os.strerror(code))


def birth_time(directory: Directory | Unnamed, name: bytes) -> int | None:
    """When a file was made, in nanoseconds; None where the backing filesystem does not know."""
    entry_name = "" if isinstance(directory, Unnamed) else directory.entry_name(name)
    return statx_birth_time(directory.fd, entry_name)


def give_to_caller(directory: Directory, entry_name: str, mode: int, caller: Caller | None) -> bool:
    """Make a new entry the caller's: owner, and group unless the directory passes on its own.

    Returns: whether anything had to be changed.
    Raises:  OSError: the entry stays as it is, owned by this process.
    """
    if caller is None or caller == (os.geteuid(), os.getegid()):
        return False
    inherits_group = os.fstat(directory.fd).st_mode & stat.S_ISGID
    gid = -1 if inherits_group else caller.gid
    os.chown(entry_name, caller.uid, gid, dir_fd=directory.fd, follow_symlinks=False)
    if mode & (stat.S_ISUID | stat.S_ISGID) and not stat.S_ISLNK(mode):
        os.chmod(directory.proc_path(entry_name), stat.S_IMODE(mode))  # chown took them away
    return True
