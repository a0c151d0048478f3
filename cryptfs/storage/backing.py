"""Backing files: open safely, and read and write whole ranges.

An attacker may have planted any entry in the vault. So this module opens files relative to a directory
descriptor, never through a symlink, never blocking, and only regular ones.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Sequence

from cryptfs.core.geometry import HEADER_SIZE
from cryptfs.errors import IntegrityError
from cryptfs.storage.libc import os_error

O_NOATIME: int = getattr(os, "O_NOATIME", 0)  # Linux only
OPEN_FLAGS = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
DIRECTORY_FLAGS = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
HELD_FILE_FLAGS = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
# How open fails on links, sockets, directories, and devices without driver or permission.
_SPECIAL_ERRNOS = (errno.ELOOP, errno.ENXIO, errno.EISDIR, errno.ENODEV, errno.EACCES, errno.EPERM)


def open_backing(dir_fd: int, name: str, flags: int, mode: int = 0) -> tuple[int, os.stat_result]:
    """Open a regular file below a directory: (descriptor, its stat).

    Args:   flags: access mode and O_CREAT, O_EXCL; never O_TRUNC.   mode: permissions if created.
    Raises: IntegrityError: the entry is not a regular file.   OSError.
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


def open_quietly(
    dir_fd: int, name: str, access: int, *, only_write: bool = False
) -> tuple[int, os.stat_result, bool]:
    """As open_backing, for a look at the header first: (descriptor, its stat, whether it has O_NOATIME).

    Only the owner of a file may leave its time of access alone.

    Args: access: O_RDONLY or O_RDWR.   only_write: the caller asks for O_WRONLY: see open_unreadable.
    """
    try:
        try:
            return *open_backing(dir_fd, name, access | O_NOATIME), bool(O_NOATIME)
        except PermissionError as error:
            if error.errno != errno.EPERM:
                raise
            return *open_backing(dir_fd, name, access), False
    except PermissionError:
        if not only_write:
            raise
        return *open_unreadable(dir_fd, name), False


class OwnsDescriptor:
    """Whose last reference closes its descriptor, `fd`: so never under somebody who uses it."""

    __slots__ = ()
    fd: int

    def __del__(self) -> None:
        try:  # noqa: SIM105 - on the way of a request: this costs nothing
            os.close(self.fd)
        except AttributeError:
            pass  # an interrupt came before it had one


def _refuse_special(dir_fd: int, name: str) -> None:
    try:
        mode = os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_mode
    except OSError:
        return  # there is none, or nobody lets us look: the first error says more
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise IntegrityError("not a regular file", cipher_path=name)


def reopen(fd: int, flags: int) -> int:
    """A new open file description of the same file with another access mode (also after unlink)."""
    return os.open(f"/proc/self/fd/{fd}", flags | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)


def reopen_for_owner(fd: int) -> int:
    """As reopen, for reading and writing, where the file's mode forbids that to its owner.

    The mode grants it for a moment, and is then as before.

    Raises: PermissionError: the file is somebody else's.   OSError.
    """
    try:
        return reopen(fd, os.O_RDWR)
    except PermissionError:
        st = os.fstat(fd)
        if st.st_uid != os.geteuid():
            raise
        place, mode = f"/proc/self/fd/{fd}", stat.S_IMODE(st.st_mode)
        os.chmod(place, mode | stat.S_IRUSR | stat.S_IWUSR)
        try:
            return reopen(fd, os.O_RDWR)
        finally:
            os.chmod(place, mode)


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
    """The header of a backing file, not verified; b"" if the file is empty."""
    return os.pread(fd, HEADER_SIZE, 0)  # one call reads all of so little


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
            raise os_error(errno.EIO)
        done += wrote


def read_small(dir_fd: int, name: str, limit: int) -> bytes:
    """The whole of a small file; at most limit + 1 bytes, so that the caller can detect a larger one.

    Raises: IntegrityError: not a regular file.   OSError.
    """
    fd, _ = open_backing(dir_fd, name, os.O_RDONLY)
    try:
        buffer = memoryview(bytearray(limit + 1))
        return bytes(buffer[: read_fully(fd, buffer, 0)])
    finally:
        os.close(fd)


def create_small(dir_fd: int, name: str, data: bytes, mode: int) -> int:
    """Create a new file with this content; returns its descriptor, open for writing.

    Raises: FileExistsError and other OSError; then it leaves no file behind.
    """
    fd, _ = open_backing(dir_fd, name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        give_to_owner(fd, dir_fd)
        write_fully(fd, (data,), 0)
    except BaseException:
        os.close(fd)
        os.unlink(name, dir_fd=dir_fd)
        raise
    return fd


def give_to_owner(fd: int, dir_fd: int) -> None:
    """A file that cryptfs needs belongs to the owner of its directory, also if root has made it.

    Else root would lock the owner out by a mount, a repair or a change of the passphrase.
    """
    if os.geteuid() != 0:
        return
    owner, st = os.fstat(dir_fd), os.fstat(fd)
    if owner.st_uid != st.st_uid:
        with contextlib.suppress(OSError):  # a filesystem without owners, or with other rules for root
            os.chown(f"/proc/self/fd/{fd}", owner.st_uid, owner.st_gid)


def open_unreadable(dir_fd: int, entry_name: str) -> tuple[int, os.stat_result]:
    """Open a file that its owner may write but not read: it gets the right to be read for a moment.

    Only its owner can do that, and only if O_WRONLY alone would have been granted.
    """
    probe, _ = open_backing(dir_fd, entry_name, os.O_WRONLY)
    try:
        fd = reopen_for_owner(probe)
        return fd, os.fstat(fd)
    finally:
        with contextlib.suppress(OSError):
            os.close(probe)
