"""Small files that must be on disk before the next fsync returns: directory records and sidecars.

Nothing syncs them when they are written, so unpacking an archive costs no sync. But an fsync of any file or
directory promises more than that file's data: also the records above it. So this keeps them open until the
next fsync, and writes them out first.
"""

from __future__ import annotations

import contextlib
import os
import threading

from cryptfs.storage.libc import syncfs

MAX_PENDING = 64  # descriptors held; beyond that one syncfs of the vault's filesystem does the work


class PendingSync:
    """Descriptors to sync before the next fsync returns. Safe from many threads.

    Args: vault_fd: any descriptor in the vault's filesystem, open for reading.
    """

    def __init__(self, vault_fd: int) -> None:
        self._vault_fd = vault_fd
        self._lock = threading.Lock()
        self._fds: list[int] = []
        self._overflow = False

    def add(self, fd: int) -> None:
        """Take over a descriptor of a file that was just written."""
        with self._lock:
            if len(self._fds) < MAX_PENDING:
                self._fds.append(fd)
                return
            self._overflow = True
        os.close(fd)

    def flush(self) -> None:
        """Bring all of them to disk.

        Raises: OSError: that failed; the files stay pending.
        """
        if not self._fds and not self._overflow:
            return
        with self._lock:
            if self._overflow:
                syncfs(self._vault_fd)
                self._overflow = False
                self._close_all()
                return
            while self._fds:
                os.fdatasync(self._fds[-1])
                os.close(self._fds.pop())

    def close(self) -> None:
        """Write out the pending files, as far as possible, and close."""
        with contextlib.suppress(OSError):
            self.flush()
        with self._lock:
            self._close_all()

    def _close_all(self) -> None:
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()
