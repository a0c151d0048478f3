"""The time of change of a backing file, while its content is not yet the one that belongs to that time.

A sync client takes a file for unchanged if it has seen its length and time of change before. But an overwrite
reaches its place after the last close; the header says still later that the file is at rest; and programs
set the time that they want before that. So until then the backing file's time is ahead of the true one. The
true one is kept here; a stat shows it, and the file gets it with the CLEAN header. After a crash such a file
keeps the time ahead.
"""

from __future__ import annotations

import contextlib
import os
import time

from cryptfs.storage.libc import UTIME_OMIT, Times, restore_mtime
from cryptfs.vfs.content.filestate import FileState

AHEAD_NS = 2 * 10**9
"""More than the steps in which filesystems keep times and clients compare them: 2 s on FAT, 1 s in rsync."""


_SECOND_NS = 10**9
_TICK_NS = 10 * 10**6  # what a filesystem's clock may be behind: one tick, at most 1/100 s


def times_were_set(state: FileState, times: Times) -> None:
    """After a request has set the times; the state's lock is held."""
    if times[3] != UTIME_OMIT:
        state.forget_mtime()
        if state.overlay.records or not state.clean:
            _go_ahead(state, os.fstat(state.fd).st_mtime_ns)


def changes_later(state: FileState) -> None:
    """At a change that reaches its place later; the state's lock is held.

    If the kernel keeps the time of change, it tells us before the last close.
    """
    if state.mtime_is_ahead:
        if not state.is_ahead:
            stay_ahead(state)
    else:
        _go_ahead(state, time.time_ns() if state.kept_mtime_ns is None else state.kept_mtime_ns)


def stay_ahead(state: FileState) -> None:
    """After a step that moves the time of the backing file but not the file's; the lock is held.

    Such a step is a page that the kernel writes late, or a reservation of room.
    """
    if state.mtime_is_ahead and state.kept_mtime_ns is not None:
        _go_ahead(state, state.kept_mtime_ns)


def moves_now(state: FileState) -> None:
    """At the beginning of a change that moves the time of change by itself; the state's lock is held.

    Each such change gets a time of its own: a kernel without the writeback cache drops its pages when it
    sees another time. Else it would keep pages that it read before this change.
    """
    if state.mtime_is_ahead:
        if state.kept_mtime_ns is not None:
            restore_mtime(state.fd, state.kept_mtime_ns)
        state.forget_mtime()


def moved_now(state: FileState) -> None:
    """At the end of a change after moves_now; the state's lock is held.

    The content is in its place, but only the last close says in the header that the file is at rest, and then
    it has the length and the time that it has now. If the time cannot be set, the change counts all the same.
    """
    if not (state.mtime_is_ahead or state.clean):
        with contextlib.suppress(OSError):
            _go_ahead(state, os.fstat(state.fd).st_mtime_ns)


def ahead_again(state: FileState) -> None:
    """After a change that moved the time by itself, of a file that was ahead before; the lock is held.

    Content may still wait for its place, and the file has the time that this change gave it.
    """
    if state.mtime_is_ahead:
        stay_ahead(state)
    else:
        _go_ahead(state, os.fstat(state.fd).st_mtime_ns)


def ns_of_its_second(state: FileState) -> int:
    """How long the second lasts that a file's true time of change is in, if that is now; else 0.   In ns.

    While content comes home the backing file has the time of now. In that second a client that compares whole
    seconds, as rsync does, would take what it read in the middle for the file at rest.
    """
    mtime_ns, now_ns = state.kept_mtime_ns, time.time_ns() - _TICK_NS
    if not state.mtime_is_ahead or mtime_ns is None or mtime_ns // _SECOND_NS != now_ns // _SECOND_NS:
        return 0
    return _SECOND_NS - now_ns % _SECOND_NS


def _go_ahead(state: FileState, mtime_ns: int) -> None:
    state.hold_mtime(mtime_ns)
    restore_mtime(state.fd, mtime_ns + AHEAD_NS)
    state.note_ahead()


def true_stat(state: FileState, st: os.stat_result) -> os.stat_result:
    """A stat of the backing file with the true time of change.

    Args: st: of the backing file of this state.
    """
    mtime_ns = state.kept_mtime_ns
    if not state.mtime_is_ahead or mtime_ns is None:
        return st
    fields = list(st)
    fields[8] = mtime_ns // 10**9
    more = {name: getattr(st, name) for name in _MORE}
    return os.stat_result(fields, more | {"st_mtime": mtime_ns / 1e9, "st_mtime_ns": mtime_ns})


_MORE = ("st_atime", "st_ctime", "st_atime_ns", "st_ctime_ns", "st_blksize", "st_blocks", "st_rdev")
