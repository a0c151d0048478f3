"""Changes that take content away: shrink, truncate to zero, punch. They run with the FileState's lock held.

A shrink and a punch are complete in the redo log before the file is touched, and for content that is
on disk the log and the header are synced first (level power): neither can be undone half-way.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from cryptfs.core.geometry import HEADER_SIZE
from cryptfs.core.header import MAX_EPOCH, HeaderFlag
from cryptfs.storage.backing import write_fully
from cryptfs.storage.libc import FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, fallocate
from cryptfs.vfs.filestate import FileState
from cryptfs.vfs.inheriting import require_length
from cryptfs.vfs.redo import NO_ROOM, RedoLog

if TYPE_CHECKING:
    from cryptfs.vfs.openfile import OpenFile

log = logging.getLogger(__name__)


def settle_overlay(state: FileState) -> None:
    """Before the backing file's length matters: what waits for its place goes there. Raises: OSError."""
    if state.context.redo is not None:
        state.context.redo.apply(state)


def _needs_barrier(state: FileState, redo: RedoLog) -> bool:
    """Whether the content that goes is on disk, so that the way there must be ordered."""
    return redo.durable and not redo.broken and state.has_durable_content


def _announce_loss(state: FileState, record: Callable[[RedoLog], None]) -> None:
    """Bring a record of a loss to the redo log, with all that a replay of it needs, before it happens.

    With no room for it the loss goes ahead without: it is what makes room again.

    Raises: OSError: there will be no loss, now or in a replay.
    """
    redo = state.context.redo
    if redo is None or redo.broken:
        return
    try:
        record(redo)
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        log.warning("%s: is cut without the journal, for which there is no room", state.cipher_path)
        _finish_loss(state)  # earlier records, whose content is in place, must not bring it back
        return
    try:
        if _needs_barrier(state, redo):
            redo.commit(state)
            state.sync_backing(data_only=True)
    except OSError:
        _disown_records(state)
        raise


def _disown_records(state: FileState) -> None:
    with contextlib.suppress(OSError):
        state.raise_floor(state.last_seq + 1)


def shrink(file: OpenFile, size: int) -> None:
    """Cut to a length that is not zero: the new last chunk is sealed anew, shorter.

    Raises: OSError, IntegrityError: the length is as before, or as after.
    """
    state = file.state
    context = state.context
    geometry = context.geometry
    last = geometry.chunk_count(size) - 1
    kept = geometry.chunk_length(last, size)
    _settle_up_to(state, last)
    require_length(state)
    was = geometry.chunk_length(last, state.size)
    file.announce(size_min=size)
    scratch = context.buffers.take(geometry.chunk_size)
    sealed = context.buffers.take(geometry.record_size)
    try:
        old, length = b"", 0
        if kept < was:
            old = file.writer.open_old(last, scratch)
            length = context.cipher.seal_run(
                state.content_key, last, scratch[:kept], context.nonces(1), sealed
            )
        _announce_loss(state, lambda redo: redo.log_shrink(state, size, sealed[:length]))
        try:
            _cut(state, size, last, old, sealed[:length])
        finally:
            _finish_loss(state)
    finally:
        context.buffers.give(scratch)
        context.buffers.give(sealed)


def _settle_up_to(state: FileState, last: int) -> None:
    """As settle_overlay, before a cut behind chunk `last`: what that takes away needs no room."""
    try:
        settle_overlay(state)
    except OSError as error:
        redo = state.context.redo
        if redo is None or error.errno not in NO_ROOM:
            raise
        size = min(state.size, state.context.geometry.chunk_start(last + 1))
        if state.key in redo.grown:
            redo.grown[state.key] = size
        redo.forget(state, last + 1)
        state.size = size
        settle_overlay(state)


def _cut(state: FileState, size: int, last: int, old: bytes, record: memoryview) -> None:
    geometry = state.context.geometry
    state.mark_data()
    if old:
        end = min(geometry.chunk_start(last + 1), state.size)
        os.ftruncate(state.fd, geometry.cipher_size(end))
        state.size = end
        try:
            write_fully(state.fd, (record,), geometry.record_offset(last))
            os.ftruncate(state.fd, geometry.cipher_size(size))
        except OSError:
            with contextlib.suppress(OSError):
                write_fully(state.fd, (old,), geometry.record_offset(last))
            raise
    else:
        os.ftruncate(state.fd, geometry.cipher_size(size))
    state.size = size
    state.durable_size = min(state.durable_size, size)


def _finish_loss(state: FileState) -> None:
    """After a shrink: a replay of it would cut what is written behind its new end from now on."""
    redo = state.context.redo
    if redo is None or redo.broken:
        return
    try:
        if _needs_barrier(state, redo):
            state.sync_backing(data_only=True)
    finally:
        state.raise_floor(state.last_seq + 1)


def truncate_to_zero(state: FileState) -> None:
    """Raise the epoch, and with it change the key; works on a file that does not authenticate, too."""
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
    # The header says it all: whatever becomes of the next calls, this is an empty file now.
    state.size, state.damage, state.durable_size, state.synced = 0, None, 0, False
    state.mark_data()
    try:
        if ordered:
            os.fdatasync(state.fd)  # else the length could be on disk before the header that explains it
    finally:
        os.ftruncate(state.fd, HEADER_SIZE)
        if redo is not None:
            redo.forget(state)


def punch(state: FileState, first: int, stop: int) -> None:
    """Make whole chunks of a SPARSE file holes: from `first` up to, not including, `stop`."""
    geometry = state.context.geometry
    settle_overlay(state)
    _announce_loss(state, lambda redo: redo.log_punch(state, first, stop))
    start = geometry.record_offset(first)
    until = min(geometry.record_offset(stop), geometry.cipher_size(state.size))
    state.mark_data()
    try:
        fallocate(state.fd, FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE, start, until - start)
    except OSError:
        with contextlib.suppress(OSError):
            _finish_loss(state)
        raise
