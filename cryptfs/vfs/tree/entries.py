"""Entries of directories: make, link, rename, remove.

A long name is a pair of entry and sidecar. A thread that changes either holds the sidecars' lock. The sidecar
comes before its entry and goes after it, so that a crash leaves at worst a sidecar too many.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator

from cryptfs.core.names.conflicts import long_original
from cryptfs.core.names.names import SIDECAR_SUFFIX
from cryptfs.errors import NameError_, ReadOnlyVaultError
from cryptfs.storage.dirs import (
    Sidecars,
    is_long,
    open_directory,
    rename_exclusive,
    temp_name,
)
from cryptfs.storage.durability import PendingSync
from cryptfs.storage.libc import (
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    RENAME_WHITEOUT,
    os_error,
    renameat2,
)
from cryptfs.storage.records import give_internal_files, write_record
from cryptfs.storage.removal import remove_directory
from cryptfs.vfs.content.context import FileContext
from cryptfs.vfs.content.filetable import FileTable
from cryptfs.vfs.tree.attributes import Caller, backing_stat, give_to_caller
from cryptfs.vfs.tree.binding import Binding, Move
from cryptfs.vfs.tree.conflicts import stands
from cryptfs.vfs.tree.directory import Directory, DirectoryOpener
from cryptfs.vfs.tree.symlinks import Symlinks
from cryptfs.vfs.tree.xattrs import Xattrs

_Moved = tuple[os.stat_result, Directory, bytes, Directory, bytes]
"""An entry's stat, where it is, and where it goes: a directory and a name each."""


class EntryOperations:
    """The changes of directories. Names are plaintext bytes; modes have the umask applied already."""

    def __init__(self, context: FileContext, vault_fd: int) -> None:
        self.context = context
        self.pending = PendingSync(vault_fd)
        self.sidecars = Sidecars(self.pending, context.owner)
        self.opener = DirectoryOpener(context.keys, context.config.record_rules)
        self.binding = Binding(context, vault_fd)
        self.opener.on_moving = self.binding.finish
        self.opener.on_lost = self.binding.outlasts
        self.files = FileTable(context)
        self.symlinks = Symlinks(context.keys, vault_fd, self.pending, context.owner)
        names, symlinks = self.opener.name_cipher, self.symlinks if self.binding.is_on else None
        self.xattrs = Xattrs(context.keys, names, self.files, self.opener, symlinks)
        if symlinks is not None:
            symlinks.carry = self.xattrs.carry

    def require_writable(self) -> None:
        """Raises: ReadOnlyVaultError."""
        if self.context.read_only:
            raise ReadOnlyVaultError("the vault is mounted read-only")

    def naming(self, directory: Directory, name: bytes) -> contextlib.AbstractContextManager[str]:
        """The entry name to create; writes the sidecar of a long one, and removes it if creation fails."""
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

    def long_name(self, directory: Directory, entry_name: str) -> str:
        """The full cipher name of a long entry.

        One machine removes a file, and another one changes it: a sync client deletes the sidecar, which
        nobody has changed, and keeps the file. So the sidecar comes back if its name is remembered here.

        Raises: NameError_: the sidecar does not count, or it is gone and nobody remembers the name, or the
                            entry is a conflict copy.
        """
        try:
            return self.sidecars.read(directory.fd, entry_name)
        except NameError_:
            original = long_original(entry_name)
            cipher_name = directory.known_long(original)
            if cipher_name is None or stands(directory.fd, original + SIDECAR_SUFFIX):
                raise
            if not stands(directory.fd, entry_name):
                raise  # both went meanwhile
            if not self.context.read_only:
                with contextlib.suppress(OSError):
                    self.sidecars.bring_back(directory.fd, cipher_name)
            if original != entry_name:
                raise
            return cipher_name

    def make_directory(self, parent: Directory, name: bytes, mode: int, caller: Caller | None = None) -> None:
        """mkdir(2). The directory appears whole, with its record, or not at all."""
        self.require_writable()
        with self.naming(parent, name) as entry_name:
            temporary = temp_name(self.context.owner)
            os.mkdir(temporary, 0o700, dir_fd=parent.fd)
            try:
                fd = open_directory(parent.fd, temporary)
                try:
                    self.pending.add(write_record(fd, self.binding.new_record(parent, name)))
                    inherited = os.fstat(fd).st_mode & stat.S_ISGID
                    wanted = stat.S_IFDIR | (mode & 0o1777) | inherited
                    if give_to_caller(parent, temporary, wanted, caller) and os.geteuid() == 0:
                        give_internal_files(fd)
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
        """unlink(2); also of damaged files."""
        self.require_writable()
        long_target = self.symlinks.text_to_discard(parent, name)
        entry_name = parent.entry_name(name)
        if is_long(entry_name):
            with self._unnaming_long(parent, entry_name):
                self._unlink(parent, name, entry_name)
        else:
            self._unlink(parent, name, entry_name)
        self.files.drop_unlinked()
        if long_target:
            self.symlinks.discard(long_target)

    def _unlink(self, parent: Directory, name: bytes, entry_name: str) -> None:
        removed = self.files.removing(parent.fd, entry_name)
        try:
            os.unlink(entry_name, dir_fd=parent.fd)
        finally:
            self.files.removed(removed)
        self.files.name_removed(parent.dir_id, name)

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
        """symlink(2). Raises: NameTooLongError: the sealed target does not fit."""
        self.require_writable()
        text = self.symlinks.text_for(parent, name, target)
        try:
            with self.naming(parent, name) as entry_name:
                os.symlink(text, entry_name, dir_fd=parent.fd)
                self._own_or_remove(parent, entry_name, stat.S_IFLNK | 0o777, caller)
        except Exception:  # after an interrupt it may be there, and needs its target
            self.symlinks.discard(text)
            raise

    def _own_or_remove(self, parent: Directory, entry_name: str, mode: int, caller: Caller | None) -> None:
        try:
            give_to_caller(parent, entry_name, mode, caller)
        except OSError:
            os.unlink(entry_name, dir_fd=parent.fd)
            raise

    def link(self, source: Directory, name: bytes, target: Directory, new_name: bytes) -> None:
        """link(2), also of symlinks."""
        self.require_writable()
        if self.symlinks.is_bound(source, name, backing_stat(source, name)):
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
        """Give a name to a file known by a descriptor only, as linkat(2) does after O_TMPFILE."""
        self.require_writable()
        with self.naming(target, new_name) as entry_name:
            os.link(f"/proc/self/fd/{held_fd}", entry_name, dst_dir_fd=target.fd, follow_symlinks=True)
        self._moved(os.fstat(held_fd), target, new_name)

    def _moved(self, st: os.stat_result, directory: Directory, name: bytes) -> None:
        """A file has a name that this mount gave it: note that if the file is open."""
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

        RENAME_WHITEOUT leaves a device with the number 0 under the old name, as overlayfs asks for.

        Args: flags: RENAME_EXCHANGE, or RENAME_NOREPLACE and RENAME_WHITEOUT.
              st: the backing stat of the entry, if the caller has it already.
        """
        self.require_writable()
        if flags == RENAME_EXCHANGE:
            self._exchange(source, name, target, new_name)
            return
        if flags & ~(RENAME_NOREPLACE | RENAME_WHITEOUT):
            raise os_error(errno.EINVAL)
        replaces = not flags & RENAME_NOREPLACE
        long_target = self.symlinks.text_to_discard(target, new_name) if replaces else None
        if is_long(source.entry_name(name)) or is_long(target.entry_name(new_name)):
            with self.unnaming(source, name), self.naming(target, new_name):
                self._rename(source, name, target, new_name, flags, st)
        else:
            self._rename(source, name, target, new_name, flags, st)
        self.files.drop_unlinked()
        if long_target and not self._same_target(target, new_name, long_target):
            self.symlinks.discard(long_target)

    def _rename(
        self,
        source: Directory,
        name: bytes,
        target: Directory,
        new_name: bytes,
        flags: int,
        st: os.stat_result | None,
    ) -> None:
        old, new = source.entry_name(name), target.entry_name(new_name)
        self._bring_home(source, target, new)
        if st is None:
            st = backing_stat(source, name)
        bound = stat.S_ISLNK(st.st_mode) and self.symlinks.is_bound(source, name, st)
        if bound and not flags & RENAME_WHITEOUT:
            self._move_symlink(source, name, st, target, new_name, flags)
        else:
            if bound:
                self.symlinks.unbind(source, name)  # so that one call can do it all
            with self._binding_anew((st, source, name, target, new_name)):
                if flags == RENAME_NOREPLACE:
                    rename_exclusive(source.fd, old, target.fd, new)
                else:
                    self._rename_over(source.fd, old, target.fd, new, flags)
        self._moved(st, target, new_name)

    def _binding_anew(self, *moves: _Moved) -> contextlib.AbstractContextManager[None]:
        """While entries move: the directories among them are bound to their old places and the new ones."""
        if not self.binding.is_on:
            return contextlib.nullcontext()
        directories = [
            Move(source, source.entry_name(name), source.place_of(name), target.place_of(new_name))
            for st, source, name, target, new_name in moves
            if stat.S_ISDIR(st.st_mode)
        ]
        if not directories:
            return contextlib.nullcontext()
        return self.binding.moving(directories, (moves[0][1], moves[0][3]))

    def _bring_home(self, source: Directory, target: Directory, entry_name: str) -> None:
        """Before the rename of an entry that may be on disk: sync the way to its new place.

        Else a loss of power could leave it under a long name without a sidecar, or in a directory without a
        record.
        """
        if is_long(entry_name) or source.dir_id != target.dir_id:
            self.pending.flush()

    def _same_target(self, directory: Directory, name: bytes, text: str) -> bool:
        """Whether an entry is still this long symlink, because the rename onto itself changed nothing."""
        return self.symlinks.text_to_discard(directory, name) == text

    def _move_symlink(
        self,
        source: Directory,
        name: bytes,
        st: os.stat_result,
        target: Directory,
        new_name: bytes,
        flags: int,
    ) -> None:
        try:
            existing = backing_stat(target, new_name)
        except FileNotFoundError:
            existing = None
        if existing is not None:
            if flags == RENAME_NOREPLACE:
                raise os_error(errno.EEXIST)
            if stat.S_ISDIR(existing.st_mode):
                raise os_error(errno.EISDIR)
            if (existing.st_dev, existing.st_ino) == (st.st_dev, st.st_ino):
                return  # two names of one link: rename(2) leaves both
        self.symlinks.move(source, name, target, new_name)

    def _exchange(self, source: Directory, name: bytes, target: Directory, new_name: bytes) -> None:
        old_st, new_st = backing_stat(source, name), backing_stat(target, new_name)
        if self.symlinks.is_bound(source, name, old_st):
            self.symlinks.unbind(source, name)
        if self.symlinks.is_bound(target, new_name, new_st):
            self.symlinks.unbind(target, new_name)
        old, new = source.entry_name(name), target.entry_name(new_name)
        self._bring_home(source, target, old)
        self._bring_home(source, target, new)
        moves = (old_st, source, name, target, new_name), (new_st, target, new_name, source, name)
        with self._binding_anew(*moves):
            renameat2(source.fd, old, target.fd, new, RENAME_EXCHANGE)
        self._moved(old_st, target, new_name)
        self._moved(new_st, source, name)

    def _rename_over(self, source_fd: int, old: str, target_fd: int, new: str, flags: int) -> None:
        """renameat2(2); if it replaces an empty directory, that loses its record first."""
        removed = self.files.removing(target_fd, new)
        try:
            renameat2(source_fd, old, target_fd, new, flags)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or flags & RENAME_NOREPLACE:
                raise
            with self.sidecars.lock:
                remove_directory(target_fd, new, self.context.owner)
            renameat2(source_fd, old, target_fd, new, flags)
        finally:
            self.files.removed(removed)
