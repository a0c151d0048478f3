"""Redoes the records of one file after a crash, in order, each only if it verifies.

A delta applies to the content that the records before it made, never to that of the file, which may be torn.
So a replay that is killed can begin again. Source: docs/FORMAT.md, section 10.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from typing import NamedTuple

from cryptfs.core.format.delta import delta_key
from cryptfs.core.format.header import FileHeader
from cryptfs.core.format.journal import JournalRecord, Operation, counted_size, payload_digest
from cryptfs.errors import ChunkError
from cryptfs.storage.backing import read_fully, write_fully
from cryptfs.storage.libc import FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, fallocate
from cryptfs.vfs.content.context import FileContext

_ZEROS = bytes(1024 * 1024)


class FoundRecord(NamedTuple):
    """A record that authenticates. fd: of its journal file.   payload: its place there, and its size."""

    record: JournalRecord
    fd: int
    payload: int
    payload_size: int


class _Content(NamedTuple):
    """What the last record about a chunk made of it. ends: nonce and tag of that record's value."""

    plain: bytes
    ends: bytes


class FileRedo:
    """Args: fd: of the file, for reading and writing.   header: of it.   records: all that may count."""

    def __init__(
        self, context: FileContext, fd: int, header: FileHeader, records: Iterable[FoundRecord]
    ) -> None:
        self._context = context
        self._geometry = context.geometry
        self._fd = fd
        self._header = header
        self._key = context.content_key_of(header)
        self._deltas = context.delta_cipher
        self._changed = {each.record.first for each in records if each.record.operation is Operation.DELTA}
        self._contents: dict[int, _Content] = {}  # of chunks that deltas are about

    def redo(self, found: FoundRecord) -> bool:
        """Redo one record, as far as the file reaches; False if it does not verify.

        Raises: OSError: the file could not be written.
        """
        payload = self._payload(found)
        if payload is None:
            return False
        if found.record.operation is Operation.WRITE:
            return self._redo_write(found.record, payload)
        if found.record.operation is Operation.DELTA:
            return self._redo_delta(found.record, payload)
        if found.record.operation is Operation.SHRINK:
            return self._redo_shrink(found.record, payload)
        return self._redo_punch(found.record)

    def _payload(self, found: FoundRecord) -> memoryview | None:
        """A record's payload, if it has the digest."""
        record, suite = found.record, self._context.suite
        if found.payload + found.payload_size > os.fstat(found.fd).st_size:
            return None
        payload = memoryview(bytearray(found.payload_size))
        if read_fully(found.fd, payload, found.payload) < len(payload):
            return None
        counted = counted_size(record.operation, len(payload), self._geometry.record_size)
        digest = payload_digest(record.path, payload, counted, suite.nonce_size, suite.tag_size)
        return payload if digest == record.digest else None

    def _open(self, first: int, payload: memoryview) -> memoryview | None:
        """The plaintext of chunk records, if all of them authenticate."""
        plain = memoryview(bytearray(self._geometry.plain_length(len(payload)) or 1))
        try:
            got = self._context.cipher.open_run(
                self._key, first, payload, plain, holes=self._header.is_sparse
            )
        except ChunkError:
            return None
        return plain[:got]

    def _redo_write(self, record: JournalRecord, payload: memoryview) -> bool:
        plain = self._open(record.first, payload)
        if plain is None or self._is_unannounced_growth(record):
            return False
        if self._changed:
            self._keep(record.first, payload, plain)
        if self._reaches(record):
            self._write(record.first, payload)
        return True

    def _keep(self, first: int, payload: memoryview, plain: memoryview) -> None:
        """Keep the content of the chunks that deltas are about."""
        geometry = self._geometry
        for place in range(geometry.record_count(len(payload))):
            if first + place in self._changed:
                record = payload[geometry.record_start(place) : geometry.record_start(place + 1)]
                content = bytes(plain[geometry.chunk_start(place) : geometry.chunk_start(place + 1)])
                self._contents[first + place] = _Content(content, self._deltas.ends(record))

    def _redo_delta(self, record: JournalRecord, payload: memoryview) -> bool:
        index, sealed = record.first, bytes(payload)
        delta = self._deltas.open(delta_key(self._key), index, sealed)
        before = self._contents.get(index)
        if delta is None or before is None or (delta.length, delta.base) != (len(before.plain), before.ends):
            return False
        if record.size != self._geometry.chunk_start(index) + delta.new_length:
            return False
        if self._is_unannounced_growth(record):
            return False
        behind = before.plain[delta.offset + len(delta.data) :]
        plain = before.plain[: delta.offset] + delta.data + behind
        self._contents[index] = _Content(plain, self._deltas.ends(sealed))
        if self._reaches(record):
            whole = memoryview(bytearray(self._geometry.record_length(len(plain))))
            self._context.cipher.seal_run(self._key, index, plain, self._context.nonces(1), whole)
            self._write(index, whole)
        return True

    def _redo_shrink(self, record: JournalRecord, payload: memoryview) -> bool:
        geometry, fd = self._geometry, self._fd
        if len(payload) and self._open(record.first, payload) is None:
            return False
        if record.size < self._header.size_min:
            return False  # the header that announces it never reached the disk: so neither did the cut
        self._forget(record.first)
        if geometry.plain_size_floor(os.fstat(fd).st_size) >= record.size:
            if len(payload):
                write_fully(fd, (payload,), geometry.record_offset(record.first))
            os.ftruncate(fd, min(geometry.cipher_size(record.size), os.fstat(fd).st_size))
        return True

    def _redo_punch(self, record: JournalRecord) -> bool:
        geometry, fd = self._geometry, self._fd
        if not self._header.is_sparse:
            return False
        self._forget(record.first, record.size)
        start = geometry.record_offset(record.first)
        stop = min(geometry.record_offset(record.size), os.fstat(fd).st_size)
        if record.first < record.size and start < stop:
            _punch(fd, start, stop)
        return True

    def _forget(self, first: int, stop: int | None = None) -> None:
        for index in list(self._contents):
            if index >= first and (stop is None or index < stop):
                del self._contents[index]

    def _is_unannounced_growth(self, record: JournalRecord) -> bool:
        """Whether the file would grow under a CLEAN header: its last chunk, trimmed then, would not open.

        The header that announces the growth never reached the disk.
        """
        return self._header.is_clean and record.size > self._header.size

    def _reaches(self, record: JournalRecord) -> bool:
        """Whether the file reaches to the place of a write or a delta.

        If not, an earlier write that was never synced did not reach the disk, or a later cut removed it. So
        there is nothing to redo, and the file's later records still count.
        """
        size = self._geometry.plain_size_floor(os.fstat(self._fd).st_size)
        return size >= self._geometry.chunk_start(record.first)

    def _write(self, first: int, payload: memoryview) -> None:
        """Put chunk records in their places. A short last one belongs only at the end of the file.

        If the file has more of that chunk, or chunks after it, a later record is already in place.
        """
        geometry, fd = self._geometry, self._fd
        short = geometry.short_record(len(payload))
        start = geometry.record_offset(first)
        if short and os.fstat(fd).st_size > start + len(payload):
            payload = payload[: len(payload) - short]
        write_fully(fd, (payload,), start)


def _punch(fd: int, start: int, stop: int) -> None:
    """Make a range of a SPARSE file a hole, or zeros, which say the same, where holes cannot be made."""
    try:
        fallocate(fd, FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE, start, stop - start)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        zeros = memoryview(_ZEROS)
        for place in range(start, stop, len(zeros)):
            write_fully(fd, (zeros[: stop - place],), place)
