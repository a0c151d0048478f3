"""The state of one backing file, shared by all its handles: header, key, size, lock.

Locks: `lock` covers everything here and all changes of the backing file. Readers take it only if they meet
a writer: `change_count` is odd during a change, and differs afterwards.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Iterator

from cryptfs.core.format.header import NO_FLAGS, FileHeader, HeaderFlag, header_version
from cryptfs.core.format.verdict import SETTLED, Length, Verdict
from cryptfs.errors import HeaderError, IntegrityError
from cryptfs.storage.backing import read_header, reopen, write_fully
from cryptfs.storage.libc import restore_mtime
from cryptfs.vfs.content.context import FileContext
from cryptfs.vfs.content.foundlength import found_length
from cryptfs.vfs.content.parts import Descriptor, Overlay, Whereabouts, WriteMarks
from cryptfs.vfs.content.redo import Logged

log = logging.getLogger(__name__)

FileKey = tuple[int, int]  # device, inode
NOT_ASKED = -1
Left = tuple[int, int, int]
"""ctime and mtime in nanoseconds, and length, of a backing file."""


class FileState(Descriptor, WriteMarks):
    """One backing file that is open.

    size:     plaintext bytes that the file has now. Once it is loaded, the header vouches for it.
    header:   the header on disk; None for an empty backing file. With header_is_planned, the first chunk
              brings it to disk.
    damage:   the error if header or length do not hold; then only a truncate to zero helps.
    inherited: the verdict on a file that is not as its header says, until somebody here changes it; else
              None. Loading writes nothing: a reader leaves the file as it is.
    overlay:  records that are in the journal and not in the backing file yet.
    durable_size: plaintext bytes that are surely on disk in their place.
    synced:   whether a sync has brought anything to disk since the file was empty, if only to the journal.
    """

    def __init__(
        self,
        context: FileContext,
        key: FileKey,
        fd: int,
        *,
        writable: bool,
        path: str,
        keeps_atime: bool = False,
    ) -> None:
        Descriptor.__init__(self, fd, writable=writable, keeps_atime=keeps_atime)
        WriteMarks.__init__(self)
        self.context = context
        self.key = key
        self.cipher_path = path
        self.lock = threading.RLock()
        self.handles = 1  # the FileTable's lock guards this and the next
        self.writers = int(writable)  # handles among them that may change the file
        self.change_count = 0
        self._depth = 0  # changes under way, one within the other
        self.loaded = False
        self.damage: IntegrityError | None = None
        self.header: FileHeader | None = None
        self.header_is_planned = False
        self.inherited: Verdict | None = None
        self.packed_header: bytes | None = b""  # as it is on disk; None: we may have written half of it
        self._left: os.stat_result | None = None
        self.birth: int | None = NOT_ASKED  # see FileTable.birth_of
        self.seen_ctime = 0  # in ns; at this ctime the file was as we know it; 0: look at its header
        self.content_key = b""
        self.size = 0
        self.kept_mtime_ns: int | None = None  # the last close restores it, see keep_mtime
        self.mtime_is_ahead = False  # see mtimes.py
        self.may_have_capability = True  # a security.capability; a write takes it away
        self.overlay = Overlay(key)
        self.durable_size = 0
        self.synced = False
        self.overtaken = False  # see others.py
        self.whereabouts = Whereabouts()
        self._floor_due = 0  # the header must have this journal_floor before the file changes again

    # ---- a change, and its outcome; with the lock held

    def begin_change(self) -> None:
        """From now on readers take the lock. Changes may nest."""
        self._depth += 1
        if self._depth == 1:
            self.change_count += 1

    def end_change(self) -> None:
        """After begin_change. When the outermost change ends, readers need no lock again."""
        self._depth -= 1
        if not self._depth:
            self.change_count += 1

    def grew_to(self, size: int) -> None:
        """The file has this many plaintext bytes now, more than before."""
        self.size = size

    def cut_to(self, size: int) -> None:
        """The file has this many plaintext bytes left."""
        self.size = size
        self.durable_size = min(self.durable_size, size)

    def emptied(self) -> None:
        """The header on disk says that the file is empty, and has another key: no damage counts now."""
        self.size, self.damage, self.durable_size, self.synced = 0, None, 0, False
        self.forget_failed_sync()

    def note_sync(self) -> None:
        """From now on a loss of power may not take the content."""
        self.synced = True

    # ---- knowledge of the backing file

    def saw_ctime(self, ctime_ns: int) -> None:
        """At this ctime the file was as we know it; 0: look at its header the next time."""
        self.seen_ctime = ctime_ns

    def overtake(self) -> None:
        """Somebody else has changed the file in place: from now on every handle gets errors."""
        self.overtaken = True

    def inherit(self, found: Verdict | None) -> None:
        """The file is not as its header says; None: it is, since foreign bytes at its end are cut off."""
        self.inherited = found

    def note_capability(self, *, may_be_there: bool) -> None:
        """Whether the file may have a security.capability now."""
        self.may_have_capability = may_be_there

    # ---- the content of the disk

    @property
    def has_size(self) -> bool:
        """Whether `size` is certain."""
        return self.loaded and self.damage is None and not self.overtaken

    @property
    def has_durable_content(self) -> bool:
        """Whether the file has content that a loss of power may not take."""
        return self.synced or self.durable_size > 0

    def sync_backing(self, *, data_only: bool) -> None:
        """Sync the backing file, with or without the lock. Raises: OSError, once: see require_synced."""
        with self.lock:  # no thread is between a mark and the write that follows it
            mark = self._marks
        try:
            if not data_only:
                os.fsync(self.fd)
            elif mark > self._synced_mark:
                os.fdatasync(self.fd)
        except OSError:
            self.note_failed_sync()
            raise
        with self.lock:
            if not self.note_synced(mark):
                return
            redo = self.context.redo
            if self._data_mark <= mark and (redo is None or self.key not in redo.grown):
                self.durable_size = self.size  # else somebody wrote meanwhile, or the file is shorter

    def close_descriptors(self) -> None:
        """After the last handle has gone."""
        super().close_descriptors()
        self.whereabouts.place = None

    @property
    def clean(self) -> bool:
        """Whether the header on disk needs no CLEAN at the last close.

        A damaged file keeps its header, as evidence and for a repair. So does a file that another writer left
        open, if nobody here has changed it.
        """
        header = self.header
        if header is None or self.header_is_planned or self.damage is not None or self.overtaken:
            return True
        return header.is_clean or self.inherited is not None

    @property
    def version(self) -> int:
        """Tells the header on disk from any other; 0 if there is none."""
        raw = self.packed_header
        return header_version(raw) if raw else 0

    @property
    def left(self) -> Left:
        """ctime, mtime and length of the backing file when we last knew all of it; zeros before.

        We know all of it after loading it, and after each step that ends a change.
        """
        st = self._left
        return (0, 0, 0) if st is None else (st.st_ctime_ns, st.st_mtime_ns, st.st_size)

    @property
    def sparse(self) -> bool:
        """Whether all-zero records are holes."""
        return self.header is not None and self.header.is_sparse

    def require_loaded(self, st: os.stat_result | None = None) -> None:
        """Read and verify the header, once.

        Args:   st: of the backing file, if somebody has just asked for it.
        Raises: IntegrityError: the file is damaged; again at each call.   OSError.
        """
        if not self.loaded:
            with self.lock:
                if not self.loaded:
                    self._load(st)
        if self.damage is not None:
            raise type(self.damage)(self.damage.reason, cipher_path=self.cipher_path)

    def _load(self, st: os.stat_result | None) -> None:
        self.note_left(st)
        cipher_size = self.left[2]
        if cipher_size:
            try:
                self._load_header(cipher_size)
            except IntegrityError as error:
                self.damage = error
        self.loaded = True

    def _load_header(self, cipher_size: int) -> None:
        """Find out how long the file is. Never writes."""
        self.keep_atime(True)
        raw = read_header(self.fd)
        self.packed_header = raw
        header = self.context.unpack_header(raw)
        self._note_header(header, raw)
        found = found_length(self.context, self.fd, header, self.content_key, cipher_size)
        if found.kind is not SETTLED:
            self._inherit(found, header, cipher_size)
        self.size = self.durable_size = found.size
        if self._is_of_this_session(header):
            self.durable_size = min(found.size, header.size_min)

    def _inherit(self, found: Verdict, header: FileHeader, cipher_size: int) -> None:
        if found.kind is Length.CUT:
            raise HeaderError(f"the file was cut: {found.reason}")
        self.inherit(found)
        if found.kind is Length.SURPLUS:
            surplus = cipher_size - found.expected
            log.warning("%s: %d bytes after its end do not belong to it", self.cipher_path, surplus)
        elif header.is_clean and header.size:
            log.warning(
                "%s: closed shortly before a crash; only %d of %d bytes had reached the disk",
                self.cipher_path, found.size, header.size,
            )  # fmt: skip
        else:
            self.context.note_unclean(header, self.cipher_path)
            log.warning(
                "%s: writing to it was interrupted; %d bytes are intact",
                self.cipher_path, found.size,
            )  # fmt: skip

    def _is_of_this_session(self, header: FileHeader) -> bool:
        redo = self.context.redo
        return redo is not None and header.journal_id == redo.journal_id

    def note_left(self, st: os.stat_result | None = None) -> None:
        """Note the stat of the backing file, now that we know all of it; st: the stat. Raises: OSError."""
        if st is None:
            st = os.fstat(self.fd)
        self._left = st
        self.seen_ctime = st.st_ctime_ns

    def _note_header(self, header: FileHeader, raw: bytes) -> None:
        """Note the header on disk. raw: packed; b"" for a header that is only planned."""
        known = self.header
        if known is None or (known.file_id, known.epoch) != (header.file_id, header.epoch):
            self.content_key = self.context.content_key_of(header)
        self.header = header
        self.header_is_planned = False
        self.packed_header = raw
        self.inherited = None

    def plan_header(self, header: FileHeader) -> None:
        """Choose a header for a file without one; header_for_change brings it to disk."""
        self._note_header(header, b"")
        self.header_is_planned = True

    @contextlib.contextmanager
    def writing_fd(self) -> Iterator[int | None]:
        """A descriptor that can write for a moment, None if there is none."""
        fd = None
        if self.writable:
            fd = self.fd
        elif not self.context.read_only:
            with contextlib.suppress(OSError):
                fd = reopen(self.fd, os.O_RDWR)
        try:
            yield fd
        finally:
            if fd is not None and fd != self.fd:
                os.close(fd)

    def header_for_change(self, *, size_min: int | None = None, sparse: bool = False) -> FileHeader | None:
        """The header that must be on disk before the file changes, or None if it already is.

        Args: size_min: the change may leave the file this short.   sparse: the change makes holes.
        """
        old = self.header
        if old is None:
            old = self.context.new_header()
            flags, old_min, generation = NO_FLAGS, 0, old.generation
        else:
            begins = old.is_clean or self.inherited is not None
            if size_min is None and not (sparse or begins or old.is_void or self._must_name(old)):
                return None
            flags = old.flags & ~(HeaderFlag.CLEAN | HeaderFlag.VOID)
            old_min = self._size_to_keep() if begins else old.size_min
            generation = old.generation + begins
        if sparse:
            flags |= HeaderFlag.SPARSE
        new_min = old_min if size_min is None else min(old_min, size_min)
        journal_id, floor = old.journal_id, max(old.journal_floor, self._floor_due)
        redo = self.context.redo
        no_records = redo is None or floor > self.overlay.last_seq or journal_id != redo.journal_id
        if no_records or self.header is None or old.is_void or self.header_is_planned:
            # Else a floor that could not be written before is due, and records above it still count.
            journal_id, floor = self.context.naming(losing=size_min is not None)
        new = old.changed(
            size=new_min,
            size_min=new_min,
            generation=generation,
            flags=flags,
            journal_id=journal_id,
            journal_floor=floor,
        )
        return None if new == self.header and not self.header_is_planned else new

    def announce(self, *, size_min: int | None = None, sparse: bool = False) -> None:
        """Before a change: bring the header to disk that header_for_change returns. Raises: OSError."""
        header = self.header_for_change(size_min=size_min, sparse=sparse)
        if header is not None:
            self.write_header(header)

    def _must_name(self, header: FileHeader) -> bool:
        """Whether the header must name this session's journal, or a higher floor, before the file changes."""
        redo = self.context.redo
        if self.header_is_planned or redo is None:
            return self.header_is_planned
        return header.journal_id != redo.journal_id or header.journal_floor < self._floor_due

    def _size_to_keep(self) -> int:
        """The size_min for the first change of a file after somebody left it."""
        redo = self.context.redo
        return min(self.size, self.durable_size) if redo is not None and redo.durable else self.size

    def write_header(self, header: FileHeader, records: memoryview | None = None) -> None:
        """Write a header to the file (not synced), with the first records, and note it."""
        self.mark_header()
        self._put_header(self.fd, header, records)

    def _put_header(self, fd: int, header: FileHeader, records: memoryview | None = None) -> None:
        """The one place that packs a header, writes it and notes it."""
        raw = self.context.pack_header(header)
        self.packed_header = None
        write_fully(fd, (raw,) if records is None else (raw, records), 0)
        self._note_header(header, raw)

    @property
    def logged(self) -> Logged:
        """The file as a journal record names it; the caller has written its header."""
        header = self.header
        assert header is not None
        return Logged(self.overlay, header.file_id, header.epoch, self.cipher_path)

    def disown_records(self) -> None:
        """The file's records so far must not come back; as raise_floor. Raises: OSError."""
        self.raise_floor(self.overlay.last_seq + 1)

    def raise_floor(self, floor: int) -> None:
        """Say in the header that earlier records of the journal do not count from now on.

        They are in their places, or must not come back. Whether this is on disk matters only to a replay. No
        call lowers a floor.

        Raises: OSError: the next change of the file does it.
        """
        header = self.header
        redo = self.context.redo
        if header is None or redo is None or header.journal_id != redo.journal_id or header.is_clean:
            return
        if header.journal_floor >= floor:
            return
        self._floor_due = max(self._floor_due, floor)
        mtime = os.fstat(self.fd).st_mtime_ns
        self.mark_floor()
        self._put_header(self.fd, header.changed(journal_floor=floor))
        restore_mtime(self.fd, mtime)
        self.note_left()

    def write_clean(self) -> None:
        """At the last close: seal the length. Leaves the file's times as they are."""
        with self.lock:
            if not self.clean and not self.overlay.records:  # else the checkpointer does it
                self.seal_length(self.fd)

    def keep_mtime(self) -> None:
        """The writes that follow leave the time of change alone; the last close restores it.

        A kernel with the writeback cache owns that time: it sets it if it has noticed a change, and it does
        not notice a second one within one tick of its clock. The writes themselves come later.
        """
        with self.lock:
            if self.kept_mtime_ns is None:
                self.kept_mtime_ns = os.fstat(self.fd).st_mtime_ns

    def hold_mtime(self, mtime_ns: int) -> None:
        """The file has this time of change; that of the backing file is ahead of it for now."""
        self.kept_mtime_ns, self.mtime_is_ahead = mtime_ns, True

    def forget_mtime(self) -> None:
        """The backing file has the true time of change. An operation with an older stat of it looks again."""
        self.context.true_mtimes += 1
        self.kept_mtime_ns, self.mtime_is_ahead = None, False

    def seal_length(self, fd: int) -> None:
        """Write a CLEAN header with the present size of the file. The lock is held. Raises: OSError."""
        header = self.header
        assert header is not None  # a file that is not clean has one
        clean = header.closed_at(self.size)
        redo = self.context.redo
        here = redo is not None and redo.durable and self._is_of_this_session(header)
        if here and self._data_mark > self._synced_mark:
            # This is maybe not on disk: after a loss of power in this session, the file may be shorter.
            clean = clean.changed(
                size_min=min(self.size, self.durable_size),
                journal_id=header.journal_id,
                journal_floor=header.journal_floor,
            )
        mtime = os.fstat(fd).st_mtime_ns if self.kept_mtime_ns is None else self.kept_mtime_ns
        was_ahead, kept = self.mtime_is_ahead, self.kept_mtime_ns
        self.hold_mtime(mtime)  # a stat shows this while the backing file's time moves
        self._put_header(fd, clean)
        restore_mtime(fd, mtime)
        self.forget_mtime()
        if not was_ahead:
            self.kept_mtime_ns = kept
        self.mark_told()
        self.note_left()
