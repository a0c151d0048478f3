"""The plaintext tree: nodes (a directory and a name in it), not paths.

VaultTree looks up, lists and opens; its base class in entries.py makes, moves and removes entries.
Every operation is on a Directory, held open by a descriptor, and a plaintext name in it, or SELF for the
directory itself. No operation follows a symlink.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from typing import NamedTuple

from cryptfs.errors import IntegrityError, NameError_
from cryptfs.storage.backing import HELD_FILE_FLAGS, O_NOATIME, open_backing, reopen
from cryptfs.storage.dirs import holds_plaintext, is_long, open_for_listing, scan
from cryptfs.storage.libc import Times, syncfs
from cryptfs.storage.sessions import is_unsettled
from cryptfs.vfs.attributes import (
    Attributes,
    Caller,
    backing_stat,
    change_times,
    give_to_caller,
    plain_attributes,
)
from cryptfs.vfs.checkpoint import Checkpointer
from cryptfs.vfs.conflicts import stands
from cryptfs.vfs.context import FileContext
from cryptfs.vfs.directory import NO_NAME, SELF, Directory, Place, Unnamed
from cryptfs.vfs.entries import EntryOperations
from cryptfs.vfs.fileids import FileIds
from cryptfs.vfs.filestate import FileKey, FileState
from cryptfs.vfs.identity import Identity, Known, stale
from cryptfs.vfs.leftout import LeftOut
from cryptfs.vfs.mtimes import times_were_set, true_stat
from cryptfs.vfs.openfile import OpenFile
from cryptfs.vfs.rescue import Rescuer, is_lost
from cryptfs.vfs.unsettled import Unsettled


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
        self.checkpointer: Checkpointer | None = None
        if context.redo is not None:
            self.checkpointer = Checkpointer(self.files, context.redo)
            context.make_room = self.checkpointer.make_room
        unsettled = is_unsettled(vault_fd, context.owner)
        self.unsettled = Unsettled(context, self.files, vault_fd) if unsettled else None

    def start(self) -> None:
        """After daemonising: start the threads."""
        if self.unsettled is not None:
            self.unsettled.start()
        if self.checkpointer is not None:
            self.checkpointer.start()

    # ---- looking

    def directory(self, parent: Directory, name: bytes) -> Directory:
        """Open a subdirectory. Raises: DirectoryRecordError, OSError (ENOENT, ENOTDIR)."""
        return self.opener.child(parent, name)

    def stat(self, directory: Directory, name: bytes) -> Attributes:
        """Attributes of an entry, without opening it."""
        while True:
            seen = self._homecomings()
            st = backing_stat(directory, name)
            if stat.S_ISLNK(st.st_mode):
                return Attributes(st, self.symlinks.size(directory, name, st))
            found = self.sized(st)
            if self._homecomings() == seen:
                break
        if self.unsettled is not None and stat.S_ISREG(st.st_mode):
            with contextlib.suppress(OSError):
                held_fd = os.open(directory.entry_name(name), HELD_FILE_FLAGS, dir_fd=directory.fd)
                try:
                    return self._settled(self.unsettled, held_fd, found, directory.entry_name(name))
                finally:
                    os.close(held_fd)
        return found

    def sized(self, st: os.stat_result) -> Attributes:
        """Attributes from a backing stat: of a file that is open, with the size that it has for sure."""
        state = self.files.find_key((st.st_dev, st.st_ino))
        if state is not None and state.has_size and stat.S_ISREG(st.st_mode):
            return Attributes(true_stat(state, st), state.size)
        return plain_attributes(st, self.context)

    def _settled(self, unsettled: Unsettled, held_fd: int, found: Attributes, path: str) -> Attributes:
        """After a crash: the attributes of a regular file with the size that it has for certain."""
        if unsettled.over:
            self.unsettled = None
            return found
        size = unsettled.plain_size(held_fd, found.st, path)
        return found if size is None else Attributes(found.st, size)

    def stat_descriptor(self, fd: int) -> Attributes:
        """Attributes of what an O_PATH descriptor holds, whatever it is."""
        while True:
            seen = self._homecomings()
            st = os.fstat(fd)
            if stat.S_ISLNK(st.st_mode):
                return Attributes(st, self.symlinks.size_open(fd, st))
            found = self.sized(st)
            if self._homecomings() == seen:
                break
        if self.unsettled is not None and stat.S_ISREG(st.st_mode):
            return self._settled(self.unsettled, fd, found, NO_NAME)
        return found

    def stat_of(self, place: Place) -> Attributes:
        """Attributes of what a place stands for."""
        where, name = place
        return self.stat_descriptor(where.fd) if isinstance(where, Unnamed) else self.stat(where, name)

    def _homecomings(self) -> int:
        """Differs where a pending growth or time reached its file: a stat and what is known may not agree."""
        redo = self.context.redo
        return self.context.true_mtimes + (0 if redo is None else redo.homecomings)

    def stat_open(self, file: OpenFile) -> Attributes:
        """Attributes of an open file, also of one that has no name left."""
        return self.stat_descriptor(file.state.fd)

    def list(self, directory: Directory) -> Iterator[Entry]:
        """The entries of a directory, without '.' and '..'.

        One that does not verify is left out with a warning and hides nothing else.
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

        Args: left_out: takes those that do not verify.
        """
        if not holds_plaintext(entry_name):
            return None
        try:
            cipher_name = entry_name
            if is_long(entry_name):
                cipher_name = self.sidecars.read(directory.fd, entry_name)
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
        """Room and inodes of the backing filesystem; f_namemax is 255 whatever it says there."""
        return os.fstatvfs(self._vault_fd)

    def set_times(self, directory: Directory, name: bytes, times: Times) -> None:
        """utimensat(2) of the entry itself."""
        state = self.files.find(backing_stat(directory, name))
        if state is None:
            change_times(directory, name, times)
            return
        with state.lock:  # else a last close that is under way would restore what was before
            change_times(directory, name, times)
            times_were_set(state, times)

    def settle(self, directory: Directory, name: bytes) -> None:
        """Do now for an open file what its last close does: header and time of change are as they will be."""
        state = self.files.find(backing_stat(directory, name))
        if state is not None:
            self.files.settle(state)

    # ---- files

    def open(
        self, directory: Directory, name: bytes, flags: int, meant: tuple[FileKey, Known] | None = None
    ) -> OpenFile:
        """Open a regular file. flags: access mode, O_TRUNC; others are the kernel's business.

        Args: meant: the file that the caller means, and what it was told of it.

        A file that is opened for writing is opened for reading too: a partial chunk must be read before
        it is written, and the kernel's writeback cache reads whole pages.

        Raises: IntegrityError: no regular file stands there, or one to be read that was cut until it seems
                                empty.
                OSError: ESTALE: it is another file than was meant, or not as it was told.
        """
        # O_RDONLY | O_TRUNC truncates on Linux, where the caller may write.
        writable = flags & (os.O_ACCMODE | os.O_TRUNC) != os.O_RDONLY
        if writable:
            self.require_writable()
        entry_name = directory.entry_name(name)
        try:
            fd, st = open_backing(directory.fd, entry_name, os.O_RDWR if writable else os.O_RDONLY)
        except PermissionError:
            if flags & os.O_ACCMODE != os.O_WRONLY:
                raise
            fd, st = _open_unreadable(directory, entry_name)
        except IntegrityError as error:
            error.cipher_path = directory.path_of(entry_name)
            raise
        if meant is not None:
            try:
                self.identity.require_object(meant[1], meant[0], fd, st)
            except OSError:
                os.close(fd)
                raise
        file = self._handle(directory, name, fd, st, writable=writable)
        if writable and self.file_ids.replaced(directory, name, file.state):
            if meant is not None:
                raise stale()
            return self.open(directory, name, flags)
        return self._ready(file, st, flags, meant)

    def create(
        self, directory: Directory, name: bytes, flags: int, mode: int, caller: Caller | None = None
    ) -> OpenFile:
        """Create and open a regular file, or open what is there unless flags has O_EXCL.

        Args: mode: permissions, umask applied.   caller: whose the new file is.
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
        file = self._handle(directory, name, fd, st, writable=True)
        file.state.may_have_capability, file.state.keeps_atime = False, bool(O_NOATIME)
        return file, plain_attributes(st, self.context)

    def _handle(
        self, directory: Directory, name: bytes, fd: int, st: os.stat_result, *, writable: bool
    ) -> OpenFile:
        path = directory.path_of(directory.entry_name(name))
        file = self._state_of(fd, st, path, writable=writable)
        if writable:
            file.state.whereabouts.place = (directory, name)
        return file

    def _state_of(self, fd: int, st: os.stat_result, path: str, *, writable: bool) -> OpenFile:
        state = self.files.acquire(fd, st, writable=writable, cipher_path=path)
        return OpenFile(state, writable=writable)

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
        """Do what opening asks for beyond a handle; give the handle back where that fails."""
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
        return file

    def _verify(self, state: FileState, st: os.stat_result, flags: int) -> None:
        """Have the header read. What is damaged can be opened, so that it can be emptied; reads say EIO."""
        try:
            state.require_loaded()
        except IntegrityError:
            # The kernel never asks for bytes of a file that seems empty: a cut is noticed now or never.
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
            if caller is not None and caller != (os.geteuid(), os.getegid()):
                inherits_group = os.fstat(directory.fd).st_mode & stat.S_ISGID
                os.fchown(fd, caller.uid, -1 if inherits_group else caller.gid)
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

        None: its last handle was given back meanwhile, so that nobody needs one.
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
        """fsync(2) or fdatasync(2): on return the file is on disk, and what leads to it."""
        self.pending.flush()
        file.sync(data_only=data_only)
        if is_lost(file.state):
            self._rescuer.keep(file.state)

    def sync_directory(self, directory: Directory) -> None:
        """fsync(2) of a directory: its entries are on disk, records and sidecars too."""
        self.pending.flush()
        fd = open_for_listing(directory.fd)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def sync_all(self) -> None:
        """syncfs(2): everything in the vault's filesystem is on disk."""
        self.pending.flush()
        syncfs(self._vault_fd)

    def close(self) -> None:
        """Settle open files, bring what is pending to disk, and end the session."""
        if self.unsettled is not None:
            self.unsettled.stop()
        if self.checkpointer is not None:
            self.checkpointer.stop()
        self.files.close()
        self.pending.close()
        self.symlinks.close()
        if self.context.redo is not None:
            self.context.redo.end()


def _open_unreadable(directory: Directory, entry_name: str) -> tuple[int, os.stat_result]:
    """Open a file that its owner may write but not read: it gets the right to be read for a moment.

    Only its owner can do that, and only where O_WRONLY alone would have been granted.
    """
    probe, st = open_backing(directory.fd, entry_name, os.O_WRONLY)
    try:
        mode = stat.S_IMODE(st.st_mode)
        os.fchmod(probe, mode | stat.S_IRUSR)
        try:
            return open_backing(directory.fd, entry_name, os.O_RDWR)
        finally:
            os.fchmod(probe, mode)
    finally:
        with contextlib.suppress(OSError):
            os.close(probe)


__all__ = ["SELF", "Attributes", "Caller", "Entry", "VaultTree"]
