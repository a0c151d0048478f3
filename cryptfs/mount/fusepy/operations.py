"""The FUSE operations of the path-based engine: path -> place, a few lines an operation.

A protocol adapter only: the vfs has the substance of each operation. The shims of engine.py call these from
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
from cryptfs.mount.fusepy.hidden import HiddenFiles
from cryptfs.mount.fusepy.libfuse import mfusepy
from cryptfs.mount.fusepy.paths import PathResolver
from cryptfs.mount.fusepy.told import Told, ToldTable
from cryptfs.mount.fusepy.translation import translated
from cryptfs.mount.opcodes import Op
from cryptfs.mount.options import FRESH_SECONDS, MountOptions
from cryptfs.mount.statistics import Statistics
from cryptfs.storage.dirs import open_for_listing
from cryptfs.storage.libc import RENAME_EXCHANGE, Times, os_error
from cryptfs.vfs.content import ranges
from cryptfs.vfs.content.openfile import OpenFile
from cryptfs.vfs.tree.acls import Acls, Inherited
from cryptfs.vfs.tree.attributes import Attributes, Caller, check_access
from cryptfs.vfs.tree.directory import SELF, Directory, Place, Unnamed
from cryptfs.vfs.tree.identity import stale
from cryptfs.vfs.tree.privileges import Privileges, shown_names
from cryptfs.vfs.tree.xattrs import ACL_NAMES
from cryptfs.vfs.vault import Vault


class CryptOperations(mfusepy.Operations):  # type: ignore[misc]
    """Operations on one vault.

    Args: vault: unlocked.   options: of the mount.
          on_init: called with (connection, config) when the kernel has made its offers.
    """

    use_ns = True
    flag_nopath = True
    flag_nullpath_ok = True

    def __init__(self, vault: Vault, options: MountOptions, on_init: Callable[[Any, Any], None]) -> None:
        self._vault = vault
        self._tree = vault.tree
        options.apply_to(vault.tree.context)
        self._paths = PathResolver(vault.tree, math.inf if options.exclusive else FRESH_SECONDS)
        self.told = ToldTable(vault.tree)
        self._shared = options.allow_other
        self._on_init = on_init
        # libfuse cannot make the kernel enforce ACLs: it keeps them where only one user comes in.
        self._acls = Acls(vault.tree) if options.xattrs and not options.allow_other else None
        vault.tree.xattrs.supports_acls = self._acls is not None
        self.privileges = Privileges(vault.tree, self._acls, xattrs=options.xattrs)
        self._handles: dict[int, OpenFile] = {}
        self._directories: dict[int, Directory] = {}
        self.statistics = Statistics("fusepy", {op: op.name.lower() for op in Op}, self._gauges)
        self._next_handle = itertools.count(1)
        self._hidden = HiddenFiles(vault.tree, self._paths, self.told, self._handles, self.privileges)
        left_out = set() if options.xattrs else {"getxattr", "setxattr", "listxattr", "removexattr"}
        if options.kernel_checks_permissions:
            left_out.add("access")
        for name in left_out:
            setattr(self, name, None)  # then mfusepy does not offer it to the kernel

    def _gauges(self) -> dict[str, dict[str, int]]:
        return {"open": {"files": len(self._handles), "directories": len(self._directories)}}

    def _caller(self) -> Caller | None:
        return Caller(*mfusepy.fuse_get_context()[:2]) if self._shared else None

    # ---- the mount

    def init_with_config(self, conn_info: Any, config_3: Any) -> None:
        """libfuse calls it once the mount exists."""
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
        """Something was not at its expected place: look at the paths again."""
        self._paths.look_again()

    def _meant(self, path: str | None, fh: int | None = None) -> Place:
        """The target of a change, by a descriptor. Raises: OSError: ESTALE: it is another file by now."""
        if fh is not None and (file := self._handles.get(fh)) is not None:
            return Unnamed(file.state.fd), SELF
        assert path is not None
        if (hidden := self._hidden.hold(path)) is not None:
            return hidden, SELF
        directory, name = self._paths.resolve(path)
        if name == SELF:
            return directory, SELF
        held = self.told.hold(path, directory, name)
        return self._paths.open_at(path, held.st) or held, SELF

    @translated
    def chmod(self, path: str | None, mode: int, fh: int | None) -> None:
        """chmod, fchmod."""
        self._tree.require_writable()
        self.privileges.set_mode(self._meant(path, fh), mode)

    @translated
    def chown(self, path: str | None, uid: int, gid: int, fh: int | None) -> None:
        """lchown, fchown; -1 leaves an id."""
        self._tree.require_writable()
        self.privileges.set_owner(self._meant(path, fh), uid, gid)

    @translated
    def utimens(self, path: str | None, times: Times, fh: int | None) -> None:
        """utimensat, futimens."""
        self._tree.require_writable()
        self.privileges.set_times(self._meant(path, fh), times)

    @translated
    def truncate(self, path: str | None, size: int, fh: int | None) -> None:
        """truncate, ftruncate."""
        if fh is not None and (file := self._handles.get(fh)) is not None and file.writable:
            file.truncate(size)
            self.privileges.written(file.state)
        elif path is not None and not self._hidden.truncate(path, size):
            self._truncate(path, size)

    def _truncate(self, path: str, size: int) -> None:
        told, file = self.told.open(path, *self._paths.resolve(path), os.O_WRONLY)
        try:
            if told.has_pages_of(file.state):
                told.will_cache(file.state)  # the kernel also cuts its pages
            file.truncate(size)
            self.privileges.written(file.state)
        finally:
            self._tree.release(file)

    @translated
    def access(self, path: str, amode: int) -> int:
        """access(2), if the kernel does not check permissions itself."""
        if self._hidden.hold(path) is None:
            check_access(*self._paths.resolve(path), amode)
        return 0

    # ---- directories

    @translated
    def opendir(self, path: str) -> int:
        """A handle on a directory."""
        directory = self._paths.directory(path.rstrip("/"))
        os.close(open_for_listing(directory.fd))
        fh = next(self._next_handle)
        self._directories[fh] = directory
        return fh

    def readdir(self, path: str | None, fh: int) -> Iterator[tuple[str, dict[str, int], int]]:
        """All entries with inode and type; libfuse keeps them until the directory is closed."""
        directory = self._directories[fh]
        st = os.fstat(directory.fd)
        yield ".", {"st_mode": stat.S_IFDIR, "st_ino": st.st_ino}, 0
        yield "..", {"st_mode": stat.S_IFDIR}, 0
        try:
            for name, inode, kind in self._tree.list(directory):
                number = self.told.number_of(st.st_dev, inode, kind)
                yield name.decode("latin-1"), {"st_mode": kind, "st_ino": number}, 0
        except Exception as error:  # noqa: BLE001 - as in `translated`, which cannot wrap a generator
            code = errno_of(error)
            raise os_error(code) from None

    def releasedir(self, path: str | None, fh: int) -> int:
        """The last use of a directory handle."""
        self._directories.pop(fh, None)
        return 0

    @translated
    def fsyncdir(self, path: str | None, datasync: int, fh: int) -> int:
        """Bring the entries of a directory to disk."""
        self._tree.sync_directory(self._directories[fh])
        return 0

    @translated
    def mkdir(self, path: str, mode: int) -> int:
        """A new directory."""
        directory, name = self._paths.resolve(path)
        mode, inherited = self._inherit(directory, stat.S_IFDIR | mode)
        self._tree.make_directory(directory, name, mode, self._caller())
        self._give(directory, name, inherited)
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

    def _inherit(self, directory: Directory, mode: int) -> tuple[int, Inherited | None]:
        """The mode of a new entry, which libfuse has applied the umask to, and the ACLs that it gets."""
        inherited = None if self._acls is None else self._acls.inherited(directory, mode)
        return (mode, None) if inherited is None else (inherited.mode, inherited)

    def _give(self, directory: Directory, name: bytes, inherited: Inherited | None) -> None:
        if self._acls is not None and inherited is not None:
            self._acls.give(directory, name, inherited)

    @translated
    def mknod(self, path: str, mode: int, dev: int) -> int:
        """A FIFO, socket, device or empty file."""
        directory, name = self._paths.resolve(path)
        mode, inherited = self._inherit(directory, mode)
        self._tree.make_node(directory, name, mode, dev, self._caller())
        self._give(directory, name, inherited)
        return 0

    @translated
    def symlink(self, target: str, source: str) -> int:
        """A new symlink at `target` that says `source`: mfusepy's names for them."""
        text = source.encode("latin-1")
        self._tree.make_symlink(*self._paths.resolve(target), text, self._caller())
        return 0

    @translated
    def readlink(self, path: str) -> str:
        """The target of a symlink."""
        return self._tree.symlinks.read(*self._paths.resolve(path)).decode("latin-1")

    @translated
    def link(self, target: str, source: str) -> int:
        """A new name `target` for the file `source`: mfusepy's names for them."""
        directory, name = self._paths.resolve(source)
        held = self.told.hold(source, directory, name)
        # The kernel makes a new inode for the new name, and keeps the first attributes that it gets.
        self._tree.make_clean(directory, name)
        self._tree.link(directory, name, *self._paths.resolve(target))
        self.told.renewed(source, self._tree.stat(directory, name), held)  # a symlink is sealed again
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
            return  # two names of one file: nothing changed
        exchange = flags == RENAME_EXCHANGE
        if not exchange:
            self.told.removed(new, replaced)
        self.told.moved(old, new, exchange=exchange)
        for path, place in ((new, target), (old, source))[: 2 if exchange else 1]:
            found = self._tree.stat(*place)
            if stat.S_ISLNK(found.st.st_mode):  # the rename made a new one
                self.told.renewed(path, found, moving if path == new else replaced)

    # ---- xattrs

    def has_no_capability(self, path: str) -> bool:
        """Whether a file surely has no security.capability: the kernel asks before each write(2)."""
        state = self._tree.files.find_key(self.told.at(path).key)
        if not self.privileges.has_no_capability(state):
            return False
        self.statistics.counts[Op.GETXATTR] += 1
        return True

    @translated
    def getxattr(self, path: str, name: str, position: int = 0) -> bytes:
        """A value."""
        place, attribute = self._paths.resolve(path), name.encode("latin-1")
        if self._acls is not None and attribute in ACL_NAMES:
            return self._acls.get(*place, attribute)
        return self._tree.xattrs.get(*place, attribute)

    @translated
    def setxattr(self, path: str, name: str, value: bytes, options: int, position: int = 0) -> int:
        """Set a value."""
        self._tree.require_writable()
        place, attribute = self._meant(path), name.encode("latin-1")
        if self._acls is not None and attribute in ACL_NAMES:
            self._acls.set(*place, attribute, value, options)
            return 0
        self._tree.xattrs.set(*place, attribute, value, options)
        state = self._tree.files.find(os.fstat(place[0].fd))
        self.privileges.attribute_was_set(state, attribute)
        return 0

    @translated
    def listxattr(self, path: str) -> list[str]:
        """The names."""
        found, (uid, _, pid) = self._tree.xattrs.list(*self._paths.resolve(path)), mfusepy.fuse_get_context()
        return [name.decode("latin-1") for name in shown_names(found, uid, pid)]

    @translated
    def removexattr(self, path: str, name: str) -> int:
        """Remove an attribute."""
        self._tree.require_writable()
        place, attribute = self._meant(path), name.encode("latin-1")
        if self._acls is not None and attribute in ACL_NAMES:
            self._acls.remove(*place, attribute)
        else:
            self._tree.xattrs.remove(*place, attribute)
        return 0

    # ---- files

    def _opened(self, told: Told, file: OpenFile, fi: Any) -> int:
        if fi.flags & os.O_TRUNC:
            self.privileges.written(file.state)
        fi.fh = fh = next(self._next_handle)
        self._handles[fh] = file
        fi.keep_cache, fi.direct_io = self.told.opened(told, fh, file)
        if fi.keep_cache and not fi.flags & (os.O_ACCMODE | os.O_NOATIME) and file.atime_is_due:
            file.touch_atime()  # the kernel's pages may answer all reads
        return 0

    @translated
    def create(self, path: str, mode: int, fi: Any) -> int:
        """Create and open."""
        directory, name = self._paths.resolve(path)
        mode, inherited = self._inherit(directory, stat.S_IFREG | mode)
        flags = fi.flags if inherited is None else fi.flags | os.O_EXCL
        try:
            file = self._tree.create(directory, name, flags, mode, self._caller())
        except FileExistsError:
            if fi.flags & os.O_EXCL:
                raise
            raise stale() from None  # a file that exists inherits nothing: the kernel opens it
        self._give(directory, name, inherited)
        return self._opened(self.told.at(path), file, fi)

    @translated
    def open(self, path: str, fi: Any) -> int:
        """Open."""
        return self._opened(*self.told.open(path, *self._paths.resolve(path), fi.flags), fi)

    @translated
    def read(self, fh: int, offset: int, out: memoryview) -> int:
        """Read straight into the reply."""
        self.told.hears(fh)
        done = self._handles[fh].read_into(offset, out)
        self.statistics.bytes_read += done
        return done

    @translated
    def write(self, fh: int, offset: int, data: memoryview, *, append: bool, cached: bool) -> int:
        """Write straight from the request.

        Args: append: at the end; the kernel's offset may be wrong.   cached: from the kernel's page cache.
        """
        self.told.hears(fh)
        file = self._handles[fh]
        moves_time = self.privileges.moves_time(file.state, cached=cached)
        done = file.write(None if append else offset, data, moves_time=moves_time)
        if not cached and file.state.may_have_capability:
            self.privileges.written(file.state)
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
        """Bring the file to disk."""
        self._tree.sync_file(self._handles[fi.fh], data_only=bool(datasync))
        return 0

    @translated
    def fallocate(self, path: str | None, mode: int, offset: int, length: int, fi: Any) -> int:
        """Reserve room, or punch a hole."""
        file = self._handles[fi.fh]
        moves_time = self.privileges.allocate_moves_time(file.state)
        ranges.allocate(file, mode, offset, length, moves_time=moves_time)
        return 0

    @translated
    def lseek(self, fh: int, offset: int, whence: int) -> int:
        """SEEK_DATA and SEEK_HOLE.

        The kernel may hold back data of a file that is being written, at least in shared mappings, and this
        engine cannot make it write. So it refuses once; from then on the kernel takes all of every file as
        data.
        """
        file = self._handles[fh]
        if file.state.writable:
            raise os_error(errno.ENOSYS)
        return ranges.seek(file, offset, whence)
