"""Binds directories to their places: a directory's record names its parent and its name there.

A rename cannot change a directory's place and its record at once. So it writes both places into the record,
moves the directory, and then writes the new place alone. If it dies in between, the next mount of the same
machine finishes the record. Another machine does not: it may have the record and not yet the rename.
Source: docs/FORMAT.md, section 6.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from cryptfs.core.keys import DIR_ID_SIZE
from cryptfs.core.names.dirrecord import (
    DirectoryRecord,
    open_directory_record,
    pack_bound_record,
    pack_directory_record,
)
from cryptfs.errors import DirectoryRecordError
from cryptfs.storage.dirs import is_quiet, open_directory, sync_directory
from cryptfs.storage.libc import syncfs
from cryptfs.storage.records import (
    bring_back_record,
    is_in_parent,
    read_record,
    replace_record,
    with_owner_rights,
)
from cryptfs.vfs.content.context import FileContext
from cryptfs.vfs.tree.directory import Directory, record_seen


class Move(NamedTuple):
    """One entry that a rename moves. old, new: its places, 32 bytes each.

    entry_name: in the backing directory of `parent`, before the rename.
    """

    parent: Directory
    entry_name: str
    old: bytes
    new: bytes


class _Begun(NamedTuple):
    fd: int
    dir_id: bytes
    old: bytes
    new: bytes


class Binding:
    """Writes the directory records of one vault.

    Args: vault_fd: any descriptor in the vault's filesystem, open for reading.
    """

    def __init__(self, context: FileContext, vault_fd: int) -> None:
        self._context = context
        self._keys = context.keys
        self._vault_fd = vault_fd
        self._rules = context.config.record_rules
        # One rename of a directory at a time: else the end of one could overwrite the beginning of another.
        self._lock = threading.Lock()

    @property
    def is_on(self) -> bool:
        """Whether the vault binds its directories."""
        return self._rules.bound

    def pack(self, dir_id: bytes, place: bytes | None) -> bytes:
        """A record as this vault has them. place: None if it is unknown; then the record is of version 1."""
        if not self.is_on or place is None:
            return pack_directory_record(dir_id, self._keys)
        return pack_bound_record(DirectoryRecord(dir_id, (place,)), self._keys)

    def new_record(self, parent: Directory, name: bytes) -> bytes:
        """The record of a directory that is about to appear there."""
        return self.pack(os.urandom(DIR_ID_SIZE), parent.place_of(name) if self.is_on else None)

    def bind(self, fd: int, place: bytes) -> None:
        """Bind a directory to the place where it is, whatever its record says.

        Raises: DirectoryRecordError: the record does not verify.   OSError.
        """
        with self._lock:
            self._write(_Begun(fd, self._read(fd).dir_id, place, place), (place,), sync=True)

    @contextlib.contextmanager
    def moving(self, moves: Sequence[Move], parents: Sequence[Directory]) -> Iterator[None]:
        """Around a rename: before it the records name both places, after it the new one.

        Args: parents: the directories that the rename changes.

        A directory with a record that does not count where it is moves as it is: else the rename would
        make authentic what somebody else has put there.

        Raises: OSError: a record cannot be written; then nothing has moved.
        """
        with self._lock, contextlib.ExitStack() as stack:
            begun: list[_Begun] = []
            for move in moves:
                fd = open_directory(move.parent.fd, move.entry_name)
                stack.callback(os.close, fd)
                stack.enter_context(with_owner_rights(fd))
                dir_id = self._counting(fd, move.old)
                if dir_id is not None and move.old != move.new:
                    begun.append(_Begun(fd, dir_id, move.old, move.new))
            try:
                for each in begun:
                    self._write(each, (each.old, each.new), sync=self._is_durable)
                yield
            except Exception:  # after an interrupt it has two places: the rename may be done
                for each in begun:
                    with contextlib.suppress(OSError):  # it has two places then, and counts at both
                        self._write(each, (each.old,), sync=self._is_durable)
                raise
            if begun:
                with contextlib.suppress(OSError):  # the rename is done, and the record counts
                    self._finish(begun, parents)

    def _finish(self, begun: list[_Begun], parents: Sequence[Directory]) -> None:
        if self._is_durable:
            for parent in {each.dir_id: each for each in parents}.values():
                sync_directory(parent.fd)
        for each in begun:
            self._write(each, (each.new,), sync=self._is_durable)

    def finish(self, fd: int, record: DirectoryRecord, place: bytes, entry_name: str) -> None:
        """Finish the record of a rename that this machine's last session began; called at an open.

        Args: fd: of the directory.   place: where it is.   entry_name: its name there.
        """
        if self._context.read_only or record.host != self._context.owner.digest:
            return
        if not self._lock.acquire(blocking=False):
            return  # a rename is under way, perhaps this one
        try:
            with contextlib.suppress(OSError, DirectoryRecordError), with_owner_rights(fd):
                if self._read(fd) == record and is_in_parent(fd, entry_name):  # no rename came between
                    syncfs(self._vault_fd)  # the rename may not be on disk
                    self._write(_Begun(fd, record.dir_id, place, place), (place,), sync=True)
        finally:
            self._lock.release()

    def outlasts(self, directory: Directory) -> bool:
        """Whether an open directory without a record goes on as it was opened.

        One machine removes a directory, and another one changes a file in it: a sync client deletes the
        record, which nobody has changed, and keeps the file. So the record comes back where a name needs it.
        Not while the directory changes: the rest of the removal may be under way.
        """
        entry_name = directory.cipher_path.rpartition("/")[2]
        if self._context.read_only or (self.is_on and directory.place is None):
            return False
        if not is_in_parent(directory.fd, entry_name) or not directory.has_own_names():
            return False
        if is_quiet(directory.fd) and self._lock.acquire(blocking=False):
            try:
                with contextlib.suppress(OSError), with_owner_rights(directory.fd):
                    record = self.pack(directory.dir_id, directory.place)
                    bring_back_record(directory.fd, record, self._context.owner)
                    directory.record = record_seen(directory.fd)
            finally:
                self._lock.release()
        return True

    @property
    def _is_durable(self) -> bool:
        redo = self._context.redo
        return redo is not None and redo.durable

    def _read(self, fd: int) -> DirectoryRecord:
        return open_directory_record(read_record(fd), self._keys)

    def _counting(self, fd: int, place: bytes) -> bytes | None:
        """The dir_id of a directory with a record that counts at a place; None for another one."""
        try:
            record = self._read(fd)
        except DirectoryRecordError:
            return None
        return None if self._rules.misfit(record, place) else record.dir_id

    def _write(self, each: _Begun, places: tuple[bytes, ...], *, sync: bool) -> None:
        owner = self._context.owner
        if len(places) > 1:
            raw = pack_bound_record(DirectoryRecord(each.dir_id, places, owner.digest), self._keys)
        else:
            raw = self.pack(each.dir_id, places[0])
        replace_record(each.fd, raw, owner, sync=sync)
