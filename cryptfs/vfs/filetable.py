"""Which backing files are open: one FileState for each (device, inode), whatever it is called.

Lock order: a FileState's lock, then the table's. The table's lock is held for moments only.
"""

from __future__ import annotations

import logging
import os
import threading

from cryptfs.vfs.context import FileContext
from cryptfs.vfs.filestate import FileKey, FileState

log = logging.getLogger(__name__)


class FileTable:
    """The open files of a vault."""

    def __init__(self, context: FileContext) -> None:
        self._context = context
        self._lock = threading.Lock()
        self._states: dict[FileKey, FileState] = {}

    def acquire(self, fd: int, st: os.stat_result, *, writable: bool, cipher_path: str) -> FileState:
        """The state of the file behind a fresh descriptor, which it takes over; release it later."""
        key = (st.st_dev, st.st_ino)
        with self._lock:
            state = self._states.get(key)
            if state is None:
                state = FileState(self._context, key, fd, writable=writable, path=cipher_path)
                self._states[key] = state
            else:
                state.handles += 1
                state.adopt(fd, writable=writable)
            return state

    def share(self, state: FileState) -> bool:
        """One handle more on a state, unless its last one has gone."""
        with self._lock:
            if self._states.get(state.key) is not state:
                return False
            state.handles += 1
            return True

    def find_key(self, key: FileKey) -> FileState | None:
        """As find, by device and inode."""
        return self._states.get(key)

    def find(self, st: os.stat_result) -> FileState | None:
        """The state of a file that is open, or None."""
        with self._lock:
            return self._states.get((st.st_dev, st.st_ino))

    def release(self, state: FileState) -> None:
        """One handle less; with the last, the header is made CLEAN and the file closed.

        The state stays in the table until its header is written, so that whoever opens the file
        meanwhile shares it instead of reading a header that is about to change.

        Raises: OSError: the header could not be written. The file is closed all the same, and the next
                to open it finds its length by recovery.
        """
        while True:
            with self._lock:
                if state.handles > 1:
                    state.handles -= 1
                    return
                if state.clean:
                    self._drop(state)
                    return
            try:
                state.write_clean()
            except OSError:
                with self._lock:
                    if state.handles > 1:
                        state.handles -= 1
                    else:
                        self._drop(state)
                raise

    def _drop(self, state: FileState) -> None:
        state.handles = 0
        if self._states.pop(state.key, None) is not None:  # close() may have been here before
            state.close_descriptors()

    def close(self) -> None:
        """Settle whatever is still open: the mount is gone."""
        with self._lock:
            states = list(self._states.values())
        for state in states:
            try:
                state.write_clean()
            except OSError as error:
                log.error("%s: the header could not be written: %s", state.cipher_path, error.strerror)
            with self._lock:
                if self._states.pop(state.key, None) is not None:
                    state.close_descriptors()
