"""Backing files: open safely, and read and write whole ranges.

Whatever stands in the vault may have been planted there. So files are opened relative to a directory
descriptor, never through a symlink, never blocking, and must be regular.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence

from cryptfs.core.geometry import HEADER_SIZE
from cryptfs.errors import IntegrityError

O_NOATIME: int = getattr(os, "O_NOATIME", 0)  # Linux only
OPEN_FLAGS = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
DIRECTORY_FLAGS = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
HELD_FILE_FLAGS = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
# How open fails on links, sockets, directories, and devices without driver or permission.
_SPECIAL_ERRNOS = (errno.ELOOP, errno.ENXIO, errno.EISDIR, errno.ENODEV, errno.EACCES, errno.EPERM)


def open_backing(dir_fd: int, name: str, flags: int, mode: int = 0) -> tuple[int, os.stat_result]:
    """Open a regular file below a directory: (descriptor, its stat).

    Args:   flags: access mode and O_CREAT, O_EXCL; never O_TRUNC.   mode: permissions if created.
    Raises: IntegrityError: something that is no regular file stands there.   OSError.
    """
    try:
        fd = os.open(name, flags | OPEN_FLAGS, mode, dir_fd=dir_fd)
    except OSError as error:
        if error.errno in _SPECIAL_ERRNOS:
            _refuse_special(dir_fd, name)
        raise
    try:
        st = os.fstat(fd)
        if not stat.S_ISREG(st.st_mode):
            raise IntegrityError("not a regular file", cipher_path=name)
    except BaseException:
        os.close(fd)
        raise
    return fd, st


def _refuse_special(dir_fd: int, name: str) -> None:
    mode = os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise IntegrityError("not a regular file", cipher_path=name)


def reopen(fd: int, flags: int) -> int:
    """A new open file description of the same file with another access mode (also after unlink)."""
    return os.open(f"/proc/self/fd/{fd}", flags | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)


def read_fully(fd: int, buffer: memoryview, offset: int) -> int:
    """Fill the buffer from offset; returns fewer bytes than asked only at the end of the file."""
    done = os.preadv(fd, (buffer,), offset)
    while 0 < done < len(buffer):
        got = os.preadv(fd, (buffer[done:],), offset + done)
        if got == 0:
            break
        done += got
    return done


def read_header(fd: int) -> bytes:
    """The header of a backing file as it stands there, not verified; b"" where the file is empty."""
    return os.pread(fd, HEADER_SIZE, 0)  # a file gives all that it has of so little in one call


def write_fully(fd: int, pieces: Sequence[memoryview | bytes], offset: int) -> None:
    """Write the pieces one after another from offset, in one system call unless the kernel stops short."""
    total = sum(map(len, pieces))
    done = os.pwritev(fd, pieces, offset)
    if done == total:
        return
    rest = memoryview(b"".join(pieces))
    while done < total:
        wrote = os.pwrite(fd, rest[done:], offset + done)
        if wrote == 0:  # no filesystem should; a loop here would hang the mount
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        done += wrote


def read_small(dir_fd: int, name: str, limit: int) -> bytes:
    """The whole of a small file; at most limit + 1 bytes, so that the caller can tell a larger one.

    Raises: IntegrityError: no regular file.   OSError.
    """
    fd, _ = open_backing(dir_fd, name, os.O_RDONLY)
    try:
        buffer = memoryview(bytearray(limit + 1))
        return bytes(buffer[: read_fully(fd, buffer, 0)])
    finally:
        os.close(fd)


def create_small(dir_fd: int, name: str, data: bytes, mode: int) -> int:
    """Create a new file with this content; returns its descriptor, open for writing.

    Raises: FileExistsError and other OSError; whatever it is, nothing is left behind then.
    """
    fd, _ = open_backing(dir_fd, name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        write_fully(fd, (data,), 0)
    except BaseException:
        os.close(fd)
        os.unlink(name, dir_fd=dir_fd)
        raise
    return fd
