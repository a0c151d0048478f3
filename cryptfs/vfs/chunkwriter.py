"""Seals runs of plaintext into a backing file: the write half of the data path.

Everything here runs with the FileState's lock held, between the two steps of its change_count.
"""

from __future__ import annotations

import contextlib
import errno
import os

from cryptfs.core.geometry import ChunkSpan
from cryptfs.core.header import HeaderFlag
from cryptfs.errors import ChunkError, HeaderError
from cryptfs.storage.backing import read_fully, write_fully
from cryptfs.storage.libc import FALLOC_KEEP_SIZE, fallocate
from cryptfs.vfs.filestate import FileState
from cryptfs.vfs.inheriting import require_length
from cryptfs.vfs.mtimes import changes_later, stay_ahead
from cryptfs.vfs.redo import SMALL_GROWTH, RedoLog


class ChunkWriter:
    """Read, modify, seal and store the chunks of one file."""

    __slots__ = ("_buffers", "_cipher", "_context", "_geometry", "_state")

    def __init__(self, state: FileState) -> None:
        self._state = state
        self._context = context = state.context
        self._geometry = context.geometry
        self._cipher = context.cipher
        self._buffers = context.buffers

    def write_run(self, offset: int, data: memoryview) -> None:
        """Seal and write data that begins at or before the end of the file.

        Raises: OSError: the backing filesystem refused; old length and old edges are back in place.
                IntegrityError: an edge chunk that has to be merged is damaged.
        """
        state, geometry, buffers = self._state, self._geometry, self._buffers
        span = geometry.span(offset, len(data))
        new_size = max(state.size, offset + len(data))
        sealed = buffers.take(span.chunks * geometry.record_size)
        old_edges: list[tuple[int, bytes]] = []
        try:
            end = self._seal_span(span, data, new_size, sealed, old_edges)
            self._store(span.first, sealed[:end], new_size, old_edges)
            state.size = new_size
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
        """Seal the chunks of a span: whole ones straight from data, edges merged with what was there.

        Returns: bytes of the records in sealed. The old records of merged edges are put in old_edges.
        """
        geometry, cipher, key = self._geometry, self._cipher, self._content_key()
        chunk_size, nonce_size = geometry.chunk_size, self._context.config.suite.nonce_size
        nonces = self._context.nonces(span.chunks)
        place = 0

        def seal(chunk_index: int, plain: memoryview) -> None:
            nonlocal place
            used = (chunk_index - span.first) * nonce_size
            chunks = geometry.chunk_count(len(plain))
            place += cipher.seal_run(
                key, chunk_index, plain, nonces[used : used + chunks * nonce_size], sealed[place:]
            )

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
        """The key to seal with; makes the header of a file that has none, not yet on disk."""
        state = self._state
        if state.header is None:
            state.plan_header(state.context.new_header())
        return state.content_key

    def open_old(self, chunk_index: int, scratch: memoryview) -> bytes:
        """Open a chunk as it is into scratch; returns its old record, b'' where there is no such chunk."""
        state, geometry = self._state, self._geometry
        length = geometry.chunk_length(chunk_index, state.size)
        if not length:
            return b""
        buffer = self._buffers.take(geometry.record_size)
        try:
            record = buffer[: length + geometry.overhead]
            kept = state.overlay.get(chunk_index)
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

    def _store(
        self, first: int, records: memoryview, new_size: int, old_edges: list[tuple[int, bytes]]
    ) -> None:
        """Bring records to the file: what destroys something through the redo log, the rest straight."""
        state, geometry, redo = self._state, self._geometry, self._context.redo
        if redo is None or redo.broken:
            if redo is not None:
                redo.apply(state)
            self._store_straight(first, records, old_edges)
            return
        old_chunks = geometry.chunk_count(state.size)
        grown = state.key in redo.grown
        if first >= old_chunks and not grown:
            self._store_straight(first, records, old_edges)
            return
        header = state.header_for_change()
        if header is not None:
            state.write_header(header)
        kept = min(len(records), max(old_chunks - first, 0) * geometry.record_size)
        grows = new_size > state.size
        if not redo.durable:
            redo.log_write(state, first, records[:kept])
            try:
                self._store_straight(first, records, old_edges)
            except OSError:
                if grows:  # the record's last chunk is longer than what is there again
                    with contextlib.suppress(OSError):
                        state.raise_floor(state.last_seq + 1)
                raise
            return
        if grows or state.sparse:
            self._reserve(first, len(records))
        waiting = len(state.overlay) * geometry.record_size
        if not grows or len(records) + waiting <= SMALL_GROWTH:
            redo.log_write(state, first, records)
            self._keep(redo, first, records)
            if grows:
                redo.grown[state.key] = new_size
            return
        if kept:
            redo.log_write(state, first, records[:kept])
            self._keep(redo, first, records[:kept])
            state.size = max(state.size, geometry.chunk_start(first) + geometry.plain_length(kept))
            redo.grown[state.key] = state.size
        redo.apply(state)
        if kept < len(records):
            self._store_straight(first + kept // geometry.record_size, records[kept:], [])

    def _reserve(self, first: int, size: int) -> None:
        """Room for records that go to their places later, so that they find some. Raises: OSError."""
        start, fd = self._geometry.record_offset(first), self._state.fd
        try:
            fallocate(fd, FALLOC_KEEP_SIZE, start, size)
        except OSError as error:
            if error.errno in (errno.EOPNOTSUPP, errno.ENOSYS):
                return
            if error.errno != errno.ENOSPC:
                raise
            os.fsync(fd)  # ext4 gives nobody what was freed before it has brought that to disk
            fallocate(fd, FALLOC_KEEP_SIZE, start, size)

    def _keep(self, redo: RedoLog, first: int, records: memoryview) -> None:
        """Put records that were logged into the overlay. The file has changed now."""
        changes_later(self._state)
        redo.keep(self._state, first, records)

    def _store_straight(self, first: int, records: memoryview, old_edges: list[tuple[int, bytes]]) -> None:
        """Write records, and the header before them where it must say first that the file changes.

        Raises: OSError: the old length and the old edges are back, as far as the disk lets us.
        """
        state = self._state
        old = state.header
        holes = old is not None and old.flags & HeaderFlag.SPARSE  # not as properties: each write comes here
        if holes and first >= self._geometry.chunk_count(state.size):
            require_length(state)  # between a cut end and these records there would be a hole
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
            # The header may have been in the write that failed: half of it, or whole and not CLEAN.
            with contextlib.suppress(OSError):
                state.write_header(state.header_for_change() or state.header)
        with contextlib.suppress(OSError):
            os.ftruncate(state.fd, 0 if state.header_is_planned else geometry.cipher_size(state.size))
