"""The content of a file that is copied, in pieces; the next one is read while the last one is written."""

from __future__ import annotations

from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor

from cryptfs.transfer.sides import SideFile

PIECE = 2 << 20  # its records still fit the buffers that are kept
Pieces = Generator[tuple[int, memoryview], None, None]


def pieces_of(reading: SideFile) -> Pieces:
    """The data of a file, piece by piece, without its holes.

    A piece is good until the next but one is read. Close it before the file.
    """
    buffers: list[memoryview] = []
    offset = 0
    while (data := reading.data_from(offset)) is not None:
        offset, stop = data
        while offset < stop:
            size = min(stop - offset, PIECE)
            buffer = buffers.pop(0) if len(buffers) == 2 else memoryview(bytearray(size))
            if len(buffer) < size:
                buffer = memoryview(bytearray(size))
            got = reading.read_into(offset, buffer[:size])
            if not got:
                return  # it became shorter meanwhile
            yield offset, buffer[:got]
            buffers.append(buffer)
            offset += got


def read_ahead(pieces: Pieces, reader: ThreadPoolExecutor) -> Pieces:
    """The same pieces; the next one is read by another thread while the caller works on the present one."""
    coming = reader.submit(next, pieces, None)
    try:
        while (piece := coming.result()) is not None:
            coming = reader.submit(next, pieces, None)
            yield piece
    finally:
        coming.exception()  # nobody reads any longer when the file is closed
