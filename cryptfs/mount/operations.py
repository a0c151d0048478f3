"""The FUSE operations of the path-based engine: path -> node, a few lines an operation.

A protocol adapter only: what an operation does stands in the vfs. The shims of fusepy.py call these from
libfuse's threads, several at a time. Paths are text of one character a byte (latin-1), or None for an
operation on an open file; fh is the number of a handle, or None; fi is libfuse's fuse_file_info.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import math
import os
import stat
from collections.abc import Callable, Iterator
from typing import Any

from cryptfs.mount.errno_map import errno_of
from cryptfs.mount.hidden import HiddenFiles
from cryptfs.mount.libfuse import mfusepy
from cryptfs.mount.native.structs import Op
from cryptfs.mount.options import FRESH_SECONDS, MountOptions
from cryptfs.mount.paths import PathResolver
from cryptfs.mount.statistics import Statistics
from cryptfs.mount.told import Told, ToldTable
from cryptfs.mount.translation import translated
from cryptfs.storage.libc import AT_FDCWD, RENAME_EXCHANGE, Times, utimensat
from cryptfs.vfs import ranges
from cryptfs.vfs.attributes import Attributes, Caller, change_mode, check_access
from cryptfs.vfs.directory import SELF, Directory, Place, Unnamed
from cryptfs.vfs.mtimes import before_write, times_were_set
from cryptfs.vfs.openfile import OpenFile
from cryptfs.vfs.vault import Vault
from cryptfs.vfs.xattrs import CAPABILITY


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
        vault.tree.context.exclusive = options.exclusive
        self._paths = PathResolver(vault.tree, math.inf if options.exclusive else FRESH_SECONDS)
        self.told = ToldTable(vault.tree)
        self._shared = options.allow_other
        self._on_init = on_init
        self.kernel_owns_mtime = False  # on_init says it: with the writeback cache
        self._handles: dict[int, OpenFile] = {}
        self._directories: dict[int, Directory] = {}
        self.statistics = Statistics("fusepy", {op: op.name.lower() for op in Op}, self._gauges)
        self._next_handle = itertools.count(1)
        self._hidden = HiddenFiles(vault.tree, self._paths, self.told, self._handles)
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
        if fh is not None and (file := self._handles.get(fh)) is not None:
            found = self._tree.stat_open(file)
            self.told.saw_open(fh, file, found)
            return found
        assert path is not None  # libfuse gives a path or a handle
        if (hidden := self._hidden.stat(path)) is not None:
            return hidden
        try:
            found = self._paths.stat(path)
        except FileNotFoundError:
            self.told.gone(path)
            raise
        self.told.saw(path, found)
        return found

    def look_again(self) -> None:
        """Something was not where it was thought to be."""
        self._paths.look_again()

    def _meant(self, path: str | None, fh: int | None = None) -> Place:
        """What an operation is to change, by a descriptor. Raises: OSError: ESTALE: it is another by now."""
        if fh is not None and (file := self._handles.get(fh)) is not None:
            return Unnamed(file.state.fd), SELF
        assert path is not None
        if (hidden := self._hidden.hold(path)) is not None:
            return hidden, SELF
        directory, name = self._paths.resolve(path)
        return (directory, SELF) if name == SELF else (self.told.hold(path, directory, name), SELF)

    def _settle(self, place: Place) -> None:
        """Before the attributes of a file change: do now what its last close does, which would move ctime.

        The kernel keeps for a second what it is told next, and `tar` takes a ctime that moves for a change.
        """
        state = self._tree.files.find(os.fstat(place[0].fd))
        if state is not None and state.changes and not self.kernel_owns_mtime:
            self._tree.files.settle(state)

    @translated
    def chmod(self, path: str | None, mode: int, fh: int | None) -> None:
        """chmod, fchmod."""
        self._tree.require_writable()
        place = self._meant(path, fh)
        self._settle(place)
        change_mode(*place, mode)

    @translated
    def chown(self, path: str | None, uid: int, gid: int, fh: int | None) -> None:
        """lchown, fchown; -1 leaves an id."""
        self._tree.require_writable()
        where, _ = place = self._meant(path, fh)
        self._settle(place)
        os.chown(f"/proc/self/fd/{where.fd}", uid, gid)

    @translated
    def utimens(self, path: str | None, times: Times, fh: int | None) -> None:
        """utimensat, futimens."""
        self._tree.require_writable()
        where, _ = place = self._meant(path, fh)
        self._settle(place)
        state = self._tree.files.find(os.fstat(where.fd))
        with state.lock if state is not None else contextlib.nullcontext():  # as in VaultTree.set_times
            utimensat(AT_FDCWD, f"/proc/self/fd/{where.fd}", times, follow=True)
            if state is not None:
                times_were_set(state, times)

    @translated
    def truncate(self, path: str | None, size: int, fh: int | None) -> None:
        """truncate, ftruncate."""
        if fh is not None and (file := self._handles.get(fh)) is not None and file.writable:
            file.truncate(size)
        elif path is not None and not self._hidden.truncate(path, size):
            self._truncate(path, size)

    def _truncate(self, path: str, size: int) -> None:
        told, file = self.told.open(path, *self._paths.resolve(path), os.O_WRONLY)
        try:
            if told.has_pages_of(file.state):
                told.will_cache(file.state)  # the kernel cuts them, too
            file.truncate(size)
        finally:
            self._tree.release(file)

    @translated
    def access(self, path: str, amode: int) -> int:
        """access(2), where the kernel does not check permissions itself."""
        if self._hidden.hold(path) is None:
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
        directory, name = self._paths.resolve(path)
        self.told.hold(path, directory, name)
        self._tree.remove_directory(directory, name)
        self._paths.forget(path)
        self.told.removed(path)
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
        directory, name = self._paths.resolve(source)
        self.told.hold(source, directory, name)
        # The kernel makes a new inode for the new name, and keeps the first attributes that it is told.
        self._tree.settle(directory, name)
        self._tree.link(directory, name, *self._paths.resolve(target))
        self.told.saw(source, self._tree.stat(directory, name))
        return 0

    @translated
    def unlink(self, path: str) -> int:
        """Remove a name."""
        if not self._hidden.unlink(path):
            directory, name = self._paths.resolve(path)
            held = self.told.hold(path, directory, name)
            self._tree.unlink(directory, name)
            self.told.removed(path, held)
        return 0

    @translated
    def rename(self, old: str, new: str, flags: int) -> None:
        """rename, renameat2."""
        if self._hidden.hide(old, new):
            return
        source, target = self._paths.resolve(old), self._paths.resolve(new)
        moving = self.told.hold(old, *source)
        replaced = None
        with contextlib.suppress(FileNotFoundError):
            replaced = self.told.hold(new, *target)
        self._tree.rename(*source, *target, flags, moving.st)
        self._paths.forget(old)
        self._paths.forget(new)
        if replaced is not None and replaced.st[1:3] == moving.st[1:3]:
            return  # two names of one file: nothing happened
        exchange = flags == RENAME_EXCHANGE
        if not exchange:
            self.told.removed(new, replaced)
        self.told.moved(old, new, exchange=exchange)
        for path, place in ((new, target), (old, source))[: 2 if exchange else 1]:
            found = self._tree.stat(*place)
            if stat.S_ISLNK(found.st.st_mode):  # it was made anew
                self.told.saw(path, found)

    # ---- xattrs

    def has_no_capability(self, path: str) -> bool:
        """Whether a file surely has no security.capability: the kernel asks before each write(2)."""
        state = self._tree.files.find_key(self.told.at(path).key)
        if state is None or state.may_have_capability:
            return False
        self.statistics.counts[Op.GETXATTR] += 1
        return True

    @translated
    def getxattr(self, path: str, name: str, position: int = 0) -> bytes:
        """A value."""
        return self._tree.xattrs.get(*self._paths.resolve(path), name.encode("latin-1"))

    @translated
    def setxattr(self, path: str, name: str, value: bytes, options: int, position: int = 0) -> int:
        """Set a value."""
        self._tree.require_writable()
        place = self._meant(path)
        self._tree.xattrs.set(*place, name.encode("latin-1"), value, options)
        state = self._tree.files.find(os.fstat(place[0].fd))
        if state is not None:
            state.may_have_capability |= name.encode("latin-1") == CAPABILITY
        return 0

    @translated
    def listxattr(self, path: str) -> list[str]:
        """The names."""
        return [name.decode("latin-1") for name in self._tree.xattrs.list(*self._paths.resolve(path))]

    @translated
    def removexattr(self, path: str, name: str) -> int:
        """Remove an attribute."""
        self._tree.require_writable()
        self._tree.xattrs.remove(*self._meant(path), name.encode("latin-1"))
        return 0

    # ---- files

    def _opened(self, told: Told, file: OpenFile, fi: Any) -> int:
        fi.fh = fh = next(self._next_handle)
        self._handles[fh] = file
        fi.keep_cache, fi.direct_io = self.told.opened(told, fh, file)
        return 0

    @translated
    def create(self, path: str, mode: int, fi: Any) -> int:
        """Create and open."""
        directory, name = self._paths.resolve(path)
        file = self._tree.create(directory, name, fi.flags, mode, self._caller())
        return self._opened(self.told.at(path), file, fi)

    @translated
    def open(self, path: str, fi: Any) -> int:
        """Open."""
        return self._opened(*self.told.open(path, *self._paths.resolve(path), fi.flags), fi)

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
        elif not (cached and self.kernel_owns_mtime):
            before_write(file.state)
        done = file.append(data) if append else file.write(offset, data)
        self.statistics.bytes_written += done
        return done

    @translated
    def release(self, path: str | None, fi: Any) -> int:
        """The last use of a handle."""
        file = self._handles[fi.fh]
        self._hidden.released(fi.fh, file)
        self.told.releasing(fi.fh)
        del self._handles[fi.fh]
        try:
            self._tree.release(file)
        finally:
            self.told.released(fi.fh)
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

        Of a file that is being written the kernel may hold data back, in shared mappings at least, and
        nothing here can make it write: refused once, it takes all of every file as data from then on.
        """
        file = self._handles[fh]
        if file.state.writable:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        return ranges.seek(file, offset, whence)
