"""Open files: read, write and truncate over encrypted chunks. The only orchestrator of the data path.

A read:  span of chunks -> one read of their records -> the cipher pool opens them into the reply.
A write: span of chunks -> the old content of the one or two edge chunks that it covers in part ->
         the cipher pool seals all of them under fresh nonces -> one write of the records.

Every change happens with the FileState's lock held. A reader goes without: it looks at change_count before
and after, and takes the lock if a writer came between.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time

from cryptfs.core.geometry import HEADER_SIZE, ChunkSpan
from cryptfs.errors import HeaderError, IntegrityError, ReadOnlyVaultError
from cryptfs.storage.backing import read_fully
from cryptfs.storage.libc import os_error
from cryptfs.vfs.content import lengths
from cryptfs.vfs.content.chunkwriter import ChunkWriter
from cryptfs.vfs.content.filestate import FileState
from cryptfs.vfs.content.homecoming import bring_home, sync
from cryptfs.vfs.content.mtimes import moved_now, moves_now
from cryptfs.vfs.content.others import (
    distrust,
    look_at_length,
    note_change,
    require_current,
    require_length,
    take_over,
)

FILLED_GAP = 4 * 1024 * 1024  # a smaller gap past the end is filled with sealed zeros, a larger one is a hole
_ZEROS = bytes(1024 * 1024)
_RELATIME = 86_400  # seconds after which Linux moves a time of access in any case


class OpenFile:
    """One handle on a file. Offsets and sizes are plaintext bytes.

    Args: state: shared with the other handles on the file.   writable: whether it may change the file.
          st: stat of the backing file at the opening of this handle, if the caller has it.
    keeps_atime: whether its reads leave the time of access alone, as O_NOATIME asks for.
    """

    __slots__ = (
        "_buffers",
        "_cipher",
        "_context",
        "_geometry",
        "_st",
        "keeps_atime",
        "state",
        "writable",
        "writer",
    )

    def __init__(self, state: FileState, *, writable: bool, st: os.stat_result | None = None) -> None:
        self.state = state
        self._st = st
        self.writable = writable
        context = state.context
        self.keeps_atime = context.noatime
        self._context = context
        self._geometry = context.geometry
        self._cipher = context.cipher
        self._buffers = context.buffers
        self.writer = ChunkWriter(state)

    # ---- reading

    def read(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes from `offset`; fewer only at the end of the file.

        Raises: IntegrityError: a chunk is not authentic; returns no byte of it.   OSError.
        """
        out = bytearray(size)
        with memoryview(out) as view:
            got = self.read_into(offset, view)
        del out[got:]
        return bytes(out)

    def read_into(self, offset: int, out: memoryview) -> int:
        """As read, into a buffer; returns the number of bytes."""
        state = self.state
        state.require_loaded()
        before = state.change_count
        if not before & 1:
            try:
                got = self._read_now(offset, out)
            except (IntegrityError, OSError):
                if state.change_count == before:
                    raise
            else:
                if state.change_count == before:
                    require_current(state)
                    return got
        with state.lock:
            got = self._read_now(offset, out)
            require_current(state)
            return got

    @property
    def atime_is_due(self) -> bool:
        """Whether a first read may move the time of access, on a disk with relatime as nearly all have it."""
        if self._context.noatime:
            return False
        st = self._st or os.fstat(self.state.fd)
        late = st.st_atime_ns <= st.st_mtime_ns or st.st_atime_ns <= st.st_ctime_ns
        return late or time.time() - st.st_atime > _RELATIME

    def touch_atime(self) -> None:
        """Move the time of access as a read does: the disk decides."""
        self.state.keep_atime(False)
        os.pread(self.state.fd, 1, 0)

    def _read_now(self, offset: int, out: memoryview, *, patched: bool = True) -> int:
        """patched: whether chunks of the range may be in the overlay as plaintext."""
        state, geometry = self.state, self._geometry
        size = state.size
        length = min(len(out), size - offset)
        if length <= 0:
            return 0
        if patched and state.overlay.patched:
            return self._read_by_chunks(offset, out[:length])
        span = geometry.span(offset, length)
        plain_length = geometry.run_length(span.first, span.last, size)
        cipher_length = geometry.records_size(plain_length)
        buffer = self._buffers.take(cipher_length)
        try:
            sealed = buffer[:cipher_length]
            if state.keeps_atime != self.keeps_atime:
                state.keep_atime(self.keeps_atime)
            got = read_fully(state.fd, sealed, geometry.record_offset(span.first))
            if state.overlay.records:
                got = self._lay_over(span, sealed, got)
            if got < cipher_length:
                raise HeaderError("the file was cut while it was open")
            self._open_span(span, sealed, length, plain_length, out)
        except IntegrityError as error:
            error.cipher_path = state.cipher_path
            raise
        finally:
            self._buffers.give(buffer)
        return length

    def _read_by_chunks(self, offset: int, out: memoryview) -> int:
        """Read a range within the file, some of whose chunks are in the overlay as plaintext."""
        geometry, patched = self._geometry, self.state.overlay.patched
        done, length, from_disk = 0, len(out), False
        while done < length:
            index, start = geometry.chunk_at(offset + done), geometry.offset_in_chunk(offset + done)
            stop = min(done + geometry.chunk_size - start, length)
            chunk = patched.get(index)
            if chunk is not None:
                out[done:stop] = chunk.content[start : start + stop - done]
            else:
                from_disk = True
                while stop < length and (index := index + 1) not in patched:
                    stop = min(stop + geometry.chunk_size, length)
                if self._read_now(offset + done, out[done:stop], patched=False) < stop - done:
                    raise HeaderError(
                        "the file was cut while it was open", cipher_path=self.state.cipher_path
                    )
            done = stop
        if not from_disk and not self._context.noatime:
            self.touch_atime()
        return length

    def _lay_over(self, span: ChunkSpan, sealed: memoryview, got: int) -> int:
        """Put the overlay's records over those from the file; returns the bytes that are valid now."""
        overlay, geometry = self.state.overlay.records, self._geometry
        for index in range(span.first, span.last + 1):
            record = overlay.get(index)
            if record is not None:
                place = geometry.record_start(index - span.first)
                end = min(place + len(record), len(sealed))
                sealed[place:end] = record[: end - place]
                if place <= got:
                    got = max(got, end)
        return got

    def _open_span(
        self, span: ChunkSpan, sealed: memoryview, length: int, plain_length: int, out: memoryview
    ) -> None:
        """Open the records of a span: whole chunks straight into out, edges by way of a scratch buffer."""
        state, geometry = self.state, self._geometry
        key, holes = state.content_key, state.sparse
        start, stop = 0, span.chunks  # chunks of the span that go straight
        cut_tail = plain_length - span.head > length
        if span.head:
            start = 1
        if cut_tail:
            stop -= 1
        if start < stop:
            self._cipher.open_run(
                key,
                span.first + start,
                sealed[geometry.record_start(start) : geometry.record_start(stop)],
                out[geometry.chunk_start(start) - span.head : length],
                holes=holes,
            )
        if not span.head and not cut_tail:
            return
        scratch = self._buffers.take(geometry.chunk_size)
        try:
            if span.head:
                record = sealed[: geometry.record_size]
                got = self._cipher.open_run(key, span.first, record, scratch, holes=holes)
                end = min(got, span.head + length)
                out[: end - span.head] = scratch[span.head : end]
            if cut_tail and stop >= start:
                record = sealed[geometry.record_start(stop) :]
                self._cipher.open_run(key, span.first + stop, record, scratch, holes=holes)
                out[length - span.tail : length] = scratch[: span.tail]
        finally:
            self._buffers.give(scratch)

    # ---- writing

    def append(self, data: memoryview | bytes) -> int:
        """Write all of data at the present end of the file; returns its length."""
        return self.write(None, data)

    def write(self, offset: int | None, data: memoryview | bytes, *, moves_time: bool = True) -> int:
        """Write all of data at offset, which may be past the end; returns its length.

        Args:   offset: None is the end of the file.
                moves_time: whether the time of change moves; else the caller sets it.
        Raises: OSError: the backing filesystem refused; the old length stays, and the old content of chunks
                that the write covers in part.   IntegrityError.
        """
        if offset is not None and offset < 0:
            raise os_error(errno.EFBIG)
        length = len(data)
        if not length:
            return 0
        with self.changing() as state:
            place = state.size if offset is None else offset
            if place + length > self._geometry.max_plain_size:
                raise os_error(errno.EFBIG)
            if moves_time:
                moves_now(state)
            if place > state.size:
                self._fill_gap(place)
            self.writer.write_run(place, memoryview(data))
            if moves_time:
                moved_now(state)
        return length

    def changing(self, *, emptying: bool = False) -> _Change:
        """The lock for a change: `with file.changing() as state`.

        Args: emptying: the change takes all content away, so that damage does not matter.
        """
        state = self.state
        if state.context.read_only:
            raise ReadOnlyVaultError("the vault is mounted read-only")
        if not self.writable:
            raise os_error(errno.EBADF)
        state.context.make_room()
        return _Change(self, emptying=emptying)

    def cut_back(self, size: int) -> None:
        """After a change failed half-way: restore the length from before, as far as the disk lets us."""
        with contextlib.suppress(OSError, IntegrityError):
            if size:
                lengths.shrink(self.state, self.writer, size)
            else:
                state = self.state
                if self._context.redo is not None:
                    self._context.redo.forget(state.overlay)
                state.mark_data()
                os.ftruncate(state.fd, HEADER_SIZE)
                state.cut_to(0)
                state.disown_records()  # its records must not come back

    def _fill_gap(self, offset: int) -> None:
        state = self.state
        if offset - state.size > FILLED_GAP:
            self.grow_hole(offset)
        else:
            self.write_zeros(state.size, offset)

    def write_zeros(self, start: int, stop: int) -> None:
        """Write sealed zeros over a range that begins at or before the end of the file."""
        while start < stop:
            piece = min(stop - start, len(_ZEROS) - self._geometry.offset_in_chunk(start))
            self.writer.write_run(start, memoryview(_ZEROS)[:piece])
            start += piece

    def grow_hole(self, new_size: int) -> None:
        """Make the file longer with a hole; fills its partial last chunk with sealed zeros."""
        state, geometry = self.state, self._geometry
        state.announce(sparse=True)
        last_end = geometry.chunk_start(geometry.chunk_count(state.size))
        self.write_zeros(state.size, min(last_end, new_size))
        if state.size < new_size:
            bring_home(state)
            require_length(state)
            state.mark_data()
            os.ftruncate(state.fd, geometry.cipher_size(new_size))
            state.grew_to(new_size)

    # ---- length

    def truncate(self, size: int) -> None:
        """Set the length: cut, or grow with a hole.

        Raises: OSError.   IntegrityError: the file is damaged (a truncate to zero works all the same).
        """
        if not 0 <= size <= self._geometry.max_plain_size:
            code = errno.EFBIG if size > 0 else errno.EINVAL
            raise os_error(code)
        if size == 0:
            self._truncate_to_zero()
            return
        with self.changing() as state:
            moves_now(state)
            if size > state.size:
                self.grow_hole(size)
            elif size < state.size:
                lengths.shrink(self.state, self.writer, size)
            else:
                bring_home(state)
                require_length(state)
                os.ftruncate(state.fd, self._geometry.cipher_size(size))  # for the times
            moved_now(state)

    def _truncate_to_zero(self) -> None:
        """As truncate; also of a file that does not authenticate."""
        with self.changing(emptying=True) as state:
            moves_now(state)
            lengths.truncate_to_zero(state)
            moved_now(state)

    # ---- durability

    def sync(self, *, data_only: bool) -> None:
        """Bring the file to disk: in its place, or in the journal.

        Raises: OSError.   IntegrityError: somebody else has changed it in place.
        """
        distrust(self.state)
        require_current(self.state)
        sync(self.state, data_only=data_only)


class _Change:
    """Holds the lock for a change, and lets readers notice it. A failed change makes the file no longer."""

    __slots__ = ("_emptying", "_file", "_loaded", "_size", "_state")

    def __init__(self, file: OpenFile, *, emptying: bool = False) -> None:
        self._file = file
        self._state = file.state
        self._size = 0
        self._emptying = emptying
        self._loaded = self._state.loaded  # else it is loaded now, and nothing can have happened since
        try:
            file.state.require_loaded()
        except IntegrityError:
            if not emptying:
                raise

    def __enter__(self) -> FileState:
        state = self._state
        state.lock.acquire()
        try:
            if self._loaded:
                require_current(state)
                if not (state.changes or self._emptying):
                    look_at_length(state)
            if state.inherited is not None and not self._emptying:
                take_over(state)
        except BaseException:
            state.lock.release()
            raise
        state.begin_change()
        self._size = state.size
        return state

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                note_change(self._state)
            elif issubclass(kind, Exception) and self._state.size > self._size:
                self._file.cut_back(self._size)
        finally:
            self._state.end_change()
            self._state.lock.release()
