"""How long a file is: the header's verdict, and what its records add to it.

A file that is not CLEAN may end in records that tore when its writer died. And a header that says "empty" may
have content of its own behind it: somebody put back an older header alone. Nothing here writes.

Source: docs/FORMAT.md, section 4 ("Recovery").
"""

from __future__ import annotations

import errno
import os

from cryptfs.core.format.header import NO_JOURNAL, FileHeader
from cryptfs.core.format.verdict import SETTLED, Length, Verdict, verdict
from cryptfs.core.geometry import ChunkGeometry
from cryptfs.errors import ChunkError
from cryptfs.storage.backing import read_fully
from cryptfs.vfs.content.context import FileContext


def found_length(
    context: FileContext, fd: int, header: FileHeader | None, key: bytes, cipher_size: int
) -> Verdict:
    """The verdict on a backing file, with the size from its records if the header does not tell it.

    If a header says that the file is empty, and a record behind it opens under the header's key, that
    content belongs to the header, and the verdict becomes RECOVER.

    Args: key: of the file's content.   cipher_size: length of the backing file.
    """
    judged = verdict(header, cipher_size, context.geometry, context.crashed)
    if header is None or judged.kind is SETTLED or judged.kind is Length.CUT:
        return judged
    if judged.kind is Length.RECOVER:
        size = _recovered_size(context, fd, header, key, cipher_size, judged.size)
    elif judged.size or cipher_size == judged.expected:
        return judged
    else:
        size = content_behind(context, fd, key, 0, cipher_size)
        if not size:
            return judged
    return Verdict(Length.RECOVER, size, context.geometry.cipher_size(size))


def _recovered_size(
    context: FileContext, fd: int, header: FileHeader, key: bytes, cipher_size: int, least: int
) -> int:
    """The certain plaintext bytes of a file after its writer died; it has at least `least`.

    Bytes behind the last authentic record are torn, but only behind size_min: bytes from before the writer
    began are never dropped silently.
    """
    geometry = context.geometry
    with _Tail(context, fd, key, holes=header.is_sparse) as tail:
        size, opens = tail.end(geometry.plain_size_floor(cipher_size), least)
        if opens or size == least:
            return size
        # The chunk holds bytes from before. An interrupted shrink left it shorter.
        last = geometry.chunk_count(size) - 1
        return least if tail.opens(last, geometry.chunk_length(last, least)) else size


def content_behind(context: FileContext, fd: int, key: bytes, size: int, cipher_size: int) -> int:
    """The plaintext size with the authentic chunks behind `size`; `size` if there are none.

    Holes count for nothing: they prove nothing.
    """
    with _Tail(context, fd, key, holes=False) as tail:
        end, opens = tail.end(context.geometry.plain_size_floor(cipher_size), size)
    return end if opens else size


def ends_whole(context: FileContext, fd: int, header: FileHeader, key: bytes, size: int) -> bool:
    """Whether the last record of a file with `size` bytes opens: then the bytes behind it are surplus."""
    geometry = context.geometry
    last = geometry.chunk_count(size) - 1
    with _Tail(context, fd, key, holes=header.is_sparse) as tail:
        return not size or tail.opens(last, geometry.chunk_length(last, size))


class _Tail:
    """Looks at the records at the end of a backing file."""

    def __init__(self, context: FileContext, fd: int, key: bytes, *, holes: bool) -> None:
        self._context = context
        self._fd = fd
        self._key = key
        self._holes = holes
        self._sealed = context.buffers.take(context.geometry.record_size)
        self._plain = context.buffers.take(context.geometry.chunk_size)

    def __enter__(self) -> _Tail:
        return self

    def __exit__(self, *_: object) -> None:
        self._context.buffers.give(self._sealed)
        self._context.buffers.give(self._plain)

    def opens(self, chunk_index: int, plain_length: int) -> bool:
        """Whether a chunk authenticates with this length."""
        geometry = self._context.geometry
        record = self._sealed[: geometry.record_length(plain_length)]
        if read_fully(self._fd, record, geometry.record_offset(chunk_index)) < len(record):
            return False
        try:
            self._context.cipher.open_run(self._key, chunk_index, record, self._plain, holes=self._holes)
        except ChunkError:
            return False
        return True

    def end(self, size: int, least: int) -> tuple[int, bool]:
        """Go back from `size` to the last chunk that opens: (size up to its end, True).

        (size, False) if no chunk opens that ends behind `least`. That size is the end of the chunk with
        bytes before and behind `least`, or `least` itself if a chunk ends there.
        """
        geometry = self._context.geometry
        while size > least:
            last = geometry.chunk_count(size) - 1
            if self.opens(last, geometry.chunk_length(last, size)):
                return size, True
            if geometry.chunk_length(last, least):
                break
            size = geometry.chunk_start(last)
            if not self._holes:
                size = _without_hole(self._fd, geometry, size, least)
        return size, False


def names_missing_journal(context: FileContext, header: FileHeader) -> bool:
    """Whether a file names a session whose journal was not replayed here, and will not be.

    Content that the session overwrote and synced may be the old one again. The caller knows whether such a
    journal still exists, of this machine or another.
    """
    if header.is_clean or header.is_void or header.journal_id == NO_JOURNAL:
        return False
    redo = context.redo
    ours = redo is not None and header.journal_id == redo.journal_id
    return not ours and not context.is_of_crash(header.journal_id)


def _without_hole(fd: int, geometry: ChunkGeometry, size: int, size_min: int) -> int:
    """The size without the last chunks that lie in a hole of the backing file: none of them opens.

    One call can make a file as long as an off_t. A look at each chunk of that would never end.
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
