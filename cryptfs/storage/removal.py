"""Removes directories of the vault: each with its record and what else belongs to no file in it."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat

from cryptfs.core.names.conflicts import is_copy_of_internal
from cryptfs.core.names.dirrecord import RECORD_NAME
from cryptfs.core.names.host import SHARED_STATE, StateNames
from cryptfs.core.names.litter import is_litter
from cryptfs.core.names.names import SIDECAR_SUFFIX, TEMP_PREFIX
from cryptfs.core.printable import shown
from cryptfs.storage.dirs import (
    could_be_entry,
    is_directory,
    is_leftover,
    is_long,
    is_own_temporary,
    list_names,
    open_directory,
    temp_name,
)
from cryptfs.storage.libc import os_error

log = logging.getLogger(__name__)

_SHOWN = 3


def remove_directory(parent_fd: int, entry_name: str, owner: StateNames = SHARED_STATE) -> None:
    """Remove a directory of the vault that holds only its record; all or nothing.

    Call with the sidecars' lock held: a sidecar may wait for its entry, and is not an orphan then.

    Args:   owner: this machine's names.

    Raises: OSError: ENOTEMPTY if it holds anything else.
    """
    fd = open_directory(parent_fd, entry_name)
    restore_mode: int | None = None
    try:
        try:
            names = _other_names(fd, owner)
        except PermissionError:
            # A plain directory without rights for its owner can be removed; so can this one.
            restore_mode = os.fstat(fd).st_mode & 0o7777
            os.chmod(f"/proc/self/fd/{fd}", 0o700)
            names = _other_names(fd, owner)
        if names:
            _say_what_keeps_it(entry_name, names)
            raise os_error(errno.ENOTEMPTY)
        _remove_with_record(parent_fd, entry_name, fd, owner)
        restore_mode = None
    finally:
        if restore_mode is not None:
            os.chmod(f"/proc/self/fd/{fd}", restore_mode)
        os.close(fd)


def _say_what_keeps_it(entry_name: str, names: list[str]) -> None:
    """Log what keeps a directory that looks empty on the mount."""
    if any(could_be_entry(name) for name in names):
        return
    if all(name.startswith(TEMP_PREFIX) for name in names):
        log.warning("%s: not removed: another machine began something in it less than a day ago", entry_name)
        return
    shown_names = ", ".join(shown(name) for name in names[:_SHOWN])
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    log.warning(
        "%s: not removed: this directory of the vault also holds %s%s, which cryptfs did not make; "
        "move that away, then remove the directory", entry_name, shown_names, more,
    )  # fmt: skip


def _other_names(dir_fd: int, owner: StateNames) -> list[str]:
    """The entries of a directory other than its record.

    This removes sidecars without an entry, remains of interrupted operations, a sync client's conflict copies
    of records and sidecars, files that are litter, and a directory that somebody planted as the record.
    """
    present = set(list_names(dir_fd))
    leftovers = {
        name
        for name in present
        if _is_orphan(name, present) or is_copy_of_internal(name) or _may_go(dir_fd, name, owner)
    }
    others = present - leftovers - {RECORD_NAME}
    if others:
        return sorted(others)  # then touch nothing: an operation may be under way here
    for name in leftovers:
        try:
            _discard(dir_fd, name, owner)
        except OSError:
            others.add(name)
    if RECORD_NAME in present and is_directory(dir_fd, RECORD_NAME):
        os.rmdir(RECORD_NAME, dir_fd=dir_fd)
    return sorted(others)


def _may_go(dir_fd: int, name: str, owner: StateNames) -> bool:
    if is_own_temporary(name, owner) or (is_litter(name) and _is_file(dir_fd, name)):
        return True
    if not name.startswith(TEMP_PREFIX):
        return False
    try:
        return is_leftover(name, os.stat(name, dir_fd=dir_fd, follow_symlinks=False), owner)
    except OSError:
        return False


def _is_orphan(name: str, present: set[str]) -> bool:
    return is_long(name) and name.endswith(SIDECAR_SUFFIX) and name[: -len(SIDECAR_SUFFIX)] not in present


def _is_file(dir_fd: int, name: str) -> bool:
    try:
        return stat.S_ISREG(os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_mode)
    except OSError:
        return False


def _discard(dir_fd: int, name: str, owner: StateNames) -> None:
    """Remove a file or, as an interrupted mkdir leaves one, a directory with at most a record in it."""
    try:
        os.unlink(name, dir_fd=dir_fd)
    except IsADirectoryError:
        remove_directory(dir_fd, name, owner)


def _remove_with_record(parent_fd: int, entry_name: str, fd: int, owner: StateNames) -> None:
    """Remove an empty directory and its record. Hide it first, so that it never shows without a record."""
    hidden, kept = temp_name(owner), temp_name(owner)
    try:
        os.rename(entry_name, hidden, src_dir_fd=parent_fd, dst_dir_fd=parent_fd)
    except OSError:
        hidden = entry_name  # overlayfs cannot rename some directories that it can remove
    try:
        _rmdir_beside_record(parent_fd, hidden, fd, kept)
    except OSError:
        if hidden != entry_name:
            os.rename(hidden, entry_name, src_dir_fd=parent_fd, dst_dir_fd=parent_fd)
        raise


def _rmdir_beside_record(parent_fd: int, entry_name: str, fd: int, kept: str) -> None:
    try:
        os.rename(RECORD_NAME, kept, src_dir_fd=fd, dst_dir_fd=parent_fd)
    except FileNotFoundError:
        os.rmdir(entry_name, dir_fd=parent_fd)  # lost its record: nothing to keep
        return
    try:
        os.rmdir(entry_name, dir_fd=parent_fd)
    except OSError:
        os.rename(kept, RECORD_NAME, src_dir_fd=parent_fd, dst_dir_fd=fd)
        raise
    with contextlib.suppress(OSError):  # the directory is gone; the removal of its parent clears the rest
        os.unlink(kept, dir_fd=parent_fd)
