"""The calls of the C library that Python's os module lacks, through ctypes; each raises OSError.

No other file of the package loads the C library. A call that the system lacks raises ENOSYS.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import struct
import sys
from collections.abc import Iterator

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
RENAME_WHITEOUT = 4
FALLOC_KEEP_SIZE = 1
FALLOC_PUNCH_HOLE = 2
FALLOC_ZERO_RANGE = 16
UTIME_NOW = (1 << 30) - 1  # value of tv_nsec, utimensat(2)
UTIME_OMIT = (1 << 30) - 2
AT_FDCWD = -100
AT_SYMLINK_NOFOLLOW = 0x100
AT_EMPTY_PATH = 0x1000
UMOUNT_DETACH = 2
UMOUNT_NOFOLLOW = 8
_AT_STATX_DONT_SYNC = 0x4000
STATX_BTIME = 0x800
_StatxBuffer = ctypes.c_char * 256
_STATX_MASK = struct.Struct("=I")
_BIRTH_FLAGS = AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH
_BTIME = struct.Struct("=80xqI")  # stx_btime in struct statx: seconds, nanoseconds
_DEVICE = struct.Struct("=136xII")  # stx_dev_major, stx_dev_minor
_HANDLE_HEAD = struct.Struct("=Ii")  # handle_bytes, handle_type in struct file_handle
_MAX_HANDLE = 128
_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4

_libc = ctypes.CDLL(None, use_errno=True)


_pack_times = struct.Struct("llll").pack  # struct timespec[2]

StrPath = str | os.PathLike[str]
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
_getdents64 = _declare("getdents64", ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t)
_name_to_handle_at = _declare(
    "name_to_handle_at", ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int
)
_open_by_handle_at = _declare("open_by_handle_at", ctypes.c_int, ctypes.c_char_p, ctypes.c_int)
_mount = _declare("mount", ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
_umount2 = _declare("umount2", ctypes.c_char_p, ctypes.c_int)
_prctl = _declare("prctl", ctypes.c_int, *[ctypes.c_ulong] * 4)
_malloc_trim = _declare("malloc_trim", ctypes.c_size_t)


def os_error(code: int) -> OSError:
    """The error of an errno, to be raised. Python picks the class: FileNotFoundError for ENOENT."""
    return OSError(code, os.strerror(code))


def _check(function: object, *arguments: object) -> None:
    if not callable(function):
        raise os_error(errno.ENOSYS)
    if function(*arguments) != 0:
        raise os_error(ctypes.get_errno())


# ---- files and directories


def renameat2(old_dir_fd: int, old: str, new_dir_fd: int, new: str, flags: int) -> None:
    """Rename relative to directory descriptors; flags: RENAME_NOREPLACE and the like, or 0."""
    if flags == 0:
        os.rename(old, new, src_dir_fd=old_dir_fd, dst_dir_fd=new_dir_fd)
        return
    _check(_renameat2, old_dir_fd, os.fsencode(old), new_dir_fd, os.fsencode(new), flags)


def utimensat(dir_fd: int, name: str, times: Times, *, follow: bool = False) -> None:
    """Set the times of an entry; follow: of the file behind a link in /proc/self/fd, even a symlink."""
    flags = 0 if follow else AT_SYMLINK_NOFOLLOW
    _check(_utimensat, dir_fd, os.fsencode(name), _pack_times(*times), flags)


def futimens(fd: int, times: Times) -> None:
    """Set the times of an open file."""
    _check(_futimens, fd, _pack_times(*times))


def restore_mtime(fd: int, mtime_ns: int) -> None:
    """Restore the time of change after a write that changes no content; ignores a missing permission."""
    with contextlib.suppress(PermissionError):
        futimens(fd, (0, UTIME_OMIT, *divmod(mtime_ns, 10**9)))


@contextlib.contextmanager
def keeping_mtime(dir_fd: int) -> Iterator[None]:
    """Around a change of our own in a directory that changes none of its plaintext: its time of change stays.

    Keep it short: the time of another change meanwhile is lost. Any descriptor will do.
    """
    before = os.fstat(dir_fd).st_mtime_ns
    try:
        yield
    finally:
        # In somebody else's directory the time moves. A failure must not hide a change that is done.
        with contextlib.suppress(OSError, MemoryError):
            if os.fstat(dir_fd).st_mtime_ns != before:
                times = (0, UTIME_OMIT, *divmod(before, 10**9))
                utimensat(AT_FDCWD, f"/proc/self/fd/{dir_fd}", times, follow=True)


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2) without glibc's emulation: EOPNOTSUPP if the filesystem cannot."""
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
    found = _statx_of(dir_fd, os.fsencode(name), _BIRTH_FLAGS, STATX_BTIME)
    (mask,) = _STATX_MASK.unpack_from(found)
    if not mask & STATX_BTIME:
        return None
    seconds, nanoseconds = _BTIME.unpack_from(found)
    return int(seconds) * 10**9 + int(nanoseconds)


def statx_device(path: StrPath) -> tuple[int, int]:
    """Major and minor number of the device behind a path, links followed, without asking its filesystem."""
    major, minor = _DEVICE.unpack_from(_statx_of(AT_FDCWD, os.fsencode(path), _AT_STATX_DONT_SYNC, 0))
    return int(major), int(minor)


def _statx_of(dir_fd: int, path: bytes, flags: int, mask: int) -> ctypes.Array[ctypes.c_char]:
    buffer = _StatxBuffer()
    _check(_statx, dir_fd, path, flags, mask, buffer)
    return buffer


def name_to_handle_at(dir_fd: int, name: str) -> tuple[int, bytes]:
    """Type and bytes of the file handle of an entry; '' for the descriptor itself."""
    buffer = ctypes.create_string_buffer(_HANDLE_HEAD.pack(_MAX_HANDLE, 0), _HANDLE_HEAD.size + _MAX_HANDLE)
    mount_id = ctypes.c_int()
    address, flags = ctypes.addressof(buffer), AT_EMPTY_PATH
    _check(_name_to_handle_at, dir_fd, os.fsencode(name), address, ctypes.addressof(mount_id), flags)
    size, kind = _HANDLE_HEAD.unpack_from(buffer)
    return kind, buffer.raw[_HANDLE_HEAD.size : _HANDLE_HEAD.size + size]


def open_by_handle_at(fs_fd: int, kind: int, handle: bytes) -> int:
    """An O_PATH descriptor of the file of a handle. fs_fd: anything on its filesystem, not by O_PATH."""
    if not callable(_open_by_handle_at):
        raise os_error(errno.ENOSYS)
    packed = _HANDLE_HEAD.pack(len(handle), kind) + handle
    fd: int = _open_by_handle_at(fs_fd, packed, os.O_PATH | os.O_CLOEXEC)
    if fd < 0:
        raise os_error(ctypes.get_errno())
    return fd


def getdents64(fd: int, buffer: memoryview) -> int:
    """Read whole entries of a directory into the buffer; returns their bytes, 0 at its end."""
    if not callable(_getdents64):
        raise os_error(errno.ENOSYS)
    size: int = _getdents64(fd, (ctypes.c_char * len(buffer)).from_buffer(buffer), len(buffer))
    if size < 0:
        raise os_error(ctypes.get_errno())
    return size


# ---- mounts


def mount(source: str, mountpoint: StrPath, fs_type: str, flags: int, data: str) -> None:
    """mount(2); flags: bits of MS_*."""
    _check(_mount, os.fsencode(source), os.fsencode(mountpoint), fs_type.encode(), flags, data.encode())


def has_umount2() -> bool:
    """Whether this system has umount2(2)."""
    return _umount2 is not None


def umount2(mountpoint: StrPath, flags: int) -> None:
    """umount2(2); flags: UMOUNT_DETACH, UMOUNT_NOFOLLOW."""
    _check(_umount2, os.fsencode(mountpoint), flags)


# ---- this process


def forbid_dumps() -> None:
    """PR_SET_DUMPABLE off: no debugger of the same user, no core dump, /proc/self for root alone."""
    _check(_prctl, _PR_SET_DUMPABLE, 0, 0, 0, 0)


def end_with_parent(number: int) -> None:
    """Get this signal when the thread that forked this process ends, where the system can do that."""
    with contextlib.suppress(OSError):
        _check(_prctl, _PR_SET_PDEATHSIG, number, 0, 0, 0)


def release_memory() -> None:
    """Give back to the system what the C library holds unused; where it cannot, nothing happens."""
    if callable(_malloc_trim):
        _malloc_trim(0)


def wipe_text(secret: str) -> None:
    """As wipe, for a text that the caller has made and nobody else holds; one that is not ASCII stays."""
    if len(secret) > 1 and secret.isascii():
        ctypes.memset(id(secret) + sys.getsizeof("") - 1, 0, len(secret))


def wipe(secret: bytes) -> None:
    """Overwrite a bytes object in place. Copies that Python made elsewhere are out of reach.

    One of a single byte stays: Python has only one of each, which everybody shares.
    """
    if len(secret) > 1:
        ctypes.memset(id(secret) + bytes.__basicsize__ - 1, 0, len(secret))
