"""The vault as one side of a copy."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Container

from cryptfs.errors import CryptfsError, IntegrityError
from cryptfs.storage.backing import open_backing
from cryptfs.storage.dirs import open_for_listing, scan
from cryptfs.storage.libc import RENAME_NOREPLACE, Times, futimens
from cryptfs.transfer.fileio import plain_stat
from cryptfs.transfer.pathvault import PathVault
from cryptfs.transfer.sides import (
    PARTS_BY_LENGTH,
    DiffersError,
    OnLost,
    PartFile,
    Side,
    SideFile,
    Small,
    is_part,
)
from cryptfs.transfer.walking import OnProblem, ReportedNames, entries
from cryptfs.vfs import newcontent
from cryptfs.vfs.content import ranges
from cryptfs.vfs.content.openfile import OpenFile
from cryptfs.vfs.recovery.replay import waiting_journals
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
        self._content_id = b""

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

    def expect(self, size: int) -> bytes:
        self._content_id = newcontent.expect(self._file)
        return self._content_id

    def arrived(self, size: int) -> None:
        newcontent.arrived(self._file, self._content_id, size)

    def close(self) -> None:
        self._tree.release(self._file)


class VaultPartFile(PartFile):
    """A new file of a vault that another process has open."""

    def __init__(self, content: newcontent.NewContent) -> None:
        self._content = content

    def write(self, offset: int, data: memoryview) -> None:
        self._content.write(offset, data)

    def close(self) -> None:
        self._content.close()


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

    def read_small(self, where: Directory, name: bytes, st: os.stat_result, on_lost: OnLost) -> Small | None:
        file = self._tree.open(where, name, os.O_RDONLY)
        try:
            file.state.require_loaded()
            if file.state.sparse:
                return None
            content = memoryview(bytearray(st.st_size))
            got = file.read_into(0, content) if content else 0
            changed = got < st.st_size or file.state.size != st.st_size
        finally:
            self._tree.release(file)
        attributes = self.attributes(where, name, on_lost)
        if not changed and self.may_change:
            after = self.stat(where, name)
            changed = (after.st_size, after.st_mtime_ns) != (st.st_size, st.st_mtime_ns)
        if changed:
            raise DiffersError("it changed while it was copied")
        return Small(content, attributes)

    def open(self, where: Directory, name: bytes) -> SideFile:
        return VaultSideFile(self._tree, self._tree.open(where, name, os.O_RDONLY))

    def tidy(self, where: Directory, kept: Container[bytes], *, fresh: bool) -> None:
        if fresh:
            return
        lengths = {len(where.entry_name(part)) for part in PARTS_BY_LENGTH}  # others are not worth a look
        left_out = ReportedNames(b"", lambda *_: None)
        listing_fd = open_for_listing(where.fd, keep_atime=True)
        try:
            found = [
                self._tree.listed_name(where, entry_name, left_out)
                for entry_name, _, kind in scan(listing_fd)
                if len(entry_name) in lengths and kind != stat.S_IFDIR
            ]
        finally:
            os.close(listing_fd)
        for name in found:
            if name is not None and is_part(name) and name not in kept:
                with contextlib.suppress(OSError, CryptfsError):
                    if not self._is_at_work_elsewhere(where, name):  # here this process has the vault alone
                        self.unlink(where, name)

    def _is_at_work_elsewhere(self, where: Directory, name: bytes) -> bool:
        """Whether a sync client brought it from a machine that has the vault open as well."""
        context = self._tree.context
        try:
            fd, _ = open_backing(where.fd, where.entry_name(name), os.O_RDONLY)
            try:
                header = context.header_of(fd)
            finally:
                os.close(fd)
        except IntegrityError:
            return False
        return (
            header is not None
            and header.journal_id in waiting_journals(context, self._vault.descriptor).others
        )

    def create(self, where: Directory, name: bytes, mode: int) -> SideFile:
        file = self._tree.create(where, name, os.O_RDWR | os.O_EXCL, stat.S_IMODE(mode) & 0o777 | 0o600)
        return VaultSideFile(self._tree, file)

    def put_small(
        self, where: Directory, name: bytes, st: os.stat_result, small: Small, on_lost: OnLost
    ) -> None:
        mode = stat.S_IMODE(st.st_mode)
        fd, made = newcontent.create_whole(self._tree, where, name, mode & 0o777 | 0o600, small.content)
        try:
            is_simple = not small.attributes and (made.st_uid, made.st_gid) == (st.st_uid, st.st_gid)
            if is_simple:
                if stat.S_IMODE(made.st_mode) != mode:
                    os.fchmod(fd, mode)
                futimens(fd, _times_of(st))
        finally:
            os.close(fd)
        if not is_simple:
            self.finish(where, name, st, small.attributes, on_lost)

    def reopen(self, where: Directory, name: bytes, expected: bytes) -> PartFile:
        return VaultPartFile(newcontent.NewContent(self._tree.context, where, name, expected))

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
        self._tree.set_times(where, name, _times_of(st))

    def sync(self) -> None:
        self._tree.sync_all()


def _times_of(st: os.stat_result) -> Times:
    return (*divmod(st.st_atime_ns, 10**9), *divmod(st.st_mtime_ns, 10**9))
