"""Changes that take content away: shrink, truncate to zero, punch. The caller holds the FileState's lock.

A shrink and a punch are complete in the redo log before they touch the file. If the content is on disk, log
and header are synced first (level power): a loss of power can undo neither half-way.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable

from cryptfs.core.format.header import MAX_EPOCH, HeaderFlag
from cryptfs.core.geometry import HEADER_SIZE
from cryptfs.storage.backing import write_fully
from cryptfs.storage.libc import FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, NO_ROOM, fallocate
from cryptfs.vfs.content.chunkwriter import ChunkWriter
from cryptfs.vfs.content.filestate import FileState
from cryptfs.vfs.content.homecoming import bring_home, commit
from cryptfs.vfs.content.others import require_length
from cryptfs.vfs.content.redo import RedoLog

log = logging.getLogger(__name__)


def _needs_barrier(state: FileState, redo: RedoLog) -> bool:
    """Whether the content that goes is on disk, so that the steps need an order."""
    return redo.durable and not redo.broken and state.has_durable_content


def _announce_loss(state: FileState, record: Callable[[RedoLog], None]) -> None:
    """Bring the record of a loss to the redo log, with all that a replay of it needs, before it happens.

    If there is no room for it, the loss goes ahead without: it makes room again.

    Raises: OSError: there will be no loss, now or in a replay.
    """
    redo = state.context.redo
    if redo is None or redo.broken:
        return
    if _needs_barrier(state, redo):
        state.require_synced()  # after the loss, earlier records do not count
    try:
        record(redo)
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        log.warning("%s: no room for the journal; shortening the file without it", state.cipher_path)
        _finish_loss(state)  # makes earlier records void: their content is in place, and must not return
        return
    try:
        if _needs_barrier(state, redo):
            commit(state)
            state.sync_backing(data_only=True)
    except OSError:
        _disown_records(state)
        raise


def _disown_records(state: FileState) -> None:
    with contextlib.suppress(OSError):
        state.disown_records()


def shrink(state: FileState, writer: ChunkWriter, size: int) -> None:
    """Cut to a length that is not zero: seals the new last chunk again, shorter.

    Args:   writer: of this file.

    Raises: OSError, IntegrityError: the length is as before, or as after.
    """
    context = state.context
    geometry = context.geometry
    last = geometry.chunk_count(size) - 1
    kept = geometry.chunk_length(last, size)
    _bring_home_up_to(state, last)
    require_length(state)
    was = geometry.chunk_length(last, state.size)
    state.announce(size_min=size)
    scratch = context.buffers.take(geometry.chunk_size)
    sealed = context.buffers.take(geometry.record_size)
    try:
        old, length = b"", 0
        if kept < was:
            old = writer.open_old(last, scratch)
            length = context.cipher.seal_run(
                state.content_key, last, scratch[:kept], context.nonces(1), sealed
            )
        _announce_loss(state, lambda redo: redo.log_shrink(state.logged, size, sealed[:length]))
        try:
            _cut(state, size, last, old, sealed[:length])
        finally:
            _finish_loss(state)
    finally:
        context.buffers.give(scratch)
        context.buffers.give(sealed)


def _bring_home_up_to(state: FileState, last: int) -> None:
    """As bring_home, before a cut behind chunk `last`: records behind it need no room."""
    try:
        bring_home(state)
    except OSError as error:
        redo = state.context.redo
        if redo is None or error.errno not in NO_ROOM:
            raise
        size = min(state.size, state.context.geometry.chunk_start(last + 1))
        if state.key in redo.grown:
            redo.grown[state.key] = size
        redo.forget(state.overlay, last + 1)
        state.cut_to(size)
        bring_home(state)


def _cut(state: FileState, size: int, last: int, old: bytes, record: memoryview) -> None:
    geometry = state.context.geometry
    state.mark_data()
    if old:
        end = min(geometry.chunk_start(last + 1), state.size)
        os.ftruncate(state.fd, geometry.cipher_size(end))
        state.cut_to(end)
        try:
            write_fully(state.fd, (record,), geometry.record_offset(last))
            os.ftruncate(state.fd, geometry.cipher_size(size))
        except (OSError, MemoryError):
            with contextlib.suppress(OSError):
                write_fully(state.fd, (old,), geometry.record_offset(last))
            raise
    else:
        os.ftruncate(state.fd, geometry.cipher_size(size))
    state.cut_to(size)


def _finish_loss(state: FileState) -> None:
    """After a shrink: a replay of it would cut later writes behind its new end."""
    redo = state.context.redo
    if redo is None or redo.broken:
        return
    try:
        if _needs_barrier(state, redo):
            state.sync_backing(data_only=True)
    finally:
        state.disown_records()


def truncate_to_zero(state: FileState) -> None:
    """Raise the epoch, and so change the key; works on a file that does not authenticate."""
    header = state.header
    if header is None and state.damage is None:
        os.ftruncate(state.fd, 0)
        return
    context, redo = state.context, state.context.redo
    if header is None or header.epoch == MAX_EPOCH:
        renewed = context.new_header()
    else:
        renewed = header.changed(epoch=header.epoch + 1)
    generation = header.generation + 1 if header is not None else 1
    journal_id, floor = context.naming(losing=True)
    state.write_header(
        renewed.changed(
            size=0,
            size_min=0,
            generation=generation,
            flags=HeaderFlag.VOID,
            journal_id=journal_id,
            journal_floor=floor,
        )
    )
    ordered = redo is not None and redo.durable and (state.has_durable_content or state.damage is not None)
    # The header says it all: whether the next calls work or not, this is an empty file now.
    state.emptied()
    state.mark_data()
    try:
        if ordered:
            os.fdatasync(state.fd)  # else the length could be on disk before the header that explains it
    finally:
        os.ftruncate(state.fd, HEADER_SIZE)
        if redo is not None:
            redo.forget(state.overlay)


def punch(state: FileState, first: int, stop: int) -> None:
    """Make whole chunks of a SPARSE file holes: from `first` up to, not including, `stop`."""
    geometry = state.context.geometry
    bring_home(state)
    _announce_loss(state, lambda redo: redo.log_punch(state.logged, first, stop))
    start = geometry.record_offset(first)
    until = min(geometry.record_offset(stop), geometry.cipher_size(state.size))
    state.mark_data()
    try:
        fallocate(state.fd, FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE, start, until - start)
    except OSError:
        with contextlib.suppress(OSError):
            _finish_loss(state)
        raise
