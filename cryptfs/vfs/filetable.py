"""Which backing files are open: one FileState for each (device, inode), whatever it is called.

Lock order: a FileState's lock, then the table's. The table's lock is held for moments only.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable

from cryptfs.storage.libc import statx_birth_time
from cryptfs.vfs.context import FileContext
from cryptfs.vfs.filestate import NOT_ASKED, FileKey, FileState
from cryptfs.vfs.overtaking import is_overtaken

log = logging.getLogger(__name__)


def _nobody_asks(_: FileState) -> None:
    pass


def _never(_: FileState) -> bool:
    return False


def _note_standing(state: FileState) -> None:
    """Nobody writes to a file any more, and what was written stands under its name, while somebody reads it.

    From then on everybody sees it: whoever takes it away means to, and it is not lost.
    """
    where = state.whereabouts
    if where.kept_change == state.change_count or state.writers or state.overlay:
        return
    if os.fstat(state.fd).st_nlink:
        where.kept_change = state.change_count


class FileTable:
    """The open files of a vault."""

    def __init__(self, context: FileContext) -> None:
        self._context = context
        self._lock = threading.Lock()
        self._states: dict[FileKey, FileState] = {}
        self._closed: dict[FileKey, FileState] = {}  # no handle, but the redo log needs them
        self.on_left: Callable[[FileState], None] = (
            _nobody_asks  # called when a file is about to be closed for good
        )
        self.is_lost: Callable[[FileState], bool] = _never
        self.before_loss: Callable[[FileState], None] = _nobody_asks  # afterwards, it is lost no more

    @property
    def closed_count(self) -> int:
        """Files that stay open for the redo log alone."""
        return len(self._closed)

    def acquire(self, fd: int, st: os.stat_result, *, writable: bool, cipher_path: str) -> FileState:
        """The state of the file behind a fresh descriptor, which it takes over; release it later.

        Args: st: stat of the descriptor.
        """
        key = (st.st_dev, st.st_ino)
        while True:
            with self._lock:
                state = self._states.get(key)
                if state is None:
                    state = FileState(self._context, key, fd, writable=writable, path=cipher_path)
                    self._states[key] = state
                    return state
                self._closed.pop(key, None)
                state.handles += 1  # first of all: nobody closes its descriptor while it is looked at
            try:
                overtaken = is_overtaken(state, st)
            except OSError:
                os.close(fd)
                self.release(state)
                raise
            if not overtaken:
                with self._lock:
                    state.writers += writable
                    state.adopt(fd, writable=writable)
                return state
            self._leave(state)
            self.release(state)

    def _leave(self, state: FileState) -> None:
        """A file that somebody else has changed in place: handles keep the state, the next gets another."""
        with self._lock:
            if self._states.get(state.key) is state:
                del self._states[state.key]
            self._closed.pop(state.key, None)
            if self._context.redo is not None:
                self._context.redo.abandon(state)
            if not state.handles:
                state.close_descriptors()

    def hold(self, state: FileState) -> int | None:
        """An O_PATH descriptor of a file that is open; None where it is not any more."""
        with self._lock:
            if self._states.get(state.key) is not state:
                return None
            return os.open(f"/proc/self/fd/{state.fd}", os.O_PATH | os.O_CLOEXEC)

    def birth_of(self, state: FileState) -> int | None:
        """The time of birth in ns of a file that is open; None: there is none, or it was closed."""
        if state.birth == NOT_ASKED:
            with self._lock:
                if self._states.get(state.key) is not state:
                    return None
                state.birth = statx_birth_time(state.fd, "")
        return state.birth

    def share(self, state: FileState, *, writable: bool = False) -> bool:
        """One handle more on a state, unless its last one has gone."""
        with self._lock:
            if self._states.get(state.key) is not state:
                return False
            self._closed.pop(state.key, None)
            state.handles += 1
            state.writers += writable
            return True

    def settle(self, state: FileState) -> None:
        """Do now what the last close of a file does, unless it is under way. Raises: OSError: as release."""
        if self.share(state):  # so that it is not closed meanwhile
            try:
                state.write_clean()
            finally:
                self.release(state)

    def find_key(self, key: FileKey) -> FileState | None:
        """As find, by device and inode."""
        return self._states.get(key)

    def removing(self, dir_fd: int, entry_name: str) -> FileState | None:
        """The file that is open and is about to lose a name to a request; marked where that is its last."""
        if not self._states:
            return None
        try:
            st = os.stat(entry_name, dir_fd=dir_fd, follow_symlinks=False)
        except OSError:
            return None
        state = self._states.get((st.st_dev, st.st_ino))
        if state is not None and st.st_nlink == 1:
            state.whereabouts.removed_here = True
        return state

    @staticmethod
    def removed(state: FileState | None) -> None:
        """After a name of a file went, or did not."""
        if state is not None:
            with contextlib.suppress(OSError):  # it was closed meanwhile
                state.whereabouts.removed_here = os.fstat(state.fd).st_nlink == 0

    def name_removed(self, dir_id: bytes, name: bytes) -> None:
        """After a request has removed a name: nobody misses what was written under it and lost it before."""
        for state in list(self._states.values()):
            where = state.whereabouts
            place = where.place
            if place is not None and place[1] == name and place[0].dir_id == dir_id:
                with contextlib.suppress(OSError):  # it was closed meanwhile
                    where.removed_here = os.fstat(state.fd).st_nlink == 0

    def having(self, file_id: bytes, but: FileState) -> bool:
        """Whether another file that is open for writing, or was, has this file_id and still a name."""
        return any(
            state.writable
            and state.header is not None
            and state.header.file_id == file_id
            and state is not but
            and os.fstat(state.fd).st_nlink > 0
            for state in list(self._states.values())
        )

    def find(self, st: os.stat_result) -> FileState | None:
        """The state of a file that is open, or None."""
        with self._lock:
            return self._states.get((st.st_dev, st.st_ino))

    def release(self, state: FileState, *, writable: bool = False) -> None:
        """One handle less; with the last, the header is made CLEAN and the file closed.

        A file that is on disk in the journal only stays here until the checkpointer has been at it.

        A file that is lost is kept when nobody writes to it any more: whoever reads it may go on for days.

        Args: writable: the handle might change the file.

        The state stays in the table until its header is written, so that whoever opens the file
        meanwhile shares it instead of reading a header that is about to change.

        Raises: OSError: the header could not be written. The file is closed all the same, and the next
                to open it finds its length by recovery.
        """
        st: os.stat_result | None = None
        gone = int(writable)
        while True:
            with self._lock:
                state.writers -= gone
                gone = 0
                redo = self._context.redo
                lost, there = False, self._states.get(state.key) is state
                if there and st is None and state.change_count and (state.handles == 1 or not state.writers):
                    st = os.fstat(state.fd)
                    lost = st.st_nlink == 0 and self.is_lost(state)
                if lost:
                    pass
                elif state.handles > 1:
                    state.handles -= 1
                    _note_standing(state)
                    return
                elif (
                    redo is not None
                    and not state.overtaken
                    and redo.holds(state)
                    and os.fstat(state.fd).st_nlink
                ):
                    state.handles = 0
                    self._closed[state.key] = state
                    return
                elif state.clean or state.overlay:  # with an overlay, it has no name left
                    self._drop(state)
                    return
            if lost:
                self.before_loss(state)
                continue
            if is_overtaken(state, st or os.fstat(state.fd)):
                continue
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
        if self._states.get(state.key) is state:
            del self._states[state.key]
            self._closed.pop(state.key, None)
        elif not state.overtaken:
            return  # close() was here before
        if self._context.redo is not None:
            self._context.redo.abandon(state)
        self.on_left(state)
        state.close_descriptors()

    def drop_unlinked(self) -> None:
        """After a name went: let go of files that have no name left and that nobody has open."""
        with self._lock:  # also where none is there now: one may be on its way, see release
            for state in list(self._closed.values()):
                if os.fstat(state.fd).st_nlink == 0 and not self.is_lost(state):
                    self._drop(state)

    def close(self) -> None:
        """Settle whatever is still open: the mount is gone."""
        with self._lock:
            states = list(self._states.values())
        for state in states:
            if self.is_lost(state):
                self.before_loss(state)
            try:
                state.write_clean()
            except OSError as error:
                log.error("%s: the header could not be written: %s", state.cipher_path, error.strerror)
            with self._lock:
                if self._states.pop(state.key, None) is not None:
                    state.close_descriptors()
