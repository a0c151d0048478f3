"""The kernel's FUSE protocol as bytes: numbers and layouts of <linux/fuse.h>, versions 7.31 to 7.38.

Native byte order and alignment, as the kernel is on the same machine. Requests are unpacked from a view of
exactly the bytes that the kernel sent; a truncated one raises struct.error, and the connection answers
EINVAL.
"""

from __future__ import annotations

import os
import struct
import sys
from enum import IntFlag

from cryptfs.mount.opcodes import Op
from cryptfs.storage.libc import STATX_BTIME

KERNEL_MAJOR = 7
KERNEL_MINOR_MIN = 31
KERNEL_MINOR_MAX = 38
PRUNE_MINOR = 45
ROOT_ID = 1


BY_NAME = (
    Op.LOOKUP, Op.SYMLINK, Op.MKNOD, Op.MKDIR, Op.UNLINK, Op.RMDIR, Op.RENAME, Op.RENAME2, Op.LINK, Op.CREATE,
)  # fmt: skip
"""Requests that name an entry of a directory."""


class Cap(IntFlag):
    """INIT flags (`flags`, then `flags2` from bit 32 on)."""

    ASYNC_READ = 1 << 0
    ATOMIC_O_TRUNC = 1 << 3
    EXPORT_SUPPORT = 1 << 4
    BIG_WRITES = 1 << 5
    DONT_MASK = 1 << 6
    DO_READDIRPLUS = 1 << 13
    READDIRPLUS_AUTO = 1 << 14
    ASYNC_DIO = 1 << 15
    WRITEBACK_CACHE = 1 << 16
    PARALLEL_DIROPS = 1 << 18
    POSIX_ACL = 1 << 20
    MAX_PAGES = 1 << 22
    CACHE_SYMLINKS = 1 << 23
    HANDLE_KILLPRIV_V2 = 1 << 28
    SETXATTR_EXT = 1 << 29
    INIT_EXT = 1 << 30
    NO_EXPORT_SUPPORT = 1 << 38


class Notification:
    """Messages of a server without a request: in place of an error, in a reply to request 0."""

    INVAL_INODE = 2
    PRUNE = 9


class SetAttr:
    """Which fields of a SETATTR request count. Plain numbers: the operators of an IntFlag are slow."""

    MODE = 1 << 0
    UID = 1 << 1
    GID = 1 << 2
    SIZE = 1 << 3
    ATIME = 1 << 4
    MTIME = 1 << 5
    FH = 1 << 6
    ATIME_NOW = 1 << 7
    MTIME_NOW = 1 << 8
    CTIME = 1 << 10
    KILL_SUIDGID = 1 << 11


OPEN_KILL_SUIDGID = 1 << 0
READ_LOCKOWNER = 1 << 1  # past the page cache; no other read has it
WRITE_CACHE = 1 << 0
WRITE_LOCKOWNER = 1 << 1  # past the page cache; no other write has it
WRITE_KILL_SUIDGID = 1 << 2
FOPEN_KEEP_CACHE = 1 << 1
FOPEN_CACHE_DIR = 1 << 3
FSYNC_FDATASYNC = 1 << 0

IN_HEADER = struct.Struct("=IIQQIIIHH")  # len opcode unique nodeid uid gid pid extlen padding
OUT_HEADER = struct.Struct("=IiQ")  # len error unique
INIT_IN = struct.Struct("=IIII")  # major minor max_readahead flags
INIT_IN_EXT = struct.Struct("=I")  # flags2, behind INIT_IN
INIT_OUT = struct.Struct("=IIIIHHIIHHI28x")
# major minor max_readahead flags | max_background congestion | max_write time_gran | max_pages map | flags2
ATTR = struct.Struct("=QQQQQQIIIIIIIIII")
# ino size blocks atime mtime ctime | their nanoseconds | mode nlink uid gid rdev blksize flags
ENTRY_OUT = struct.Struct("=QQQQII")  # nodeid generation entry_valid attr_valid + nanoseconds; ATTR follows
ATTR_OUT = struct.Struct("=QII")  # attr_valid + nanoseconds, padding; ATTR follows
ENTRY = struct.Struct(ENTRY_OUT.format + ATTR.format[1:])  # both at once
ATTRIBUTES = struct.Struct(ATTR_OUT.format + ATTR.format[1:])  # both at once
FORGET_IN = struct.Struct("=Q")
FORGET_ONE = struct.Struct("=QQ")
BATCH_FORGET_IN = struct.Struct("=II")
GETATTR_IN = struct.Struct("=IIQ")
SETATTR_IN = struct.Struct("=IIQQQQQQIIIIIIII")
# valid padding fh size lock_owner atime mtime ctime | their nanoseconds | mode unused uid gid unused
MKNOD_IN = struct.Struct("=IIII")  # mode rdev umask padding
MKDIR_IN = struct.Struct("=II")  # mode umask
RENAME_IN = struct.Struct("=Q")
RENAME2_IN = struct.Struct("=QII")  # newdir flags padding
LINK_IN = struct.Struct("=Q")
OPEN_IN = struct.Struct("=II")  # flags open_flags
CREATE_IN = struct.Struct("=IIII")  # flags mode umask open_flags
OPEN_OUT = struct.Struct("=QII")  # fh open_flags padding
RELEASE_IN = struct.Struct("=QIIQ")
READ_IN = struct.Struct("=QQIIQII")  # fh offset size read_flags lock_owner flags padding
WRITE_IN = struct.Struct("=QQIIQII")  # fh offset size write_flags lock_owner flags padding
WRITE_OUT = struct.Struct("=II")
STATFS_OUT = struct.Struct("=QQQQQIIII24x")  # blocks bfree bavail files ffree bsize namelen frsize padding
FSYNC_IN = struct.Struct("=QII")
SETXATTR_IN = struct.Struct("=II")  # size flags; name and value follow
SETXATTR_IN_EXT = struct.Struct("=IIII")  # with SETXATTR_EXT: size flags setxattr_flags padding; the same
SETXATTR_ACL_KILL_SGID = 1 << 0
GETXATTR_IN = struct.Struct("=II")  # size padding; name follows
GETXATTR_OUT = struct.Struct("=II")
ACCESS_IN = struct.Struct("=II")
FALLOCATE_IN = struct.Struct("=QQQII")  # fh offset length mode padding
LSEEK_IN = struct.Struct("=QQII")
LSEEK_OUT = struct.Struct("=Q")
COPY_FILE_RANGE_IN = struct.Struct("=QQQQQQQ")  # fh_in off_in nodeid_out fh_out off_out len flags
INVAL_INODE_OUT = struct.Struct("=Qqq")  # nodeid offset length; 0 means to the end
PRUNE_OUT = struct.Struct("=I12x")  # count; as many NODEIDs follow
NODEID = struct.Struct("=Q")
STATX_OUT = struct.Struct("=QII16x")  # attr_valid + nanoseconds, flags; STATX follows
STATX = struct.Struct("=IIQIIIHxxQQQQ" + "qIxxxx" * 4 + "IIII112x")
# mask blksize attributes nlink uid gid mode ino size blocks attributes_mask, four times, devices
DIRENT = struct.Struct("=QQII")  # ino off namelen type; the name follows, padded to 8

_DIRENT_ALIGN = 8
_MODE_AT = ENTRY_OUT.size + 60
_STATX_BASIC = 0x7FF


def mode_in_entry(payload: bytes) -> int:
    """The mode in a fuse_entry_out."""
    return int.from_bytes(payload[_MODE_AT : _MODE_AT + 4], sys.byteorder)


def take_names(body: memoryview, offset: int, count: int) -> list[bytes]:
    """The `count` NUL-terminated strings from `offset` of a request.

    Raises: struct.error: one is empty or not terminated.
    """
    pieces = bytes(body[offset:] if offset else body).split(b"\0", count)
    if len(pieces) <= count or b"" in pieces[:count]:
        raise struct.error("a name of the request is empty or not terminated")
    return pieces[:count]


def only_name(body: memoryview) -> bytes:
    """The string that fills a request. Raises: struct.error: it is empty or not terminated."""
    name = bytes(body)
    end = len(name) - 1
    if end < 1 or name.find(b"\0") != end:
        raise struct.error("the name of the request is empty or not terminated")
    return name[:end]


def pack_dirent(inode: int, offset: int, kind: int, name: bytes) -> bytes:
    """One directory entry of a READDIR reply. kind: d_type, not st_mode."""
    size = len(name)
    return DIRENT.pack(inode, offset, size, kind) + name + bytes(-size % _DIRENT_ALIGN)


def pack_statx(st: os.stat_result, inode: int, size: int, birth_ns: int | None) -> bytes:
    """fuse_statx. birth_ns: time of birth, or None if the backing filesystem keeps none."""
    mask = _STATX_BASIC | (0 if birth_ns is None else STATX_BTIME)
    times = [divmod(ns or 0, 10**9) for ns in (st.st_atime_ns, birth_ns, st.st_ctime_ns, st.st_mtime_ns)]
    return STATX.pack(
        mask, st.st_blksize, 0, st.st_nlink, st.st_uid, st.st_gid, st.st_mode, inode, size, st.st_blocks, 0,
        *(part for time in times for part in time),
        os.major(st.st_rdev), os.minor(st.st_rdev), 0, 0,
    )  # fmt: skip
