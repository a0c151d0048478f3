"""System calls that Python's os module lacks, through ctypes: each raises OSError with its errno."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import struct

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
FALLOC_KEEP_SIZE = 1
FALLOC_PUNCH_HOLE = 2
FALLOC_ZERO_RANGE = 16
UTIME_NOW = (1 << 30) - 1  # value of tv_nsec, utimensat(2)
UTIME_OMIT = (1 << 30) - 2
AT_FDCWD = -100
AT_SYMLINK_NOFOLLOW = 0x100
AT_EMPTY_PATH = 0x1000
_STATX_BTIME = 0x800
_BTIME_WORD = 20  # stx_btime in struct statx, in words of 4 bytes: seconds (2 words), nanoseconds

_libc = ctypes.CDLL(None, use_errno=True)


_pack_times = struct.Struct("llll").pack  # struct timespec[2]

Times = tuple[int, int, int, int]
"""atime seconds, atime tv_nsec, mtime seconds, mtime tv_nsec; a tv_nsec may be UTIME_NOW or UTIME_OMIT."""


def _declare(name: str, *argtypes: type) -> object:
    function = getattr(_libc, name, None)
    if function is not None:
        function.argtypes = argtypes
        function.restype = ctypes.c_int
    return function


_c_off = ctypes.c_int64
_renameat2 = _declare(
    "renameat2", ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint
)
_utimensat = _declare("utimensat", ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_int)
_statx = _declare("statx", ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_uint, ctypes.c_void_p)
_futimens = _declare("futimens", ctypes.c_int, ctypes.c_char_p)
_fallocate = _declare("fallocate64", ctypes.c_int, ctypes.c_int, _c_off, _c_off) or _declare(
    "fallocate", ctypes.c_int, ctypes.c_int, _c_off, _c_off
)
_syncfs = _declare("syncfs", ctypes.c_int)
_fstatfs = _declare("fstatfs", ctypes.c_int, ctypes.c_void_p)


def _check(function: object, *arguments: object) -> None:
    if not callable(function):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if function(*arguments) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def renameat2(old_dir_fd: int, old: str, new_dir_fd: int, new: str, flags: int) -> None:
    """Rename relative to directory descriptors; flags: RENAME_NOREPLACE, RENAME_EXCHANGE or 0."""
    if flags == 0:
        os.rename(old, new, src_dir_fd=old_dir_fd, dst_dir_fd=new_dir_fd)
        return
    _check(_renameat2, old_dir_fd, os.fsencode(old), new_dir_fd, os.fsencode(new), flags)


def utimensat(dir_fd: int, name: str, times: Times, *, follow: bool = False) -> None:
    """Set the times of a directory entry; follow: what a link in /proc/self/fd stands for, links too."""
    flags = 0 if follow else AT_SYMLINK_NOFOLLOW
    _check(_utimensat, dir_fd, os.fsencode(name), _pack_times(*times), flags)


def futimens(fd: int, times: Times) -> None:
    """Set the times of an open file."""
    _check(_futimens, fd, _pack_times(*times))


def restore_mtime(fd: int, mtime_ns: int) -> None:
    """Put back the time of change after a write that is no change; somebody else's file keeps the new one."""
    with contextlib.suppress(PermissionError):
        futimens(fd, (0, UTIME_OMIT, *divmod(mtime_ns, 10**9)))


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2) without glibc's emulation: EOPNOTSUPP where the filesystem cannot."""
    _check(_fallocate, fd, mode, offset, length)


def syncfs(fd: int) -> None:
    """Write back everything of the filesystem that holds fd."""
    _check(_syncfs, fd)


def filesystem_type(fd: int) -> int:
    """f_type of fstatfs(2): the magic number of the filesystem."""
    buffer = (ctypes.c_long * 64)()  # struct statfs is smaller
    _check(_fstatfs, fd, ctypes.addressof(buffer))
    return buffer[0] & 0xFFFFFFFF


def statx_birth_time(dir_fd: int, name: str) -> int | None:
    """stx_btime in nanoseconds of an entry ('' for the descriptor itself); None where there is none."""
    buffer = (ctypes.c_uint32 * 64)()
    flags = AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH
    _check(_statx, dir_fd, os.fsencode(name), flags, _STATX_BTIME, ctypes.addressof(buffer))
    if not buffer[0] & _STATX_BTIME:
        return None
    return buffer[_BTIME_WORD] * 10**9 + (buffer[_BTIME_WORD + 1] << 32) * 10**9 + buffer[_BTIME_WORD + 2]
