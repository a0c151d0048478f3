"""The FUSE operations of the path-based engine: path -> node, a few lines an operation.

A protocol adapter only: what an operation does stands in the vfs. The shims of fusepy.py call these from
libfuse's threads, several at a time. Paths are text of one character a byte (latin-1), or None for an
operation on an open file; fh is the number of a handle, or None; fi is libfuse's fuse_file_info.
"""

from __future__ import annotations

import errno
import itertools
import os
import re
import stat
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from cryptfs.mount.errno_map import errno_of
from cryptfs.mount.libfuse import mfusepy
from cryptfs.mount.native.structs import Op
from cryptfs.mount.options import MountOptions
from cryptfs.mount.paths import PathResolver
from cryptfs.mount.statistics import Statistics
from cryptfs.mount.translation import translated
from cryptfs.storage.libc import Times
from cryptfs.vfs import ranges
from cryptfs.vfs.attributes import (
    Attributes,
    Caller,
    change_mode,
    change_owner,
    check_access,
)
from cryptfs.vfs.directory import Directory
from cryptfs.vfs.filestate import FileKey
from cryptfs.vfs.openfile import OpenFile
from cryptfs.vfs.vault import Vault

_HIDDEN = re.compile(r"\.fuse_hidden[0-9a-f]{8}([0-9a-f]{8})")
"""What libfuse renames an open file to before it is unlinked or replaced: inode and counter."""
_HIDDEN_AT_ONCE = 64  # how far its counter may be out of order

_RELEASE_SECONDS = 1.0
"""How long after its release libfuse may still take a file for open."""


class CryptOperations(mfusepy.Operations):  # type: ignore[misc]
    """Operations on one vault.

    Args: vault: unlocked.   options: what the mount was asked for.
          on_init: called with (connection, config) when the kernel has said what it offers.
    """

    use_ns = True
    flag_nopath = True
    flag_nullpath_ok = True
    flag_utime_omit_ok = True  # libfuse 2 asks; 3 always passes UTIME_OMIT on

    def __init__(self, vault: Vault, options: MountOptions, on_init: Callable[[Any, Any], None]) -> None:
        self._vault = vault
        self._tree = vault.tree
        self._paths = PathResolver(vault.tree)
        self._shared = options.allow_other
        self._on_init = on_init
        self.kernel_owns_mtime = False  # on_init says it: with the writeback cache
        self._handles: dict[int, OpenFile] = {}
        self._directories: dict[int, Directory] = {}
        self.statistics = Statistics("fusepy", {op: op.name.lower() for op in Op}, self._gauges)
        self._next_handle = itertools.count(1)
        self._released: deque[tuple[FileKey, float]] = deque(maxlen=_HIDDEN_AT_ONCE)  # see _hide
        self._hidden: dict[str, OpenFile] = {}  # path that libfuse made up -> file without a name, see _hide
        self._hidden_count = 0
        left_out = set() if options.xattrs else {"getxattr", "setxattr", "listxattr", "removexattr"}
        if options.kernel_checks_permissions:
            left_out.add("access")
        for name in left_out:
            setattr(self, name, None)  # mfusepy does not offer it to the kernel then

    def _gauges(self) -> dict[str, dict[str, int]]:
        return {"open": {"files": len(self._handles), "directories": len(self._directories)}}

    def _caller(self) -> Caller | None:
        if not self._shared:
            return None
        uid, gid, _ = mfusepy.fuse_get_context()
        return Caller(uid, gid)

    # ---- the mount

    def init_with_config(self, conn_info: Any, config_3: Any) -> None:
        """Called by libfuse once the mount is made."""
        self._on_init(conn_info, config_3)

    @translated
    def statfs(self, path: str) -> dict[str, int]:
        """Room in the backing filesystem; names have up to 255 bytes here."""
        found = self._tree.statfs()
        names = ("bsize", "frsize", "blocks", "bfree", "bavail", "files", "ffree", "favail", "flag")
        return {f"f_{name}": getattr(found, f"f_{name}") for name in names} | {"f_namemax": 255}

    # ---- attributes

    @translated
    def getattr(self, path: str | None, fh: int | None) -> Attributes:
        """stat, fstat."""
        file = self._file(path, fh)
        if file is not None:
            return self._tree.stat_open(file)
        assert path is not None  # libfuse gives a path or a handle
        return self._tree.stat(*self._paths.resolve(path))

    def _file(self, path: str | None, fh: int | None) -> OpenFile | None:
        """The open file that an operation means, by handle or as one without a name; None: go by path."""
        if fh is not None and (file := self._handles.get(fh)) is not None:
            return file
        return self._hidden.get(path) if self._hidden and path is not None else None

    @translated
    def chmod(self, path: str | None, mode: int, fh: int | None) -> None:
        """chmod, fchmod."""
        self._tree.require_writable()
        file = self._file(path, fh)
        if file is not None:
            os.fchmod(file.state.fd, mode)
        elif path is not None:
            change_mode(*self._paths.resolve(path), mode)

    @translated
    def chown(self, path: str | None, uid: int, gid: int, fh: int | None) -> None:
        """lchown, fchown; -1 leaves an id."""
        self._tree.require_writable()
        file = self._file(path, fh)
        if file is not None:
            os.fchown(file.state.fd, uid, gid)
        elif path is not None:
            change_owner(*self._paths.resolve(path), uid, gid)

    @translated
    def utimens(self, path: str | None, times: Times, fh: int | None) -> None:
        """utimensat, futimens."""
        self._tree.require_writable()
        file = self._file(path, fh)
        if file is not None:
            file.state.set_times(times)
        elif path is not None:
            self._tree.set_times(*self._paths.resolve(path), times)

    @translated
    def truncate(self, path: str | None, size: int, fh: int | None) -> None:
        """truncate, ftruncate."""
        file = self._file(path, fh)
        if file is not None and file.writable:
            file.truncate(size)
        elif path is not None:
            self._tree.truncate(*self._paths.resolve(path), size)

    @translated
    def access(self, path: str, amode: int) -> int:
        """access(2), where the kernel does not check permissions itself."""
        if path not in self._hidden:
            check_access(*self._paths.resolve(path), amode)
        return 0

    # ---- directories

    @translated
    def opendir(self, path: str) -> int:
        """A handle on a directory."""
        directory = self._paths.directory(path.rstrip("/"))
        os.close(os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory.fd))
        fh = next(self._next_handle)
        self._directories[fh] = directory
        return fh

    def readdir(self, path: str | None, fh: int) -> Iterator[tuple[str, dict[str, int], int]]:
        """All entries with inode and type; libfuse keeps them until the directory is closed."""
        directory = self._directories[fh]
        own = {"st_mode": stat.S_IFDIR, "st_ino": os.fstat(directory.fd).st_ino}
        yield ".", own, 0
        yield "..", {"st_mode": stat.S_IFDIR}, 0
        try:
            for name, inode, kind in self._tree.list(directory):
                yield name.decode("latin-1"), {"st_mode": kind, "st_ino": inode}, 0
        except Exception as error:  # noqa: BLE001 - as in `translated`, which cannot wrap a generator
            code = errno_of(error)
            raise OSError(code, os.strerror(code)) from None

    def releasedir(self, path: str | None, fh: int) -> int:
        """The last use of a directory handle."""
        self._directories.pop(fh, None)
        return 0

    @translated
    def fsyncdir(self, path: str | None, datasync: int, fh: int) -> int:
        """The entries of a directory are on disk when this returns."""
        self._tree.sync_directory(self._directories[fh])
        return 0

    @translated
    def mkdir(self, path: str, mode: int) -> int:
        """A new directory."""
        self._tree.make_directory(*self._paths.resolve(path), mode, self._caller())
        return 0

    @translated
    def rmdir(self, path: str) -> int:
        """Remove an empty directory."""
        self._tree.remove_directory(*self._paths.resolve(path))
        self._paths.forget(path)
        return 0

    # ---- entries

    @translated
    def mknod(self, path: str, mode: int, dev: int) -> int:
        """A FIFO, socket, device or empty file."""
        self._tree.make_node(*self._paths.resolve(path), mode, dev, self._caller())
        return 0

    @translated
    def symlink(self, target: str, source: str) -> int:
        """A new symlink at `target` that says `source`: mfusepy's names for them."""
        text = source.encode("latin-1")
        self._tree.make_symlink(*self._paths.resolve(target), text, self._caller())
        return 0

    @translated
    def readlink(self, path: str) -> str:
        """What a symlink says."""
        return self._tree.symlinks.read(*self._paths.resolve(path)).decode("latin-1")

    @translated
    def link(self, target: str, source: str) -> int:
        """A new name `target` for the file `source`: mfusepy's names for them."""
        # The kernel makes a new inode of the new name, and believes for ever what it is told of it first.
        self._tree.settle(*self._paths.resolve(source))
        self._tree.link(*self._paths.resolve(source), *self._paths.resolve(target))
        return 0

    @translated
    def unlink(self, path: str) -> int:
        """Remove a name."""
        hidden = self._hidden.pop(path, None)
        if hidden is not None:
            self._tree.release(hidden)
        else:
            self._tree.unlink(*self._paths.resolve(path))
        return 0

    @translated
    def rename(self, old: str, new: str, flags: int) -> None:
        """rename, renameat2."""
        if self._hide(old, new):
            return
        self._tree.rename(*self._paths.resolve(old), *self._paths.resolve(new), flags)
        self._paths.forget(old)
        self._paths.forget(new)

    def _hide(self, old: str, new: str) -> bool:
        """Take a name from an open file instead of giving it another; False: a person's own rename.

        libfuse's path interface cannot name an open file that is unlinked, so before an unlink or a
        replacing rename it asks for a rename to `.fuse_hidden` and two numbers, and unlinks that after the
        last close. Such a file would show in listings and keep its directory from being removed; and if
        the close comes in between, libfuse forgets it for ever. Here the file is unlinked at once, and
        what comes for the hidden path meanwhile goes to the open file.
        """
        match = _HIDDEN.fullmatch(new.rpartition("/")[2])
        if match is None:
            return False
        counter = int(match[1], 16)  # counts libfuse's own renames of this kind from 1
        if not self._hidden_count < counter <= self._hidden_count + _HIDDEN_AT_ONCE:
            return False
        directory, name = self._paths.resolve(old)
        st = self._tree.stat(directory, name).st
        key = (st.st_dev, st.st_ino)
        file = next((each for each in list(self._handles.values()) if each.state.key == key), None)
        if file is not None:
            hidden = self._tree.unlink_open(directory, name, file)
            if hidden is not None:
                self._hidden[new] = hidden
        else:
            # libfuse takes a file for open until its release has returned; by then it is not in the table.
            recent = time.monotonic() - _RELEASE_SECONDS
            if not any(known == key and when > recent for known, when in list(self._released)):
                return False
            self._tree.unlink(directory, name)
        self._hidden_count = max(self._hidden_count, counter - _HIDDEN_AT_ONCE // 2)
        return True

    # ---- xattrs

    @translated
    def getxattr(self, path: str, name: str, position: int = 0) -> bytes:
        """A value."""
        return self._tree.xattrs.get(*self._paths.resolve(path), name.encode("latin-1"))

    @translated
    def setxattr(self, path: str, name: str, value: bytes, options: int, position: int = 0) -> int:
        """Set a value."""
        self._tree.require_writable()
        self._tree.xattrs.set(*self._paths.resolve(path), name.encode("latin-1"), value, options)
        return 0

    @translated
    def listxattr(self, path: str) -> list[str]:
        """The names."""
        found = self._tree.xattrs.list(*self._paths.resolve(path))
        return [name.decode("latin-1") for name in found]

    @translated
    def removexattr(self, path: str, name: str) -> int:
        """Remove an attribute."""
        self._tree.require_writable()
        self._tree.xattrs.remove(*self._paths.resolve(path), name.encode("latin-1"))
        return 0

    # ---- files

    def _opened(self, file: OpenFile, fi: Any) -> int:
        fi.fh = fh = next(self._next_handle)
        self._handles[fh] = file
        # Each path has its own page cache and, with the writeback cache, a size that the kernel never asks
        # for again. So a file with several names goes without: each read and write comes here.
        single = os.fstat(file.state.fd).st_nlink == 1
        fi.keep_cache, fi.direct_io = single, not single
        return 0

    @translated
    def create(self, path: str, mode: int, fi: Any) -> int:
        """Create and open."""
        directory, name = self._paths.resolve(path)
        return self._opened(self._tree.create(directory, name, fi.flags, mode, self._caller()), fi)

    @translated
    def open(self, path: str, fi: Any) -> int:
        """Open."""
        directory, name = self._paths.resolve(path)
        return self._opened(self._tree.open(directory, name, fi.flags), fi)

    @translated
    def read(self, fh: int, offset: int, out: memoryview) -> int:
        """Read straight into the reply."""
        done = self._handles[fh].read_into(offset, out)
        self.statistics.bytes_read += done
        return done

    @translated
    def write(self, fh: int, offset: int, data: memoryview, *, append: bool, cached: bool) -> int:
        """Write straight from the request.

        Args: append: at the end, which the kernel may be wrong about.
              cached: from the kernel's page cache; a kernel with the writeback cache sets the times itself.
        """
        file = self._handles[fh]
        if cached and self.kernel_owns_mtime and file.state.kept_mtime_ns is None:
            file.state.keep_mtime()
        done = file.append(data) if append else file.write(offset, data)
        self.statistics.bytes_written += done
        return done

    @translated
    def release(self, path: str | None, fi: Any) -> int:
        """The last use of a handle."""
        file = self._handles[fi.fh]
        self._released.append((file.state.key, time.monotonic()))
        del self._handles[fi.fh]
        self._tree.release(file)
        return 0

    @translated
    def fsync(self, path: str | None, datasync: int, fi: Any) -> int:
        """The file is on disk when this returns."""
        self._tree.sync_file(self._handles[fi.fh], data_only=bool(datasync))
        return 0

    @translated
    def fallocate(self, path: str | None, mode: int, offset: int, length: int, fi: Any) -> int:
        """Reserve room, or punch a hole."""
        file = self._handles[fi.fh]
        if self.kernel_owns_mtime:
            file.state.keep_mtime()
        ranges.allocate(file, mode, offset, length)
        return 0

    @translated
    def lseek(self, fh: int, offset: int, whence: int) -> int:
        """SEEK_DATA and SEEK_HOLE.

        Of a file that is being written the kernel may hold data back, and nothing here can make it write:
        refused once, it takes all of every file as data from then on.
        """
        file = self._handles[fh]
        if self.kernel_owns_mtime and file.state.writable:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        return ranges.seek(file, offset, whence)
