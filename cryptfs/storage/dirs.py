"""Directories of the vault: records, sidecars of long names, entries, relative to descriptors.

Entry names here are what stands in the backing directory. The difference to a full cipher name is the
long ones: entry `cryptfs.long.<hash>`, with the cipher name in the sidecar `cryptfs.long.<hash>.name`.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat
import threading
import time
from collections.abc import Iterator
from typing import NamedTuple

from cryptfs.core.conflicts import copies_of_entry, is_copy_of_internal, long_original
from cryptfs.core.dirrecord import RECORD_NAME, RECORD_SIZE
from cryptfs.core.host import SHARED_STATE, StateNames, is_of_some_host
from cryptfs.core.names import (
    INTERNAL_PREFIX,
    LONG_PREFIX,
    MAX_NAME_SIZE,
    SIDECAR_SUFFIX,
    TEMP_PREFIX,
    encode_text,
    long_entry_name,
)
from cryptfs.errors import DirectoryRecordError, IntegrityError, NameError_
from cryptfs.storage.backing import DIRECTORY_FLAGS, O_NOATIME, create_small, read_small
from cryptfs.storage.durability import PendingSync
from cryptfs.storage.libc import RENAME_NOREPLACE, renameat2

log = logging.getLogger(__name__)

MAX_CIPHER_NAME = 363  # a plaintext name of 255 bytes, padded to 256
_LONG_STEM = LONG_PREFIX.removesuffix(".")
_STEM = INTERNAL_PREFIX.removesuffix(".")
_LONG_LENGTH = len(LONG_PREFIX) + 43
_COPIES_SECONDS = 1.0
OTHERS_KEEP = 86_400.0  # seconds that the unfinished things of other machines are left alone


class BackingEntry(NamedTuple):
    """One entry of a backing directory. kind: the file type bits of st_mode, 0 where unknown."""

    entry_name: str
    inode: int
    kind: int


def entry_name_of(cipher_name: str) -> str:
    """What a full cipher name is called in its backing directory."""
    return cipher_name if len(cipher_name) <= MAX_NAME_SIZE else long_entry_name(cipher_name)


def is_long(entry_name: str) -> bool:
    """Whether an entry has its cipher name in a sidecar, its own or that of what it is a conflict copy of."""
    return entry_name.startswith(_LONG_STEM)


def holds_plaintext(entry_name: str) -> bool:
    """Whether an entry stands for one of the plaintext: a cipher name, a long one, a conflict copy of one."""
    if not entry_name.startswith(_STEM):
        return True
    if not entry_name.startswith(INTERNAL_PREFIX):
        return not is_copy_of_internal(entry_name)
    if not is_long(entry_name) or entry_name.endswith(SIDECAR_SUFFIX):
        return False
    return len(entry_name) == _LONG_LENGTH or not is_copy_of_internal(entry_name)


def temp_name(owner: StateNames) -> str:
    """A fresh name for something unfinished, of this machine."""
    return owner.temp_prefix + encode_text(os.urandom(18))


def is_leftover(entry_name: str, st: os.stat_result, owner: StateNames) -> bool:
    """Whether something unfinished may be cleared away.

    Not so what another machine is perhaps about to finish: what a sync client brought within a day.
    """
    return is_own_temporary(entry_name, owner) or time.time() - st.st_mtime > OTHERS_KEEP


def is_own_temporary(entry_name: str, owner: StateNames) -> bool:
    """Whether no other machine's name stands in that of something unfinished."""
    if entry_name.startswith(owner.temp_prefix):
        return True
    return entry_name.startswith(TEMP_PREFIX) and not is_of_some_host(entry_name)


def open_directory(dir_fd: int, entry_name: str) -> int:
    """An O_PATH descriptor of a directory below another; NotADirectoryError for anything else."""
    return os.open(entry_name, DIRECTORY_FLAGS, dir_fd=dir_fd)


def open_for_listing(dir_fd: int, *, keep_atime: bool = False) -> int:
    """A readable descriptor of the directory behind an O_PATH descriptor.

    Args: keep_atime: reading it leaves the time of access as it is, where the system lets us.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    if keep_atime:
        try:
            return os.open(".", flags | O_NOATIME, dir_fd=dir_fd)
        except OSError as error:
            if error.errno != errno.EPERM:  # the directory is somebody else's
                raise
    return os.open(".", flags, dir_fd=dir_fd)


def read_record(dir_fd: int) -> bytes:
    """The bytes of a directory's record.

    Raises: DirectoryRecordError: there is none, or something else stands there.
    """
    try:
        return read_small(dir_fd, RECORD_NAME, RECORD_SIZE)
    except FileNotFoundError:
        raise DirectoryRecordError("the directory has no directory record") from None
    except IntegrityError as error:
        raise DirectoryRecordError(f"the directory record is {error.reason}") from None


def write_record(dir_fd: int, record: bytes) -> int:
    """Create a directory's record; returns its descriptor, not synced."""
    return create_small(dir_fd, RECORD_NAME, record, 0o600)


def scan(listing_fd: int) -> Iterator[BackingEntry]:
    """All entries that hold something of the plaintext: cipher names and long entries, no internal files."""
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


def remove_directory(parent_fd: int, entry_name: str, owner: StateNames = SHARED_STATE) -> None:
    """Remove a directory of the vault that holds nothing but its record; all or nothing.

    Call with the sidecars' lock held: a sidecar whose entry is being created is no orphan.

    Args:   owner: this machine's names.

    Raises: OSError: ENOTEMPTY where it holds anything else.
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
            if all(name.startswith(TEMP_PREFIX) for name in names):
                log.warning("%s: not removed: another machine began something in it within a day", entry_name)
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))
        _remove_with_record(parent_fd, entry_name, fd, owner)
        restore_mode = None
    finally:
        if restore_mode is not None:
            os.chmod(f"/proc/self/fd/{fd}", restore_mode)
        os.close(fd)


def _other_names(dir_fd: int, owner: StateNames) -> list[str]:
    """What a directory holds beside its record.

    Sidecars without their entry go, and so do what an interrupted operation left, a sync client's conflict
    copies of records and sidecars, and a directory that was planted as the record.
    """
    present = set(list_names(dir_fd))
    leftovers = {
        name
        for name in present
        if _is_orphan(name, present) or is_copy_of_internal(name) or _may_go(dir_fd, name, owner)
    }
    others = present - leftovers - {RECORD_NAME}
    if others:
        return sorted(others)  # then nothing is touched: an operation may be under way here
    for name in leftovers:
        try:
            _discard(dir_fd, name, owner)
        except OSError:
            others.add(name)
    if RECORD_NAME in present and _is_directory(dir_fd, RECORD_NAME):
        os.rmdir(RECORD_NAME, dir_fd=dir_fd)
    return sorted(others)


def _may_go(dir_fd: int, name: str, owner: StateNames) -> bool:
    if is_own_temporary(name, owner):
        return True
    if not name.startswith(TEMP_PREFIX):
        return False
    try:
        return is_leftover(name, os.stat(name, dir_fd=dir_fd, follow_symlinks=False), owner)
    except OSError:
        return False


def _is_orphan(name: str, present: set[str]) -> bool:
    return is_long(name) and name.endswith(SIDECAR_SUFFIX) and name[: -len(SIDECAR_SUFFIX)] not in present


def _is_directory(dir_fd: int, name: str) -> bool:
    return stat.S_ISDIR(os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_mode)


def _discard(dir_fd: int, name: str, owner: StateNames) -> None:
    """Remove a file or, as an interrupted mkdir leaves one, a directory with at most a record in it."""
    try:
        os.unlink(name, dir_fd=dir_fd)
    except IsADirectoryError:
        remove_directory(dir_fd, name, owner)


def _remove_with_record(parent_fd: int, entry_name: str, fd: int, owner: StateNames) -> None:
    """Remove an empty directory and its record; hidden first, so that nobody ever finds it without one."""
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
    with contextlib.suppress(OSError):  # the directory is gone; what is left is cleared away with its parent
        os.unlink(kept, dir_fd=parent_fd)


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
    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))


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

    Args: pending: takes new sidecars, to be on disk before the next fsync returns.
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
        """Make the sidecar of a long name, whole at once. Call with the lock held, before the entry.

        One that is there and right stays: it may be on disk, which a new one is not yet.
        """
        entry_name = long_entry_name(cipher_name)
        sidecar = entry_name + SIDECAR_SUFFIX
        with contextlib.suppress(NameError_):
            self.read(dir_fd, entry_name)
            return
        temporary = temp_name(self._owner)
        fd = create_small(dir_fd, temporary, cipher_name.encode("ascii"), 0o600)
        try:
            os.rename(temporary, sidecar, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
        except BaseException:
            os.close(fd)
            os.unlink(temporary, dir_fd=dir_fd)
            raise
        self._pending.add(fd)

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
        """Of which long entries a directory holds conflict copies.

        A listing serves for a moment, in which many may be removed. gone: the entry that was removed now.
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
    """The long entries of which a directory holds conflict copies."""
    return frozenset(
        copy.original
        for name in list_names(dir_fd)
        if is_long(name) and not name.endswith(SIDECAR_SUFFIX)
        for copy in copies_of_entry(name)
    )
