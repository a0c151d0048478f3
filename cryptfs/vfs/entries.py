"""Entries of directories: make, link, rename, remove.

A long name is a pair of entry and sidecar. While either changes, the sidecars' lock is held; the sidecar
is there before its entry and goes after it, so that a crash leaves at worst a sidecar too many.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator

from cryptfs.core.dirrecord import pack_directory_record
from cryptfs.core.keys import DIR_ID_SIZE
from cryptfs.errors import ReadOnlyVaultError
from cryptfs.storage.dirs import (
    Sidecars,
    is_long,
    open_directory,
    remove_directory,
    rename_exclusive,
    temp_name,
    write_record,
)
from cryptfs.storage.durability import PendingSync
from cryptfs.storage.libc import RENAME_EXCHANGE, RENAME_NOREPLACE, renameat2
from cryptfs.vfs.attributes import Caller, backing_stat, give_to_caller
from cryptfs.vfs.context import FileContext
from cryptfs.vfs.directory import Directory, DirectoryOpener
from cryptfs.vfs.filetable import FileTable
from cryptfs.vfs.symlinks import Symlinks, is_single_symlink
from cryptfs.vfs.xattrs import Xattrs


class EntryOperations:
    """What changes directories. Names are plaintext bytes; modes have the umask applied already."""

    def __init__(self, context: FileContext, vault_fd: int) -> None:
        self.context = context
        self.pending = PendingSync(vault_fd)
        self.sidecars = Sidecars(self.pending, context.owner)
        self.opener = DirectoryOpener(context.keys)
        self.files = FileTable(context)
        self.symlinks = Symlinks(context.keys, vault_fd, self.pending, context.owner)
        self.xattrs = Xattrs(context.keys, self.opener.name_cipher, self.files, self.opener)

    def require_writable(self) -> None:
        """Raises: ReadOnlyVaultError."""
        if self.context.read_only:
            raise ReadOnlyVaultError("the vault is mounted read-only")

    def naming(self, directory: Directory, name: bytes) -> contextlib.AbstractContextManager[str]:
        """The entry name to create; a long one has its sidecar, which goes again if creation fails."""
        entry_name = directory.entry_name(name)
        if is_long(entry_name):
            return self._naming_long(directory, name, entry_name)
        return contextlib.nullcontext(entry_name)

    @contextlib.contextmanager
    def _naming_long(self, directory: Directory, name: bytes, entry_name: str) -> Iterator[str]:
        with self.sidecars.lock:
            self.sidecars.write(directory.fd, directory.cipher_name(name))
            try:
                yield entry_name
            finally:
                self.sidecars.remove_if_orphaned(directory.fd, entry_name)

    def unnaming(self, directory: Directory, name: bytes) -> contextlib.AbstractContextManager[str]:
        """The entry name to remove; the sidecar of a long one goes after it."""
        entry_name = directory.entry_name(name)
        if is_long(entry_name):
            return self._unnaming_long(directory, entry_name)
        return contextlib.nullcontext(entry_name)

    @contextlib.contextmanager
    def _unnaming_long(self, directory: Directory, entry_name: str) -> Iterator[str]:
        with self.sidecars.lock:
            yield entry_name
            self.sidecars.remove_if_orphaned(directory.fd, entry_name)

    def make_directory(self, parent: Directory, name: bytes, mode: int, caller: Caller | None = None) -> None:
        """mkdir(2). The directory appears whole, with its record, or not at all."""
        self.require_writable()
        with self.naming(parent, name) as entry_name:
            temporary = temp_name(self.context.owner)
            os.mkdir(temporary, 0o700, dir_fd=parent.fd)
            try:
                fd = open_directory(parent.fd, temporary)
                try:
                    record = pack_directory_record(os.urandom(DIR_ID_SIZE), self.context.keys)
                    self.pending.add(write_record(fd, record))
                    inherited = os.fstat(fd).st_mode & stat.S_ISGID
                    wanted = stat.S_IFDIR | (mode & 0o1777) | inherited
                    give_to_caller(parent, temporary, wanted, caller)
                    os.chmod(f"/proc/self/fd/{fd}", stat.S_IMODE(wanted))
                finally:
                    os.close(fd)
                rename_exclusive(parent.fd, temporary, parent.fd, entry_name)
            except BaseException:
                with contextlib.suppress(OSError), self.sidecars.lock:
                    remove_directory(parent.fd, temporary, self.context.owner)
                raise

    def remove_directory(self, parent: Directory, name: bytes) -> None:
        """rmdir(2)."""
        self.require_writable()
        with self.sidecars.lock, self.unnaming(parent, name) as entry_name:
            remove_directory(parent.fd, entry_name, self.context.owner)

    def unlink(self, parent: Directory, name: bytes) -> None:
        """unlink(2); works on damaged files, too."""
        self.require_writable()
        long_target = self.symlinks.text_to_discard(parent, name)
        with self.unnaming(parent, name) as entry_name:
            removed = self.files.removing(parent.fd, entry_name)
            try:
                os.unlink(entry_name, dir_fd=parent.fd)
            finally:
                self.files.removed(removed)
            self.files.name_removed(parent.dir_id, name)
        self.files.drop_unlinked()
        self.symlinks.discard(long_target)

    def make_node(
        self, parent: Directory, name: bytes, mode: int, device: int, caller: Caller | None = None
    ) -> None:
        """mknod(2): FIFO, socket, device, or an empty regular file."""
        self.require_writable()
        with self.naming(parent, name) as entry_name:
            os.mknod(entry_name, mode, device, dir_fd=parent.fd)
            self._own_or_remove(parent, entry_name, mode, caller)

    def make_symlink(
        self, parent: Directory, name: bytes, target: bytes, caller: Caller | None = None
    ) -> None:
        """symlink(2). Raises: NameTooLongError: the target does not fit once sealed."""
        self.require_writable()
        text = self.symlinks.text_for(parent, name, target)
        try:
            with self.naming(parent, name) as entry_name:
                os.symlink(text, entry_name, dir_fd=parent.fd)
                self._own_or_remove(parent, entry_name, stat.S_IFLNK | 0o777, caller)
        except BaseException:
            self.symlinks.discard(text)
            raise

    def _own_or_remove(self, parent: Directory, entry_name: str, mode: int, caller: Caller | None) -> None:
        try:
            give_to_caller(parent, entry_name, mode, caller)
        except OSError:
            os.unlink(entry_name, dir_fd=parent.fd)
            raise

    def link(self, source: Directory, name: bytes, target: Directory, new_name: bytes) -> None:
        """link(2), of symlinks too."""
        self.require_writable()
        if is_single_symlink(backing_stat(source, name)):
            self.symlinks.unbind(source, name)
        with self.naming(target, new_name) as entry_name:
            os.link(
                source.entry_name(name),
                entry_name,
                src_dir_fd=source.fd,
                dst_dir_fd=target.fd,
                follow_symlinks=False,
            )

    def link_open(self, held_fd: int, target: Directory, new_name: bytes) -> None:
        """Give a name to a file that is known by a descriptor only, as linkat(2) does after O_TMPFILE."""
        self.require_writable()
        with self.naming(target, new_name) as entry_name:
            os.link(f"/proc/self/fd/{held_fd}", entry_name, dst_dir_fd=target.fd, follow_symlinks=True)
        self._moved(os.fstat(held_fd), target, new_name)

    def _moved(self, st: os.stat_result, directory: Directory, name: bytes) -> None:
        """A file has a name that this mount gave it: note that where it is open."""
        state = self.files.find_key((st.st_dev, st.st_ino))
        if state is not None:
            state.whereabouts.place, state.whereabouts.removed_here = (directory, name), False

    def rename(
        self,
        source: Directory,
        name: bytes,
        target: Directory,
        new_name: bytes,
        flags: int = 0,
        st: os.stat_result | None = None,
    ) -> None:
        """renameat2(2).

        Args: flags: RENAME_NOREPLACE, RENAME_EXCHANGE or 0.
              st: the backing stat of what is renamed, where the caller has it already.
        """
        self.require_writable()
        if flags == RENAME_EXCHANGE:
            self._exchange(source, name, target, new_name)
            return
        if flags not in (0, RENAME_NOREPLACE):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        long_target = self.symlinks.text_to_discard(target, new_name)
        with self.unnaming(source, name) as old, self.naming(target, new_name) as new:
            self._bring_home(source, target, new)
            if st is None:
                st = backing_stat(source, name)
            if is_single_symlink(st):
                self._move_symlink(source, name, target, new_name, flags)
            elif flags == RENAME_NOREPLACE:
                rename_exclusive(source.fd, old, target.fd, new)
            else:
                self._rename_over(source.fd, old, target.fd, new)
            self._moved(st, target, new_name)
        self.files.drop_unlinked()
        if long_target and not self._same_target(target, new_name, long_target):
            self.symlinks.discard(long_target)

    def _bring_home(self, source: Directory, target: Directory, entry_name: str) -> None:
        """Before something moves that may be on disk: what leads to its new place has to be there, too.

        Else a loss of power could leave it under a long name without a sidecar, or in a directory without
        a record.
        """
        if is_long(entry_name) or source.dir_id != target.dir_id:
            self.pending.flush()

    def _same_target(self, directory: Directory, name: bytes, text: str) -> bool:
        """Whether an entry is still the long symlink that it was: a rename onto itself changes nothing."""
        return self.symlinks.text_to_discard(directory, name) == text

    def _move_symlink(
        self, source: Directory, name: bytes, target: Directory, new_name: bytes, flags: int
    ) -> None:
        try:
            existing = backing_stat(target, new_name)
        except FileNotFoundError:
            existing = None
        if existing is not None:
            if flags == RENAME_NOREPLACE:
                raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))
            if stat.S_ISDIR(existing.st_mode):
                raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
            if source.dir_id == target.dir_id and name == new_name:
                return
        self.symlinks.move(source, name, target, new_name)

    def _exchange(self, source: Directory, name: bytes, target: Directory, new_name: bytes) -> None:
        old_st, new_st = backing_stat(source, name), backing_stat(target, new_name)
        if is_single_symlink(old_st):
            self.symlinks.unbind(source, name)
        if is_single_symlink(new_st):
            self.symlinks.unbind(target, new_name)
        old, new = source.entry_name(name), target.entry_name(new_name)
        self._bring_home(source, target, old)
        self._bring_home(source, target, new)
        renameat2(source.fd, old, target.fd, new, RENAME_EXCHANGE)
        self._moved(old_st, target, new_name)
        self._moved(new_st, source, name)

    def _rename_over(self, source_fd: int, old: str, target_fd: int, new: str) -> None:
        """rename(2); an empty directory that is replaced loses its record first."""
        removed = self.files.removing(target_fd, new)
        try:
            os.rename(old, new, src_dir_fd=source_fd, dst_dir_fd=target_fd)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            with self.sidecars.lock:
                remove_directory(target_fd, new, self.context.owner)
            os.rename(old, new, src_dir_fd=source_fd, dst_dir_fd=target_fd)
        finally:
            self.files.removed(removed)
