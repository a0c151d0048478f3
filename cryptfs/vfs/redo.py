"""The redo log: what goes through the journal, and how it gets to its place.

A change that destroys something (an overwritten chunk, a partial last chunk that grows, a shrink, a hole
punched) is complete in the journal before the file is touched. How far `complete` goes is the level:

    power    records are synced, in groups, before their places are written. Until then the newest version
             of a chunk is in the FileState's `overlay`, where readers find it. An fsync of overwritten
             data is one sync of the journal.
    process  the record is handed to the kernel, then the place is written at once: safe when this process
             is killed, not when the machine stops.
    off      there is no redo log.

Everything that takes a FileState runs with its lock held. Source: docs/FORMAT.md, section 10.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat
import threading
import time
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING

from cryptfs.core.aead import SMALL_NONCE_SIZE
from cryptfs.core.config import VaultConfig
from cryptfs.core.header import NO_JOURNAL
from cryptfs.core.host import SHARED_STATE, StateNames
from cryptfs.core.journal import (
    MAX_PATH,
    JournalHead,
    JournalRecord,
    Operation,
    Sessions,
    payload_digest,
)
from cryptfs.core.keys import JOURNAL_ID_SIZE, Subkeys
from cryptfs.errors import IntegrityError
from cryptfs.storage.backing import write_fully
from cryptfs.storage.hosts import lasting_inode, set_aside
from cryptfs.storage.journal import Journal, drop_records
from cryptfs.storage.libc import restore_mtime, syncfs
from cryptfs.storage.sessions import has_sessions_file, write_sessions_file

if TYPE_CHECKING:
    from cryptfs.vfs.filestate import FileState

log = logging.getLogger(__name__)

SMALL_GROWTH = 256 * 1024  # of a file in the overlay; more is worth a sync, after which it goes straight
_MAX_PIECES = 512  # in one system call
_SET_ID = stat.S_ISUID | stat.S_ISGID
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


class Durability(StrEnum):
    """What a crash of what may not damage: see the module."""

    POWER = "power"
    PROCESS = "process"
    OFF = "off"


DEFAULT_DURABILITY = Durability.POWER


class RedoLog:
    """The journal of one session, which begins with the first change.

    Args: vault_fd: the vault directory.   sessions: those before.   durable: level power, not process.
          owner: this machine's names.
          on_begin: called with the session's number and journal_id, once there is a journal.
    """

    def __init__(
        self,
        keys: Subkeys,
        config: VaultConfig,
        vault_fd: int,
        sessions: Sessions,
        *,
        durable: bool,
        owner: StateNames = SHARED_STATE,
        on_begin: Callable[[int, bytes], None] = lambda number, journal_id: None,
    ) -> None:
        self.durable = durable
        self.journal_id = os.urandom(JOURNAL_ID_SIZE)
        self.broken = False  # the journal could not be synced: nothing goes through it any more
        self.on_lost: Callable[[], None] = lambda: None  # to be called when the journal was removed
        self.overlay_size = 0  # bytes in all overlays
        self.homecomings = 0  # times that a size left `grown`: whoever looked at one meanwhile looks again
        self.touched: tuple[dict[FileState, None], ...] = ({}, {})  # by records of either journal file
        self.grown: dict[tuple[int, int], int] = {}  # plaintext sizes of files whose backing file is shorter
        self._keys = keys
        self._suite = config.suite
        self._geometry = config.geometry
        self._vault_fd = vault_fd
        self._sessions = sessions
        self._owner = owner
        self._on_begin = on_begin
        self._number = sessions.last + 1
        self._start_lock = threading.Lock()
        self._count_lock = threading.Lock()
        self._journal: Journal | None = None

    # ---- the session

    @property
    def journal(self) -> Journal | None:
        """The journal, once the session has begun."""
        return self._journal

    def naming(self, *, losing: bool = False) -> tuple[bytes, int]:
        """journal_id and journal_floor for a header that is about to be written. Begins the session.

        Args:   losing: the change only takes content away: without room for a journal it goes without.
        Raises: OSError: the journal could not be made.
        """
        try:
            return self.journal_id, self._started().next_seq
        except OSError as error:
            if losing and error.errno in NO_ROOM:
                return NO_JOURNAL, 0
            raise

    def _started(self) -> Journal:
        if self._journal is None:
            with self._start_lock:
                if self._journal is None:
                    self._journal = self._begin()
        return self._journal

    def _begin(self) -> Journal:
        if self._owner.host and not has_sessions_file(self._vault_fd, self._owner):
            # From now on a journal without a list says that somebody took the list away. The list begins with
            # the time, so that no journal from before it was lost has a higher number than those after it.
            self._sessions = Sessions(max(self._sessions.last, int(time.time())), self._sessions.crashed)
            self._number = self._sessions.last + 1
            self._write_sessions(self._sessions)
        if self._owner.host:
            self._make_way()
        journal = Journal(self._vault_fd, self._pack_head, durable=self.durable, owner=self._owner)
        with contextlib.suppress(OSError):  # it only helps to say what was lost
            self._on_begin(self._number, self.journal_id)
        return journal

    def _make_way(self) -> None:
        """What a sync client has put in the journal's place since the vault was unlocked is kept aside."""
        for name in self._owner.journals:
            with contextlib.suppress(FileNotFoundError):
                aside = set_aside(self._vault_fd, name, self._owner)
                log.warning("%s: came while no session was running; kept as %s", name, aside)

    def _write_sessions(self, sessions: Sessions) -> None:
        nonce = os.urandom(SMALL_NONCE_SIZE)
        write_sessions_file(self._vault_fd, sessions.pack(self._keys, nonce, self._owner), self._owner)

    def _pack_head(self, first_seq: int) -> bytes:
        # In a vault of 0.1 a replay by 0.1 compares the number, whatever the filesystem is.
        root = lasting_inode(self._vault_fd) if self._owner.host else os.fstat(self._vault_fd).st_ino
        head = JournalHead(self._number, self.journal_id, first_seq, root)
        return head.pack(self._keys, os.urandom(SMALL_NONCE_SIZE), self._owner)

    def forget_crashed(self, kept: tuple[bytes, ...]) -> None:
        """Every file that a crash left was settled, but for those of some sessions."""
        self._sessions = Sessions(self._sessions.last, kept)

    def end(self) -> None:
        """After all files were closed: the session is over, and its journal goes.

        Where something could not be brought to its place, the journal stays for the next mount.
        """
        journal = self._journal
        if journal is None:
            return
        try:
            if any(self.touched):
                log.error(
                    "the journal stays, for the next mount: not everything could be written to its place"
                )
                journal.close()
                return
            if self.durable:
                syncfs(self._vault_fd)
            if not journal.lost:
                drop_records(self._vault_fd, self._owner.journals[0], self._owner)
            self._write_sessions(self._sessions.ended(self._number))
            journal.remove()
        except (OSError, IntegrityError) as error:
            reason = error.strerror if isinstance(error, OSError) else error.reason
            log.error("the journal stays, for the next mount: %s", reason)
            journal.close()

    # ---- records

    def log_write(self, state: FileState, first: int, records: memoryview) -> None:
        """A record of chunk records that are about to be written from chunk `first` on. Raises: OSError."""
        size = self._geometry.chunk_start(first) + self._geometry.plain_length(len(records))
        self._append(state, Operation.WRITE, first, size, records)

    def log_shrink(self, state: FileState, size: int, last_chunk: memoryview) -> None:
        """A record of a shrink. last_chunk: its new record, empty where it stays whole. Raises: OSError."""
        first = self._geometry.chunk_count(size) - 1
        self._append(state, Operation.SHRINK, first, size, last_chunk)

    def log_punch(self, state: FileState, first: int, stop: int) -> None:
        """A record of chunks that become holes. Raises: OSError."""
        self._append(state, Operation.PUNCH, first, stop, memoryview(b""))

    def _append(
        self, state: FileState, operation: Operation, first: int, size: int, payload: memoryview
    ) -> None:
        header = state.header
        assert header is not None  # it was written when the file began to change
        journal = self._started()
        suite = self._suite
        path = os.fsencode(state.cipher_path)
        if len(path) > MAX_PATH:
            path = b""  # the inode number leads to the file, too
        digest = payload_digest(path, payload, self._geometry.record_size, suite.nonce_size, suite.tag_size)
        nonce = os.urandom(SMALL_NONCE_SIZE)

        def pack(seq: int, place: int) -> Sequence[bytes | memoryview]:
            self.touched[journal.turn][state] = None
            record = JournalRecord(
                seq=seq,
                previous=state.last_seq,
                operation=operation,
                epoch=header.epoch,
                file_id=header.file_id,
                inode=state.key[1],
                first=first,
                size=size,
                path=path,
                digest=digest,
            )
            return record.pack(self._keys, nonce, self.journal_id, place, len(payload)), payload

        state.last_seq = journal.append(pack)

    def keep(self, state: FileState, first: int, records: memoryview) -> None:
        """Put chunk records that were logged into the overlay; they go to their places later."""
        overlay, record_size = state.overlay, self._geometry.record_size
        more = 0
        for place in range(0, len(records), record_size):
            record = bytes(records[place : place + record_size])
            more += len(record) - len(overlay.get(first, b""))
            overlay[first] = record
            first += 1
        self._count_overlay(more)

    def _count_overlay(self, more: int) -> None:
        with self._count_lock:
            self.overlay_size += more

    # ---- to the files

    def commit(self, state: FileState) -> None:
        """On return, this file's records are on disk, or written to their places. The lock need not be held.

        Raises: OSError: they may not be; from now on everything is written in place.
        """
        journal = self._journal
        if not self.durable or journal is None or self.broken or not state.last_seq:
            return
        try:
            journal.sync(state.last_seq)
        except OSError as error:
            self._give_up(error)
            raise
        if journal.lost:
            self._lose()
            with state.lock:
                self.apply(state)

    def take_turns(self) -> None:
        """Let records go to the journal's other file. Raises: OSError: they go on to the same one."""
        assert self._journal is not None  # somebody wrote to it
        try:
            self._journal.take_turns()
        except OSError as error:
            if self._journal.failed:
                self._give_up(error)
            raise

    def _lose(self) -> None:
        """Whoever removed it, another machine or a sync client: what it holds must come home at once."""
        if not self.broken:
            self.broken = True
            log.error(
                "the journal was removed while the vault is in use; overwriting without it, so that a crash "
                "can damage what is just being written, until the vault is mounted anew"
            )
            self.on_lost()

    def _give_up(self, error: OSError) -> None:
        if not self.broken:
            self.broken = True
            log.error("the journal cannot be brought to disk: %s; overwriting without it", error.strerror)

    def apply(self, state: FileState) -> None:
        """Write the overlay of a file to its places, once the journal and the file's header are on disk.

        Where the journal failed, the file's records no longer count afterwards: it changes without them now.

        Raises: OSError: the overlay stays.
        """
        if state.overlay:
            if not self.broken:
                self.commit(state)
                if not state.header_is_durable:
                    state.sync_backing(data_only=True)
            self._apply_now(state)
        if self.broken:
            state.raise_floor(state.last_seq + 1)

    def _apply_now(self, state: FileState) -> None:
        outer = state.change_count & 1
        if not outer:
            state.change_count += 1
        try:
            self._write_overlay(state)
        finally:
            if not outer:
                state.change_count += 1
        self.forget(state)

    def _write_overlay(self, state: FileState) -> None:
        geometry, overlay = self._geometry, state.overlay
        before = os.fstat(state.fd)
        state.mark_data()
        indices = sorted(overlay)
        start = 0
        while start < len(indices):
            stop = start + 1
            while (
                stop < len(indices)
                and indices[stop] == indices[stop - 1] + 1
                and len(overlay[indices[stop - 1]]) == geometry.record_size
                and stop - start < _MAX_PIECES
            ):
                stop += 1
            pieces = [overlay[index] for index in indices[start:stop]]
            write_fully(state.fd, pieces, geometry.record_offset(indices[start]))
            start = stop
        with contextlib.suppress(PermissionError):  # the file is somebody else's
            restore_mtime(state.fd, before.st_mtime_ns)
            mode = os.fstat(state.fd).st_mode
            if mode != before.st_mode and mode | before.st_mode & _SET_ID == before.st_mode:
                os.fchmod(state.fd, stat.S_IMODE(before.st_mode))  # writing took set-id bits away

    def forget(self, state: FileState, first: int = 0) -> None:
        """Drop the overlay of a file, or what it has from a chunk on: it is in place, or does not count."""
        overlay = state.overlay
        gone = [index for index in overlay if index >= first]
        self._count_overlay(-sum(len(overlay.pop(index)) for index in gone))
        if not overlay and state.key in self.grown:
            self.homecomings += 1  # before it goes: see VaultTree
            self.grown.pop(state.key, None)

    def abandon(self, state: FileState) -> None:
        """The file is gone for good."""
        self.forget(state)
        for touched in self.touched:
            touched.pop(state, None)

    def holds(self, state: FileState) -> bool:
        """Whether the file must stay open: its data is on disk in the journal only."""
        return self.durable and any(state in touched for touched in self.touched)
