"""The plaintext tree, by places (a directory and a name in it), not by paths.

VaultTree looks up, lists and opens; its base class in entries.py makes, moves and removes entries.
Every operation is on a Directory, held open by a descriptor, and a plaintext name in it, or SELF for the
directory itself. No operation follows a symlink.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterator
from typing import NamedTuple

from cryptfs.errors import IntegrityError, NameError_
from cryptfs.storage.backing import HELD_FILE_FLAGS, O_NOATIME, open_backing, open_quietly, reopen
from cryptfs.storage.dirs import holds_plaintext, is_long, open_for_listing, scan, sync_directory
from cryptfs.storage.libc import Times, syncfs
from cryptfs.vfs.content.context import FileContext
from cryptfs.vfs.content.filestate import FileKey, FileState
from cryptfs.vfs.content.mtimes import times_were_set, true_stat
from cryptfs.vfs.content.openfile import OpenFile
from cryptfs.vfs.content.others import is_overtaken
from cryptfs.vfs.tree.attributes import (
    Attributes,
    Caller,
    backing_stat,
    change_times,
    give_open_to_caller,
    give_to_caller,
    plain_attributes,
)
from cryptfs.vfs.tree.conflicts import stands
from cryptfs.vfs.tree.directory import NO_NAME, SELF, Directory, Place, Unnamed
from cryptfs.vfs.tree.entries import EntryOperations
from cryptfs.vfs.tree.fileids import FileIds
from cryptfs.vfs.tree.identity import Identity, Known, size_before_cut, stale
from cryptfs.vfs.tree.leftout import LeftOut
from cryptfs.vfs.tree.rescue import Rescuer, is_lost

VerifiedSize = Callable[[int, os.stat_result, str], int | None]
"""The plaintext size of a regular file by its header; None if the length of the backing file tells it.

Takes any descriptor of it, its stat, and its cipher path.
"""


class Entry(NamedTuple):
    """One line of a listing. kind: the file type bits of st_mode."""

    name: bytes
    inode: int
    kind: int

    def __repr__(self) -> str:
        return f"Entry(inode={self.inode}, kind={self.kind:#o})"


class VaultTree(EntryOperations):
    """The plaintext tree of one vault.

    Args: context: what its files share.   vault_fd: the vault directory, open for reading.
    """

    def __init__(self, context: FileContext, vault_fd: int) -> None:
        super().__init__(context, vault_fd)
        self.root = self.opener.root(vault_fd)
        self.identity = Identity(context)
        self._vault_fd = vault_fd
        self._max_empty_size = context.geometry.max_empty_size
        self.file_ids = FileIds(self, vault_fd)
        self._rescuer = Rescuer(self, self.root)
        self.files.is_lost, self.files.before_loss = is_lost, self._rescuer.before_close
        self.verified_size: VerifiedSize | None = None  # while sizes are in doubt after a crash

    # ---- looking

    def directory(self, parent: Directory, name: bytes) -> Directory:
        """Open a subdirectory. Raises: DirectoryRecordError, OSError (ENOENT, ENOTDIR)."""
        return self.opener.child(parent, name)

    def stat(self, directory: Directory, name: bytes) -> Attributes:
        """Attributes of an entry, without opening it."""
        context = self.context
        redo, entry_name = context.redo, directory.entry_name(name)
        while True:
            # An older stat may not fit our knowledge once a growth or a time has reached its file.
            true_mtimes, homecomings = context.true_mtimes, 0 if redo is None else redo.homecomings
            at = directory.fd
            st = os.stat(entry_name, dir_fd=at, follow_symlinks=False) if name else os.fstat(at)
            if stat.S_ISLNK(st.st_mode):
                return Attributes(st, self.symlinks.size(directory, name, st))
            found = self.sized(st)
            if context.true_mtimes == true_mtimes and (redo is None or redo.homecomings == homecomings):
                break
        if (self.verified_size is not None or not found.size) and self._is_doubtful(found):
            with contextlib.suppress(OSError):
                held_fd = os.open(entry_name, HELD_FILE_FLAGS, dir_fd=directory.fd)
                try:
                    return self._certain(held_fd, found, entry_name)
                finally:
                    os.close(held_fd)
        return found

    def _is_doubtful(self, found: Attributes) -> bool:
        """Whether only the header tells the size of a file: after a crash, and if the file seems to be empty.

        The kernel asks for no byte of a file that seems empty, also by a handle that was open before.
        """
        st = found.st
        if not stat.S_ISREG(st.st_mode):
            return False
        if self.verified_size is not None:
            return True
        if found.size or not st.st_size:
            return False
        state = self.files.find_key((st.st_dev, st.st_ino))
        return state is None or not state.has_size

    def _certain(self, held_fd: int, found: Attributes, path: str) -> Attributes:
        """The attributes of a doubtful file with the size that its header vouches for."""
        verified_size = self.verified_size  # once: the sweep may end meanwhile
        if verified_size is not None:
            size = verified_size(held_fd, found.st, path)
        else:
            size = size_before_cut(self.context, held_fd, found.st)
        return found if size is None else Attributes(found.st, size)

    def sized(self, st: os.stat_result) -> Attributes:
        """Attributes from a backing stat; with the certain size if the file is open."""
        state = self.files.find_key((st.st_dev, st.st_ino))
        if state is not None and state.has_size and stat.S_ISREG(st.st_mode) and self._is_current(state, st):
            return Attributes(true_stat(state, st), state.size)
        return plain_attributes(st, self.context)

    def _is_current(self, state: FileState, st: os.stat_result) -> bool:
        """Whether a state is that of the file as it is: nobody else has changed it in place."""
        if st.st_ctime_ns == state.seen_ctime or state.changes or self.context.exclusive:
            return True
        if not self.files.share(state):  # so that nobody closes its descriptor meanwhile
            return False
        try:
            return not is_overtaken(state, st)
        finally:
            with contextlib.suppress(OSError):  # as at any last close, and nobody has asked for one
                self.files.release(state)

    def stat_descriptor(self, fd: int) -> Attributes:
        """Attributes of the file behind an O_PATH descriptor, of any type."""
        while True:
            seen = self._homecomings()
            st = os.fstat(fd)
            if stat.S_ISLNK(st.st_mode):
                return Attributes(st, self.symlinks.size_open(fd, st))
            found = self.sized(st)
            if self._homecomings() == seen:
                break
        if self._is_doubtful(found):
            with contextlib.suppress(OSError):
                return self._certain(fd, found, NO_NAME)
        return found

    def stat_of(self, place: Place) -> Attributes:
        """Attributes of the file at a place."""
        where, name = place
        return self.stat_descriptor(where.fd) if isinstance(where, Unnamed) else self.stat(where, name)

    def _homecomings(self) -> int:
        """Changes when a pending growth or time reaches its file: an older stat may not fit our knowledge."""
        redo = self.context.redo
        return self.context.true_mtimes + (0 if redo is None else redo.homecomings)

    def stat_open(self, file: OpenFile) -> Attributes:
        """Attributes of an open file, with or without a name."""
        return self.stat_descriptor(file.state.fd)

    def list(self, directory: Directory) -> Iterator[Entry]:
        """The entries of a directory, without '.' and '..'.

        It leaves out an entry that does not verify, with a warning, and hides nothing else.
        """
        listing_fd = open_for_listing(directory.fd, keep_atime=self.context.nodiratime)
        left_out = LeftOut(directory.cipher_path)
        try:
            for entry_name, inode, kind in scan(listing_fd):
                name = self.listed_name(directory, entry_name, left_out)
                if name is not None:
                    yield Entry(name, inode, kind)
        finally:
            os.close(listing_fd)
            left_out.tell()

    def listed_name(self, directory: Directory, entry_name: str, left_out: LeftOut) -> bytes | None:
        """The plaintext name of an entry; None for internal ones and those that do not verify.

        Args: left_out: gets those that do not verify.
        """
        known = directory.known_name(entry_name)
        if known is not None:
            return known
        if not holds_plaintext(entry_name):
            return None
        try:
            cipher_name = entry_name
            if is_long(entry_name):
                cipher_name = self.long_name(directory, entry_name)
            return directory.open_name(cipher_name, entry_name)
        except NameError_ as error:
            reason = error.reason
        try:
            copy = directory.open_copy(entry_name)
            if copy is not None:
                return copy.name
        except NameError_ as error:
            reason = error.reason
        if stands(directory.fd, entry_name):  # else it went meanwhile, and its sidecar after it
            left_out.add(directory.path_of(entry_name), reason)
        return None

    def statfs(self) -> os.statvfs_result:
        """Room and inodes of the backing filesystem; f_namemax is 255 whatever that has."""
        return os.fstatvfs(self._vault_fd)

    def set_times(self, directory: Directory, name: bytes, times: Times) -> None:
        """utimensat(2) of the entry itself."""
        with self.files.sharing(backing_stat(directory, name)) as state:
            if state is None:
                change_times(directory, name, times)
                return
            with state.lock:  # else a last close under way would restore the old times
                change_times(directory, name, times)
                times_were_set(state, times)

    def make_clean(self, directory: Directory, name: bytes) -> None:
        """Do now the work of an open file's last close: header and time of change get their final values."""
        self.files.make_clean(backing_stat(directory, name))

    # ---- files

    def open(
        self, directory: Directory, name: bytes, flags: int, meant: tuple[FileKey, Known] | None = None
    ) -> OpenFile:
        """Open a regular file. flags: access mode, O_TRUNC, O_NOATIME; the kernel handles others.

        Args: meant: the file that the caller means, with what we told about it.

        An open for writing also opens for reading: a write to part of a chunk reads it first, and the
        kernel's writeback cache reads whole pages.

        Raises: IntegrityError: the entry is not a regular file, or a file to read was cut until it seems
                                empty.
                OSError: ESTALE: it is another file than the caller means, or not as told.
        """
        # On Linux O_RDONLY | O_TRUNC truncates, if the caller may write.
        writable = flags & (os.O_ACCMODE | os.O_TRUNC) != os.O_RDONLY
        if writable:
            self.require_writable()
        entry_name = directory.entry_name(name)
        only_write = flags & os.O_ACCMODE == os.O_WRONLY
        access = os.O_RDWR if writable else os.O_RDONLY
        try:
            fd, st, quiet = open_quietly(directory.fd, entry_name, access, only_write=only_write)
        except IntegrityError as error:
            error.cipher_path = directory.path_of(entry_name)
            raise
        if meant is not None:
            try:
                self.identity.require_object(meant[1], meant[0], fd, st)
            except OSError:
                os.close(fd)
                raise
        file = self._handle(directory, name, fd, st, writable=writable, quiet=quiet)
        if writable and self.file_ids.replaced(directory, name, file.state):
            if meant is not None:
                raise stale()
            return self.open(directory, name, flags)
        return self._ready(file, st, flags, meant)

    def create(
        self, directory: Directory, name: bytes, flags: int, mode: int, caller: Caller | None = None
    ) -> OpenFile:
        """Create and open a regular file, or open the present one unless flags has O_EXCL.

        Args: mode: permissions, umask applied.   caller: owns the new file.
        """
        return self.create_new(directory, name, flags, mode, caller)[0]

    def create_new(
        self, directory: Directory, name: bytes, flags: int, mode: int, caller: Caller | None = None
    ) -> tuple[OpenFile, Attributes]:
        """As create; with the file's attributes, which cost another system call afterwards."""
        self.require_writable()
        create_flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | O_NOATIME
        with self.naming(directory, name) as entry_name:
            try:
                fd, st = open_backing(directory.fd, entry_name, create_flags, mode & 0o7777)
            except FileExistsError:
                if flags & os.O_EXCL:
                    raise
                file = self.open(directory, name, flags)
                return file, self.stat_open(file)
            try:
                if give_to_caller(directory, entry_name, stat.S_IFREG | mode, caller):
                    st = os.fstat(fd)
            except BaseException:
                os.close(fd)
                os.unlink(entry_name, dir_fd=directory.fd)
                raise
        file = self._handle(directory, name, fd, st, writable=True, quiet=bool(O_NOATIME))
        file.state.note_capability(may_be_there=False)
        return file, plain_attributes(st, self.context)

    def _handle(
        self, directory: Directory, name: bytes, fd: int, st: os.stat_result, *, writable: bool, quiet: bool
    ) -> OpenFile:
        path = directory.path_of(directory.entry_name(name))
        file = self._state_of(fd, st, path, writable=writable, quiet=quiet)
        if writable:
            file.state.whereabouts.place = (directory, name)
        return file

    def _state_of(
        self, fd: int, st: os.stat_result, path: str, *, writable: bool, quiet: bool = False
    ) -> OpenFile:
        state = self.files.acquire(fd, st, writable=writable, cipher_path=path, keeps_atime=quiet)
        return OpenFile(state, writable=writable, st=st)

    def open_held(self, held_fd: int, flags: int) -> OpenFile:
        """Open a file without a known name by its O_PATH descriptor. flags as in `open`."""
        writable = flags & (os.O_ACCMODE | os.O_TRUNC) != os.O_RDONLY
        if writable:
            self.require_writable()
        fd = reopen(held_fd, os.O_RDWR if writable else os.O_RDONLY)
        file = self._unnamed(fd, writable=writable)
        return self._ready(file, os.fstat(file.state.fd), flags)

    def _ready(
        self, file: OpenFile, st: os.stat_result, flags: int, meant: tuple[FileKey, Known] | None = None
    ) -> OpenFile:
        """Do the rest of opening once there is a handle; give the handle back if that fails."""
        try:
            if flags & os.O_TRUNC:
                file.truncate(0)
            else:
                self._verify(file.state, st, flags)
                if meant is not None:
                    self.identity.require_told(meant[1], file.state, st)
        except BaseException:
            self.release(file)
            raise
        if flags & O_NOATIME:
            file.keeps_atime = True
        return file

    def _verify(self, state: FileState, st: os.stat_result, flags: int) -> None:
        """Read the header. A damaged file can be opened, so that somebody can empty it; reads say EIO."""
        try:
            state.require_loaded(st)
        except IntegrityError:
            # The kernel never asks for bytes of a file that seems empty: notice a cut now or never.
            if 0 < st.st_size <= self._max_empty_size and flags & os.O_ACCMODE != os.O_WRONLY:
                raise

    def create_unnamed(
        self, directory: Directory, flags: int, mode: int, caller: Caller | None = None
    ) -> OpenFile:
        """O_TMPFILE: a new file without a name, in the filesystem of a directory. flags: O_EXCL counts."""
        self.require_writable()
        wanted = os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC | flags & os.O_EXCL
        fd = os.open(".", wanted, mode & 0o7777, dir_fd=directory.fd)
        try:
            give_open_to_caller(fd, directory, caller)
        except BaseException:
            os.close(fd)
            raise
        return self._unnamed(fd, writable=True)

    def _unnamed(self, fd: int, *, writable: bool) -> OpenFile:
        try:
            st = os.fstat(fd)
        except BaseException:
            os.close(fd)
            raise
        return self._state_of(fd, st, NO_NAME, writable=writable)

    def unlink_open(self, directory: Directory, name: bytes, file: OpenFile) -> OpenFile | None:
        """Remove a name of a file that is open, and take a further handle on it.

        None: its last handle is gone by now, so nobody needs one.
        """
        self.require_writable()
        writable = file.state.writable
        there = self.files.share(file.state, writable=writable)
        shared = OpenFile(file.state, writable=writable) if there else None
        try:
            self.unlink(directory, name)
        except BaseException:
            if shared is not None:
                self.release(shared)
            raise
        return shared

    def release(self, file: OpenFile) -> None:
        """Give a handle back. Raises: OSError: the header could not be written; it is closed all the same."""
        if file.state.was_changed:
            self.file_ids.written(file.state)
        self.files.release(file.state, writable=file.writable)

    def truncate(self, directory: Directory, name: bytes, size: int) -> None:
        """truncate(2) of an entry."""
        file = self.open(directory, name, os.O_WRONLY)
        try:
            file.truncate(size)
        finally:
            self.release(file)

    # ---- durability

    def sync_file(self, file: OpenFile, *, data_only: bool) -> None:
        """fsync(2) or fdatasync(2): on return the file is on disk, and so is the way to it."""
        self.pending.flush()
        file.sync(data_only=data_only)
        if is_lost(file.state):
            self._rescuer.keep(file.state)

    def sync_directory(self, directory: Directory) -> None:
        """fsync(2) of a directory: its entries are on disk, with records and sidecars."""
        self.pending.flush()
        sync_directory(directory.fd)

    def sync_all(self) -> None:
        """syncfs(2): the vault's whole filesystem is on disk."""
        self.pending.flush()
        syncfs(self._vault_fd)

    def close(self) -> None:
        """Settle open files, sync pending ones, and end the session. All threads have stopped."""
        self.files.close()
        self.pending.close()
        self.symlinks.close()
        if self.context.redo is not None:
            self.context.redo.end()


__all__ = ["SELF", "Attributes", "Caller", "Entry", "VaultTree"]
