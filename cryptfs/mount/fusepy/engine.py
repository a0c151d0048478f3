"""The engine on mfusepy: path-based, on libfuse 3.

A subclass of mfusepy's FUSE replaces shims that lose something: file handles of truncate, chmod, chown and
utimens, flags of rename, UTIME_NOW and UTIME_OMIT, and two copies of every byte of a read or write. It mends
nothing else.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import logging
import os
from pathlib import Path
from typing import Any

from cryptfs.errors import MountError
from cryptfs.mount.fusepy.libfuse import CAP_ASYNC_DIO, CAP_SPLICE, CAP_WRITEBACK_CACHE, mfusepy
from cryptfs.mount.fusepy.operations import CryptOperations
from cryptfs.mount.life import EngineReady
from cryptfs.mount.options import FRESH_SECONDS, MountOptions, escape_value
from cryptfs.storage.libc import UTIME_NOW
from cryptfs.vfs.tree.xattrs import CAPABILITY
from cryptfs.vfs.vault import Vault

log = logging.getLogger(__name__)

MAX_REQUEST = 1024 * 1024
_MAX_THREADS = 10  # libfuse's own default
_MAX_ID = 2**32 - 1  # chown: "leave it"

_FAILURES = {
    1: "libfuse refused the options",
    2: "libfuse refused the mountpoint",
    3: "libfuse could not start",
    4: "the kernel or fusermount refused to mount",
    6: "signal handlers could not be set",
    7: "the kernel or fusermount refused to mount",
}
_ENDED_BY_SIGNAL = 8


def run(vault: Vault, mountpoint: Path, options: MountOptions, on_ready: EngineReady) -> None:
    """Mount a vault and serve it until it is unmounted or the process gets SIGTERM, SIGINT or SIGHUP.

    Args:   mountpoint: absolute.   on_ready: called once, when the engine answers requests.
    Raises: MountError: libfuse or the kernel refused.
    """
    ready = False

    def on_init(connection: Any, config: Any) -> None:
        nonlocal ready
        writeback = _negotiate(connection, options)
        operations.privileges.kernel_owns_times = operations.told.writeback = writeback
        operations.told.on_shared = functools.partial(_keep_attributes, config, config.attr_timeout)
        ready = True
        on_ready(operations.statistics)

    operations = CryptOperations(vault, options, on_init)
    try:
        VaultFuse(
            operations,
            os.fsencode(mountpoint).decode("latin-1"),
            raw_fi=True,
            encoding="latin-1",
            errors="strict",
            **_fuse_options(vault, options),
        )
    except RuntimeError as error:
        code = int(error.args[0]) if error.args else 0
        if not ready or code != _ENDED_BY_SIGNAL:
            raise MountError(f"{mountpoint}: {_FAILURES.get(code, 'libfuse failed')} (code {code})") from None


def _fuse_options(vault: Vault, options: MountOptions) -> dict[str, Any]:
    source = options.fsname or str(vault.vault_dir)
    entry = options.entry_seconds
    # The kernel has an inode of its own for each path of a hard link. A change by one path leaves the others
    # stale, also with --exclusive.
    attr = FRESH_SECONDS if options.attr_timeout is None else options.attr_seconds
    wanted: dict[str, Any] = {
        "foreground": True,  # life.py has made the daemon
        "fsname": escape_value(os.fsencode(source).decode("latin-1")),
        "subtype": "cryptfs",
        "use_ino": True,
        "entry_timeout": entry,
        "negative_timeout": entry,
        "attr_timeout": attr,
        "allow_other": options.allow_other,
        "default_permissions": options.kernel_checks_permissions,
        "ro": options.read_only,
    }
    if mfusepy.fuse_version_minor >= 12:
        # Both, as libfuse 3.14 complains on stderr about its own default for the second.
        wanted["max_threads"] = wanted["max_idle_threads"] = options.max_threads or _MAX_THREADS
    return wanted | dict.fromkeys(options.for_libfuse, True)


def _negotiate(connection: Any, options: MountOptions) -> bool:
    """Choose from the kernel's offers: large requests and, with --exclusive, a writeback cache.

    With that cache the kernel takes no smaller size for an inode that it has, and a path keeps its one inode.

    Returns: whether the writeback cache is on.
    """
    connection.max_readahead = connection.max_write = MAX_REQUEST
    if options.writeback and options.exclusive:
        connection.want |= connection.capable & CAP_WRITEBACK_CACHE
    # libfuse asks for it; it makes buffered reads stale after asynchronous direct writes: decision 0016.
    connection.want &= ~CAP_ASYNC_DIO
    # Sealing needs the bytes in memory; the way through a pipe costs a copy and a fresh buffer.
    connection.want &= ~CAP_SPLICE
    return bool(connection.want & CAP_WRITEBACK_CACHE)


def _keep_attributes(config: Any, seconds: float, shared: bool) -> None:
    """Make the kernel ask for attributes each time while two files share an inode.

    Else it uses those of one for the other: reads by an older handle would end at the new file's length.

    Args: config: struct fuse_config; libfuse looks into it for each answer.   seconds: the usual timeout.
    """
    config.attr_timeout = 0.0 if shared else seconds


def _view(buffer: Any, size: int) -> memoryview:
    """libfuse's buffer as a memoryview, without a copy."""
    address = ctypes.addressof(buffer.contents)
    return memoryview((ctypes.c_char * size).from_address(address)).cast("B")


def _handle_of(fip: Any) -> int | None:
    return fip.contents.fh if fip else None


def _text(path: bytes | None) -> str | None:
    return None if path is None else path.decode("latin-1")


class VaultFuse(mfusepy.FUSE):  # type: ignore[misc]
    """mfusepy's FUSE with shims that lose nothing and copy nothing."""

    operations: CryptOperations

    def read(self, path: bytes | None, buf: Any, size: int, offset: int, fip: Any) -> int:
        return self.operations.read(fip.contents.fh, offset, _view(buf, size))

    def write(self, path: bytes | None, buf: Any, size: int, offset: int, fip: Any) -> int:
        fi = fip.contents
        cached = bool(fi.writepage)
        append = bool(fi.flags & os.O_APPEND) and not cached
        return self.operations.write(fi.fh, offset, _view(buf, size), append=append, cached=cached)

    def fgetattr(self, path: bytes | None, buf: Any, fip: Any) -> int:
        found, size = self.operations.getattr(_text(path), _handle_of(fip))
        ctypes.memset(buf, 0, ctypes.sizeof(mfusepy.c_stat))
        stat = buf.contents
        stat.st_ino = self.operations.told.number_of(found.st_dev, found.st_ino, found.st_mode)
        stat.st_mode = found.st_mode
        stat.st_nlink = found.st_nlink
        stat.st_uid = found.st_uid
        stat.st_gid = found.st_gid
        stat.st_rdev = found.st_rdev
        stat.st_size = size
        stat.st_blksize = found.st_blksize
        stat.st_blocks = found.st_blocks
        for field, value in (
            (stat.st_atimespec, found.st_atime_ns),
            (stat.st_mtimespec, found.st_mtime_ns),
            (stat.st_ctimespec, found.st_ctime_ns),
        ):
            field.tv_sec, field.tv_nsec = divmod(value, 1_000_000_000)
        return 0

    def getxattr(self, path: bytes, name: bytes, value: Any, size: int, *options: Any) -> int:
        if name == CAPABILITY and self.operations.has_no_capability(path.decode("latin-1")):
            return -errno.ENODATA  # without an exception, which costs as much as the write that follows
        found: int = super().getxattr(path, name, value, size, *options)
        return found

    def chmod_fuse_3(self, path: bytes | None, mode: int, fip: Any) -> int:
        self.operations.chmod(_text(path), mode & 0o7777, _handle_of(fip))
        return 0

    def chown_fuse_3(self, path: bytes | None, uid: int, gid: int, fip: Any) -> int:
        ids = [-1 if each == _MAX_ID else each for each in (uid, gid)]
        self.operations.chown(_text(path), ids[0], ids[1], _handle_of(fip))
        return 0

    def truncate_fuse_3(self, path: bytes | None, length: int, fip: Any) -> int:
        self.operations.truncate(_text(path), length, _handle_of(fip))
        return 0

    def utimens_fuse_3(self, path: bytes | None, buf: Any, fip: Any) -> int:
        if buf:
            atime, mtime = buf.contents.actime, buf.contents.modtime
            times = (atime.tv_sec, atime.tv_nsec, mtime.tv_sec, mtime.tv_nsec)
        else:
            times = (0, UTIME_NOW, 0, UTIME_NOW)
        self.operations.utimens(_text(path), times, _handle_of(fip))
        return 0

    def rename_fuse_3(self, old: bytes, new: bytes, flags: int) -> int:
        self.operations.rename(old.decode("latin-1"), new.decode("latin-1"), flags)
        return 0

    def lseek(self, path: bytes | None, offset: int, whence: int, fip: Any) -> int:
        return self.operations.lseek(fip.contents.fh, offset, whence)
