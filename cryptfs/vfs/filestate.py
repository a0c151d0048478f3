"""The state of one backing file, shared by all its handles: header, key, size, lock.

Locks: `lock` covers everything here and all changes of the backing file. Readers take it only when
they meet a writer: `change_count` is odd while a change is under way, and differs afterwards.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import threading
from collections.abc import Iterator

from cryptfs.core.header import NO_FLAGS, NO_JOURNAL, FileHeader, HeaderFlag, header_version
from cryptfs.core.verdict import SETTLED, Length, Verdict
from cryptfs.errors import HeaderError, IntegrityError
from cryptfs.storage.backing import O_NOATIME, read_header, reopen, write_fully
from cryptfs.storage.libc import restore_mtime
from cryptfs.vfs.context import FileContext
from cryptfs.vfs.recovery import found_length
from cryptfs.vfs.whereabouts import Whereabouts
from cryptfs.vfs.writemarks import WriteMarks

log = logging.getLogger(__name__)

FileKey = tuple[int, int]  # device, inode
NOT_ASKED = -1
Left = tuple[int, int, int]
"""ctime and mtime in nanoseconds, and length, of a backing file."""


class FileState(WriteMarks):
    """One backing file that is open.

    size:     plaintext bytes: what the file has now. Once it is loaded, the header vouches for it.
    header:   what stands on disk; None for an empty backing file. With header_is_planned it will be
              written along with the first chunk.
    damage:   set when the header or the length does not hold; then only a truncate to zero helps.
    inherited: the verdict on a file that is not as its header says, until somebody here changes it; else
              None. Loading writes nothing: a reader leaves the file as it is.
    overlay:  chunk records that are in the journal and not in the backing file yet, by chunk_index.
    durable_size: plaintext bytes that are known to be on disk in their place.
    synced:   whether anything was brought to disk since the file was empty, be it in the journal only.
    """

    def __init__(self, context: FileContext, key: FileKey, fd: int, *, writable: bool, path: str) -> None:
        super().__init__()
        self.context = context
        self.key = key
        self.fd = fd
        self.writable = writable
        self.cipher_path = path
        self.lock = threading.RLock()
        self.handles = 1  # guarded by the FileTable's lock, as the next
        self.writers = int(writable)  # handles among them that may change the file
        self.change_count = 0
        self.loaded = False
        self.damage: IntegrityError | None = None
        self.header: FileHeader | None = None
        self.header_is_planned = False
        self.inherited: Verdict | None = None
        self.packed_header: bytes | None = b""  # as it is on disk; None: we may have written half of it
        self._left: os.stat_result | None = None
        self.birth: int | None = NOT_ASKED  # see FileTable.birth_of
        self.seen_ctime = 0  # in ns, at which the file was as it is known here; 0: look at its header
        self.content_key = b""
        self.size = 0
        self.kept_mtime_ns: int | None = None  # what the last close restores, see keep_mtime
        self.mtime_is_ahead = False  # see mtimes.py
        self.may_have_capability = True  # a security.capability, which a write takes away
        self.keeps_atime = False  # whether reads leave the time of access as it is
        self._retired_fds: list[int] = []
        self.overlay: dict[int, bytes] = {}
        self.last_seq = 0  # of the file's last journal record
        self.durable_size = 0
        self.synced = False
        self.overtaken = False  # see overtaking.py
        self.whereabouts = Whereabouts()
        self._floor_due = 0  # the journal_floor that the header must have before the file changes again

    # ---- what is on disk

    @property
    def has_size(self) -> bool:
        """Whether `size` is what the file has for sure."""
        return self.loaded and self.damage is None and not self.overtaken

    @property
    def has_durable_content(self) -> bool:
        """Whether there is content that a loss of power may not take."""
        return self.synced or self.durable_size > 0

    def sync_backing(self, *, data_only: bool) -> None:
        """Sync the backing file; the lock need not be held. Raises: OSError."""
        with self.lock:  # nobody is between a mark and the write that it announces
            mark = self._marks
        if data_only:
            if mark > self._synced_mark:
                os.fdatasync(self.fd)
        else:
            os.fsync(self.fd)
        with self.lock:
            self._synced_mark = max(self._synced_mark, mark)
            redo = self.context.redo
            if self._data_mark <= mark and (redo is None or self.key not in redo.grown):
                self.durable_size = self.size  # else somebody wrote meanwhile, or the file is shorter

    def sync(self, *, data_only: bool) -> None:
        """Bring the file to disk: in its place, or in the journal. Raises: OSError."""
        redo = self.context.redo
        with self.lock:
            self.synced = True  # before it is: what is cut or written meanwhile is brought in order, too
            if redo is not None and redo.broken:
                redo.apply(self)
        if redo is not None:
            redo.commit(self)
        self.sync_backing(data_only=data_only)

    def adopt(self, fd: int, *, writable: bool) -> None:
        """Take over a further descriptor of the file: used where it can write and the present cannot.

        The old one stays open, because a reader may be using it.
        """
        if writable and not self.writable:
            self._retired_fds.append(self.fd)
            self.fd, self.writable, self.keeps_atime = fd, True, False
        else:
            os.close(fd)

    def keep_atime(self, keep: bool) -> None:
        """Say before a read whether it is one of our own, which leaves the time of access as it is.

        No lock: where such a read meets one for a program, the time moves as it does anyway, or one
        read later.
        """
        if keep != self.keeps_atime:
            self.keeps_atime = keep
            with contextlib.suppress(PermissionError):  # the file is somebody else's
                fcntl.fcntl(self.fd, fcntl.F_SETFL, os.O_NONBLOCK | (O_NOATIME if keep else 0))

    def close_descriptors(self) -> None:
        """After the last handle has gone."""
        for fd in (self.fd, *self._retired_fds):
            os.close(fd)
        self._retired_fds.clear()
        self.whereabouts.place = None

    @property
    def clean(self) -> bool:
        """Whether the header on disk needs no CLEAN written at the last close.

        A damaged file keeps its header, as evidence and for a repair; so does one that another writer left
        open and that nobody here has changed.
        """
        header = self.header
        if header is None or self.header_is_planned or self.damage is not None or self.overtaken:
            return True
        return header.is_clean or self.inherited is not None

    @property
    def version(self) -> int:
        """Tells the header on disk from any other; 0 where there is none."""
        return header_version(self.packed_header or b"")

    @property
    def left(self) -> Left:
        """What the backing file was when all of it was known here last; zeros before.

        That is when it was loaded, and after each step that ends a change.
        """
        st = self._left
        return (0, 0, 0) if st is None else (st.st_ctime_ns, st.st_mtime_ns, st.st_size)

    @property
    def sparse(self) -> bool:
        """Whether all-zero records are holes."""
        return self.header is not None and self.header.is_sparse

    def require_loaded(self) -> None:
        """Read and verify the header, once.

        Raises: IntegrityError: now and every time, where the file is damaged.   OSError.
        """
        if not self.loaded:
            with self.lock:
                if not self.loaded:
                    self._load()
        if self.damage is not None:
            raise type(self.damage)(self.damage.reason, cipher_path=self.cipher_path)

    def _load(self) -> None:
        self.note_left()
        cipher_size = self.left[2]
        if cipher_size:
            try:
                self._load_header(cipher_size)
            except IntegrityError as error:
                self.damage = error
        self.loaded = True

    def _load_header(self, cipher_size: int) -> None:
        """Find out how long the file is. Writes nothing, whatever stands there."""
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
        self.inherited = found
        if found.kind is Length.SURPLUS:
            surplus = cipher_size - found.expected
            log.warning("%s: %d bytes behind the end are no part of it", self.cipher_path, surplus)
        elif header.is_clean and header.size:
            log.warning(
                "%s: closed shortly before a crash; only %d of %d bytes had reached the disk",
                self.cipher_path, found.size, header.size,
            )  # fmt: skip
        else:
            self.context.note_unclean(header, self.cipher_path)
            log.warning(
                "%s: was being written when its writer ended; %d bytes are intact",
                self.cipher_path, found.size,
            )  # fmt: skip

    def _is_of_this_session(self, header: FileHeader) -> bool:
        redo = self.context.redo
        return redo is not None and header.journal_id == redo.journal_id

    def note_left(self) -> None:
        """Note what the backing file is now that all of it is known here. Raises: OSError."""
        self._left = st = os.fstat(self.fd)
        self.seen_ctime = st.st_ctime_ns

    def _note_header(self, header: FileHeader, raw: bytes) -> None:
        """Note what stands on disk now. raw: packed; b"" where it is only planned."""
        known = self.header
        if known is None or (known.file_id, known.epoch) != (header.file_id, header.epoch):
            self.content_key = self.context.content_key_of(header)
        self.header = header
        self.header_is_planned = False
        self.packed_header = raw
        self.inherited = None

    def plan_header(self, header: FileHeader) -> None:
        """Choose the header of a file that has none; header_for_change brings it to disk."""
        self._note_header(header, b"")
        self.header_is_planned = True

    @contextlib.contextmanager
    def writing_fd(self) -> Iterator[int | None]:
        """A descriptor that can write for a moment, None where there is none."""
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
        """The header that must be on disk before the file changes, or None where it already is.

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
        no_records = self.context.redo is None or floor > self.last_seq
        if no_records or self.header is None or old.is_void or self._must_name(old):
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

    def _must_name(self, header: FileHeader) -> bool:
        """Whether the journal of this session must be named, or named anew, before the file changes."""
        redo = self.context.redo
        if self.header_is_planned or redo is None:
            return self.header_is_planned
        return header.journal_id != redo.journal_id or header.journal_floor < self._floor_due

    def _size_to_keep(self) -> int:
        """The size_min of a file that is about to change for the first time since somebody left it."""
        redo = self.context.redo
        return min(self.size, self.durable_size) if redo is not None and redo.durable else self.size

    def write_header(self, header: FileHeader, records: memoryview | None = None) -> None:
        """Bring a header to the file (not synced), the first records with it, and note it."""
        self.mark_header()
        self._put_header(self.fd, header, records)

    def _put_header(self, fd: int, header: FileHeader, records: memoryview | None = None) -> None:
        """The one place that packs a header, writes it and notes it."""
        raw = self.context.pack_header(header)
        self.packed_header = None
        write_fully(fd, (raw,) if records is None else (raw, records), 0)
        self._note_header(header, raw)

    def raise_floor(self, floor: int) -> None:
        """Say in the header that earlier records of the journal do not count any more.

        They are in their places, or must not come back. Whether this is on disk matters only to whoever puts
        them back. A floor is never lowered.

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
        self._marks += 1
        self._put_header(self.fd, header.changed(journal_floor=floor))
        restore_mtime(self.fd, mtime)
        self.note_left()

    def write_clean(self) -> None:
        """At the last close: seal the length. Leaves the file's times as they are."""
        with self.lock:
            if not self.clean and not self.overlay:  # else the checkpointer does it
                self.seal_length(self.fd)

    def keep_mtime(self) -> None:
        """Writes that follow are not to move the time of change, seen from the last close on.

        A kernel with the writeback cache owns that time: it sets it where it has noticed a change, and
        it notices none within one tick of its clock after another. The writes themselves come later.
        """
        with self.lock:
            if self.kept_mtime_ns is None:
                self.kept_mtime_ns = os.fstat(self.fd).st_mtime_ns

    def forget_mtime(self) -> None:
        """The backing file has the true time of change. Whoever made a stat of it before that looks again."""
        self.context.true_mtimes += 1
        self.kept_mtime_ns, self.mtime_is_ahead = None, False

    def seal_length(self, fd: int) -> None:
        """Write a CLEAN header with the size that the file has now. The lock is held. Raises: OSError."""
        header = self.header
        assert header is not None  # a file that is not clean has one
        flags = (header.flags & HeaderFlag.SPARSE if self.size else NO_FLAGS) | HeaderFlag.CLEAN
        clean = header.changed(
            size=self.size, size_min=self.size, flags=flags, journal_id=NO_JOURNAL, journal_floor=0
        )
        redo = self.context.redo
        here = redo is not None and redo.durable and self._is_of_this_session(header)
        if here and self._data_mark > self._synced_mark:
            # Not known to be on disk: if the power goes in this session, it may end shorter than this.
            clean = clean.changed(
                size_min=min(self.size, self.durable_size),
                journal_id=header.journal_id,
                journal_floor=header.journal_floor,
            )
        mtime = os.fstat(fd).st_mtime_ns if self.kept_mtime_ns is None else self.kept_mtime_ns
        was_ahead, kept = self.mtime_is_ahead, self.kept_mtime_ns
        self.kept_mtime_ns, self.mtime_is_ahead = mtime, True  # what a stat shows while it moves
        self._put_header(fd, clean)
        restore_mtime(fd, mtime)
        self.forget_mtime()
        if not was_ahead:
            self.kept_mtime_ns = kept
        self.mark_told()
        self.note_left()
