"""How long a file is whose writer died: its header is not CLEAN, its last records may be torn.

Source: docs/FORMAT.md, section 4 ("Recovery").
"""

from __future__ import annotations

import errno
import os

from cryptfs.core.geometry import ChunkGeometry
from cryptfs.core.header import FileHeader
from cryptfs.errors import ChunkError, HeaderError
from cryptfs.storage.backing import read_fully
from cryptfs.vfs.context import FileContext


def recovered_size(context: FileContext, fd: int, header: FileHeader, key: bytes, cipher_size: int) -> int:
    """Plaintext bytes that the file holds for certain at its end.

    A piece behind the last record that authenticates is torn, but only behind size_min: what was there
    before the writer began is never given up silently.

    Raises: HeaderError: the file is shorter than size_min, so somebody cut it.
    """
    geometry = context.geometry
    size = geometry.plain_size_floor(cipher_size)
    if size < header.size_min:
        raise HeaderError(
            f"the file was cut: {size} bytes of plaintext instead of at least {header.size_min}"
        )
    holes = header.is_sparse
    sealed = context.buffers.take(geometry.record_size)
    plain = context.buffers.take(geometry.chunk_size)

    def authenticates(chunk_index: int, plain_length: int) -> bool:
        record = sealed[: plain_length + geometry.overhead]
        if read_fully(fd, record, geometry.record_offset(chunk_index)) < len(record):
            return False
        try:
            context.cipher.open_run(key, chunk_index, record, plain, holes=holes)
        except ChunkError:
            return False
        return True

    try:
        while size > header.size_min:
            last = geometry.chunk_count(size) - 1
            if authenticates(last, geometry.chunk_length(last, size)):
                return size
            kept = geometry.chunk_length(last, header.size_min)
            if kept:
                # The chunk holds bytes from before. A shrink that was interrupted left it shorter.
                return header.size_min if authenticates(last, kept) else size
            size = geometry.chunk_start(last)
            if not holes:
                size = _without_hole(fd, geometry, size, header.size_min)
        return size
    finally:
        context.buffers.give(sealed)
        context.buffers.give(plain)


def _without_hole(fd: int, geometry: ChunkGeometry, size: int, size_min: int) -> int:
    """The size without the chunks at its end that lie in a hole of the backing file: none of them opens.

    A file can be made as long as an off_t in one call. To look at each chunk of that would take for ever.
    """
    end = geometry.record_offset(geometry.chunk_count(size))

    def nothing_from(chunk_index: int) -> bool:
        try:
            return os.lseek(fd, geometry.record_offset(chunk_index), os.SEEK_DATA) >= end
        except OSError as error:
            return error.errno == errno.ENXIO

    low, high = geometry.chunk_count(size_min), geometry.chunk_count(size)
    while low < high:
        middle = (low + high) // 2
        if nothing_from(middle):
            high = middle
        else:
            low = middle + 1
    return min(size, max(geometry.chunk_start(high), size_min))
