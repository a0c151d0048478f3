"""Open backing files: one FileState for each (device, inode), by whatever name.

Lock order: a FileState's lock, then the table's. Threads hold the table's lock for moments only.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Iterator

from cryptfs.storage.libc import statx_birth_time
from cryptfs.vfs.content.context import FileContext
from cryptfs.vfs.content.filestate import NOT_ASKED, FileKey, FileState
from cryptfs.vfs.content.others import is_overtaken
from cryptfs.vfs.content.parts import Overlay

log = logging.getLogger(__name__)


def _nobody_asks(_: FileState) -> None:
    pass


def _nobody_waits() -> None:
    pass


def _never(_: FileState) -> bool:
    return False


def _note_standing(state: FileState) -> None:
    """A file has no writer now, its content is under its name, and somebody reads it: note that.

    From then on everybody can see the content: if somebody removes the file, that is no loss.
    """
    where = state.whereabouts
    if where.kept_change == state.change_count or state.writers or state.overlay.records:
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
            _nobody_asks  # called before the table closes a file for good
        )
        # called when the last writer of a file goes and some of its records are in the journal only
        self.on_waiting: Callable[[], None] = _nobody_waits
        self.is_lost: Callable[[FileState], bool] = _never
        self.before_loss: Callable[[FileState], None] = _nobody_asks  # afterwards the file is not lost

    @property
    def closed_count(self) -> int:
        """Files that are open for the redo log alone."""
        return len(self._closed)

    def acquire(
        self, fd: int, st: os.stat_result, *, writable: bool, cipher_path: str, keeps_atime: bool = False
    ) -> FileState:
        """The state of the file behind a fresh descriptor, which it takes over; release it later.

        Args: st: stat of the descriptor.   keeps_atime: whether the descriptor has O_NOATIME.
        """
        key = (st.st_dev, st.st_ino)
        while True:
            with self._lock:
                state = self._states.get(key)
                if state is None:
                    state = FileState(
                        self._context, key, fd, writable=writable, path=cipher_path, keeps_atime=keeps_atime
                    )
                    self._states[key] = state
                    return state
                self._closed.pop(key, None)
                state.handles += 1  # first of all: so nobody closes its descriptor during the look at it
            try:
                overtaken = is_overtaken(state, st)
            except OSError:
                os.close(fd)
                self.release(state)
                raise
            if not overtaken:
                with self._lock:
                    state.writers += writable
                    state.adopt(fd, writable=writable, keeps_atime=keeps_atime)
                return state
            self._leave(state)
            self.release(state)

    def _leave(self, state: FileState) -> None:
        """After somebody else changed a file in place: handles keep the state, the next one gets another."""
        with self._lock:
            if self._states.get(state.key) is state:
                del self._states[state.key]
            self._closed.pop(state.key, None)
            if self._context.redo is not None:
                self._context.redo.abandon(state.overlay)
            if not state.handles:
                state.close_descriptors()

    def hold(self, state: FileState) -> int | None:
        """An O_PATH descriptor of an open file; None if it is closed now."""
        with self._lock:
            if self._states.get(state.key) is not state:
                return None
            return os.open(f"/proc/self/fd/{state.fd}", os.O_PATH | os.O_CLOEXEC)

    def birth_of(self, state: FileState) -> int | None:
        """The time of birth of an open file in ns; None: it has none, or is closed now."""
        if state.birth == NOT_ASKED:
            with self._lock:
                if self._states.get(state.key) is not state:
                    return None
                state.birth = statx_birth_time(state.fd, "")
        return state.birth

    def share(self, state: FileState, *, writable: bool = False) -> bool:
        """Add a handle to a state, unless its last one has gone."""
        with self._lock:
            if self._states.get(state.key) is not state:
                return False
            self._closed.pop(state.key, None)
            state.handles += 1
            state.writers += writable
            return True

    @contextlib.contextmanager
    def sharing(self, st: os.stat_result) -> Iterator[FileState | None]:
        """An open file, which nobody closes meanwhile; None: it is not open. Raises: OSError: as release."""
        state = self.find(st)
        if state is None or not self.share(state):
            yield None
            return
        try:
            yield state
        finally:
            self.release(state)

    def make_clean(self, st: os.stat_result) -> None:
        """Do now the work of a changed file's last close. Raises: OSError: as release."""
        with self.sharing(st) as state:
            if state is not None and state.changes:
                state.write_clean()
                self.on_left(state)  # it has another header now, which is ours

    def find_key(self, key: FileKey) -> FileState | None:
        """As find, by device and inode."""
        return self._states.get(key)

    def having_overlay(self, overlay: Overlay) -> FileState | None:
        """The state of an overlay's file; None once that is closed for good."""
        state = self._states.get(overlay.key)
        return state if state is not None and state.overlay is overlay else None

    def removing(self, dir_fd: int, entry_name: str) -> FileState | None:
        """The open file that is about to lose a name to a request; marked if that is its last one."""
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
            with contextlib.suppress(OSError):  # it is closed by now
                state.whereabouts.removed_here = os.fstat(state.fd).st_nlink == 0

    def name_removed(self, dir_id: bytes, name: bytes) -> None:
        """After a request removed a name: a file that lost this name before counts as removed here."""
        for state in list(self._states.values()) if self._states else ():
            where = state.whereabouts
            place = where.place
            if place is not None and place[1] == name and place[0].dir_id == dir_id:
                with contextlib.suppress(OSError):  # it is closed by now
                    where.removed_here = os.fstat(state.fd).st_nlink == 0

    def having(self, file_id: bytes, but: FileState) -> bool:
        """Whether another file with a name has this file_id, and is or was open for writing."""
        with self._lock:  # so that nobody closes them
            return any(
                state.writable
                and state.header is not None
                and state.header.file_id == file_id
                and state is not but
                and os.fstat(state.fd).st_nlink > 0
                for state in self._states.values()
            )

    def has_name(self, key: FileKey) -> bool | None:
        """Whether an open file has a name; None: it is not open."""
        with self._lock:
            state = self._states.get(key)
            return None if state is None else os.fstat(state.fd).st_nlink > 0

    def find(self, st: os.stat_result) -> FileState | None:
        """The state of an open file, or None."""
        with self._lock:
            return self._states.get((st.st_dev, st.st_ino))

    def release(self, state: FileState, *, writable: bool = False) -> None:
        """Give a handle back; the last one makes the header CLEAN and closes the file.

        A file with content on disk in the journal only stays here until the checkpointer has brought it home.

        If a file is lost, its content is kept when its last writer goes: its readers may go on for days.

        Args: writable: the handle can change the file.

        The state stays in the table until its header is written. So an open of the file meanwhile shares the
        state, and does not read a header that is about to change.

        Raises: OSError: the header could not be written. The file is closed all the same, and the next open
                finds its length by recovery.
        """
        st: os.stat_result | None = None
        gone = int(writable)
        sealed = False
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
                    if state.overlay.records and not state.writers:
                        self.on_waiting()
                    _note_standing(state)
                    if (
                        sealed
                    ):  # somebody has opened it meanwhile, and it has another header now, which is ours
                        self.on_left(state)
                    return
                elif (
                    redo is not None
                    and not state.overtaken
                    and redo.holds(state.overlay)
                    and os.fstat(state.fd).st_nlink
                ):
                    state.handles = 0
                    self._closed[state.key] = state
                    self.on_waiting()
                    return
                elif state.clean or state.overlay.records:  # with an overlay, it has no name left
                    self._drop(state)
                    return
            if lost:
                self.before_loss(state)
                continue
            if is_overtaken(state, st or os.fstat(state.fd)):
                continue
            try:
                state.write_clean()
                sealed = True
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
            self._context.redo.abandon(state.overlay)
        self.on_left(state)
        state.close_descriptors()

    def drop_unlinked(self) -> None:
        """After a name went: drop files that have no name and no handle."""
        with self._lock:  # also if there is none now: one may be on its way, see release
            for state in list(self._closed.values()):
                if os.fstat(state.fd).st_nlink == 0 and not self.is_lost(state):
                    self._drop(state)

    def close(self) -> None:
        """Settle all files that are still open: the mount is gone."""
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
                state.overlay.wipe()
                if self._states.pop(state.key, None) is not None:
                    state.close_descriptors()
