"""Directories that cryptfs makes to mount on: nobody writes into them by mistake while no vault is mounted.

A program that saves after the unmount would write plaintext on the disk. So such a directory has mode 0500,
and for root, who may write all the same, the immutable flag of the filesystem. An extended attribute
remembers that cryptfs made it, and what its mode is without that.

The directory stays so below a mount, and a crash changes nothing. Only fusermount insists on a directory that
its user may write to; so it is `unlocked` for the moment of mounting.
"""

from __future__ import annotations

import array
import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from cryptfs.core.printable import shell_word, shown
from cryptfs.errors import MountError

ATTRIBUTE = "user.cryptfs.mountpoint"
_MODE = 0o700
_LOCKED = 0o500
_ANY_MODE = 0o7777
_GET_FLAGS, _SET_FLAGS = 0x80086601, 0x40086602  # FS_IOC_GETFLAGS, FS_IOC_SETFLAGS: <linux/fs.h>
_IMMUTABLE = 0x10
_UNABLE = (errno.ENOTTY, errno.EOPNOTSUPP, errno.EPERM, errno.EACCES, errno.EINVAL, errno.ENOSYS)


def make(place: Path) -> bool:
    """Make a directory to mount on, protected; False if nothing here can protect it.

    Raises: OSError: it cannot be made.
    """
    place.mkdir(_MODE)
    with _opened(place) as fd:
        os.fchmod(fd, _MODE)  # whatever the umask is
        try:
            os.setxattr(fd, ATTRIBUTE, f"{_MODE:04o}".encode())
        except OSError:
            return False
        os.fchmod(fd, _LOCKED)
        if os.geteuid() == 0 and not _set_immutable(fd, True):
            os.fchmod(fd, _MODE)
            os.removexattr(fd, ATTRIBUTE)
            return False
        return True


def discard(place: Path) -> None:
    """Take away a directory that `make` made, unless something is in it or on it."""
    with contextlib.suppress(OSError):
        if is_own(place):
            restore(place)
        place.rmdir()


def is_own(place: Path) -> bool:
    """Whether cryptfs made this directory for this user, and protects it."""
    try:
        with _opened(place) as fd:
            return _mode_of(fd) is not None
    except OSError:
        return False


def restore(place: Path) -> None:
    """Make a directory an ordinary one, which programs can write to and remove.

    Raises: MountError: cryptfs did not make it.   OSError.
    """
    with _opened(place) as fd:
        mode = _mode_of(fd)
        if mode is None:
            raise MountError(f"{shown(place)}: cryptfs did not make this directory, and does not protect it")
        _set_immutable(fd, False)
        os.fchmod(fd, mode)
        os.removexattr(fd, ATTRIBUTE)


@contextlib.contextmanager
def unlocked(place: Path) -> Iterator[Callable[[], None]]:
    """Let fusermount see a directory that its user may write to. Only one that cryptfs made changes.

    Yields: what locks it again; called once the mount is there, or at the end.
    """
    if os.geteuid() == 0 or not is_own(place):
        yield lambda: None
        return
    fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    descriptors = [fd]  # it leads below the mount; kept, it would seem to be in use

    def lock() -> None:
        with contextlib.suppress(IndexError):
            last = descriptors.pop()  # by one thread alone
            _lock(last)
            os.close(last)

    try:
        os.fchmod(fd, _MODE)
        yield lock
    finally:
        lock()


@contextlib.contextmanager
def _opened(place: Path) -> Iterator[int]:
    fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _mode_of(fd: int) -> int | None:
    """The mode of a directory without protection; None if cryptfs did not make it for this user."""
    if os.fstat(fd).st_uid != os.geteuid():
        return None
    try:
        mode = int(os.getxattr(fd, ATTRIBUTE), 8)
    except (OSError, ValueError):
        return None
    return mode if 0 <= mode <= _ANY_MODE else None


def _lock(fd: int) -> None:
    """Nobody writes here. Root's flag stays all the time, and forbids even this."""
    with contextlib.suppress(OSError):
        if stat.S_IMODE(os.fstat(fd).st_mode) != _LOCKED:
            os.fchmod(fd, _LOCKED)


def _set_immutable(fd: int, wanted: bool) -> bool:
    """Set or clear the flag; False if the filesystem or the system does not let us."""
    flags = array.array("i", [0, 0])  # the kernel uses the first
    try:
        fcntl.ioctl(fd, _GET_FLAGS, flags)
        if bool(flags[0] & _IMMUTABLE) != wanted:
            flags[0] ^= _IMMUTABLE
            fcntl.ioctl(fd, _SET_FLAGS, flags)
    except OSError as error:
        if error.errno not in _UNABLE:
            raise
        return False
    return True


def how_to_restore(place: Path) -> str:
    """For messages."""
    return f"To make it an ordinary directory again: cryptfs umount --restore {shell_word(place)}"
