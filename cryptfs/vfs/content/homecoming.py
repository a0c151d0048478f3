"""The way of a file's changes from the journal to their places, and to disk."""

from __future__ import annotations

import contextlib
import os
import stat

from cryptfs.storage.backing import write_fully
from cryptfs.storage.libc import restore_mtime
from cryptfs.vfs.content.filestate import FileState

_MAX_PIECES = 512  # in one system call
_SET_ID = stat.S_ISUID | stat.S_ISGID


def bring_home(state: FileState) -> None:
    """Write the overlay of a file to its places, once the journal and the file's header are on disk.

    The state's lock is held. If the journal failed, the file's records do not count afterwards: from now on
    the file changes without them.

    Raises: OSError: the overlay stays.
    """
    redo = state.context.redo
    if redo is None:
        return
    if state.overlay.records:
        if not redo.broken and redo.commit(state.overlay) and not state.header_is_durable:
            state.sync_backing(data_only=True)
        state.begin_change()
        try:
            _write_overlay(state)
            redo.forget(state.overlay)  # within the change: it wipes what readers may be copying
        finally:
            state.end_change()
    if redo.broken:
        state.disown_records()


def commit(state: FileState) -> None:
    """Bring the file's records to disk, or to their places. The caller may have the lock or not.

    Raises: OSError: they may not be on disk; from now on all writes go straight to their places.
    """
    redo = state.context.redo
    if redo is None:
        return
    on_disk = redo.commit(state.overlay)
    # Or another thread has just found that it is broken; or, at level process, a write has failed.
    if not on_disk or redo.broken or not redo.durable:
        with state.lock:
            bring_home(state)


def sync(state: FileState, *, data_only: bool) -> None:
    """Bring a file to disk: in its place, or in the journal. The lock is not held. Raises: OSError."""
    with state.lock:
        state.note_sync()  # before the sync: a cut or a write meanwhile then keeps the order as well
    commit(state)
    state.sync_backing(data_only=data_only)


def newest_record(state: FileState, chunk_index: int) -> bytes:
    """The newest record of a chunk in the overlay; seals one with deltas. The lock is held."""
    patched = state.overlay.patched.get(chunk_index)
    if patched is None:
        return state.overlay.records[chunk_index]
    context, plain = state.context, memoryview(patched.content)[: patched.length]
    record = bytearray(context.geometry.record_length(patched.length))
    nonce = context.nonces(1)
    context.cipher.seal_run(state.content_key, chunk_index, plain, nonce, memoryview(record))
    return bytes(record)


def _write_overlay(state: FileState) -> None:
    geometry, indices = state.context.geometry, sorted(state.overlay.records)
    before = os.fstat(state.fd)
    state.mark_data()
    start = 0
    while start < len(indices):
        stop = start + 1
        pieces = [newest_record(state, indices[start])]
        while (
            stop < len(indices)
            and indices[stop] == indices[stop - 1] + 1
            and len(pieces[-1]) == geometry.record_size
            and stop - start < _MAX_PIECES
        ):
            pieces.append(newest_record(state, indices[stop]))
            stop += 1
        write_fully(state.fd, pieces, geometry.record_offset(indices[start]))
        start = stop
    with contextlib.suppress(PermissionError):  # the file belongs to somebody else
        restore_mtime(state.fd, before.st_mtime_ns)
        mode = os.fstat(state.fd).st_mode
        if mode != before.st_mode and mode | before.st_mode & _SET_ID == before.st_mode:
            os.fchmod(state.fd, stat.S_IMODE(before.st_mode))  # the writes took set-id bits away
