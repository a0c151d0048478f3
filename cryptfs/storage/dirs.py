"""Directories of the vault: records, sidecars of long names, entries, relative to descriptors.

Entry names here are names in the backing directory. They differ from full cipher names only if they are long:
entry `cryptfs.long.<hash>`, with the cipher name in the sidecar `cryptfs.long.<hash>.name`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
import time
from collections.abc import Iterator
from typing import NamedTuple

from cryptfs.core.names.conflicts import copies_of_entry, is_copy_of_internal, long_original
from cryptfs.core.names.host import StateNames, is_of_some_host
from cryptfs.core.names.litter import FRONT_END_NAME, OF_THE_DISK, is_litter
from cryptfs.core.names.names import (
    INTERNAL_PREFIX,
    INTERNAL_STEM,
    LONG_ENTRY_SIZE,
    LONG_STEM,
    MAX_NAME_SIZE,
    SIDECAR_SUFFIX,
    TEMP_PREFIX,
    could_be_cipher_name,
    encode_text,
    long_entry_name,
)
from cryptfs.errors import IntegrityError, NameError_
from cryptfs.storage.backing import DIRECTORY_FLAGS, O_NOATIME, create_small, read_small
from cryptfs.storage.durability import PendingSync
from cryptfs.storage.libc import RENAME_NOREPLACE, keeping_mtime, os_error, renameat2

MAX_CIPHER_NAME = 363  # a plaintext name of 255 bytes, padded to 256
_COPIES_SECONDS = 1.0
QUIET_SECONDS = 3.0
OTHERS_KEEP = 86_400.0  # seconds before the unfinished files of other machines may be removed


class BackingEntry(NamedTuple):
    """One entry of a backing directory. kind: the file type bits of st_mode, 0 if unknown."""

    entry_name: str
    inode: int
    kind: int


def entry_name_of(cipher_name: str) -> str:
    """The entry name of a full cipher name in its backing directory."""
    return cipher_name if len(cipher_name) <= MAX_NAME_SIZE else long_entry_name(cipher_name)


def is_long(entry_name: str) -> bool:
    """Whether an entry has its cipher name in a sidecar, its own or, for a conflict copy, its original's."""
    return entry_name.startswith(LONG_STEM)


def could_be_entry(entry_name: str) -> bool:
    """Whether an entry has the form of one of the plaintext: then a listing shows it, or says why not."""
    return is_long(entry_name) or could_be_cipher_name(entry_name) or bool(copies_of_entry(entry_name))


def holds_plaintext(entry_name: str) -> bool:
    """Whether an entry represents one of the plaintext: a cipher name, a long one, a conflict copy of one."""
    if not entry_name.startswith(INTERNAL_STEM):
        return not is_litter(entry_name) and entry_name not in (OF_THE_DISK, FRONT_END_NAME)
    if not entry_name.startswith(INTERNAL_PREFIX):
        return not is_copy_of_internal(entry_name)
    if not is_long(entry_name) or entry_name.endswith(SIDECAR_SUFFIX):
        return False
    return len(entry_name) == LONG_ENTRY_SIZE or not is_copy_of_internal(entry_name)


def temp_name(owner: StateNames) -> str:
    """A fresh name for an unfinished file of this machine."""
    return owner.temp_prefix + encode_text(os.urandom(18))


def put_small(dir_fd: int, name: str, content: bytes, owner: StateNames, *, sync: bool) -> int:
    """Make or replace a small file, whole at once; returns its descriptor.

    Args:   owner: this machine's names.   sync: bring the content to disk first; not the directory.
    Raises: OSError: what was there is still there.
    """
    temporary = temp_name(owner)
    with keeping_mtime(dir_fd):
        fd = create_small(dir_fd, temporary, content, 0o600)
    try:
        if sync:
            os.fsync(fd)
        with keeping_mtime(dir_fd):
            os.rename(temporary, name, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
    except BaseException:
        os.close(fd)
        with contextlib.suppress(OSError):
            os.unlink(temporary, dir_fd=dir_fd)
        raise
    return fd


def is_leftover(entry_name: str, st: os.stat_result, owner: StateNames) -> bool:
    """Whether an unfinished file may be removed.

    Not if another machine may still finish it: a sync client brought it within a day.
    """
    return is_own_temporary(entry_name, owner) or time.time() - st.st_mtime > OTHERS_KEEP


def is_own_temporary(entry_name: str, owner: StateNames) -> bool:
    """Whether the name of an unfinished file has no other machine's name in it."""
    if entry_name.startswith(owner.temp_prefix):
        return True
    return entry_name.startswith(TEMP_PREFIX) and not is_of_some_host(entry_name)


def open_directory(dir_fd: int, entry_name: str) -> int:
    """An O_PATH descriptor of a directory below another; NotADirectoryError for anything else."""
    return os.open(entry_name, DIRECTORY_FLAGS, dir_fd=dir_fd)


def open_for_listing(dir_fd: int, *, keep_atime: bool = False) -> int:
    """A readable descriptor of the directory behind an O_PATH descriptor.

    Args: keep_atime: keep the time of access, if the system lets us.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    if keep_atime:
        try:
            return _open_again(dir_fd, flags | O_NOATIME)
        except OSError as error:
            if error.errno != errno.EPERM:  # the directory belongs to another user
                raise
    return _open_again(dir_fd, flags)


def _open_again(dir_fd: int, flags: int) -> int:
    try:
        return os.open(".", flags, dir_fd=dir_fd)
    except OSError as error:
        if error.errno != errno.EACCES:
            raise
    # "." needs the right to search, x; a listing needs r alone.
    return os.open(f"/proc/self/fd/{dir_fd}", flags)


def is_quiet(dir_fd: int) -> bool:
    """Whether nobody has made, moved or removed an entry of a directory for a moment."""
    return time.time() - os.fstat(dir_fd).st_ctime > QUIET_SECONDS


def sync_directory(dir_fd: int) -> None:
    """fsync the directory behind an O_PATH descriptor."""
    fd = open_for_listing(dir_fd)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def scan(listing_fd: int) -> Iterator[BackingEntry]:
    """All entries of the plaintext: cipher names and long entries, but no internal files."""
    with os.scandir(listing_fd) as entries:
        for entry in entries:
            if holds_plaintext(entry.name):
                yield BackingEntry(entry.name, entry.inode(), _kind(entry))


def _kind(entry: os.DirEntry[str]) -> int:
    if entry.is_file(follow_symlinks=False):
        return 0o100000
    if entry.is_dir(follow_symlinks=False):
        return 0o040000
    if entry.is_symlink():
        return 0o120000
    try:
        return entry.stat(follow_symlinks=False).st_mode & 0o170000
    except OSError:
        return 0


def is_directory(dir_fd: int, name: str) -> bool:
    """Whether an entry is a directory. Raises: OSError."""
    return stat.S_ISDIR(os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_mode)


def rename_exclusive(old_dir_fd: int, old: str, new_dir_fd: int, new: str) -> None:
    """Rename that fails with EEXIST, also on filesystems without RENAME_NOREPLACE."""
    try:
        renameat2(old_dir_fd, old, new_dir_fd, new, RENAME_NOREPLACE)
        return
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS):
            raise
    try:
        os.stat(new, dir_fd=new_dir_fd, follow_symlinks=False)
    except FileNotFoundError:
        os.rename(old, new, src_dir_fd=old_dir_fd, dst_dir_fd=new_dir_fd)
        return
    raise os_error(errno.EEXIST)


def read_sidecar(dir_fd: int, entry_name: str) -> str:
    """The full cipher name of a long entry, checked against its hash.

    Raises: NameError_: the sidecar is missing, damaged or another's.
    """
    try:
        raw = read_small(dir_fd, entry_name + SIDECAR_SUFFIX, MAX_CIPHER_NAME)
    except FileNotFoundError:
        raise NameError_("the long name has lost its sidecar", cipher_path=entry_name) from None
    except IntegrityError as error:
        raise NameError_(f"the sidecar is {error.reason}", cipher_path=entry_name) from None
    except OSError as error:
        raise NameError_(f"the sidecar cannot be read: {error.strerror}", cipher_path=entry_name) from None
    cipher_name = raw.decode("ascii", "replace")
    fits = MAX_NAME_SIZE < len(raw) <= MAX_CIPHER_NAME  # a shorter one would be a second spelling
    if not fits or not raw.isascii() or long_entry_name(cipher_name) != entry_name:
        raise NameError_("the sidecar does not belong to its entry", cipher_path=entry_name)
    return cipher_name


class Sidecars:
    """The sidecars of long names. Its lock covers the pair of entry and sidecar while either changes.

    Args: pending: takes new sidecars, and brings them to disk before the next fsync returns.
          owner: this machine's names.
    """

    def __init__(self, pending: PendingSync, owner: StateNames) -> None:
        self._pending = pending
        self._owner = owner
        self.lock = threading.RLock()
        self._copied: tuple[tuple[int, int], float, frozenset[str]] = ((0, 0), 0.0, frozenset())

    def read(self, dir_fd: int, entry_name: str) -> str:
        """The full cipher name of a long entry. Raises: NameError_, as read_sidecar."""
        return read_sidecar(dir_fd, entry_name)

    def write(self, dir_fd: int, cipher_name: str) -> None:
        """Make the sidecar of a long name, atomically. Call with the lock held, before the entry.

        Keeps a correct one: it may be on disk, and a new one is not yet.
        """
        entry_name = long_entry_name(cipher_name)
        sidecar = entry_name + SIDECAR_SUFFIX
        with contextlib.suppress(NameError_):
            self.read(dir_fd, entry_name)
            return
        self._pending.add(put_small(dir_fd, sidecar, cipher_name.encode("ascii"), self._owner, sync=False))

    def bring_back(self, dir_fd: int, cipher_name: str) -> None:
        """Make a sidecar again that somebody else has removed, while its entry or a copy of that stays.

        Not while the directory changes: the rest of a removal may be under way.
        """
        if is_quiet(dir_fd):
            with self.lock:
                self.write(dir_fd, cipher_name)
                self.remove_if_orphaned(dir_fd, long_entry_name(cipher_name))

    def remove_if_orphaned(self, dir_fd: int, entry_name: str) -> None:
        """Remove the sidecar unless its entry exists, or a conflict copy of it.

        Call with the lock held, after the entry went.
        """
        owner = long_original(entry_name)
        try:
            os.stat(owner, dir_fd=dir_fd, follow_symlinks=False)
        except FileNotFoundError:
            with contextlib.suppress(OSError):
                if owner not in self._long_originals(dir_fd, entry_name):
                    os.unlink(owner + SIDECAR_SUFFIX, dir_fd=dir_fd)
        except OSError:
            return

    def _long_originals(self, dir_fd: int, gone: str) -> frozenset[str]:
        """The long entries with conflict copies in a directory.

        One listing serves for a moment, for many removals. gone: the entry that was just removed.
        """
        st = os.fstat(dir_fd)
        place, now = (st.st_dev, st.st_ino), time.monotonic()
        known, when, found = self._copied
        if known != place or now - when > _COPIES_SECONDS or long_original(gone) in found:
            found = copied_long_entries(dir_fd)
            self._copied = place, now, found
        return found


def list_names(dir_fd: int) -> list[str]:
    """All names in the directory behind an O_PATH descriptor; its time of access stays."""
    listing_fd = open_for_listing(dir_fd, keep_atime=True)
    try:
        return os.listdir(listing_fd)
    finally:
        os.close(listing_fd)


def copied_long_entries(dir_fd: int) -> frozenset[str]:
    """The long entries with conflict copies in a directory."""
    return frozenset(
        copy.original
        for name in list_names(dir_fd)
        if is_long(name) and not name.endswith(SIDECAR_SUFFIX)
        for copy in copies_of_entry(name)
    )
