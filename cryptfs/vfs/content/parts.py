"""The parts of a FileState that know nothing of the format: descriptors, marks of writes, overlay, place."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from typing import Protocol

from cryptfs.storage.backing import O_NOATIME
from cryptfs.storage.libc import os_error


class Descriptor:
    """The descriptor of a backing file, which gives way to one that can write.

    keeps_atime: whether reads leave the time of access as it is.
    """

    def __init__(self, fd: int, *, writable: bool, keeps_atime: bool) -> None:
        self.fd = fd
        self.writable = writable
        self.keeps_atime = keeps_atime
        self._retired_fds: list[int] = []

    def adopt(self, fd: int, *, writable: bool, keeps_atime: bool) -> None:
        """Take over a further descriptor of the file; uses it if it can write and the present one cannot.

        The old one stays open, because a reader may be using it.
        """
        if writable and not self.writable:
            self._retired_fds.append(self.fd)
            self.fd, self.writable, self.keeps_atime = fd, True, keeps_atime
        else:
            os.close(fd)

    def keep_atime(self, keep: bool) -> None:
        """Say before a read whether it is one of our own, which leaves the time of access as it is.

        No lock: if such a read meets one for a program, the time moves as it does anyway, or one read later.
        """
        if keep != self.keeps_atime:
            self.keeps_atime = keep
            with contextlib.suppress(PermissionError):  # the file belongs to somebody else
                fcntl.fcntl(self.fd, fcntl.F_SETFL, os.O_NONBLOCK | (O_NOATIME if keep else 0))

    def close_descriptors(self) -> None:
        """After the last handle has gone."""
        for fd in (self.fd, *self._retired_fds):
            os.close(fd)
        self._retired_fds.clear()


class WriteMarks:
    """Counts the writes to a file, and which of them are synced. The caller holds the FileState's lock.

    Writes before the file was opened may be on disk or not, so the count begins with one.
    """

    def __init__(self) -> None:
        self._marks = 1
        self._data_mark = 1
        self._header_mark = 0
        self._synced_mark = 0
        self._told_mark = 1
        self._ahead_mark = 0
        self._sync_failed = False

    def mark_data(self) -> None:
        """The content of the backing file, or its length, is about to change."""
        self._marks += 1
        self._data_mark = self._marks

    def mark_header(self) -> None:
        """The header is about to be written."""
        self._marks += 1
        self._header_mark = self._marks

    def mark_floor(self) -> None:
        """The header is about to say that records do not count: a replay alone needs this on disk."""
        self._marks += 1

    def note_ahead(self) -> None:
        """The time of the backing file is ahead now, as mtimes.py wants it."""
        self._ahead_mark = self._marks

    def note_time_moved(self) -> None:
        """A step that is no write moves the time of the backing file."""
        self._ahead_mark = 0

    @property
    def is_ahead(self) -> bool:
        """Whether nothing has moved the time of the backing file since note_ahead."""
        return self._ahead_mark == self._marks

    def note_synced(self, mark: int) -> bool:
        """After a sync: whether all writes up to a mark are on disk. After a failed sync nobody knows."""
        if self._sync_failed:
            return False  # this sync proves nothing
        self._synced_mark = max(self._synced_mark, mark)
        return True

    def note_failed_sync(self) -> None:
        """The kernel has told of an error; see require_synced."""
        self._sync_failed = True

    def forget_failed_sync(self) -> None:
        """The file is empty, so no sync owes it anything."""
        self._sync_failed = False

    def require_synced(self) -> None:
        """Before the journal's records of the file cease to count.

        Raises: OSError: a sync failed since the file was empty. The kernel says so once and forgets the data;
                a later sync that succeeds proves nothing.
        """
        if self._sync_failed:
            raise os_error(errno.EIO)

    @property
    def header_is_durable(self) -> bool:
        """Whether the header is on disk as the redo log needs it."""
        return self._header_mark <= self._synced_mark

    def mark_told(self) -> None:
        """The header on disk agrees with the file now."""
        self._told_mark = self._marks

    @property
    def was_changed(self) -> bool:
        """Whether this process has written to the backing file."""
        return self._marks > 1

    @property
    def changes(self) -> bool:
        """Whether this process has written to it, and the header on disk does not say so yet."""
        return self._marks != self._told_mark


class PatchedChunk:
    """A chunk with deltas, as plaintext.

    It is wiped within a change, so that a reader who copies from it meanwhile copies again.

    content: room for a whole chunk.   length: plaintext bytes of the chunk.
    ends:    nonce and tag of its last value in the journal, a chunk record or a delta.
    """

    __slots__ = ("content", "ends", "length")

    def __init__(self, content: bytearray, length: int, ends: bytes) -> None:
        self.content = content
        self.length = length
        self.ends = ends

    def wipe(self) -> None:
        """Fill the memory with zeros."""
        self.content[:] = bytes(len(self.content))


class Overlay:
    """A file's records that are in the journal and not in their place yet. Changes need its FileState's lock.

    key:      device and inode of the backing file.
    records:  the newest chunk records, by chunk_index; empty for a chunk in `patched`.
    patched:  chunks with deltas, by chunk_index.
    wholes:   numbers of the journal records that have these chunks whole, if deltas on them may follow.
    last_seq: number of the file's last journal record; 0 before the first.
    """

    __slots__ = ("key", "last_seq", "patched", "records", "wholes")

    def __init__(self, key: tuple[int, int]) -> None:
        self.key = key
        self.records: dict[int, bytes] = {}
        self.patched: dict[int, PatchedChunk] = {}
        self.wholes: dict[int, int] = {}
        self.last_seq = 0

    def drop(self, chunk_index: int) -> int:
        """Drop a chunk; returns the bytes that it had."""
        self.wholes.pop(chunk_index, None)
        gone = len(self.records.pop(chunk_index, b""))
        patched = self.patched.pop(chunk_index, None)
        if patched is not None:
            patched.wipe()
            gone += len(patched.content)
        return gone

    def wipe(self) -> None:
        """At the end: what could not come home is in the journal, for the next mount."""
        for patched in self.patched.values():
            patched.wipe()


class HasDirId(Protocol):
    """The directory that a name is in, as the files in it know it."""

    @property
    def dir_id(self) -> bytes:
        """Which directory it is."""


class Whereabouts:
    """Where a file was opened, and whether it is still there.

    place:        directory and name of a file that was opened for writing by its name; follows renames.
    removed_here: whether this mount has removed its last name: then its content is not lost.
    known:        who has opened or made it and keeps note of it; surely of this file, not of its number only.
    being_kept:   a copy of its content to another file is under way.
    kept_as:      the file that got the content after somebody else had removed this one.
    kept_change:  the change_count at that time, or when its last writer closed it under its name.
    """

    __slots__ = ("being_kept", "kept_as", "kept_change", "known", "place", "removed_here")

    def __init__(self) -> None:
        self.place: tuple[HasDirId, bytes] | None = None
        self.removed_here = False
        self.known: object | None = None
        self.being_kept = False
        self.kept_as: object | None = None
        self.kept_change = 0
