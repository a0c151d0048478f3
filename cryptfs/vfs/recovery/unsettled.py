"""After a crash: settles each file that the crash may have left unsettled, and shows no wrong size.

The size of a file follows from the length of its backing file, without its header. That is wrong for a file
whose writer died in the middle, until recovery has found its end; and a kernel that keeps sizes never asks
again. So while a vault has the mark `...unsettled`, which a replay leaves, each question for a size reads
the file's header, and changes nothing. Meanwhile a thread reads all files once, settles those that name a
journal of the crash, and removes the mark. Then the crash is over: from now on, a file that is too short was
cut. Files that other sessions left open stay as they are.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
import threading
from collections.abc import Callable

from cryptfs.core.aead import SMALL_NONCE_SIZE
from cryptfs.core.format.journal import Sessions
from cryptfs.core.format.verdict import Length, verdict
from cryptfs.errors import IntegrityError
from cryptfs.storage.backing import open_backing, reopen
from cryptfs.storage.libc import keeping_mtime, syncfs
from cryptfs.storage.sessions import write_sessions_file
from cryptfs.vfs.content import others
from cryptfs.vfs.content.context import FileContext
from cryptfs.vfs.content.filetable import FileTable
from cryptfs.vfs.recovery.replay import read_sessions
from cryptfs.vfs.scan.roles import Role
from cryptfs.vfs.scan.walk import Walker

log = logging.getLogger(__name__)


def _nobody_asks() -> None:
    pass


class Unsettled:
    """The files of a vault, after a crash.

    Args: files: of the vault.   vault_fd: the vault directory.
    """

    def __init__(self, context: FileContext, files: FileTable, vault_fd: int) -> None:
        self.over = False
        self.on_over: Callable[[], None] = _nobody_asks
        self._context = context
        self._files = files
        self._vault_fd = vault_fd
        self._stopping = False
        self._left: set[bytes] = set()  # journal_ids of files that this machine may not settle
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread; after daemonising."""
        if not self._context.read_only:
            self._thread = threading.Thread(target=self.sweep, name="cryptfs-settle", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End the thread; the next mount checks the remaining files."""
        self._stopping = True
        if self._thread is not None:
            self._thread.join()

    def plain_size(self, held_fd: int, st: os.stat_result, path: str) -> int | None:
        """The plaintext size of a regular file, verified; None if its backing length is enough.

        Args: held_fd: any descriptor of it, also with O_PATH; stays the caller's.   st: its stat.
        """
        if not st.st_size:
            return None
        try:
            fd = reopen(held_fd, os.O_RDONLY)
        except OSError:
            return None  # this process cannot read it
        return self._look(fd, st, path, settle=False)

    def _look(self, fd: int, st: os.stat_result, path: str, *, settle: bool) -> int | None:
        """As plain_size; takes the descriptor over.   settle: a file that the crash left is settled."""
        if self._files.find(st) is None and not self._concerns(fd, st, settle=settle):
            os.close(fd)
            return None
        state = self._files.acquire(fd, st, writable=False, cipher_path=path)
        try:
            state.require_loaded()
            if settle:
                others.settle(state)
                if state.header is not None:
                    self._left.add(state.header.journal_id)
            return state.size
        except (IntegrityError, OSError):
            return None
        finally:
            with contextlib.suppress(OSError):
                self._files.release(state)

    def _concerns(self, fd: int, st: os.stat_result, *, settle: bool) -> bool:
        """Whether a file that is not open has to be loaded: for its size, or to be settled."""
        context = self._context
        try:
            header = context.header_of(fd)
        except (IntegrityError, OSError):
            return False  # the next open reports it
        if header is not None and context.is_of_crash(header.journal_id):
            return True
        return not settle and verdict(header, st.st_size, context.geometry).kind is not Length.SETTLED

    def sweep(self) -> None:
        """Read every file once; then remove the mark, and with it all exceptions for the crash."""
        walker = Walker(self._context, self._vault_fd)
        try:
            for directory in walker.directories():
                for entry in walker.entries(directory):
                    if self._stopping:
                        return
                    if entry.role in (Role.ENTRY, Role.CONFLICT) and stat.S_ISREG(entry.st.st_mode):
                        with contextlib.suppress(OSError, IntegrityError):
                            fd, st = open_backing(directory.fd, entry.entry_name, os.O_RDONLY)
                            self._look(fd, st, entry.cipher_path, settle=True)
            self._end_crash()
        except OSError as error:
            log.error("could not settle all files: %s; the next mount will try again", error.strerror)

    def _end_crash(self) -> None:
        context = self._context
        syncfs(self._vault_fd)
        known = read_sessions(context, self._vault_fd)
        sessions = Sessions(known.last, tuple(each for each in known.crashed if each in self._left))
        packed = sessions.pack(context.keys, os.urandom(SMALL_NONCE_SIZE), context.owner)
        write_sessions_file(self._vault_fd, packed, context.owner)
        if context.redo is not None:
            context.redo.forget_crashed(sessions.crashed)
        context.crashed = frozenset(sessions.crashed)
        self.over = True
        self.on_over()
        with keeping_mtime(self._vault_fd):
            os.unlink(context.owner.unsettled, dir_fd=self._vault_fd)
