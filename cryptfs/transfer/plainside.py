"""The plain filesystem as one side of a copy: by descriptors of directories, never through a symlink."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import time
from collections.abc import Container

from cryptfs.storage.backing import OwnsDescriptor, read_fully, write_fully
from cryptfs.storage.libc import RENAME_NOREPLACE, os_error, renameat2, syncfs
from cryptfs.transfer.sides import (
    OLD_PART,
    DiffersError,
    OnLost,
    PartFile,
    Side,
    SideFile,
    Small,
    is_part,
)
from cryptfs.vfs.tree.xattrs import ACL_NAMES

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
_BLOCK = 512  # bytes of one of st_blocks
_TRIES, _PAUSE = 20, 0.01  # to lock a directory; seconds between
_SET_ID = stat.S_ISUID | stat.S_ISGID


class PlainDirectory(OwnsDescriptor):
    """A directory held open by a descriptor, which its last reference closes."""

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd

    @classmethod
    def at(cls, path: str | bytes) -> PlainDirectory:
        """The directory of a path; symlinks on the way and at its end are followed. Raises: OSError.

        It may be one that lets others through and shows them nothing, such as /home on some machines.
        """
        flags = os.O_DIRECTORY | os.O_CLOEXEC
        try:
            return cls(os.open(path, os.O_RDONLY | flags))
        except PermissionError:
            return cls(os.open(path, os.O_PATH | flags))


class PlainSideFile(SideFile):
    """A file by its descriptor."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def read_into(self, offset: int, out: memoryview) -> int:
        return read_fully(self._fd, out, offset)

    def write(self, offset: int, data: memoryview) -> None:
        write_fully(self._fd, [data], offset)

    def set_size(self, size: int) -> None:
        os.ftruncate(self._fd, size)

    def data_from(self, offset: int) -> tuple[int, int] | None:
        try:
            start = os.lseek(self._fd, offset, os.SEEK_DATA)
            return start, os.lseek(self._fd, start, os.SEEK_HOLE)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return None
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                raise
            size = os.fstat(self._fd).st_size  # this filesystem knows no holes
            return (offset, size) if offset < size else None

    def expect(self, size: int) -> bytes:
        os.ftruncate(self._fd, size)
        return b""

    def arrived(self, size: int) -> None:
        pass

    def close(self) -> None:
        os.close(self._fd)


class PlainSide(Side[PlainDirectory]):
    """The plain filesystem. top: any directory of it, to sync."""

    def __init__(self, top: PlainDirectory) -> None:
        self._top = top

    def stat(self, where: PlainDirectory, name: bytes) -> os.stat_result:
        return os.stat(name, dir_fd=where.fd, follow_symlinks=False)

    def enter(self, where: PlainDirectory, name: bytes) -> PlainDirectory:
        return PlainDirectory(os.open(name, _DIRECTORY, dir_fd=where.fd))

    def names(self, where: PlainDirectory, path: bytes) -> list[bytes]:
        return sorted(map(os.fsencode, os.listdir(where.fd)))

    def readlink(self, where: PlainDirectory, name: bytes) -> bytes:
        return os.readlink(name, dir_fd=where.fd)

    def attributes(self, where: PlainDirectory, name: bytes, on_lost: OnLost) -> dict[bytes, bytes]:
        return _attributes_of(_path(where, name), on_lost, follow_symlinks=False)

    def read_small(
        self, where: PlainDirectory, name: bytes, st: os.stat_result, on_lost: OnLost
    ) -> Small | None:
        if st.st_blocks * _BLOCK < st.st_size:
            return None  # it has holes, or the filesystem makes files smaller
        fd = os.open(name, os.O_RDONLY | _FILE, dir_fd=where.fd)
        try:
            content = memoryview(bytearray(st.st_size))
            got = read_fully(fd, content, 0)
            attributes = _attributes_of(fd, on_lost)
            after = os.fstat(fd)
        finally:
            os.close(fd)
        if got < st.st_size or _version(after) != _version(st):
            raise DiffersError("it changed while it was copied")
        return Small(content, attributes)

    def open(self, where: PlainDirectory, name: bytes) -> SideFile:
        fd = os.open(name, os.O_RDONLY | _FILE, dir_fd=where.fd)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise os_error(errno.ESTALE)  # it was one a moment ago
        return PlainSideFile(fd)

    def tidy(self, where: PlainDirectory, kept: Container[bytes], *, fresh: bool) -> None:
        if not fresh:
            alone = _lock(where, fcntl.LOCK_EX)
            for name in map(os.fsencode, os.listdir(where.fd)):
                if is_part(name) and name not in kept:
                    with contextlib.suppress(OSError):
                        if alone or time.time() - self.stat(where, name).st_ctime > OLD_PART:
                            self.unlink(where, name)
        for _ in range(_TRIES):
            if _lock(where, fcntl.LOCK_SH):
                break
            time.sleep(_PAUSE)  # another copy tidies up: that takes a moment

    def create(self, where: PlainDirectory, name: bytes, mode: int) -> SideFile:
        return PlainSideFile(
            os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | _FILE, 0o600, dir_fd=where.fd)
        )

    def put_small(
        self, where: PlainDirectory, name: bytes, st: os.stat_result, small: Small, on_lost: OnLost
    ) -> None:
        fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | _FILE, 0o600, dir_fd=where.fd)
        try:
            if small.content:
                write_fully(fd, [small.content], 0)
            self._finish_open(fd, fd, st, small.attributes, on_lost)
        finally:
            os.close(fd)

    def reopen(self, where: PlainDirectory, name: bytes, expected: bytes) -> PartFile:
        return PlainSideFile(os.open(name, os.O_RDWR | _FILE, dir_fd=where.fd))

    def mkdir(self, where: PlainDirectory, name: bytes) -> None:
        os.mkdir(name, 0o700, dir_fd=where.fd)

    def symlink(self, where: PlainDirectory, name: bytes, target: bytes) -> None:
        os.symlink(target, name, dir_fd=where.fd)

    def mknod(self, where: PlainDirectory, name: bytes, mode: int, device: int) -> None:
        os.mknod(name, stat.S_IFMT(mode) | 0o600, device, dir_fd=where.fd)

    def link(self, where: PlainDirectory, name: bytes, new_where: PlainDirectory, new_name: bytes) -> None:
        os.link(name, new_name, src_dir_fd=where.fd, dst_dir_fd=new_where.fd, follow_symlinks=False)

    def rename(self, where: PlainDirectory, name: bytes, new_name: bytes, *, replace: bool) -> None:
        if replace:
            os.rename(name, new_name, src_dir_fd=where.fd, dst_dir_fd=where.fd)
            return
        old, new = os.fsdecode(name), os.fsdecode(new_name)
        try:
            renameat2(where.fd, old, where.fd, new, RENAME_NOREPLACE)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOSYS):
                raise
            if _is_there(where, new_name):  # this filesystem cannot do both at once
                raise os_error(errno.EEXIST) from None
            os.rename(name, new_name, src_dir_fd=where.fd, dst_dir_fd=where.fd)

    def unlink(self, where: PlainDirectory, name: bytes) -> None:
        os.unlink(name, dir_fd=where.fd)

    def let_in(self, where: PlainDirectory, name: bytes) -> None:
        mode = stat.S_IMODE(self.stat(where, name).st_mode)
        if mode & stat.S_IRWXU != stat.S_IRWXU:
            with contextlib.suppress(PermissionError):  # somebody else's: the next step says so
                os.chmod(name, mode | stat.S_IRWXU, dir_fd=where.fd)

    def finish(
        self,
        where: PlainDirectory,
        name: bytes,
        st: os.stat_result,
        attributes: dict[bytes, bytes],
        on_lost: OnLost,
    ) -> None:
        held_fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=where.fd)
        try:
            self._finish_open(held_fd, b"/proc/self/fd/%d" % held_fd, st, attributes, on_lost)
        finally:
            os.close(held_fd)

    def _finish_open(
        self,
        fd: int,
        path: bytes | int,
        st: os.stat_result,
        attributes: dict[bytes, bytes],
        on_lost: OnLost,
    ) -> None:
        """By a descriptor: so nobody can put a symlink in the way between two steps.

        Args: path: for calls that do not take an O_PATH descriptor; else the descriptor.
        """
        before, mode = os.fstat(fd), stat.S_IMODE(st.st_mode)
        if stat.S_IFMT(before.st_mode) != stat.S_IFMT(st.st_mode):
            raise os_error(errno.ESTALE)
        if (before.st_uid, before.st_gid) != (st.st_uid, st.st_gid):
            mode = _given(path, st.st_uid, st.st_gid, mode)
        self._set_attributes(path, attributes, on_lost)  # before the mode, which may forbid it
        if not stat.S_ISLNK(st.st_mode):
            os.chmod(path, mode)
        os.utime(path, ns=(st.st_atime_ns, st.st_mtime_ns))

    @staticmethod
    def _set_attributes(path: bytes | int, attributes: dict[bytes, bytes], on_lost: OnLost) -> None:
        with contextlib.suppress(OSError):
            for inherited in os.listxattr(path):  # from a default ACL above
                if os.fsencode(inherited) in ACL_NAMES and os.fsencode(inherited) not in attributes:
                    os.removexattr(path, inherited)
        for attribute, value in attributes.items():
            try:
                os.setxattr(path, attribute, value)
            except OSError as error:
                on_lost(attribute, error)

    def sync(self) -> None:
        try:
            syncfs(self._top.fd)
        except OSError as error:
            if error.errno != errno.EBADF:
                raise
            os.sync()  # nobody may read this directory: see `PlainDirectory.at`


def _lock(where: PlainDirectory, kind: int) -> bool:
    """Lock a directory; False: somebody else has, or this filesystem cannot. It never waits."""
    try:
        fcntl.flock(where.fd, kind | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _path(where: PlainDirectory, name: bytes) -> bytes:
    """For calls that take no descriptor of a directory."""
    return b"/proc/self/fd/%d/%s" % (where.fd, name)


def _version(st: os.stat_result) -> tuple[int, int, int, int]:
    return stat.S_IFMT(st.st_mode), st.st_ino, st.st_size, st.st_mtime_ns


def _attributes_of(
    place: bytes | int, on_lost: OnLost, *, follow_symlinks: bool = True
) -> dict[bytes, bytes]:
    """place: a path, or an open descriptor."""
    found = {}
    try:
        listed = os.listxattr(place, follow_symlinks=follow_symlinks)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EPERM):
            on_lost(b"", error)
        return {}
    for attribute in map(os.fsencode, listed):
        try:
            found[attribute] = os.getxattr(place, attribute, follow_symlinks=follow_symlinks)
        except OSError as error:
            on_lost(attribute, error)
    return found


def _is_there(where: PlainDirectory, name: bytes) -> bool:
    try:
        os.stat(name, dir_fd=where.fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _given(path: bytes | int, uid: int, gid: int, mode: int) -> int:
    """Give a file away as far as this process may; the mode that it may have then."""
    try:
        os.chown(path, uid, gid)
    except PermissionError:
        with contextlib.suppress(PermissionError):
            os.chown(path, -1, gid)
        return mode & ~_SET_ID  # they would lend the rights of another user
    return mode
