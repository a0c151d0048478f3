"""What others have done to the length of a file: its last writer, and somebody since it was loaded here.

Loading a file writes nothing. What is on disk behind the end that was found goes when somebody here changes
the file, or when the sweep settles it after a crash of this vault's own. All of this runs with the state's
lock held.
"""

from __future__ import annotations

import logging
import os

from cryptfs.core.verdict import Length, Verdict
from cryptfs.errors import HeaderError
from cryptfs.vfs.filestate import FileState
from cryptfs.vfs.recovery import ends_whole, found_length

log = logging.getLogger(__name__)


def take_over(state: FileState) -> None:
    """Before the first change here: cut off what is no part of the file.

    Raises: HeaderError: the file does not end where its header says; nothing is cut.   OSError.
    """
    found = state.inherited
    if found is not None:
        state.mark_data()
        _cut_off(state, state.fd, found)
        if found.kind is Length.SURPLUS:
            state.inherited = None


def _cut_off(state: FileState, fd: int, found: Verdict) -> None:
    header = state.header
    assert header is not None  # something is inherited by it
    surplus = os.fstat(fd).st_size - found.expected
    if surplus < 0:
        raise HeaderError("the file was cut while it was open", cipher_path=state.cipher_path)
    if not surplus:
        return
    if found.kind is Length.SURPLUS and not ends_whole(
        state.context, fd, header, state.content_key, found.size
    ):
        raise HeaderError(
            "the last chunk does not authenticate at the length that the header says, and more is there",
            cipher_path=state.cipher_path,
        )
    log.warning("%s: %d bytes trimmed (%s)", state.cipher_path, surplus, found.kind.value)
    os.ftruncate(fd, found.expected)


def settle(state: FileState) -> None:
    """After a crash of this vault's own: make the length that was found the authentic one, for good.

    Also of a file that was closed before: from now on, it is as long as it says. Files of other sessions
    stay as they are. Takes the lock.

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
    """Before the backing file is made longer, or a hole of it believed: nobody has cut it meanwhile.

    What waits in the overlay must be in its place. Raises: HeaderError.   OSError.
    """
    if state.header is None or state.header_is_planned:
        return
    if os.fstat(state.fd).st_size < state.context.geometry.cipher_size(state.size):
        raise HeaderError("the file was cut while it was open", cipher_path=state.cipher_path)


def look_at_length(state: FileState) -> None:
    """Before the first change here: what others have done to the length since the file was loaded.

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
        state.inherited = found_length(state.context, state.fd, header, state.content_key, cipher_size)
