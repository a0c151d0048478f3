"""The list of sessions of one machine: which are over, and which ended without an unmount; and the mark that
files are to be settled after one of those.

Source: docs/FORMAT.md, section 10.
"""

from __future__ import annotations

import os
import stat

from cryptfs.core.host import SHARED_STATE, StateNames
from cryptfs.core.journal import MAX_SESSIONS_SIZE
from cryptfs.errors import IntegrityError
from cryptfs.storage.backing import read_small
from cryptfs.storage.vaultdir import replace_file

SESSIONS_NAME = SHARED_STATE.sessions  # of a vault of 0.1
UNSETTLED_NAME = SHARED_STATE.unsettled


def read_sessions_file(vault_fd: int, owner: StateNames = SHARED_STATE) -> bytes | None:
    """The bytes of the file, None where there is none. Raises: IntegrityError, OSError."""
    try:
        raw = read_small(vault_fd, owner.sessions, MAX_SESSIONS_SIZE)
    except FileNotFoundError:
        return None
    if len(raw) > MAX_SESSIONS_SIZE:
        raise IntegrityError("the list of sessions is too large", cipher_path=owner.sessions)
    return raw


def has_sessions_file(vault_fd: int, owner: StateNames) -> bool:
    """Whether anything stands in the list's place. Raises: OSError."""
    try:
        os.stat(owner.sessions, dir_fd=vault_fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def write_sessions_file(vault_fd: int, content: bytes, owner: StateNames = SHARED_STATE) -> None:
    """Replace the file atomically. Raises: OSError."""
    replace_file(vault_fd, owner.sessions, content, owner)


def mark_unsettled(vault_fd: int, journal_name: str, owner: StateNames = SHARED_STATE) -> None:
    """Say that files have to be looked at, and that this journal is done with: one becomes the other.

    Raises: OSError: neither is said. A disk without room is no reason for that.
    """
    os.rename(journal_name, owner.unsettled, src_dir_fd=vault_fd, dst_dir_fd=vault_fd)


def is_unsettled(vault_fd: int, owner: StateNames = SHARED_STATE) -> bool:
    """Whether files have to be looked at."""
    try:
        return stat.S_ISREG(os.stat(owner.unsettled, dir_fd=vault_fd, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return False
