"""The vault as one side of a copy."""

from __future__ import annotations

import contextlib
import errno
import os
import stat

from cryptfs.errors import CryptfsError
from cryptfs.storage.libc import RENAME_NOREPLACE
from cryptfs.transfer.fileio import plain_stat
from cryptfs.transfer.pathvault import PathVault
from cryptfs.transfer.sides import OnLost, Side, SideFile
from cryptfs.transfer.walking import OnProblem, ReportedNames, entries
from cryptfs.vfs.content import ranges
from cryptfs.vfs.content.openfile import OpenFile
from cryptfs.vfs.tree.attributes import change_mode
from cryptfs.vfs.tree.directory import Directory
from cryptfs.vfs.tree.tree import VaultTree
from cryptfs.vfs.tree.xattrs import ACL_NAMES

_SET_ID = stat.S_ISUID | stat.S_ISGID


class VaultSideFile(SideFile):
    """A file of a vault."""

    def __init__(self, tree: VaultTree, file: OpenFile) -> None:
        self._tree = tree
        self._file = file

    def read_into(self, offset: int, out: memoryview) -> int:
        return self._file.read_into(offset, out)

    def write(self, offset: int, data: memoryview) -> None:
        if offset > self._file.state.size:
            self._file.truncate(offset)  # a hole, also a small one
        self._file.write(offset, data)

    def set_size(self, size: int) -> None:
        if size != self._file.state.size:
            self._file.truncate(size)

    def data_from(self, offset: int) -> tuple[int, int] | None:
        self._file.state.require_loaded()
        if not self._file.state.sparse:
            size = self._file.state.size
            return (offset, size) if offset < size else None
        try:
            start = ranges.seek(self._file, offset, os.SEEK_DATA)
            return start, ranges.seek(self._file, start, os.SEEK_HOLE)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return None
            raise

    def close(self) -> None:
        self._tree.release(self._file)


class VaultSide(Side[Directory]):
    """A vault. on_problem: gets names that do not authenticate."""

    def __init__(self, vault: PathVault, on_problem: OnProblem) -> None:
        self._vault = vault
        self._tree = vault.tree
        self._on_problem = on_problem
        self.may_change = not vault.has_lock

    def stat(self, where: Directory, name: bytes) -> os.stat_result:
        return plain_stat(*self._tree.stat(where, name))

    def enter(self, where: Directory, name: bytes) -> Directory:
        return self._tree.directory(where, name)

    def names(self, where: Directory, path: bytes) -> list[bytes]:
        return [entry.name for entry in entries(self._tree, where, path, self._on_problem)]

    def readlink(self, where: Directory, name: bytes) -> bytes:
        return self._tree.symlinks.read(where, name)

    def attributes(self, where: Directory, name: bytes, on_lost: OnLost) -> dict[bytes, bytes]:
        xattrs = self._tree.xattrs
        found = {}
        try:
            listed = xattrs.list(where, name, ReportedNames(b"", on_lost))
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EPERM):
                on_lost(b"", error)
            return {}
        for attribute in listed:
            try:
                get = self._vault.acls.get if attribute in ACL_NAMES else xattrs.get
                found[attribute] = get(where, name, attribute)
            except (OSError, CryptfsError) as error:
                on_lost(attribute, error)
        return found

    def open(self, where: Directory, name: bytes) -> SideFile:
        return VaultSideFile(self._tree, self._tree.open(where, name, os.O_RDONLY))

    def create(self, where: Directory, name: bytes, mode: int) -> SideFile:
        file = self._tree.create(where, name, os.O_RDWR | os.O_EXCL, stat.S_IMODE(mode) & 0o777 | 0o600)
        return VaultSideFile(self._tree, file)

    def mkdir(self, where: Directory, name: bytes) -> None:
        self._tree.make_directory(where, name, 0o700)

    def symlink(self, where: Directory, name: bytes, target: bytes) -> None:
        self._tree.make_symlink(where, name, target)

    def mknod(self, where: Directory, name: bytes, mode: int, device: int) -> None:
        self._tree.make_node(where, name, mode, device)

    def link(self, where: Directory, name: bytes, new_where: Directory, new_name: bytes) -> None:
        self._tree.link(where, name, new_where, new_name)

    def rename(self, where: Directory, name: bytes, new_name: bytes, *, replace: bool) -> None:
        self._tree.rename(where, name, where, new_name, 0 if replace else RENAME_NOREPLACE)

    def unlink(self, where: Directory, name: bytes) -> None:
        self._tree.unlink(where, name)

    def let_in(self, where: Directory, name: bytes) -> None:
        mode = stat.S_IMODE(self._tree.stat(where, name).st.st_mode)
        if mode & stat.S_IRWXU != stat.S_IRWXU:
            with contextlib.suppress(PermissionError):  # somebody else's: the next step says so
                change_mode(where, name, mode | stat.S_IRWXU)

    def finish(
        self,
        where: Directory,
        name: bytes,
        st: os.stat_result,
        attributes: dict[bytes, bytes],
        on_lost: OnLost,
    ) -> None:
        place, privileges = (where, name), self._vault.privileges
        mode, now = stat.S_IMODE(st.st_mode), self._tree.stat(where, name).st
        if (now.st_uid, now.st_gid) != (st.st_uid, st.st_gid):
            try:
                privileges.set_owner(place, st.st_uid, st.st_gid)
            except PermissionError:
                with contextlib.suppress(PermissionError):
                    privileges.set_owner(place, -1, st.st_gid)
                mode &= ~_SET_ID
            now = self._tree.stat(where, name).st
        # Attributes need the right to read and write a file: so its mode comes after them.
        for attribute, value in attributes.items():
            try:
                put = self._vault.acls.set if attribute in ACL_NAMES else self._tree.xattrs.set
                put(where, name, attribute, value, 0)
            except (OSError, CryptfsError) as error:
                on_lost(attribute, error)
        if not stat.S_ISLNK(st.st_mode) and (attributes or stat.S_IMODE(now.st_mode) != mode):
            change_mode(where, name, mode)
        times = (*divmod(st.st_atime_ns, 10**9), *divmod(st.st_mtime_ns, 10**9))
        self._tree.set_times(where, name, times)

    def sync(self) -> None:
        self._tree.sync_all()
