"""The checkpointer: brings records from the journal to their places, so that its two files can take turns.

Once the mount is up, it has a thread of its own. A writer's thread does the work if that one is behind or
never started. It takes one FileState's lock at a time, and its own before all others.
"""

from __future__ import annotations

import logging
import os
import threading
import time

from cryptfs.vfs.content.filestate import FileState
from cryptfs.vfs.content.filetable import FileTable
from cryptfs.vfs.content.homecoming import bring_home
from cryptfs.vfs.content.mtimes import ns_of_its_second
from cryptfs.vfs.content.others import distrust, is_overtaken
from cryptfs.vfs.content.redo import RedoLog

log = logging.getLogger(__name__)

JOURNAL_LIMIT = 16 * 1024 * 1024  # bytes of one journal file: then records go to the other
OVERLAY_LIMIT = 8 * 1024 * 1024  # bytes of chunks in memory
MAX_CLOSED = 256  # files that are open for the redo log alone
CLOSED_SECONDS = 0.5
"""How long a file waits after its last writer: a file that programs close often comes home once.

A sync client that copies the file meanwhile copies old content."""
LOOK_SECONDS = 2.0
_BEHIND = 3  # times a limit: then writers wait


class Checkpointer:
    """Keeps journal, overlay and closed files within their limits.

    Args: files: of the vault.   redo: its redo log.
    """

    def __init__(self, files: FileTable, redo: RedoLog) -> None:
        self._files = files
        self._redo = redo
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._due_at: float | None = None  # when the next waiting file has waited long enough
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._failure: OSError | None = None
        redo.on_lost = self._wake.set
        files.on_waiting = self._file_waits

    def start(self) -> None:
        """Start the thread; after daemonising."""
        self._thread = threading.Thread(target=self._run, name="cryptfs-checkpoint", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread, and bring everything home as far as possible."""
        self._stopping = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        for _ in self._redo.touched:
            self.checkpoint()

    def make_room(self) -> None:
        """Before a change, with no FileState's lock held: wait if the thread is too far behind.

        Raises: OSError: the journal cannot become empty, because writes to the files fail.
        """
        excess = self._excess()
        if excess < 1:
            return
        if self._thread is not None and excess < _BEHIND:
            self._wake.set()
            return
        self.checkpoint()
        if self._failure is not None and self._excess() >= _BEHIND:
            raise OSError(self._failure.errno, self._failure.strerror)

    def _excess(self) -> float:
        journal = self._redo.journal
        if journal is None:
            return 0.0
        return max(
            0.0 if self._redo.broken else journal.size / JOURNAL_LIMIT,  # a broken journal grows no more
            self._redo.overlay_size / OVERLAY_LIMIT,
            self._files.closed_count / MAX_CLOSED,
        )

    def _file_waits(self) -> None:
        """A file lost its last writer, and has records in the journal only. The table's lock is held."""
        if self._waits(CLOSED_SECONDS):
            self._wake.set()

    def _waits(self, seconds: float) -> bool:
        """Files want to come home in so many seconds. Returns: whether nothing was due before."""
        if self._due_at is not None:
            return False
        self._due_at = time.monotonic() + seconds
        return True

    def _run(self) -> None:
        while not self._stopping:
            due_at = self._due_at
            woken = self._wake.wait(LOOK_SECONDS if due_at is None else max(0.0, due_at - time.monotonic()))
            self._wake.clear()
            self._look(woken=woken)

    def _look(self, *, woken: bool) -> None:
        """Do what is due. woken: early, because somebody wants a checkpoint or has set a time."""
        due_at = self._due_at
        due = due_at is not None and time.monotonic() >= due_at
        if due:
            self._due_at = None  # before the look at files: one that waits from now on sets a new time
        self._redo.look_after_journal()
        if self._redo.broken or self._excess() >= 1:
            self.checkpoint()
        elif due or not woken:  # not woken: a file may have failed to come home before
            self._bring_waiting_home()

    def _bring_waiting_home(self) -> None:
        """Bring home the files that have no writer now, for others to see; the journal goes on as it is."""
        with self._lock:
            for turn in range(len(self._redo.touched)):
                self._bring_home(turn, waiting=True)

    def checkpoint(self) -> None:
        """Let the journal take turns, and bring home the records of the file that it left.

        If some cannot come home now, they stay in the journal, and the next checkpoint tries again.
        """
        with self._lock:
            journal = self._redo.journal
            self._failure = None
            if journal is None or not (any(self._redo.touched) or journal.size >= JOURNAL_LIMIT):
                return
            self._bring_home(1 - journal.turn)  # has records only if that failed before
            if not self._redo.touched[1 - journal.turn] and not self._redo.broken:
                self._take_turns()
            self._bring_home(1 - journal.turn)
            if self._redo.broken:  # there are no turns now: the records of both files must come home
                self._failure = None
                for turn in range(len(self._redo.touched)):
                    self._bring_home(turn)

    def _take_turns(self) -> None:
        try:
            self._redo.take_turns()
        except OSError as error:
            self._fail("the journal", error)

    def _bring_home(self, turn: int, *, waiting: bool = False) -> None:
        for overlay in list(self._redo.touched[turn]):
            state = self._files.having_overlay(overlay)
            if state is not None and waiting:
                if state.writers:
                    continue
                if (wait_ns := ns_of_its_second(state)) > 0:
                    self._waits(wait_ns / 1e9)
                    continue
            if state is None or not self._files.share(state):
                self._redo.touched[turn].pop(overlay, None)
                continue
            try:
                self._bring_file_home(state, turn)
            except OSError as error:
                self._fail(state.cipher_path, error)
            finally:
                self._release(state)

    def _bring_file_home(self, state: FileState, turn: int) -> None:
        with state.lock:
            distrust(state)
            if is_overtaken(state, os.fstat(state.fd)):
                log.error("%s: data that was only in the journal is lost", state.cipher_path)
                self._redo.abandon(state.overlay)
                return
            bring_home(state)
            floor = state.overlay.last_seq + 1
        if self._redo.durable:
            state.sync_backing(data_only=True)
            state.require_synced()
        if state.handles > 1:  # somebody else has it open, so its header stays as it is for long
            with state.lock:
                state.raise_floor(floor)
        with state.lock:
            self._redo.came_home(state.overlay, floor, turn)

    def _release(self, state: FileState) -> None:
        try:
            self._files.release(state)
        except OSError as error:
            log.error("%s: the header could not be written: %s", state.cipher_path, error.strerror)

    def _fail(self, what: str, error: OSError) -> None:
        log.error("%s could not be brought up to date: %s", what, os.strerror(error.errno or 0))
        self._failure = error
