"""Seals runs of plaintext into a backing file: the write half of the data path.

Everything here runs with the FileState's lock held, between the two steps of its change_count.
"""

from __future__ import annotations

import contextlib
import errno
import os

from cryptfs.core.format.delta import Delta, delta_key
from cryptfs.core.format.header import HeaderFlag
from cryptfs.core.geometry import ChunkSpan
from cryptfs.errors import ChunkError, HeaderError
from cryptfs.storage.backing import read_fully, write_fully
from cryptfs.storage.libc import FALLOC_KEEP_SIZE, fallocate
from cryptfs.vfs.content.filestate import FileState
from cryptfs.vfs.content.homecoming import bring_home, newest_record
from cryptfs.vfs.content.mtimes import changes_later, stay_ahead
from cryptfs.vfs.content.others import require_length
from cryptfs.vfs.content.parts import PatchedChunk
from cryptfs.vfs.content.redo import SMALL_GROWTH, RedoLog


class ChunkWriter:
    """Read, modify, seal and store the chunks of one file."""

    __slots__ = ("_buffers", "_cipher", "_context", "_delta_key", "_geometry", "_state")

    def __init__(self, state: FileState) -> None:
        self._state = state
        self._context = context = state.context
        self._geometry = context.geometry
        self._cipher = context.cipher
        self._buffers = context.buffers
        self._delta_key = (b"", b"")  # the key of the content, and the one for its deltas

    def write_run(self, offset: int, data: memoryview) -> None:
        """Seal and write data that begins at or before the end of the file.

        Raises: OSError: the backing filesystem refused; old length and old edges are back in place.
                IntegrityError: an edge chunk of the range is damaged.
        """
        state, geometry, buffers = self._state, self._geometry, self._buffers
        span = geometry.span(offset, len(data))
        new_size = max(state.size, offset + len(data))
        if state.overlay.wholes and span.first == span.last and self._write_delta(span, data, new_size):
            state.grew_to(new_size)
            return
        sealed = buffers.take(geometry.record_start(span.chunks))
        old_edges: list[tuple[int, bytes]] = []
        try:
            end = self._seal_span(span, data, new_size, sealed, old_edges)
            self._store(span.first, sealed[:end], new_size, old_edges)
            state.grew_to(new_size)
        finally:
            buffers.give(sealed)

    def _seal_span(
        self,
        span: ChunkSpan,
        data: memoryview,
        new_size: int,
        sealed: memoryview,
        old_edges: list[tuple[int, bytes]],
    ) -> int:
        """Seal the chunks of a span: whole ones straight from data, edges merged with the old content.

        Returns: bytes of the records in sealed. Puts the old records of merged edges into old_edges.
        """
        geometry, cipher, key = self._geometry, self._cipher, self._content_key()
        chunk_size, nonces_size = geometry.chunk_size, self._context.suite.nonces_size
        nonces = self._context.nonces(span.chunks)
        place = 0

        def seal(chunk_index: int, plain: memoryview) -> None:
            nonlocal place, nonces
            used = nonces_size(geometry.chunk_count(len(plain)))
            place += cipher.seal_run(key, chunk_index, plain, nonces[:used], sealed[place:])
            nonces = nonces[used:]

        def seal_merged(chunk_index: int, start: int, piece: memoryview) -> None:
            scratch = self._buffers.take(chunk_size)
            try:
                old = self.open_old(chunk_index, scratch)
                if old:
                    old_edges.append((chunk_index, old))
                scratch[start : start + len(piece)] = piece
                seal(chunk_index, scratch[: geometry.chunk_length(chunk_index, new_size)])
            finally:
                self._buffers.give(scratch)

        tail_merged = span.tail < geometry.chunk_length(span.last, new_size)
        if span.first == span.last:
            if span.head or tail_merged:
                seal_merged(span.first, span.head, data)
            else:
                seal(span.first, data)
            return place
        start, stop = span.first, len(data)
        done = 0
        if span.head:
            done = chunk_size - span.head
            seal_merged(span.first, span.head, data[:done])
            start += 1
        if tail_merged:
            stop -= span.tail
        if done < stop:
            seal(start, data[done:stop])
        if tail_merged:
            seal_merged(span.last, 0, data[stop:])
        return place

    def _content_key(self) -> bytes:
        """The key to seal with; gives a file without a header one, not yet on disk."""
        state = self._state
        if state.header is None:
            state.plan_header(state.context.new_header())
        return state.content_key

    def open_old(self, chunk_index: int, scratch: memoryview) -> bytes:
        """Open a chunk as it is into scratch; returns its old record, b'' if there is no such chunk."""
        state, geometry = self._state, self._geometry
        length = geometry.chunk_length(chunk_index, state.size)
        if not length:
            return b""
        buffer = self._buffers.take(geometry.record_size)
        try:
            patched = state.overlay.patched.get(chunk_index)
            if patched is not None:
                scratch[:length] = patched.content[:length]
                return newest_record(state, chunk_index)
            record = buffer[: geometry.record_length(length)]
            kept = state.overlay.records.get(chunk_index)
            state.keep_atime(True)
            if kept is not None:
                record[:] = kept
            elif read_fully(state.fd, record, geometry.record_offset(chunk_index)) < len(record):
                raise HeaderError("the file was cut while it was open", cipher_path=state.cipher_path)
            try:
                self._cipher.open_run(state.content_key, chunk_index, record, scratch, holes=state.sparse)
            except ChunkError as error:
                error.cipher_path = state.cipher_path
                raise
            return bytes(record)
        finally:
            self._buffers.give(buffer)

    def _write_delta(self, span: ChunkSpan, data: memoryview, new_size: int) -> bool:
        """Level power: log the changed part of one chunk, if the journal has the chunk already.

        Returns: False if it takes a whole record; then nothing has changed.   Raises: as write_run.
        """
        state, redo, geometry = self._state, self._context.redo, self._geometry
        index = span.first
        if redo is None or not redo.takes_delta(state.overlay, index):
            return False
        length = geometry.chunk_length(index, state.size)
        new_length = geometry.chunk_length(index, new_size)
        record_length = geometry.record_length(new_length)
        covered = geometry.delta_range(span.head, span.tail, new_length)
        grows = new_size > state.size
        if covered is None or (grows and not self._is_small(record_length)):
            return False
        state.announce()
        header = state.header
        if header is None or header.journal_floor > state.overlay.wholes[index]:
            return False  # a replay would leave out what the delta applies to
        if grows or state.sparse:
            self._reserve(index, record_length)
        chunk = self._patched(redo, index, length)
        start, stop = covered
        piece = chunk.content[start:stop]
        piece[span.head - start : span.tail - start] = data
        cipher, key, nonce = self._context.delta_cipher, self._key_of_deltas(), self._context.nonces(1)
        payload = cipher.seal(key, index, Delta(length, start, chunk.ends, bytes(piece)), nonce)
        ends = cipher.ends(payload)
        changes_later(state)
        if not redo.log_delta(state.logged, index, geometry.chunk_start(index) + new_length, payload):
            return False
        # From here on nothing may fail: what the journal has and what the overlay has are the same again.
        chunk.content[start:stop] = piece
        chunk.length, chunk.ends = new_length, ends
        if grows:
            redo.grown[state.key] = new_size
        return True

    def _patched(self, redo: RedoLog, chunk_index: int, length: int) -> PatchedChunk:
        """The plaintext of a chunk in the overlay, which has it from now on."""
        overlay = self._state.overlay
        chunk = overlay.patched.get(chunk_index)
        if chunk is None:
            content = bytearray(self._geometry.chunk_size)
            ends = self._context.delta_cipher.ends(self.open_old(chunk_index, memoryview(content)))
            chunk = PatchedChunk(content, length, ends)
            redo.patch(overlay, chunk_index, chunk)
        return chunk

    def _key_of_deltas(self) -> bytes:
        content_key, key = self._delta_key
        if content_key is not self._state.content_key:
            content_key = self._state.content_key
            key = delta_key(content_key)
            self._delta_key = (content_key, key)
        return key

    def _store(
        self, first: int, records: memoryview, new_size: int, old_edges: list[tuple[int, bytes]]
    ) -> None:
        """Bring records to the file: through the redo log if they destroy something, else straight."""
        state, redo = self._state, self._context.redo
        if redo is None or redo.broken:
            bring_home(state)
            self._write_straight(first, records, old_edges)
            return
        geometry = self._geometry
        there = geometry.record_start(max(geometry.chunk_count(state.size) - first, 0))
        if not there and state.key not in redo.grown:
            self._write_straight(first, records, old_edges)
            return
        state.announce()
        if not redo.durable:
            self._overwrite_logged(redo, first, records, records[:there], new_size, old_edges)
            return
        grows = new_size > state.size
        if grows or state.sparse:
            self._reserve(first, len(records))
        if not grows:
            self._hold_back(redo, first, records)
        elif self._is_small(len(records)):
            self._hold_back(redo, first, records)
            redo.grown[state.key] = new_size
        else:
            self._hold_back_and_extend(redo, first, records, there)

    def _is_small(self, size: int) -> bool:
        """Whether records that make the file longer may wait in the overlay, beside those already there."""
        return size + self._geometry.record_start(len(self._state.overlay.records)) <= SMALL_GROWTH

    def _overwrite_logged(
        self,
        redo: RedoLog,
        first: int,
        records: memoryview,
        logged: memoryview,
        new_size: int,
        old_edges: list[tuple[int, bytes]],
    ) -> None:
        """Level process: log the records that replace chunks, and write all at once.   logged: the former."""
        state = self._state
        bring_home(state)  # an earlier write may have failed
        if new_size > state.size:
            old_edges = [*old_edges, *self._old_last(first, old_edges)]
        redo.log_write(state.logged, first, logged)
        try:
            self._write_straight(first, records, old_edges)
        except OSError:
            with contextlib.suppress(OSError):
                self._keep_torn(redo, first, logged, grows=new_size > state.size)
            raise

    def _old_last(self, first: int, old_edges: list[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
        """The last chunk's record, if a write from chunk `first` on replaces and lengthens it unread."""
        state, geometry = self._state, self._geometry
        last = geometry.chunk_at(state.size)
        length = geometry.chunk_length(last, state.size)
        if not length or last < first or any(index == last for index, _ in old_edges):
            return []
        record = memoryview(bytearray(geometry.record_length(length)))
        read_fully(state.fd, record, geometry.record_offset(last))
        return [(last, bytes(record))]

    def _keep_torn(self, redo: RedoLog, first: int, logged: memoryview, *, grows: bool) -> None:
        """Level process, after a write that failed: its chunks may be torn, and are whole in the log alone.

        Args: grows: then the last chunk is restored, and shorter than in the log's record.
        Raises: OSError: they are not in the log.
        """
        state, geometry = self._state, self._geometry
        if grows:
            state.disown_records()
            whole = geometry.chunk_at(state.size) - first  # chunks before the one that was restored
            logged = logged[: geometry.record_start(max(whole, 0))]
            if not logged:
                return
            redo.log_write(state.logged, first, logged)
        redo.keep(state.overlay, first, logged)

    def _hold_back(self, redo: RedoLog, first: int, records: memoryview) -> None:
        """Level power: log records, and keep them until the log is on disk. Readers see them from now on."""
        changes_later(self._state)  # before the record, which counts from then on
        redo.log_write(self._state.logged, first, records)
        redo.keep(self._state.overlay, first, records)

    def _hold_back_and_extend(self, redo: RedoLog, first: int, records: memoryview, there: int) -> None:
        """Level power: records of existing chunks go by the log, then the new ones straight.

        Args: there: bytes of the records of existing chunks.
        """
        state, geometry = self._state, self._geometry
        there = min(there, len(records))
        stays = 0 < there < len(records) and self._owes_nothing_from(redo, first)
        if there:
            self._hold_back(redo, first, records[:there])
            state.grew_to(max(state.size, geometry.chunk_start(first) + geometry.plain_length(there)))
            redo.grown[state.key] = state.size
        if not stays:
            bring_home(state)
        if there < len(records):
            self._write_straight(first + geometry.whole_records(there), records[there:], [])
            if stays:
                redo.reached(state.overlay)

    def _owes_nothing_from(self, redo: RedoLog, first: int) -> bool:
        """Whether a loss of power may take the chunks from `first` on: no sync has promised any of them.

        Then the last chunk, which a stream of writes makes longer, stays in the overlay while the new ones
        reach their places. Else it must be home before them, and so the journal on disk: a file that is
        longer than the end of that chunk leaves no place for its old, shorter record.
        """
        state = self._state
        if state.synced or state.sparse or state.durable_size > self._geometry.chunk_start(first):
            return False
        # An earlier chunk whose growth waits may have old content that was synced.
        return not state.durable_size or state.key not in redo.grown

    def _reserve(self, first: int, size: int) -> None:
        """Reserve room now for records that go to their places later. Raises: OSError."""
        start, fd = self._geometry.record_offset(first), self._state.fd
        self._state.note_time_moved()
        try:
            fallocate(fd, FALLOC_KEEP_SIZE, start, size)
        except OSError as error:
            if error.errno in (errno.EOPNOTSUPP, errno.ENOSYS):
                return
            if error.errno != errno.ENOSPC:
                raise
            self._state.sync_backing(
                data_only=False
            )  # ext4 gives freed room to nobody before the change is on disk
            fallocate(fd, FALLOC_KEEP_SIZE, start, size)

    def _write_straight(self, first: int, records: memoryview, old_edges: list[tuple[int, bytes]]) -> None:
        """Write records, and before them the header if it must say first that the file changes.

        Raises: OSError: the old length and the old edges are back, as far as the disk lets us.
        """
        state = self._state
        old = state.header
        holes = old is not None and old.flags & HeaderFlag.SPARSE  # not as properties: each write comes here
        if holes and first >= self._geometry.chunk_count(state.size):
            require_length(state)  # a cut end would leave a hole before these records
        header = state.header_for_change()
        state.mark_data()
        try:
            if header is None:
                write_fully(state.fd, (records,), self._geometry.record_offset(first))
            elif first == 0:
                state.write_header(header, records)
            else:
                state.write_header(header)
                write_fully(state.fd, (records,), self._geometry.record_offset(first))
        except OSError:
            self._undo(old_edges)
            raise
        if state.mtime_is_ahead:
            stay_ahead(state)

    def _undo(self, old_edges: list[tuple[int, bytes]]) -> None:
        """After a failed write: the old length and the old edge records, as far as the disk lets us."""
        state, geometry = self._state, self._geometry
        for chunk_index, record in old_edges:
            with contextlib.suppress(OSError):
                write_fully(state.fd, (record,), geometry.record_offset(chunk_index))
        if state.header is not None and not state.header_is_planned:
            # The write that failed may have contained the header: half of it, or all of it, not CLEAN.
            with contextlib.suppress(OSError):
                state.write_header(state.header_for_change() or state.header)
        with contextlib.suppress(OSError):
            os.ftruncate(state.fd, 0 if state.header_is_planned else geometry.cipher_size(state.size))
