"""Directory records on disk, and whose they are: a directory and what cryptfs keeps in it have one owner."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator

from cryptfs.core.names.dirrecord import BOUND_RECORD_SIZE, RECORD_NAME
from cryptfs.core.names.host import StateNames
from cryptfs.errors import DirectoryRecordError, IntegrityError
from cryptfs.storage.backing import create_small, read_small
from cryptfs.storage.dirs import (
    holds_plaintext,
    list_names,
    put_small,
    rename_exclusive,
    sync_directory,
    temp_name,
)
from cryptfs.storage.libc import keeping_mtime


def read_record(dir_fd: int) -> bytes:
    """The bytes of a directory's record.

    Raises: DirectoryRecordError: there is none, or it is not a regular file.
    """
    try:
        return read_small(dir_fd, RECORD_NAME, BOUND_RECORD_SIZE)
    except FileNotFoundError:
        raise DirectoryRecordError("the directory has no directory record") from None
    except IntegrityError as error:
        raise DirectoryRecordError(f"the directory record is {error.reason}") from None


def write_record(dir_fd: int, record: bytes) -> int:
    """Create a directory's record; returns its descriptor, not synced."""
    return create_small(dir_fd, RECORD_NAME, record, 0o600)


def replace_record(dir_fd: int, record: bytes, owner: StateNames, *, sync: bool) -> None:
    """Replace a directory's record, whole at once. The directory keeps its time of change, if it is ours.

    Args:   sync: on return it is on disk.
    Raises: OSError: the old record is still there, or only the sync failed.
    """
    os.close(put_small(dir_fd, RECORD_NAME, record, owner, sync=sync))
    if sync:
        sync_directory(dir_fd)


def bring_back_record(dir_fd: int, record: bytes, owner: StateNames) -> None:
    """Make a record again that somebody else has removed; on return it is on disk.

    Raises: FileExistsError: a record is there again.   OSError.
    """
    temporary = temp_name(owner)
    with keeping_mtime(dir_fd):
        fd = create_small(dir_fd, temporary, record, 0o600)
        try:
            os.fsync(fd)
            rename_exclusive(dir_fd, temporary, dir_fd, RECORD_NAME)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary, dir_fd=dir_fd)
            raise
        finally:
            os.close(fd)
    sync_directory(dir_fd)


def is_in_parent(dir_fd: int, entry_name: str) -> bool:
    """Whether a directory's parent has it under this name."""
    try:
        there = os.stat(f"../{entry_name}", dir_fd=dir_fd, follow_symlinks=False)
    except OSError:
        return False
    return os.path.samestat(there, os.fstat(dir_fd))


@contextlib.contextmanager
def with_owner_rights(dir_fd: int) -> Iterator[None]:
    """Meanwhile the owner may read a directory and write into it; then its mode is as before."""
    st = os.fstat(dir_fd)
    mode = stat.S_IMODE(st.st_mode)
    if mode & stat.S_IRWXU == stat.S_IRWXU or st.st_uid != os.geteuid() or not st.st_uid:
        yield
        return
    os.chmod(f"/proc/self/fd/{dir_fd}", mode | stat.S_IRWXU)
    try:
        yield
    finally:
        os.chmod(f"/proc/self/fd/{dir_fd}", mode)


def give_internal_files(dir_fd: int) -> None:
    """After root gave a directory away: its record, its sidecars and the like belong to the new owner.

    They have mode 0600, and without them the owner sees no name. The vault directory has more such files.

    Args: dir_fd: any descriptor.
    """
    owner = os.fstat(dir_fd)
    for name in list_names(dir_fd):
        if holds_plaintext(name):
            continue
        try:
            fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
        except FileNotFoundError:
            continue  # it went meanwhile
        try:
            _give(fd, owner)
            if stat.S_ISDIR(os.fstat(fd).st_mode):
                for below in list_names(fd):
                    held = os.open(below, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
                    try:
                        _give(held, owner)
                    finally:
                        os.close(held)
        finally:
            os.close(fd)


def _give(fd: int, owner: os.stat_result) -> None:
    """Give away a directory, or a file that has no name elsewhere."""
    st = os.fstat(fd)
    if stat.S_ISDIR(st.st_mode) or (stat.S_ISREG(st.st_mode) and st.st_nlink == 1):
        os.chown(f"/proc/self/fd/{fd}", owner.st_uid, owner.st_gid)
