"""The journal's files: append, sync, take turns.

There are two files, `journal.a` and `journal.b`, with a prefix from core/names/host.py. Records go to one
until it is full. Then, once all data of the other one is on disk in its place, they go to the other. So the
newest records are always an unbroken sequence, and neither file grows without bound.

Source: docs/FORMAT.md, section 10.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Callable, Sequence

from cryptfs.core.format.journal import HEAD_SIZE, aligned
from cryptfs.core.names.host import SHARED_STATE, StateNames
from cryptfs.storage.backing import create_small, open_backing, write_fully
from cryptfs.storage.libc import keeping_mtime, os_error
from cryptfs.storage.vaultdir import put_aside

JOURNAL_NAMES = SHARED_STATE.journals  # of a vault of 0.1
_ROOM = memoryview(
    bytes(1024 * 1024)
)  # allocated ahead: syncing a file that grew costs several times as much
_RESERVE = bytes(16 * 1024)  # of each file, from its beginning: drop_records frees it on a full disk
PackHead = Callable[[int], bytes]
PackRecord = Callable[[int, int], Sequence[bytes | memoryview]]


class Journal:
    """The journal of a running session. Safe from many threads.

    Args: vault_fd: the vault directory.   owner: the machine whose journal it is.
          pack_head: packs the head of a file; its argument is the sequence number of the first record.
          durable: whether `sync` and the turns between the files bring them to disk.
    Raises: OSError: cannot make the files; then it leaves none behind.
    """

    def __init__(
        self, vault_fd: int, pack_head: PackHead, *, durable: bool, owner: StateNames = SHARED_STATE
    ) -> None:
        self._vault_fd = vault_fd
        self._owner = owner
        self._pack_head = pack_head
        self._durable = durable
        self._lock = threading.Lock()
        self._sync_lock = threading.Lock()
        self._current = 0
        self._end = HEAD_SIZE
        self._next_seq = 1
        self._first_seq = 1
        self._synced_seq = 0
        self.failed = False  # a sync failed: the kernel reports that once, and forgets the data
        self._fds: list[int] = []
        self._sizes = [HEAD_SIZE + len(_RESERVE)] * len(owner.journals)
        try:
            for name in owner.journals:
                with keeping_mtime(vault_fd):
                    self._fds.append(create_small(vault_fd, name, pack_head(1) + _RESERVE, 0o600))
            if durable:
                for fd in self._fds:
                    os.fdatasync(fd)
                os.fsync(vault_fd)
        except BaseException:
            self.remove()
            raise

    @property
    def next_seq(self) -> int:
        """The sequence number of the next record."""
        return self._next_seq

    @property
    def first_seq(self) -> int:
        """The lowest sequence number in the current file. It changes with `turn`."""
        return self._first_seq

    @property
    def turn(self) -> int:
        """The current file for records: 0 or 1. It changes under the lock under which `append` packs."""
        return self._current

    @property
    def size(self) -> int:
        """Bytes in the current file for records."""
        return self._end

    @property
    def lost(self) -> bool:
        """Whether somebody removed or replaced a file of the journal: then no mount would replay it."""
        return not all(os.fstat(fd).st_nlink for fd in self._fds)

    def append(self, pack: PackRecord) -> int:
        """Write one record, made by pack(sequence number, offset in the file); returns the number.

        Raises: OSError: the record was not written.   Whatever pack raises: nothing was written.
        """
        with self._lock:
            seq, place = self._next_seq, self._end
            pieces = pack(seq, place)
            end = aligned(place + sum(map(len, pieces)))
            if self._durable and end > self._sizes[self._current]:
                self._make_room(end)
            write_fully(self._fds[self._current], pieces, place)
            self._end = end
            self._next_seq = seq + 1
            return seq

    def _make_room(self, end: int) -> None:
        """Lengthen the current file ahead of the next records; ignores a full disk."""
        size = max(self._sizes[self._current], self._end)
        with contextlib.suppress(OSError):
            while size < end:
                write_fully(self._fds[self._current], (_ROOM,), size)
                size += len(_ROOM)
        self._sizes[self._current] = size

    def sync(self, seq: int) -> None:
        """On return the records up to this number are on disk. Callers that come together share one sync.

        Raises: OSError: perhaps they are not.
        """
        if seq <= self._synced_seq:
            return
        with self._sync_lock:
            if seq <= self._synced_seq:
                return
            with self._lock:
                last, current = self._next_seq - 1, self._current
            self._bring_to_disk(current)  # the other file was synced at the last turn
            self._synced_seq = last

    def _bring_to_disk(self, which: int) -> None:
        """fdatasync(2), with _sync_lock held."""
        if self.failed:
            raise os_error(errno.EIO)
        try:
            os.fdatasync(self._fds[which])
        except OSError:
            self.failed = True
            raise

    def take_turns(self) -> None:
        """Switch to the other file. All of its records must be on disk in their places.

        Raises: OSError: records still go to the same file.
        """
        other = 1 - self._current
        with self._sync_lock, self._lock:  # no record may come between the head's number and the first one
            write_fully(self._fds[other], (self._pack_head(self._next_seq),), 0)
            if self._durable:
                self._bring_to_disk(other)  # before a record there replaces an old one
                self._bring_to_disk(self._current)
                self._synced_seq = self._next_seq - 1
            self._current, self._end, self._first_seq = other, HEAD_SIZE, self._next_seq

    def remove(self) -> None:
        """The session is over, and all data is in its place: close and remove the files."""
        self.close()
        remove_journal(self._vault_fd, self._owner)

    def close(self) -> None:
        """Close the files and leave them for a replay."""
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()


def remove_journal(vault_fd: int, owner: StateNames = SHARED_STATE) -> None:
    """Remove the existing files of a journal. Sets aside a directory in their place."""
    for name in owner.journals:
        try:
            with keeping_mtime(vault_fd):
                os.unlink(name, dir_fd=vault_fd)
        except FileNotFoundError:
            continue
        except OSError as error:
            if error.errno not in (errno.EISDIR, errno.EPERM):  # POSIX has EPERM
                raise
            put_aside(vault_fd, name, owner)


def drop_records(vault_fd: int, kept: str, owner: StateNames = SHARED_STATE) -> None:
    """Cut a journal down to one file with its head, after a replay: that makes room on a full disk."""
    for name in owner.journals:
        if name != kept:
            with contextlib.suppress(OSError), keeping_mtime(vault_fd):  # remove_journal deals with the rest
                os.unlink(name, dir_fd=vault_fd)
    fd, _ = open_backing(vault_fd, kept, os.O_WRONLY)
    try:
        os.ftruncate(fd, HEAD_SIZE)
    finally:
        os.close(fd)
