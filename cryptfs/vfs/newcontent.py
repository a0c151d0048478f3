"""The content of a new file, written before anybody else knows it: so nothing goes through the journal.

A small one is written whole (`create_whole`). A large one can come from several processes at once. One makes
the file and has it open, with a header that says "empty" (`expect`). Others write its chunks to their places,
in any order (`NewContent`), under the key of another file_id. When all are there, the first one writes the
header with that file_id (`arrived`), and its close seals the length. A crash before that leaves an empty
file: no chunk behind the header opens with its key. So gaps are no damage, and settling cuts all off.
"""

from __future__ import annotations

import os

from cryptfs.core.format.header import FileHeader, HeaderFlag
from cryptfs.core.keys import FILE_ID_SIZE
from cryptfs.errors import HeaderError
from cryptfs.storage.backing import open_backing, write_fully
from cryptfs.vfs.content.context import FileContext
from cryptfs.vfs.content.filestate import FileState
from cryptfs.vfs.content.openfile import OpenFile
from cryptfs.vfs.tree.directory import Directory
from cryptfs.vfs.tree.tree import VaultTree


def create_whole(
    tree: VaultTree, directory: Directory, name: bytes, mode: int, content: memoryview
) -> tuple[int, os.stat_result]:
    """A new file with all of its content: its descriptor, and its stat from before the content.

    The header is the one of a file that was written and closed: a loss of power may take the content. A kill
    in the middle leaves a file that is cut: so give it the name that counts later.

    Args:   mode: permissions, umask not yet applied.
    Raises: OSError: nothing is there.
    """
    tree.require_writable()
    with tree.naming(directory, name) as entry_name:
        fd, st = open_backing(directory.fd, entry_name, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)
        try:
            if content:
                _fill(tree.context, fd, content)
        except BaseException:
            os.close(fd)
            os.unlink(entry_name, dir_fd=directory.fd)
            raise
    return fd, st


def _fill(context: FileContext, fd: int, content: memoryview) -> None:
    geometry, buffers, redo = context.geometry, context.buffers, context.redo
    header = context.new_header().closed_at(len(content))
    if redo is not None and redo.durable:
        journal_id, floor = redo.naming()
        header = header.changed(size_min=0, journal_id=journal_id, journal_floor=floor)
    count = geometry.chunk_count(len(content))
    sealed = buffers.take(geometry.record_start(count))
    try:
        end = context.cipher.seal_run(
            context.content_key_of(header), 0, content, context.nonces(count), sealed
        )
        write_fully(fd, (context.pack_header(header), sealed[:end]), 0)
    finally:
        buffers.give(sealed)


def expect(file: OpenFile) -> bytes:
    """Others will write the content of a new file, which is empty until `arrived`.

    Returns: the file_id that it will have then, for `NewContent` and `arrived`.
    Raises:  OSError.
    """
    with file.changing() as state:
        _write_header(state, state.context.new_header().changed(flags=HeaderFlag.VOID))
    return os.urandom(FILE_ID_SIZE)


def arrived(file: OpenFile, content_id: bytes, size: int) -> None:
    """All `size` bytes of a new file have been written by others.

    Raises: HeaderError: the backing file has another length.   OSError.
    """
    with file.changing() as state:
        context = state.context
        if os.fstat(state.fd).st_size != context.geometry.cipher_size(size):
            raise HeaderError("not all of it was written", cipher_path=state.cipher_path)
        state.mark_data()
        _write_header(state, context.new_header(content_id))
        state.grew_to(size)


def _write_header(state: FileState, header: FileHeader) -> None:
    journal_id, floor = state.context.naming()
    state.write_header(header.changed(journal_id=journal_id, journal_floor=floor))


class NewContent:
    """Writes whole chunks of a new file that another process has open.

    Args:   name: of the file in a directory.   content_id: as `expect` returned it.
    Raises: IntegrityError: the file does not wait for content.   OSError.
    """

    def __init__(self, context: FileContext, directory: Directory, name: bytes, content_id: bytes) -> None:
        self._context = context
        self._key = context.content_key_of(context.new_header(content_id))
        self._fd, _ = open_backing(directory.fd, directory.entry_name(name), os.O_RDWR)
        try:
            header = context.header_of(self._fd)
            if header is None or not header.is_void:
                raise HeaderError("the file waits for no content", cipher_path=directory.cipher_path)
        except BaseException:
            os.close(self._fd)
            raise

    def write(self, offset: int, data: memoryview) -> None:
        """Write chunks that nobody has written. offset: of a chunk; data: whole ones, but for the file's end.

        Raises: OSError.   ValueError: offset is within a chunk.
        """
        context = self._context
        geometry, buffers = context.geometry, context.buffers
        if geometry.offset_in_chunk(offset):
            raise ValueError("a new file is written by whole chunks")
        first, count = geometry.chunk_at(offset), geometry.chunk_count(len(data))
        sealed = buffers.take(geometry.record_start(count))
        try:
            end = context.cipher.seal_run(self._key, first, data, context.nonces(count), sealed)
            write_fully(self._fd, (sealed[:end],), geometry.record_offset(first))
        finally:
            buffers.give(sealed)

    def close(self) -> None:
        """Give it back."""
        os.close(self._fd)
