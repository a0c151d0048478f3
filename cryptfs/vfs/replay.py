"""Replay: what a journal holds goes to its places, after a session that did not end by an unmount.

A record is replayed only if it authenticates in its place in the journal, its chunks authenticate, the
file's header names this journal and has its epoch, the record is not below the header's floor, and the
file's record before it was replayed, or needs not be. Everything else is ignored and counted. So an old
journal, one of another vault, or a piece of one changes nothing. Replaying twice is as replaying once.

Source: docs/FORMAT.md, section 10.
"""

from __future__ import annotations

import errno
import logging
import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from cryptfs.core.aead import SMALL_NONCE_SIZE
from cryptfs.core.header import FileHeader
from cryptfs.core.journal import (
    ALIGNMENT,
    HEAD_SIZE,
    PREFIX_SIZE,
    RECORD_MAGIC,
    JournalHead,
    JournalRecord,
    Operation,
    Sessions,
    payload_digest,
    record_lengths,
    unpack_record,
)
from cryptfs.errors import ChunkError, IntegrityError
from cryptfs.storage.backing import open_backing, read_fully, write_fully
from cryptfs.storage.journal import JOURNAL_NAMES, drop_records, remove_journal
from cryptfs.storage.libc import FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, UTIME_OMIT, fallocate, futimens, syncfs
from cryptfs.storage.sessions import mark_unsettled, read_sessions_file, write_sessions_file
from cryptfs.vfs.context import FileContext
from cryptfs.vfs.filefinder import FileFinder

log = logging.getLogger(__name__)

_SCAN_SIZE = 1024 * 1024
MAX_JOURNAL_SIZE = 1 << 32  # bytes of one file; far more than a mount lets it become


@dataclass(slots=True)
class ReplayReport:
    """What a replay did. records: redone.   files: that they belong to.
    ignored: records that did not hold, or came after one that did not.   lost: of files that are gone."""

    records: int = 0
    files: int = 0
    ignored: int = 0
    lost: int = 0


class _Found(NamedTuple):
    """A record that authenticates. fd: of its journal file.   payload: its place there, and its size."""

    record: JournalRecord
    fd: int
    payload: int
    payload_size: int


def read_sessions(context: FileContext, vault_fd: int) -> Sessions:
    """What the vault knows of its sessions; nothing, with a warning, where the file does not hold."""
    try:
        raw = read_sessions_file(vault_fd)
    except IntegrityError as error:
        log.warning("%s", error)
        raw = b""
    if raw is None:
        return Sessions()
    sessions = Sessions.unpack(raw, context.keys)
    if sessions is None:
        log.warning("the list of sessions does not authenticate; files cut by a crash may be reported as cut")
        return Sessions()
    return sessions


def has_journal(vault_fd: int) -> bool:
    """Whether there is a journal: a session is running, or did not end by an unmount."""
    present = set(os.listdir(vault_fd))
    return any(name in present for name in JOURNAL_NAMES)


def unfinished_journal_id(context: FileContext, vault_fd: int) -> bytes | None:
    """The journal_id of the journal that is there, running or to be replayed. Writes nothing."""
    newest: JournalHead | None = None
    for name in JOURNAL_NAMES:
        try:
            fd = open_backing(vault_fd, name, os.O_RDONLY)[0]
        except (OSError, IntegrityError):
            continue
        try:
            head = _read_head(context, fd)
        finally:
            os.close(fd)
        if head is not None and (newest is None or head.number > newest.number):
            newest = head
    return None if newest is None else newest.journal_id


def replay(context: FileContext, vault_fd: int) -> Sessions:
    """Replay the journal of a vault, if there is one, and remove it. The vault's lock must be held.

    Returns: the sessions, with that one among the crashed.
    Raises:  OSError: something could not be written; everything is as it was, or partly redone, and the
             journal is still there.
    """
    sessions = read_sessions(context, vault_fd)
    if not has_journal(vault_fd):
        return sessions
    names: dict[int, str] = {}  # by descriptor
    try:
        for name in JOURNAL_NAMES:
            fd = _open_journal(vault_fd, name)
            if fd is not None:
                names[fd] = name
        sessions = _replay_files(context, vault_fd, names, sessions)
    finally:
        for fd in names:
            os.close(fd)
    remove_journal(vault_fd)
    os.fsync(vault_fd)
    return sessions


def _open_journal(vault_fd: int, name: str) -> int | None:
    try:
        fd, st = open_backing(vault_fd, name, os.O_RDONLY)
    except FileNotFoundError:
        return None
    except IntegrityError as error:
        log.warning("%s: ignored: %s", name, error.reason)
        return None
    if st.st_size > MAX_JOURNAL_SIZE:
        log.warning("%s: ignored: it has %d bytes", name, st.st_size)
        os.close(fd)
        return None
    return fd


def _replay_files(context: FileContext, vault_fd: int, names: dict[int, str], sessions: Sessions) -> Sessions:
    heads = {fd: _read_head(context, fd) for fd in names}
    known = [head for head in heads.values() if head is not None]
    if not known:
        log.warning("a journal without a valid head is ignored and removed")
        return sessions
    newest = max(known, key=lambda head: head.number)
    if newest.number <= sessions.last:
        if newest.journal_id in sessions.crashed:  # a replay was killed at its very end
            mark_unsettled(vault_fd, names[next(fd for fd, head in heads.items() if head is newest)])
        else:
            log.warning("a journal of session %d, which is over, is ignored and removed", newest.number)
        return sessions
    valid = {
        fd: head for fd, head in heads.items() if head is not None and head.journal_id == newest.journal_id
    }
    if len(valid) < len(names):
        log.warning("a journal file that is damaged or of another session is ignored and removed")
    found = [each for fd, head in valid.items() for each in _records(context, fd, head)]
    oldest = min(head.first_seq for head in valid.values())
    report = _Replayer(context, vault_fd, newest, oldest).run(found)
    log.warning(
        "the last session did not end by an unmount: %d changes of %d files redone, %d not complete, "
        "%d of files that are gone",
        report.records, report.files, report.ignored, report.lost,
    )  # fmt: skip
    syncfs(vault_fd)  # what that session wrote straight to files, too: from now on it counts as on disk
    kept = names[next(iter(valid))]
    drop_records(vault_fd, kept)
    sessions = sessions.ended(newest.number, [newest.journal_id])
    write_sessions_file(vault_fd, sessions.pack(context.keys, os.urandom(SMALL_NONCE_SIZE)))
    mark_unsettled(vault_fd, kept)
    return sessions


def _read_head(context: FileContext, fd: int) -> JournalHead | None:
    raw = memoryview(bytearray(HEAD_SIZE))
    got = read_fully(fd, raw, 0)
    return JournalHead.unpack(bytes(raw[:got]), context.keys)


def _records(context: FileContext, fd: int, head: JournalHead) -> Iterator[_Found]:
    """The records of a file that authenticate, in no order."""
    size = os.fstat(fd).st_size
    buffer = memoryview(bytearray(_SCAN_SIZE))
    base = HEAD_SIZE
    while base < size:
        piece = bytes(buffer[: read_fully(fd, buffer, base)])
        place = piece.find(RECORD_MAGIC)
        while place >= 0:
            if place % ALIGNMENT == 0:
                found = _record_at(context, fd, head, base + place)
                if found is not None and found.record.seq >= head.first_seq:
                    yield found
            place = piece.find(RECORD_MAGIC, place + 1)
        base += _SCAN_SIZE


def _record_at(context: FileContext, fd: int, head: JournalHead, place: int) -> _Found | None:
    prefix = os.pread(fd, PREFIX_SIZE, place)
    sizes = record_lengths(prefix)
    if sizes is None:
        return None
    path_size, payload_size = sizes
    path = os.pread(fd, path_size, place + PREFIX_SIZE)
    record = unpack_record(prefix, path, context.keys, head.journal_id, place)
    return None if record is None else _Found(record, fd, place + PREFIX_SIZE + path_size, payload_size)


def _punch(fd: int, start: int, stop: int) -> None:
    """Make a range of a SPARSE file a hole, or zeros, which say the same, where holes cannot be made."""
    try:
        fallocate(fd, FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE, start, stop - start)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        zeros = memoryview(bytes(_SCAN_SIZE))
        for place in range(start, stop, _SCAN_SIZE):
            write_fully(fd, (zeros[: stop - place],), place)


class _Replayer:
    """Args: head: of the journal.   oldest: lowest sequence number that it can hold."""

    def __init__(self, context: FileContext, vault_fd: int, head: JournalHead, oldest: int) -> None:
        self._context = context
        self._geometry = context.geometry
        self._journal_id = head.journal_id
        copied = os.fstat(vault_fd).st_ino != head.root_inode
        self._finder = FileFinder(context, vault_fd, copied=copied)
        self._oldest = oldest
        self._report = ReplayReport()

    def run(self, found: list[_Found]) -> ReplayReport:
        """Redo the records, file by file, each in order."""
        files: dict[bytes, list[_Found]] = defaultdict(list)
        for each in sorted(found, key=lambda each: each.record.seq):
            files[each.record.file_id].append(each)
        missing = {}
        for file_id, records in files.items():
            fd = self._open(file_id, records)
            if fd is None:
                missing[file_id] = records
            else:
                self._redo_file(fd, records)
        if missing:
            inodes = {file_id: records[-1].record.inode for file_id, records in missing.items()}
            for file_id, fd in self._finder.search(inodes):
                self._redo_file(fd, missing.pop(file_id))
        self._report.lost = sum(map(len, missing.values()))
        return self._report

    def _open(self, file_id: bytes, records: list[_Found]) -> int | None:
        for path in dict.fromkeys(each.record.path for each in reversed(records)):
            fd = self._finder.by_path(path, file_id)
            if fd is not None:
                return fd
        return None

    # ---- redoing

    def _redo_file(self, fd: int, records: list[_Found]) -> None:
        """Redo the records of one file and sync it. Takes the descriptor over."""
        try:
            header = self._finder.header_of(fd)
            if header is None or header.journal_id != self._journal_id:
                self._report.ignored += len(records)
                return
            before = os.fstat(fd)
            key = self._context.content_key_of(header)
            done = {0}
            redone = 0
            for each in records:
                record = each.record
                if record.epoch != header.epoch or record.seq < header.journal_floor:
                    continue  # over and done with
                known = record.previous in done or record.previous < max(header.journal_floor, self._oldest)
                if known and self._redo(fd, header, key, each):
                    done.add(record.seq)
                    redone += 1
                else:
                    self._report.ignored += 1
            if redone:
                futimens(fd, (0, UTIME_OMIT, *divmod(before.st_mtime_ns, 10**9)))
                os.fsync(fd)
                self._report.files += 1
                self._report.records += redone
        finally:
            os.close(fd)

    def _redo(self, fd: int, header: FileHeader, key: bytes, found: _Found) -> bool:
        """Redo one record, as far as the file reaches; False where it does not hold."""
        geometry, record = self._geometry, found.record
        payload = self._payload(header, key, found)
        if payload is None:
            return False
        if record.operation is Operation.PUNCH:
            start = geometry.record_offset(record.first)
            stop = min(geometry.record_offset(record.size), os.fstat(fd).st_size)
            if not header.is_sparse or record.first >= record.size or start >= stop:
                return header.is_sparse
            _punch(fd, start, stop)
            return True
        size = geometry.plain_size_floor(os.fstat(fd).st_size)
        if size < (
            record.size if record.operation is Operation.SHRINK else geometry.chunk_start(record.first)
        ):
            # What was written before it, and never synced, did not reach the disk; or it was cut off later.
            # There is nothing to redo then, and that is no reason to stop at the file's later records.
            return True
        if record.operation is Operation.WRITE:
            self._write(fd, record.first, payload)
        elif len(payload):
            write_fully(fd, (payload,), geometry.record_offset(record.first))
        if record.operation is Operation.SHRINK:
            os.ftruncate(fd, min(geometry.cipher_size(record.size), os.fstat(fd).st_size))
        return True

    def _write(self, fd: int, first: int, payload: memoryview) -> None:
        """Put chunk records to their places. A short last one belongs to the end of the file only.

        If the file has more of that chunk, or chunks behind it, a later record is in place already.
        """
        geometry = self._geometry
        short = len(payload) % geometry.record_size
        start = geometry.record_offset(first)
        if short and os.fstat(fd).st_size > start + len(payload):
            payload = payload[: len(payload) - short]
        write_fully(fd, (payload,), start)

    def _payload(self, header: FileHeader, key: bytes, found: _Found) -> memoryview | None:
        """The chunk records of a journal record, if all of them authenticate."""
        record, geometry, suite = found.record, self._geometry, self._context.config.suite
        if found.payload + found.payload_size > os.fstat(found.fd).st_size:
            return None
        payload = memoryview(bytearray(found.payload_size))
        if read_fully(found.fd, payload, found.payload) < len(payload):
            return None
        digest = payload_digest(record.path, payload, geometry.record_size, suite.nonce_size, suite.tag_size)
        if digest != record.digest:
            return None
        if len(payload):
            plain = memoryview(bytearray(geometry.plain_length(len(payload)) or 1))
            try:
                self._context.cipher.open_run(key, record.first, payload, plain, holes=header.is_sparse)
            except ChunkError:
                return None
        return payload
