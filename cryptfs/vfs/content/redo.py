"""The redo log: changes go through the journal before they go to their places.

A change that destroys something (an overwritten chunk, a partial last chunk that grows, a shrink, a punched
hole) is complete in the journal before it touches the file. The level says how far `complete` goes:

    power    groups of records are synced before their places are written. Until then the file's `Overlay` has
             the newest version of a chunk, and readers find it there. An fsync of overwritten data is one
             sync of the journal.
    process  the kernel has the record, then the place is written at once: safe if this process is killed,
             not if the machine stops.
    off      there is no redo log.

In a vault with the feature delta-journal, level power logs the changed part of a chunk alone, a delta, where
the journal file has the chunk already. The overlay then has that chunk as plaintext, with all deltas in it.

The way from the overlay to its place is in homecoming.py. Source: docs/FORMAT.md, section 10.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import NamedTuple

from cryptfs.core.aead import SMALL_NONCE_SIZE
from cryptfs.core.format.header import NO_JOURNAL
from cryptfs.core.format.journal import (
    MAX_PATH,
    JournalHead,
    JournalRecord,
    Operation,
    Sessions,
    counted_size,
    payload_digest,
)
from cryptfs.core.keys import JOURNAL_ID_SIZE, Subkeys
from cryptfs.core.names.host import SHARED_STATE, StateNames
from cryptfs.core.slots.config import VaultConfig
from cryptfs.errors import IntegrityError
from cryptfs.storage.hosts import lasting_inode, set_aside
from cryptfs.storage.journal import Journal, drop_records
from cryptfs.storage.libc import NO_ROOM, syncfs
from cryptfs.storage.sessions import has_sessions_file, write_sessions_file
from cryptfs.vfs.content.parts import Overlay, PatchedChunk

log = logging.getLogger(__name__)

SMALL_GROWTH = 256 * 1024  # of a file in the overlay; more is worth a sync, after which it goes straight


class Durability(StrEnum):
    """Which crash may damage nothing: see the module."""

    POWER = "power"
    PROCESS = "process"
    OFF = "off"


DEFAULT_DURABILITY = Durability.POWER


class Logged(NamedTuple):
    """The file of a record: its overlay, the file_id and epoch of its header, and its cipher path."""

    overlay: Overlay
    file_id: bytes
    epoch: int
    cipher_path: str


class _LeftBehindError(Exception):
    """The whole record of a chunk is in the other journal file now, or nowhere."""


class RedoLog:
    """The journal of one session; the session begins with the first change.

    Args: vault_fd: the vault directory.   sessions: the earlier ones.   durable: level power, not process.
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
        self.broken = False  # the journal could not be synced: nothing goes through it from now on
        self.on_lost: Callable[[], None] = lambda: None  # called when somebody removed the journal
        self.overlay_size = 0  # bytes in all overlays
        self.homecomings = 0  # times that a size left `grown`: an operation with an older one looks again
        self.touched: tuple[dict[Overlay, None], dict[Overlay, None]] = ({}, {})  # by either journal file
        self.grown: dict[tuple[int, int], int] = {}  # plaintext sizes of files with a shorter backing file
        self._deltas = config.has_delta_journal
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
        self._name_went = False  # of a file that had records

    # ---- the session

    @property
    def journal(self) -> Journal | None:
        """The journal, once the session has begun."""
        return self._journal

    def naming(self, *, losing: bool = False) -> tuple[bytes, int]:
        """journal_id and journal_floor for the next header. Begins the session.

        Args:   losing: the change only takes content away: it goes ahead if there is no room for a journal.
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
            # the time: so later journals have higher numbers than those from before a list was lost.
            self._sessions = Sessions(max(self._sessions.last, int(time.time())), self._sessions.crashed)
            self._number = self._sessions.last + 1
            self._write_sessions(self._sessions)
        if self._owner.host:
            self._make_way()
        journal = Journal(self._vault_fd, self._pack_head, durable=self.durable, owner=self._owner)
        with contextlib.suppress(OSError):  # it only helps a message about lost data
            self._on_begin(self._number, self.journal_id)
        return journal

    def _make_way(self) -> None:
        """Keep files aside that a sync client has put in the journal's place since the vault was unlocked."""
        for name in self._owner.journals:
            with contextlib.suppress(FileNotFoundError):
                aside = set_aside(self._vault_fd, name, self._owner)
                log.warning("%s: somebody put it in the place of the journal; kept as %s", name, aside)

    def _write_sessions(self, sessions: Sessions) -> None:
        nonce = os.urandom(SMALL_NONCE_SIZE)
        write_sessions_file(self._vault_fd, sessions.pack(self._keys, nonce, self._owner), self._owner)

    def _pack_head(self, first_seq: int) -> bytes:
        # In a vault of 0.1 a replay by 0.1 compares the number, whatever the filesystem is.
        root = lasting_inode(self._vault_fd) if self._owner.host else os.fstat(self._vault_fd).st_ino
        head = JournalHead(self._number, self.journal_id, first_seq, root)
        return head.pack(self._keys, os.urandom(SMALL_NONCE_SIZE), self._owner, deltas=self._deltas)

    def follow(self) -> None:
        """In a fork: the journal is the other process's. New files here name it; nothing is written to it."""
        self.broken = True

    def forget_crashed(self, kept: tuple[bytes, ...]) -> None:
        """All files of the crashed sessions are settled, but for those of some sessions."""
        self._sessions = Sessions(self._sessions.last, kept)

    def end(self) -> None:
        """After all files are closed: the session is over, and its journal goes.

        If some records are not in their places, the journal stays for the next mount.
        """
        journal, self._journal = self._journal, None
        if journal is None:
            return
        try:
            if any(self.touched):
                log.error(
                    "not all data could be written to its place; it stays in the journal for the next mount"
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
            log.error("the session could not be ended: %s; the next mount replays its journal", reason)
            journal.close()

    # ---- records

    def log_write(self, file: Logged, first: int, records: memoryview) -> None:
        """Log chunk records that go to their places from chunk `first` on. Raises: OSError."""
        size = self._geometry.chunk_start(first) + self._geometry.plain_length(len(records))
        wholes = file.overlay.wholes
        if wholes:  # until `keep`, no delta may name a record from before this one
            for index in range(first, first + self._geometry.record_count(len(records))):
                wholes.pop(index, None)
        self._append(file, Operation.WRITE, first, size, records)

    def log_shrink(self, file: Logged, size: int, last_chunk: memoryview) -> None:
        """Log a shrink. last_chunk: its new record, empty if the chunk stays whole. Raises: OSError."""
        first = self._geometry.chunk_count(size) - 1
        self._append(file, Operation.SHRINK, first, size, last_chunk)

    def log_punch(self, file: Logged, first: int, stop: int) -> None:
        """Log chunks that become holes. Raises: OSError."""
        self._append(file, Operation.PUNCH, first, stop, memoryview(b""))

    def takes_delta(self, overlay: Overlay, chunk_index: int) -> bool:
        """Whether a change of a part of a chunk may be logged as a delta, as far as we can tell now."""
        journal = self._journal
        if not (self._deltas and self.durable) or self.broken or journal is None:
            return False
        return overlay.wholes.get(chunk_index, 0) >= journal.first_seq

    def log_delta(self, file: Logged, chunk_index: int, size: int, payload: bytes) -> bool:
        """Log a delta on the newest value of a chunk.

        Returns: False if the journal has begun its other file: the chunk must be logged whole.
        Raises:  OSError.
        """
        whole = file.overlay.wholes.get(chunk_index, 0)
        try:
            self._append(file, Operation.DELTA, chunk_index, size, memoryview(payload), whole=whole)
        except _LeftBehindError:
            return False
        return True

    def _append(
        self,
        file: Logged,
        operation: Operation,
        first: int,
        size: int,
        payload: memoryview,
        *,
        whole: int | None = None,
    ) -> None:
        """whole: number of a record that must be in the same journal file."""
        journal = self._started()
        suite, overlay = self._suite, file.overlay
        path = os.fsencode(file.cipher_path)
        if len(path) > MAX_PATH:
            path = b""  # the inode number also leads to the file
        counted = self._geometry.record_size
        if whole is not None:
            counted = counted_size(operation, len(payload), counted)
        digest = payload_digest(path, payload, counted, suite.nonce_size, suite.tag_size)
        nonce = os.urandom(SMALL_NONCE_SIZE)

        def pack(seq: int, place: int) -> Sequence[bytes | memoryview]:
            if whole is not None and whole < journal.first_seq:
                raise _LeftBehindError
            self.touched[journal.turn][overlay] = None
            record = JournalRecord(
                seq=seq,
                previous=overlay.last_seq,
                operation=operation,
                epoch=file.epoch,
                file_id=file.file_id,
                inode=overlay.key[1],
                first=first,
                size=size,
                path=path,
                digest=digest,
            )
            return record.pack(self._keys, nonce, self.journal_id, place, len(payload)), payload

        overlay.last_seq = journal.append(pack)

    def keep(self, overlay: Overlay, first: int, records: memoryview) -> None:
        """Put logged chunk records into the overlay; they go to their places later."""
        kept, record_size = overlay.records, self._geometry.record_size
        more = 0
        for place in range(0, len(records), record_size):
            record = bytes(records[place : place + record_size])
            more += len(record) - (overlay.drop(first) if first in kept else 0)
            kept[first] = record
            if self._deltas:
                overlay.wholes[first] = overlay.last_seq
            first += 1
        self._count_overlay(more)

    def patch(self, overlay: Overlay, chunk_index: int, chunk: PatchedChunk) -> None:
        """Have the plaintext of a chunk in the overlay from now on, and not its record."""
        more = len(chunk.content) - len(overlay.records[chunk_index])
        overlay.patched[chunk_index] = chunk
        overlay.records[chunk_index] = b""
        self._count_overlay(more)

    def _count_overlay(self, more: int) -> None:
        with self._count_lock:
            self.overlay_size += more

    # ---- to disk

    def commit(self, overlay: Overlay) -> bool:
        """Bring a file's records to disk. The caller may have the lock or not.

        Returns: False if somebody removed the journal: the file's records must come home now.
        Raises:  OSError: they may not be on disk; from now on all writes go straight to their places.
        """
        journal = self._journal
        if not self.durable or journal is None or self.broken or not overlay.last_seq:
            return True
        try:
            journal.sync(overlay.last_seq)
        except OSError as error:
            self._give_up(error)
            raise
        lost = journal.lost
        if lost:
            self._lose()
        return not lost

    def take_turns(self) -> None:
        """Let records go to the journal's other file. Raises: OSError: they go on to the same one."""
        assert self._journal is not None  # somebody wrote to it
        try:
            self._sync_names()
            self._journal.take_turns()
        except OSError as error:
            if self._journal.failed:
                self._give_up(error)
            raise

    def _sync_names(self) -> None:
        """Until this, a removed file may come back after a loss of power, and then needs its records."""
        if self.durable and self._name_went:
            self._name_went = False
            try:
                syncfs(self._vault_fd)
            except OSError:
                self._name_went = True
                raise

    def look_after_journal(self) -> None:
        """Notice that somebody removed the journal, even if no sync comes for long."""
        journal = self._journal
        if self.durable and journal is not None and not self.broken and any(self.touched) and journal.lost:
            self._lose()

    def _lose(self) -> None:
        """Another machine or a sync client removed the journal: its records must come home at once."""
        if not self.broken:
            self.broken = True
            log.error(
                "somebody removed the journal while the vault is in use. Until the next mount, a crash can "
                "damage data that is being overwritten"
            )
            self.on_lost()

    def _give_up(self, error: OSError) -> None:
        if not self.broken:
            self.broken = True
            log.error(
                "the journal cannot be written to the disk: %s. Until the next mount, a crash can damage "
                "data that is being overwritten", error.strerror,
            )  # fmt: skip

    def forget(self, overlay: Overlay, first: int = 0) -> None:
        """Drop the records of an overlay, or those from a chunk on: they are in place, or do not count."""
        records = overlay.records
        if records:
            gone = [index for index in records if index >= first]
            self._count_overlay(-sum(map(overlay.drop, gone)))
        if not records and overlay.key in self.grown:
            self.homecomings += 1  # before it goes: see VaultTree
            self.grown.pop(overlay.key, None)

    def reached(self, overlay: Overlay) -> None:
        """The backing file is as long as the file again, though records wait in the overlay."""
        self.homecomings += 1  # before it goes: see VaultTree
        self.grown.pop(overlay.key, None)

    def came_home(self, overlay: Overlay, floor: int, turn: int) -> None:
        """The file's records before number `floor` are in place and on disk. The journal may have more."""
        if overlay.last_seq < floor:
            for touched in self.touched:
                touched.pop(overlay, None)
        elif self._journal is not None and turn != self._journal.turn:  # the rest went to the other file
            self.touched[turn].pop(overlay, None)

    def abandon(self, overlay: Overlay) -> None:
        """The file is gone for good."""
        self.forget(overlay)
        one, other = self.touched
        if overlay in one or overlay in other:
            self._name_went = self._name_went or self.holds(overlay)
            one.pop(overlay, None)
            other.pop(overlay, None)

    def holds(self, overlay: Overlay) -> bool:
        """Whether the file must stay open: its data is on disk in the journal only.

        At level process that is so after a write that failed.
        """
        one, other = self.touched
        return (self.durable or bool(overlay.records)) and (overlay in one or overlay in other)
