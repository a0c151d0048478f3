"""A digest of a backing file's nonces and tags: it identifies the chunks without reading them."""

from __future__ import annotations

import hashlib
import os
import struct

from cryptfs.storage.backing import read_fully
from cryptfs.vfs.content.context import FileContext

_INDEX = struct.Struct("<Q")


def digest_of_records(state: hashlib.blake2b, context: FileContext, fd: int, size: int) -> bytes:
    """Hash chunk_index, nonce and tag of each record of a file of `size` plaintext bytes.

    Leaves out holes, also those that the filesystem stores as zeros. Of a cut record, the rest counts.

    Args:   state: the hash to begin with; stays unchanged.
    Raises: OSError.
    Source: docs/FORMAT.md, section 13.
    """
    digest = state.copy()
    geometry, suite = context.geometry, context.config.suite
    count = geometry.chunk_count(size)
    hole = bytes(suite.overhead)
    seam = memoryview(bytearray(suite.overhead))
    index = 0
    while index < count:
        index, stop = _next_data(context, fd, index, count)
        # The tag of one record and the nonce of the next are side by side: one read gets both.
        nonce = _read(fd, seam[: suite.nonce_size], geometry.record_offset(index)) if index < stop else b""
        for chunk_index in range(index, stop):
            is_last = chunk_index == count - 1
            end = geometry.cipher_size(size) if is_last else geometry.record_offset(chunk_index + 1)
            length = suite.tag_size if chunk_index == stop - 1 else suite.overhead
            both = _read(fd, seam[:length], end - suite.tag_size)
            record = nonce + both[: suite.tag_size]
            if record != hole:
                digest.update(_INDEX.pack(chunk_index) + record)
            nonce = both[suite.tag_size :]
        index = stop
    return digest.digest()


def _read(fd: int, buffer: memoryview, offset: int) -> bytes:
    return bytes(buffer[: read_fully(fd, buffer, offset)])


def _next_data(context: FileContext, fd: int, index: int, count: int) -> tuple[int, int]:
    """The next chunks that are not all in a hole of the backing file: the first, and the one after them."""
    geometry = context.geometry
    try:
        start = os.lseek(fd, geometry.record_offset(index), os.SEEK_DATA)
        end = os.lseek(fd, start, os.SEEK_HOLE)
    except OSError:  # ENXIO: only a hole is left, or the filesystem does not know
        if os.fstat(fd).st_size > geometry.record_offset(index) and not _knows_holes(fd):
            return index, count
        return count, count
    first = max(index, geometry.chunk_of_record_byte(start))
    return min(first, count), min(geometry.chunk_of_record_byte(end - 1) + 1, count)


def _knows_holes(fd: int) -> bool:
    try:
        os.lseek(fd, 0, os.SEEK_DATA)
    except OSError:
        return False
    return True
