"""The file `cryptfs.sessions`: which sessions are over, and which ended without an unmount; and the mark that
files are to be settled after one of those.

Source: docs/FORMAT.md, section 10.
"""

from __future__ import annotations

import os
import stat

from cryptfs.core.journal import MAX_SESSIONS_SIZE
from cryptfs.errors import IntegrityError
from cryptfs.storage.backing import read_small
from cryptfs.storage.vaultdir import replace_file

SESSIONS_NAME = "cryptfs.sessions"
UNSETTLED_NAME = "cryptfs.unsettled"


def read_sessions_file(vault_fd: int) -> bytes | None:
    """The bytes of the file, None where there is none. Raises: IntegrityError, OSError."""
    try:
        raw = read_small(vault_fd, SESSIONS_NAME, MAX_SESSIONS_SIZE)
    except FileNotFoundError:
        return None
    if len(raw) > MAX_SESSIONS_SIZE:
        raise IntegrityError("the list of sessions is too large", cipher_path=SESSIONS_NAME)
    return raw


def write_sessions_file(vault_fd: int, content: bytes) -> None:
    """Replace the file atomically. Raises: OSError."""
    replace_file(vault_fd, SESSIONS_NAME, content)


def mark_unsettled(vault_fd: int, journal_name: str) -> None:
    """Say that files have to be looked at, and that this journal is done with: one becomes the other.

    Raises: OSError: neither is said. A disk without room is no reason for that.
    """
    os.rename(journal_name, UNSETTLED_NAME, src_dir_fd=vault_fd, dst_dir_fd=vault_fd)


def is_unsettled(vault_fd: int) -> bool:
    """Whether files have to be looked at."""
    try:
        return stat.S_ISREG(os.stat(UNSETTLED_NAME, dir_fd=vault_fd, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return False
