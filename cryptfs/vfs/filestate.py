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

from cryptfs.core.geometry import HEADER_SIZE
from cryptfs.core.header import NO_FLAGS, NO_JOURNAL, FileHeader, HeaderFlag
from cryptfs.errors import HeaderError, IntegrityError
from cryptfs.storage.backing import O_NOATIME, read_fully, reopen, write_fully
from cryptfs.storage.libc import UTIME_OMIT, Times, futimens, restore_mtime
from cryptfs.vfs.context import FileContext
from cryptfs.vfs.recovery import recovered_size
from cryptfs.vfs.writemarks import WriteMarks

log = logging.getLogger(__name__)

FileKey = tuple[int, int]  # device, inode


class FileState(WriteMarks):
    """One backing file that is open.

    size:     plaintext bytes; what the file has now, whatever the header says.
    header:   what stands on disk; None for an empty backing file. With header_is_planned it will be
              written along with the first chunk.
    damage:   set when the header or the length does not hold; then only a truncate to zero helps.
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
        self.handles = 1  # guarded by the FileTable's lock
        self.change_count = 0
        self.loaded = False
        self.damage: IntegrityError | None = None
        self.header: FileHeader | None = None
        self.header_is_planned = False
        self._unsettled: FileHeader | None = None  # as a dead writer left it, where it could not be settled
        self.content_key = b""
        self.size = 0
        self.kept_mtime_ns: int | None = None  # what the last close restores, see keep_mtime
        self.may_have_capability = True  # a security.capability, which a write takes away
        self.keeps_atime = False  # whether reads leave the time of access as it is
        self._retired_fds: list[int] = []
        self.overlay: dict[int, bytes] = {}
        self.last_seq = 0  # of the file's last journal record
        self.durable_size = 0
        self.synced = False
        self._floor_due = 0  # the journal_floor that the header must have before the file changes again

    # ---- what is on disk

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
            if self._unsettled is not None:
                self.loaded = False  # what could not be settled without writing is settled now
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

    @property
    def clean(self) -> bool:
        """Whether the header on disk needs no CLEAN written at the last close.

        A damaged file keeps its header, as evidence and for a repair; so does one that a dead writer left
        and that nobody here may write.
        """
        header = self.header
        if header is None or self.header_is_planned or self.damage is not None:
            return True
        return header.is_clean or header is self._unsettled

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
        cipher_size = os.fstat(self.fd).st_size
        if cipher_size:
            try:
                self._load_header(cipher_size)
            except IntegrityError as error:
                self.damage = error
        self.loaded = True

    def _load_header(self, cipher_size: int) -> None:
        raw = memoryview(bytearray(HEADER_SIZE))
        self.keep_atime(True)
        header = self.context.unpack_header(bytes(raw[: read_fully(self.fd, raw, 0)]))
        self.set_header(header)
        geometry = self.context.geometry
        if header.is_void:
            self.size = 0
            self._trim(HEADER_SIZE, cipher_size, "what a truncate to zero left")
            self._settle()
        elif header.is_clean:
            expected = geometry.cipher_size(header.size)
            if cipher_size < expected:
                self._load_cut(header, cipher_size, expected)
                return
            self.size = header.size
            self.durable_size = header.size_min if self._is_of_this_session(header) else header.size
            self._trim(expected, cipher_size, "surplus")
        else:
            self._recover(header, cipher_size)

    def _load_cut(self, header: FileHeader, cipher_size: int, expected: int) -> None:
        """A CLEAN file that is too short: cut, unless it was closed not long before the power went."""
        if header.journal_id not in self.context.crashed:
            raise HeaderError(f"the file was cut: {cipher_size} bytes instead of {expected}")
        log.warning(
            "%s: closed shortly before a crash; only %d of %d bytes had reached the disk",
            self.cipher_path, cipher_size, expected,
        )  # fmt: skip
        self._recover(header, cipher_size)

    def _recover(self, header: FileHeader, cipher_size: int) -> None:
        self.size = recovered_size(self.context, self.fd, header, self.content_key, cipher_size)
        self.durable_size = self.size
        self._trim(self.context.geometry.cipher_size(self.size), cipher_size, "torn")
        self._settle()

    def _is_of_this_session(self, header: FileHeader) -> bool:
        redo = self.context.redo
        return redo is not None and header.journal_id == redo.journal_id

    def set_header(self, header: FileHeader) -> None:
        """Note what stands on disk now."""
        known = self.header
        if known is None or (known.file_id, known.epoch) != (header.file_id, header.epoch):
            self.content_key = self.context.content_key_of(header)
        self.header = header
        self.header_is_planned = False

    def plan_header(self, header: FileHeader) -> None:
        """Choose the header of a file that has none; header_for_change brings it to disk."""
        self.set_header(header)
        self.header_is_planned = True

    def _trim(self, expected: int, cipher_size: int, what: str) -> None:
        if cipher_size <= expected:
            return
        log.warning("%s: %d bytes trimmed (%s)", self.cipher_path, cipher_size - expected, what)
        with self._writing_fd() as fd:
            if fd is not None:
                os.ftruncate(fd, expected)

    def _settle(self) -> None:
        """After its writer died, make the length that was found the authentic one."""
        log.warning(
            "%s: was being written when its writer ended; %d bytes are intact", self.cipher_path, self.size
        )
        with self._writing_fd() as fd:
            if fd is None:
                self._unsettled = self.header
            else:
                self._write_clean(fd)

    @contextlib.contextmanager
    def _writing_fd(self) -> Iterator[int | None]:
        """A descriptor that can write for a moment, None where there is none: the next writer will do it."""
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
            if size_min is None and not (sparse or old.is_clean or old.is_void or self._must_name(old)):
                return None
            flags = old.flags & ~(HeaderFlag.CLEAN | HeaderFlag.VOID)
            was_clean = old.is_clean
            old_min = self._size_to_keep() if was_clean else old.size_min
            generation = old.generation + was_clean
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
        """The size_min of a CLEAN file that is about to change."""
        redo = self.context.redo
        return min(self.size, self.durable_size) if redo is not None and redo.durable else self.size

    def write_header(self, header: FileHeader) -> None:
        """Bring a header to the file (not synced) and note it."""
        self.mark_header()
        write_fully(self.fd, (self.context.pack_header(header),), 0)
        self.set_header(header)

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
        raised = header.changed(journal_floor=floor)
        write_fully(self.fd, (self.context.pack_header(raised),), 0)
        restore_mtime(self.fd, mtime)
        self.set_header(raised)

    def write_clean(self) -> None:
        """At the last close: seal the length. Leaves the file's times as they are."""
        with self.lock:
            if not self.clean and not self.overlay:  # else the checkpointer does it
                self._write_clean(self.fd)

    def keep_mtime(self) -> None:
        """Writes that follow are not to move the time of change, seen from the last close on.

        A kernel with the writeback cache owns that time: it sets it where it has noticed a change, and
        it notices none within one tick of its clock after another. The writes themselves come later.
        """
        with self.lock:
            if self.kept_mtime_ns is None:
                self.kept_mtime_ns = os.fstat(self.fd).st_mtime_ns

    def set_times(self, times: Times) -> None:
        """futimens(2)."""
        with self.lock:
            futimens(self.fd, times)
            self.forget_mtime(times)

    def forget_mtime(self, times: Times) -> None:
        """After somebody set the times."""
        if times[3] != UTIME_OMIT:
            self.kept_mtime_ns = None

    def outlive_crash(self) -> None:
        """A file that was closed before a crash: from now on, it is as long as it says."""
        with self.lock:
            header = self.header
            if header is None or not header.is_clean or header.journal_id not in self.context.crashed:
                return
            with self._writing_fd() as fd:
                if fd is not None:
                    self._write_clean(fd)

    def _write_clean(self, fd: int) -> None:
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
        write_fully(fd, (self.context.pack_header(clean),), 0)
        restore_mtime(fd, mtime)
        self.set_header(clean)
