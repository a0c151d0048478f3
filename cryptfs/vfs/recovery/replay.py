"""Replay: brings the records of a journal to their places, after a session that ended without an unmount.

It replays a record only if all of this is true: the record authenticates in its place in the journal; its
chunks authenticate; the file's header names this journal and has its epoch; the record is not below the
header's floor; the file's record before it was replayed, or did not need to be. It ignores and counts all
others. So an old journal, a piece of one, or one of another vault changes nothing. A second replay of the
same journal changes nothing either.

Source: docs/FORMAT.md, section 10.
"""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from cryptfs.core.aead import SMALL_NONCE_SIZE
from cryptfs.core.format.journal import (
    ALIGNMENT,
    HEAD_SIZE,
    PREFIX_SIZE,
    RECORD_MAGIC,
    JournalHead,
    Sessions,
    record_lengths,
    unpack_record,
)
from cryptfs.core.names.host import SHARED_STATE, StateNames
from cryptfs.errors import IntegrityError
from cryptfs.storage.backing import open_backing, read_fully
from cryptfs.storage.hosts import journals_of_others, lasting_inode, set_aside
from cryptfs.storage.journal import drop_records, remove_journal
from cryptfs.storage.libc import restore_mtime, syncfs
from cryptfs.storage.sessions import (
    has_sessions_file,
    mark_unsettled,
    read_sessions_file,
    write_sessions_file,
)
from cryptfs.vfs.content.context import FileContext
from cryptfs.vfs.recovery.filefinder import FileFinder, WantedFile
from cryptfs.vfs.recovery.redoing import FileRedo, FoundRecord

log = logging.getLogger(__name__)

_SCAN_SIZE = 1024 * 1024
MAX_JOURNAL_SIZE = 1 << 32  # bytes of one file; far more than a mount lets it become


@dataclass(slots=True)
class ReplayReport:
    """The result of a replay. records: redone.   files: their files.
    ignored: records that did not verify, or follow one that did not.   lost: records of missing files."""

    records: int = 0
    files: int = 0
    ignored: int = 0
    lost: int = 0


def read_sessions(context: FileContext, vault_fd: int, owner: StateNames | None = None) -> Sessions:
    """The sessions of a machine (None: this one); empty if there is no list."""
    return _read_list(context, vault_fd, owner or context.owner) or Sessions()


def _read_list(context: FileContext, vault_fd: int, owner: StateNames) -> Sessions | None:
    """None if there is no list or, with a warning, none that verifies."""
    try:
        raw = read_sessions_file(vault_fd, owner)
    except IntegrityError as error:
        log.warning("%s", error)
        raw = b""
    if raw is None:
        return None
    sessions = Sessions.unpack(raw, context.keys, owner)
    if sessions is None:
        log.warning(
            "the list of sessions does not authenticate; files that a crash left short may be reported as cut"
        )
    return sessions


def has_journal(vault_fd: int, owner: StateNames = SHARED_STATE) -> bool:
    """Whether there is a journal: a session is running, or ended without an unmount."""
    present = set(os.listdir(vault_fd))
    return any(name in present for name in owner.journals)


class Waiting(NamedTuple):
    """The journal_ids of existing journals, running or to be replayed: this machine's, and others'."""

    own: frozenset[bytes] = frozenset()
    others: frozenset[bytes] = frozenset()


def waiting_journals(context: FileContext, vault_fd: int) -> Waiting:
    """Which journals are there. Writes nothing. Raises: OSError."""

    def ids(owners: Iterable[StateNames]) -> frozenset[bytes]:
        heads = (newest_head(context, vault_fd, owner) for owner in owners)
        return frozenset(head.journal_id for head in heads if head is not None)

    return Waiting(ids([context.owner]), ids(journals_of_others(vault_fd, context.owner)))


def newest_head(
    context: FileContext, vault_fd: int, owner: StateNames, *, deltas: bool | None = None
) -> JournalHead | None:
    """The head of a machine's journal; None if none verifies.

    Args: deltas: read it as in a vault with the feature delta-journal; None is as this vault has it.
    """
    newest: JournalHead | None = None
    for name in owner.journals:
        try:
            fd = open_backing(vault_fd, name, os.O_RDONLY)[0]
        except (OSError, IntegrityError):
            continue
        try:
            head = _read_head(context, fd, owner, deltas=context.deltas if deltas is None else deltas)
        finally:
            os.close(fd)
        if head is not None and (newest is None or head.number > newest.number):
            newest = head
    return newest


def replay(context: FileContext, vault_fd: int, owner: StateNames | None = None) -> Sessions:
    """Replay a machine's journal, if there is one, and remove it. The vault's lock must be held.

    Args:    owner: whose; None is this machine. Another's is replayed by path and file_id.
    Returns: its sessions, with that one among the crashed. If somebody removed the list of sessions, it is
             not among them: the journal may be an old one, and must not excuse a file that is too short.
    Raises:  OSError: a write failed; everything is as it was, or partly redone, and the journal is still
             there.
    """
    owner = owner or context.owner
    known = _read_list(context, vault_fd, owner)
    if known is None and owner.host and has_sessions_file(vault_fd, owner):
        _put_aside(vault_fd, owner.sessions, owner)
    if not has_journal(vault_fd, owner):
        return known or Sessions()
    names: dict[int, str] = {}  # by descriptor
    try:
        for name in owner.journals:
            fd = _open_journal(vault_fd, name)
            if fd is not None:
                names[fd] = name
        sessions = _replay_files(context, vault_fd, names, known, owner)
    finally:
        for fd in names:
            os.close(fd)
    remove_journal(vault_fd, owner)
    os.fsync(vault_fd)
    return sessions


def _put_aside(vault_fd: int, name: str, owner: StateNames) -> None:
    """Keep a file that does not verify for a person to examine; not in a vault without machine-state."""
    if owner.host:
        log.warning("%s: kept as %s", name, set_aside(vault_fd, name, owner))


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


def _replay_files(
    context: FileContext, vault_fd: int, names: dict[int, str], known: Sessions | None, owner: StateNames
) -> Sessions:
    listed = known is not None or not owner.host  # a vault of 0.1 makes its list at the end of a session
    sessions = known or Sessions()
    heads = {fd: _read_head(context, fd, owner, deltas=context.deltas) for fd in names}
    holding = [head for head in heads.values() if head is not None]
    if not holding:
        log.warning("ignored a journal without a valid head")
        for name in names.values():
            _put_aside(vault_fd, name, owner)
        return sessions
    newest = max(holding, key=lambda head: head.number)
    if newest.number <= sessions.last:
        if newest.journal_id in sessions.crashed:  # a replay was killed at its very end
            mark_unsettled(vault_fd, names[next(fd for fd, head in heads.items() if head is newest)], owner)
        else:
            log.warning("ignored and removed a journal of session %d, which is over", newest.number)
        return sessions
    valid = {
        fd: head for fd, head in heads.items() if head is not None and head.journal_id == newest.journal_id
    }
    if len(valid) < len(names):
        log.warning("ignored a journal file that is damaged or belongs to another session")
        for fd in names.keys() - valid.keys():
            _put_aside(vault_fd, names[fd], owner)
    found = [each for fd, head in valid.items() for each in _records(context, fd, head)]
    oldest = min(head.first_seq for head in valid.values())
    copied = owner != context.owner or os.fstat(vault_fd).st_ino != newest.root_inode
    copied = copied or (bool(owner.host) and not lasting_inode(vault_fd))
    report = _Replayer(context, vault_fd, newest, oldest, copied=copied).run(found)
    log.warning(
        "the last session did not end with an unmount: redid %d changes to %d files, ignored %d incomplete "
        "changes and %d changes to missing files",
        report.records, report.files, report.ignored, report.lost,
    )  # fmt: skip
    context.replayed |= {newest.journal_id}
    syncfs(vault_fd)  # also for that session's direct writes: from now on they count as on disk
    # The file with the newest records stays: a kill in the middle of this would leave the other one's alone,
    # to be redone over them.
    kept = names[max(valid, key=lambda fd: valid[fd].first_seq)]
    drop_records(vault_fd, kept, owner)
    if not listed:
        log.warning(
            "the list of sessions is missing, but a journal is here. It may be an old journal, so files that "
            "it leaves short are reported as cut"
        )
        mark_unsettled(vault_fd, kept, owner)  # first: once the list says that it is over, nothing would
    sessions = sessions.ended(newest.number, [newest.journal_id] if listed else [])
    packed = sessions.pack(context.keys, os.urandom(SMALL_NONCE_SIZE), owner)
    write_sessions_file(vault_fd, packed, owner)
    if listed:
        mark_unsettled(vault_fd, kept, owner)
    return sessions


def _read_head(context: FileContext, fd: int, owner: StateNames, *, deltas: bool) -> JournalHead | None:
    raw = memoryview(bytearray(HEAD_SIZE))
    got = read_fully(fd, raw, 0)
    return JournalHead.unpack(bytes(raw[:got]), context.keys, owner, deltas=deltas)


def _records(context: FileContext, fd: int, head: JournalHead) -> Iterator[FoundRecord]:
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


def _record_at(context: FileContext, fd: int, head: JournalHead, place: int) -> FoundRecord | None:
    prefix = os.pread(fd, PREFIX_SIZE, place)
    sizes = record_lengths(prefix)
    if sizes is None:
        return None
    path_size, payload_size = sizes
    path = os.pread(fd, path_size, place + PREFIX_SIZE)
    record = unpack_record(prefix, path, context.keys, head.journal_id, place, deltas=context.deltas)
    return None if record is None else FoundRecord(record, fd, place + PREFIX_SIZE + path_size, payload_size)


class _Replayer:
    """Args: head: of the journal.   oldest: lowest sequence number that it can hold.
    copied: whether the vault is a copy, with other inode numbers than in the records."""

    def __init__(
        self, context: FileContext, vault_fd: int, head: JournalHead, oldest: int, *, copied: bool
    ) -> None:
        self._context = context
        self._journal_id = head.journal_id
        self._finder = FileFinder(context, vault_fd, copied=copied)
        self._oldest = oldest
        self._report = ReplayReport()

    def run(self, found: list[FoundRecord]) -> ReplayReport:
        """Redo the records, file by file, each in order."""
        files: dict[WantedFile, list[FoundRecord]] = defaultdict(list)
        for each in sorted(found, key=lambda each: each.record.seq):
            files[WantedFile(each.record.inode, each.record.file_id)].append(each)
        missing = {}
        for key, records in files.items():
            paths = tuple(dict.fromkeys(each.record.path for each in reversed(records)))
            fd = self._finder.at(paths, key)
            if fd is None:
                missing[key] = records
            else:
                self._redo_file(fd, records)
        if missing:
            for key, fd in self._finder.search(frozenset(missing)):
                self._redo_file(fd, missing.pop(key))
        if len(missing) == len(files):
            for key, records in files.items():
                fd = self._finder.restored_at(records[-1].record.path, key)
                if fd is not None:
                    self._redo_file(fd, missing.pop(key))
        self._report.lost = sum(map(len, missing.values()))
        return self._report

    # ---- redoing

    def _redo_file(self, fd: int, records: list[FoundRecord]) -> None:
        """Redo the records of one file and sync it. Takes the descriptor over."""
        try:
            header = self._finder.header_of(fd)
            if header is None or header.journal_id != self._journal_id:
                self._report.ignored += len(records)
                return
            before = os.fstat(fd)
            redoing = FileRedo(self._context, fd, header, records)
            done = {0}
            redone = 0
            for each in records:
                record = each.record
                if record.epoch != header.epoch or record.seq < header.journal_floor:
                    continue  # over and done with
                known = record.previous in done or record.previous < max(header.journal_floor, self._oldest)
                if known and redoing.redo(each):
                    done.add(record.seq)
                    redone += 1
                else:
                    self._report.ignored += 1
            if redone:
                restore_mtime(fd, before.st_mtime_ns)
                os.fsync(fd)
                self._report.files += 1
                self._report.records += redone
        finally:
            os.close(fd)
