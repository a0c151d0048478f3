"""The list of one machine's sessions, ended and crashed, and the mark that files wait to be settled.

Source: docs/FORMAT.md, section 10.
"""

from __future__ import annotations

import os
import stat

from cryptfs.core.format.journal import MAX_SESSIONS_SIZE
from cryptfs.core.names.host import SHARED_STATE, StateNames
from cryptfs.errors import IntegrityError
from cryptfs.storage.backing import read_small
from cryptfs.storage.libc import keeping_mtime
from cryptfs.storage.vaultdir import replace_file

SESSIONS_NAME = SHARED_STATE.sessions  # of a vault of 0.1
UNSETTLED_NAME = SHARED_STATE.unsettled


def read_sessions_file(vault_fd: int, owner: StateNames = SHARED_STATE) -> bytes | None:
    """The bytes of the file, None if there is none. Raises: IntegrityError, OSError."""
    try:
        raw = read_small(vault_fd, owner.sessions, MAX_SESSIONS_SIZE)
    except FileNotFoundError:
        return None
    if len(raw) > MAX_SESSIONS_SIZE:
        raise IntegrityError("the list of sessions is too large", cipher_path=owner.sessions)
    return raw


def has_sessions_file(vault_fd: int, owner: StateNames) -> bool:
    """Whether there is any entry in the list's place. Raises: OSError."""
    try:
        os.stat(owner.sessions, dir_fd=vault_fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def write_sessions_file(vault_fd: int, content: bytes, owner: StateNames = SHARED_STATE) -> None:
    """Replace the file atomically. Raises: OSError."""
    replace_file(vault_fd, owner.sessions, content, owner)


def mark_unsettled(vault_fd: int, journal_name: str, owner: StateNames = SHARED_STATE) -> None:
    """Turn a finished journal into the mark that files wait to be settled: one rename does both.

    Raises: OSError: neither happened. A full disk does not cause that.
    """
    with keeping_mtime(vault_fd):
        os.rename(journal_name, owner.unsettled, src_dir_fd=vault_fd, dst_dir_fd=vault_fd)


def is_unsettled(vault_fd: int, owner: StateNames = SHARED_STATE) -> bool:
    """Whether files wait to be settled."""
    try:
        return stat.S_ISREG(os.stat(owner.unsettled, dir_fd=vault_fd, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return False
