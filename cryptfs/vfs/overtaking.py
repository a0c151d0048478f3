"""Files that somebody else changes in place while they are open here, as `rsync --inplace` does.

What is read and written then would be a mixture of two versions whose chunks all authenticate. So such a file
is *overtaken*: its handles get errors from then on, and whoever opens it anew gets the new version.

A file's ctime says when to look, the header on disk whether its content is another one: every version of a
file has a header of its own. What changes chunks and leaves the header alone is not noticed; no program that
copies files does that for longer than the copying takes.
"""

from __future__ import annotations

import logging
import os
import time

from cryptfs.errors import IntegrityError
from cryptfs.storage.backing import read_header
from cryptfs.vfs.filestate import FileState

log = logging.getLogger(__name__)

_TICK_NS = 20_000_000  # a change so soon after another may leave ctime as it is, on kernels before 6.13
_REASON = "somebody else has changed the file in place while it was open"


def settled_ctime(st: os.stat_result) -> int:
    """A file's ctime in ns, if its next change is sure to give it another one; else 0: look again."""
    return st.st_ctime_ns if time.time_ns() - st.st_ctime_ns > _TICK_NS else 0


def is_overtaken(state: FileState, st: os.stat_result) -> bool:
    """Whether somebody else has changed the content since it was loaded or written here.

    Args: st: stat of the backing file, from after whatever was read of it.
    """
    if st.st_ctime_ns == state.seen_ctime or state.overtaken or not state.loaded or state.context.exclusive:
        return state.overtaken
    with state.lock:
        state.keep_atime(True)
        if state.packed_header is None or read_header(state.fd) == state.packed_header:
            if not state.changes:
                state.seen_ctime = settled_ctime(st)
        elif not state.overtaken:
            state.overtaken = True
            log.error("%s: %s", state.cipher_path, _REASON)
    return state.overtaken


def note_change(state: FileState) -> None:
    """After a change of our own: its ctime is no reason to look at the header before the next one.

    What somebody else does in the moment between the two is noticed by `distrust`, before a sync.
    """
    if state.changes and not state.context.exclusive:
        state.seen_ctime = os.fstat(state.fd).st_ctime_ns


def distrust(state: FileState) -> None:
    """Have the next look go to the header, whatever ctime says."""
    if state.changes:
        state.seen_ctime = 0


def require_current(state: FileState) -> None:
    """Raises: IntegrityError: somebody else has changed the file in place while it was open."""
    if not state.context.exclusive and is_overtaken(state, os.fstat(state.fd)):
        raise IntegrityError(_REASON, cipher_path=state.cipher_path)
