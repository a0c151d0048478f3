"""Changes by others to a file that is open here: they write in place, or change the length.

If somebody changes a file in place, as `rsync --inplace` does, reads and writes would see a mixture of two
versions whose chunks all authenticate. So the file becomes *overtaken*: its handles get errors from then on,
and the next open gets the new version. A file's ctime says when to look. The header on disk says whether the
content is another one: every version has a header of its own. If somebody changes chunks and leaves header
and length, we do not notice; no program that copies files leaves them for longer than the copying takes.

A file may also have another length than its header says: its last writer died, or somebody has cut it since.
Loading a file writes nothing. Bytes behind the found end go when somebody here changes the file, or when
the sweep settles it after a crash of this vault's own; the state's lock is held then.
"""

from __future__ import annotations

import logging
import os
import time

from cryptfs.core.format.verdict import Length, Verdict
from cryptfs.errors import HeaderError, IntegrityError
from cryptfs.storage.backing import read_header
from cryptfs.vfs.content.filestate import FileState
from cryptfs.vfs.content.foundlength import ends_whole, found_length

log = logging.getLogger(__name__)

_TICK_NS = 20_000_000  # a change so soon after another may leave ctime as it is, on kernels before 6.13
_REASON = "somebody else has changed the file in place while it was open"


def steady_ctime(st: os.stat_result) -> int:
    """A file's ctime in ns if its next change surely gives it another one; else 0: look again."""
    return st.st_ctime_ns if time.time_ns() - st.st_ctime_ns > _TICK_NS else 0


def is_overtaken(state: FileState, st: os.stat_result) -> bool:
    """Whether somebody else has changed the content since we loaded or wrote it.

    Args: st: stat of the backing file, made after all reads of it.
    """
    if st.st_ctime_ns == state.seen_ctime or state.overtaken or not state.loaded or state.context.exclusive:
        return state.overtaken
    with state.lock:
        state.keep_atime(True)
        if not state.overtaken and (_has_another_header(state) or _was_cut(state)):
            state.overtake()
            log.error("%s: %s", state.cipher_path, _REASON)
        elif not (state.changes or state.overtaken):
            state.saw_ctime(steady_ctime(st))
    return state.overtaken


def _has_another_header(state: FileState) -> bool:
    return state.packed_header is not None and read_header(state.fd) != state.packed_header


def _was_cut(state: FileState) -> bool:
    """Whether a file without changes here is shorter than it was. The kernel may have all of it cached."""
    if state.header is None or state.header_is_planned or not state.has_size:
        return False
    if state.changes or state.overlay.records:
        return False
    return os.fstat(state.fd).st_size < state.context.geometry.cipher_size(state.size)


def note_change(state: FileState) -> None:
    """After a change of our own: its ctime is no reason to look at the header before the next change.

    Somebody else may change the file between the two; `distrust` notices that before a sync.
    """
    if state.changes and not state.context.exclusive:
        state.saw_ctime(os.fstat(state.fd).st_ctime_ns)


def distrust(state: FileState) -> None:
    """Make the next look go to the header, whatever ctime says."""
    if state.changes:
        state.saw_ctime(0)


def require_current(state: FileState) -> None:
    """Raises: IntegrityError: somebody else has changed the file in place while it was open."""
    if not state.context.exclusive and is_overtaken(state, os.fstat(state.fd)):
        raise IntegrityError(_REASON, cipher_path=state.cipher_path)


# ---- lengths


def take_over(state: FileState) -> None:
    """Before the first change here: cut off bytes that do not belong to the file.

    Raises: HeaderError: the file does not end where its header says; nothing is cut.   OSError.
    """
    found = state.inherited
    if found is not None:
        state.mark_data()
        _cut_off(state, state.fd, found)
        if found.kind is Length.SURPLUS:
            state.inherit(None)


def _cut_off(state: FileState, fd: int, found: Verdict) -> None:
    header = state.header
    assert header is not None  # `inherited` comes from it
    surplus = os.fstat(fd).st_size - found.expected
    if surplus < 0:
        raise HeaderError("the file was cut while it was open", cipher_path=state.cipher_path)
    if not surplus:
        return
    if found.kind is Length.SURPLUS and not ends_whole(
        state.context, fd, header, state.content_key, found.size
    ):
        raise HeaderError(
            "the last chunk does not authenticate at the length in the header, and more bytes follow",
            cipher_path=state.cipher_path,
        )
    log.warning("%s: removed %d bytes at its end (%s)", state.cipher_path, surplus, found.kind.value)
    os.ftruncate(fd, found.expected)


def settle(state: FileState) -> None:
    """After a crash of this vault's own: make the found length the authentic one, for good.

    Also for a closed file: from now on, it is as long as it says. Leaves files of other sessions as they
    are. Takes the lock.

    Raises: HeaderError: as take_over.   OSError.
    """
    with state.lock:
        header = state.header
        if header is None or state.damage is not None or not state.context.is_of_crash(header.journal_id):
            return
        with state.writing_fd() as fd:
            if fd is not None:
                if state.inherited is not None:
                    _cut_off(state, fd, state.inherited)
                state.seal_length(fd)


def require_length(state: FileState) -> None:
    """Before the backing file grows, or a reader believes a hole of it: verify that nobody has cut it.

    The overlay's records must be in their places. Raises: HeaderError.   OSError.
    """
    if state.header is None or state.header_is_planned:
        return
    if os.fstat(state.fd).st_size < state.context.geometry.cipher_size(state.size):
        raise HeaderError("the file was cut while it was open", cipher_path=state.cipher_path)


def look_at_length(state: FileState) -> None:
    """Before the first change here: look whether others have changed the length since loading.

    Raises: HeaderError: it was cut.   OSError.
    """
    header = state.header
    if header is None or state.header_is_planned or state.inherited is not None:
        return
    cipher_size = os.fstat(state.fd).st_size
    expected = state.context.geometry.cipher_size(state.size)
    if cipher_size < expected:
        raise HeaderError("the file was cut while it was open", cipher_path=state.cipher_path)
    if cipher_size > expected:
        state.inherit(found_length(state.context, state.fd, header, state.content_key, cipher_size))
