"""The checkpointer: brings what the journal holds to its places, so that the journal can take turns.

It runs in a thread of its own once the mount is up, and in the caller's where that thread is behind, or
was never started. It takes one FileState's lock at a time, and its own before all others.
"""

from __future__ import annotations

import logging
import os
import threading
import time

from cryptfs.vfs.filestate import FileState
from cryptfs.vfs.filetable import FileTable
from cryptfs.vfs.overtaking import distrust, is_overtaken
from cryptfs.vfs.redo import RedoLog

log = logging.getLogger(__name__)

JOURNAL_LIMIT = 16 * 1024 * 1024  # of one journal file: then records go to the other
OVERLAY_LIMIT = 8 * 1024 * 1024  # bytes of chunks in memory
MAX_CLOSED = 256  # files that nobody has open but the redo log
CLOSED_SECONDS = 5.0  # that a file waits which nobody writes to any more
LOOK_SECONDS = 2.0
_BEHIND = 3  # times a limit, at which writers wait


class Checkpointer:
    """Keeps journal, overlay and closed files within their limits.

    Args: files: of the vault.   redo: its redo log.
    """

    def __init__(self, files: FileTable, redo: RedoLog) -> None:
        self._files = files
        self._redo = redo
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._failure: OSError | None = None
        redo.on_lost = self._wake.set

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
        """Before a change, with no FileState's lock held: wait where the thread is too far behind.

        Raises: OSError: the journal cannot be emptied, because files cannot be written.
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
            journal.size / JOURNAL_LIMIT,
            self._redo.overlay_size / OVERLAY_LIMIT,
            self._files.closed_count / MAX_CLOSED,
        )

    def _run(self) -> None:
        since = time.monotonic()
        while not self._stopping:
            self._wake.wait(LOOK_SECONDS)
            self._wake.clear()
            now = time.monotonic()
            waited = now - since >= CLOSED_SECONDS and self._somebody_waits()
            if not any(self._redo.touched):
                since = now
            elif self._redo.broken or self._excess() >= 1 or waited:
                self.checkpoint()
                since = now

    def _somebody_waits(self) -> bool:
        """Whether a file that nobody writes to any more is in its place in part only, for others to see."""
        return any(not state.writers for touched in self._redo.touched for state in list(touched))

    def checkpoint(self) -> None:
        """Let the journal take turns, and bring home what the file that it left holds.

        What cannot be brought home now stays in the journal and is tried again the next time.
        """
        with self._lock:
            journal = self._redo.journal
            if journal is None or not any(self._redo.touched):
                return
            self._failure = None
            self._bring_home(1 - journal.turn)  # left over only where that failed before
            if not self._redo.touched[1 - journal.turn] and not self._redo.broken:
                self._take_turns()
            self._bring_home(1 - journal.turn)
            if self._redo.broken:  # no turns any more: what either file holds must come home
                self._failure = None
                for turn in range(len(self._redo.touched)):
                    self._bring_home(turn)

    def _take_turns(self) -> None:
        try:
            self._redo.take_turns()
        except OSError as error:
            self._fail("the journal", error)

    def _bring_home(self, turn: int) -> None:
        touched = self._redo.touched[turn]
        for state in list(touched):
            if not self._files.share(state):
                touched.pop(state, None)
                continue
            try:
                self._bring_file_home(state)
                touched.pop(state, None)
            except OSError as error:
                self._fail(state.cipher_path, error)
            finally:
                self._release(state)

    def _bring_file_home(self, state: FileState) -> None:
        with state.lock:
            distrust(state)
            if is_overtaken(state, os.fstat(state.fd)):
                log.error("%s: what was written here and waited in the journal is lost", state.cipher_path)
                self._redo.abandon(state)
                return
            self._redo.apply(state)
            floor = state.last_seq + 1
        if self._redo.durable:
            state.sync_backing(data_only=True)
        if state.handles > 1:  # somebody else has it open, so its header stays as it is for long
            with state.lock:
                state.raise_floor(floor)

    def _release(self, state: FileState) -> None:
        try:
            self._files.release(state)
        except OSError as error:
            log.error("%s: the header could not be written: %s", state.cipher_path, error.strerror)

    def _fail(self, what: str, error: OSError) -> None:
        log.error("%s could not be brought up to date: %s", what, os.strerror(error.errno or 0))
        self._failure = error
