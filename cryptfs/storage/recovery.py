"""The files of the recovery record in a vault directory."""

from __future__ import annotations

import os
import time

from cryptfs.core.names.host import StateNames
from cryptfs.core.slots.checks import NEXT_RECOVERY_NAME, RECOVERY_NAME
from cryptfs.core.slots.recovery import MAX_RECORD_SIZE
from cryptfs.errors import IntegrityError
from cryptfs.storage.backing import read_small
from cryptfs.storage.dirs import OTHERS_KEEP
from cryptfs.storage.libc import keeping_mtime
from cryptfs.storage.vaultdir import put_aside, replace_file


def read_record_file(vault_fd: int, name: str) -> bytes | None:
    """The bytes under one of the record's names; b"" for a directory or the like; None if there is none.

    Raises: OSError.
    """
    try:
        return read_small(vault_fd, name, MAX_RECORD_SIZE)
    except FileNotFoundError:
        return None
    except (IntegrityError, IsADirectoryError):
        return b""


def read_records(vault_fd: int) -> list[bytes]:
    """The record and the one that is to follow it, those that are there. Raises: OSError."""
    found = (read_record_file(vault_fd, name) for name in (RECOVERY_NAME, NEXT_RECOVERY_NAME))
    return [raw for raw in found if raw is not None]


def write_record(vault_fd: int, raw: bytes, owner: StateNames) -> None:
    """Replace the record in one step, on disk on return. Raises: OSError: the old one is still there."""
    replace_file(vault_fd, RECOVERY_NAME, raw, owner)


def write_next_record(vault_fd: int, raw: bytes, owner: StateNames) -> None:
    """Write the record that is to follow. Raises: OSError."""
    replace_file(vault_fd, NEXT_RECOVERY_NAME, raw, owner)


def follow(vault_fd: int, owner: StateNames) -> None:
    """Put the record that was to follow in the place of the record; on disk on return. Raises: OSError."""
    with keeping_mtime(vault_fd):
        try:
            _rename_next(vault_fd)
        except IsADirectoryError:
            put_aside(vault_fd, RECOVERY_NAME, owner)
            _rename_next(vault_fd)
    os.fsync(vault_fd)


def _rename_next(vault_fd: int) -> None:
    os.rename(NEXT_RECOVERY_NAME, RECOVERY_NAME, src_dir_fd=vault_fd, dst_dir_fd=vault_fd)


def remove_record(vault_fd: int, name: str, owner: StateNames) -> None:
    """Remove one of the two, if it is there; on disk on return. Raises: OSError."""
    with keeping_mtime(vault_fd):
        try:
            os.unlink(name, dir_fd=vault_fd)
        except FileNotFoundError:
            return
        except IsADirectoryError:
            put_aside(vault_fd, name, owner)
    os.fsync(vault_fd)


def is_abandoned(vault_fd: int, name: str) -> bool:
    """Whether a file is older than a day: then no sync client still brings what belongs to it."""
    try:
        st = os.stat(name, dir_fd=vault_fd, follow_symlinks=False)
    except OSError:
        return False
    return time.time() - st.st_mtime > OTHERS_KEEP
