"""The file `cryptfs.sessions`: which sessions are over, and which ended without an unmount.

Source: docs/FORMAT.md, section 10.
"""

from __future__ import annotations

import errno

from cryptfs.core.journal import MAX_SESSIONS_SIZE
from cryptfs.errors import IntegrityError
from cryptfs.storage.backing import read_small
from cryptfs.storage.journal import empty_journal
from cryptfs.storage.vaultdir import replace_file

SESSIONS_NAME = "cryptfs.sessions"


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
    """Replace the file atomically, when all that the journal holds is on disk in its place.

    On a full disk the journal gives back its room for that: else the vault could not be mounted to make any.

    Raises: OSError.
    """
    try:
        replace_file(vault_fd, SESSIONS_NAME, content)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        empty_journal(vault_fd)
        replace_file(vault_fd, SESSIONS_NAME, content)
