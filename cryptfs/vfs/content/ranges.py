"""Ranges of open files: fallocate(2) and lseek(2) with SEEK_DATA and SEEK_HOLE.

A hole of the plaintext is a chunk whose record is all zeros in a file with the SPARSE flag. If the backing
filesystem keeps such records as holes of its own, the search finds them nearly without reading.
"""

from __future__ import annotations

import errno
import os

from cryptfs.storage.libc import FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, FALLOC_ZERO_RANGE, fallocate, os_error
from cryptfs.vfs.content.filestate import FileState
from cryptfs.vfs.content.homecoming import bring_home
from cryptfs.vfs.content.lengths import punch
from cryptfs.vfs.content.mtimes import ahead_again, moved_now, moves_now, stay_ahead
from cryptfs.vfs.content.openfile import OpenFile
from cryptfs.vfs.content.others import require_length

_LARGEST_BLOCK = 2 * 1024 * 1024  # of a backing file, a huge page: more zeros in a row count as data


def allocate(file: OpenFile, mode: int, offset: int, length: int, *, moves_time: bool = True) -> None:
    """fallocate(2) with modes 0, KEEP_SIZE, PUNCH_HOLE | KEEP_SIZE and ZERO_RANGE.

    Args:   moves_time: whether the time of change moves, as the backing filesystem moves it; else the caller
                        sets it.
    Raises: OSError: EOPNOTSUPP for another mode or a backing filesystem without it; EINVAL, EFBIG.
    """
    if offset < 0 or length <= 0:
        raise os_error(errno.EINVAL)
    end = offset + length
    if end > file.state.context.geometry.max_plain_size:
        raise os_error(errno.EFBIG)
    with file.changing() as state:
        was_ahead = moves_time and state.mtime_is_ahead
        if moves_time:
            moves_now(state)
        try:
            _allocate(file, mode, offset, end)
        finally:
            if was_ahead:
                ahead_again(state)
            else:
                stay_ahead(state)
            if moves_time:
                moved_now(state)


def _allocate(file: OpenFile, mode: int, offset: int, end: int) -> None:
    """As allocate; the lock is held."""
    state = file.state
    if mode in (0, FALLOC_KEEP_SIZE):
        _reserve(state, offset, end)
    elif mode == FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE or mode & ~FALLOC_KEEP_SIZE == FALLOC_ZERO_RANGE:
        _zero(file, offset, min(end, state.size))
    else:
        raise os_error(errno.EOPNOTSUPP)
    if not mode & FALLOC_KEEP_SIZE and end > state.size:
        file.grow_hole(end)


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
    state.announce(sparse=True)
    punch(state, first, stop)


def seek(file: OpenFile, offset: int, whence: int) -> int:
    """lseek(2) with SEEK_DATA or SEEK_HOLE: the plaintext offset found.

    Raises: OSError: ENXIO past the end, or if no data follows; EINVAL for another whence.
            IntegrityError: the file is damaged.
    """
    state = file.state
    state.require_loaded()
    with state.lock:
        bring_home(state)
        require_length(state)  # a cut end is no hole
        size = state.size
        if not 0 <= offset < size:
            raise os_error(errno.ENXIO)
        if whence == os.SEEK_DATA:
            found = _next_data(state, offset)
            if found is None:
                raise os_error(errno.ENXIO)
            return found
        if whence == os.SEEK_HOLE:
            return _next_hole(state, offset)
    raise os_error(errno.EINVAL)


def _next_data(state: FileState, offset: int) -> int | None:
    """First offset from `offset` on in a chunk with data.

    A record begins in the middle of a block. So a block with data may hold zeros of the hole before it.
    """
    if not state.sparse:
        return offset
    geometry = state.context.geometry
    index = geometry.chunk_at(offset)
    looks = geometry.record_count(_LARGEST_BLOCK)
    while True:
        try:
            found = os.lseek(state.fd, geometry.record_offset(index), os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return None
            raise
        index = max(index, geometry.chunk_of_record_byte(found))
        start = geometry.chunk_start(index)
        if start >= state.size:
            return None
        if not looks or not _is_hole(state, index):
            return max(offset, start)
        index += 1
        looks -= 1


def _next_hole(state: FileState, offset: int) -> int:
    """First offset from `offset` on in a chunk that is a hole; the end of the file counts."""
    if not state.sparse:
        return state.size
    geometry = state.context.geometry
    index = geometry.chunk_at(offset)
    while geometry.chunk_start(index) < state.size:
        if _is_hole(state, index):
            return max(offset, geometry.chunk_start(index))
        hole = os.lseek(state.fd, geometry.record_offset(index), os.SEEK_HOLE)
        # The record before the first whole hole may be zeros in a block with data.
        index = max(index + 1, geometry.first_record_from(hole) - 1)
    return state.size


def _is_hole(state: FileState, index: int) -> bool:
    """Whether a chunk of a file with holes is one: its record is all zeros."""
    geometry = state.context.geometry
    at = geometry.record_offset(index)
    state.keep_atime(True)
    record = os.pread(state.fd, geometry.record_offset(index + 1) - at, at)
    return record.count(0) == len(record)
