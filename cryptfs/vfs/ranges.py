"""Ranges of open files: fallocate(2) and lseek(2) with SEEK_DATA and SEEK_HOLE.

A hole of the plaintext is a chunk whose record is all zeros in a file with the SPARSE flag. Where the
backing filesystem keeps such records as holes of its own, they are found without reading them.
"""

from __future__ import annotations

import errno
import os

from cryptfs.storage.libc import FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, FALLOC_ZERO_RANGE, fallocate
from cryptfs.vfs.filestate import FileState
from cryptfs.vfs.inheriting import require_length
from cryptfs.vfs.lengths import punch, settle_overlay
from cryptfs.vfs.mtimes import stay_ahead
from cryptfs.vfs.openfile import OpenFile


def _error(code: int) -> OSError:
    return OSError(code, os.strerror(code))


def allocate(file: OpenFile, mode: int, offset: int, length: int) -> None:
    """fallocate(2) with modes 0, KEEP_SIZE, PUNCH_HOLE | KEEP_SIZE and ZERO_RANGE.

    Raises: OSError: EOPNOTSUPP for another mode or where the backing filesystem lacks it; EINVAL, EFBIG.
    """
    if offset < 0 or length <= 0:
        raise _error(errno.EINVAL)
    end = offset + length
    if end > file.state.context.geometry.max_plain_size:
        raise _error(errno.EFBIG)
    with file.changing() as state:
        if mode in (0, FALLOC_KEEP_SIZE):
            _reserve(state, offset, end)
        elif mode == FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE or mode & ~FALLOC_KEEP_SIZE == FALLOC_ZERO_RANGE:
            _zero(file, offset, min(end, state.size))
        else:
            raise _error(errno.EOPNOTSUPP)
        if not mode & FALLOC_KEEP_SIZE and end > state.size:
            file.grow_hole(end)
        stay_ahead(state)


def _reserve(state: FileState, offset: int, end: int) -> None:
    """Reserve room in the backing file for the records of a range, without changing its length."""
    geometry = state.context.geometry
    span = geometry.span(offset, end - offset)
    start = geometry.record_offset(span.first) if span.first else 0
    stop = geometry.cipher_size(end)
    state.mark_data()
    fallocate(state.fd, FALLOC_KEEP_SIZE, start, stop - start)


def _zero(file: OpenFile, offset: int, end: int) -> None:
    """Make a range within the file read as zeros: whole chunks become holes, edges sealed zeros."""
    state = file.state
    if offset >= end:
        return
    geometry = state.context.geometry
    span = geometry.span(offset, end - offset)
    first, stop = span.first, span.last + 1
    if span.head:
        first += 1
    if span.tail < geometry.chunk_length(span.last, state.size):
        stop -= 1
    if first >= stop:
        file.write_zeros(offset, end)
        return
    file.write_zeros(offset, geometry.chunk_start(first) if span.head else offset)
    if stop <= span.last:
        file.write_zeros(geometry.chunk_start(stop), end)
    file.announce(sparse=True)
    punch(state, first, stop)


def seek(file: OpenFile, offset: int, whence: int) -> int:
    """lseek(2) with SEEK_DATA or SEEK_HOLE: the plaintext offset found.

    Raises: OSError: ENXIO past the end, or where no data follows; EINVAL for another whence.
            IntegrityError: the file is damaged.
    """
    state = file.state
    state.require_loaded()
    with state.lock:
        settle_overlay(state)
        require_length(state)  # what was cut off is no hole
        size = state.size
        if not 0 <= offset < size:
            raise _error(errno.ENXIO)
        if whence == os.SEEK_DATA:
            found = _next_data(state, offset)
            if found is None:
                raise _error(errno.ENXIO)
            return found
        if whence == os.SEEK_HOLE:
            return _next_hole(state, offset)
    raise _error(errno.EINVAL)


def _next_data(state: FileState, offset: int) -> int | None:
    """First offset from `offset` on that lies in a chunk with any byte in the backing file."""
    if not state.sparse:
        return offset
    geometry = state.context.geometry
    record = geometry.record_offset(offset // geometry.chunk_size)
    try:
        found = os.lseek(state.fd, record, os.SEEK_DATA)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return None
        raise
    start = geometry.chunk_start(geometry.chunk_of_record_byte(found))
    return max(offset, start) if start < state.size else None


def _next_hole(state: FileState, offset: int) -> int:
    """First offset from `offset` on in a chunk whose whole record is a hole; the end of the file counts."""
    if not state.sparse:
        return state.size
    geometry = state.context.geometry
    index = offset // geometry.chunk_size
    while geometry.chunk_start(index) < state.size:
        hole = os.lseek(state.fd, geometry.record_offset(index), os.SEEK_HOLE)
        # The first chunk whose record begins in that hole.
        index = max(index, geometry.chunk_of_record_byte(hole + geometry.record_size - 1))
        start = geometry.chunk_start(index)
        if start >= state.size:
            break
        data = _next_data(state, start)
        if data is None or data > start:
            return max(offset, start)
        index += 1
    return state.size
