"""Open directories of the vault: a descriptor, a dir_id, and the names below it."""

from __future__ import annotations

import os
import threading
import time
import weakref

from cryptfs.core.conflicts import CONFLICT_WORD
from cryptfs.core.dirrecord import RECORD_NAME, unpack_directory_record
from cryptfs.core.keys import Subkeys
from cryptfs.core.names import MAX_NAME_SIZE, DirectoryNames, NameCipher
from cryptfs.errors import DirectoryRecordError, NameTooLongError
from cryptfs.storage.dirs import entry_name_of, open_directory, read_record
from cryptfs.vfs.conflicts import Conflicting, find_copy, may_be_copy, open_copy

SELF = b""
"""In place of a name: the directory itself, as the root has no entry anywhere."""

NO_NAME = "(no name)"
"""Cipher path of a file without a name, for messages."""

RECORD_SECONDS = 1.0  # after which the record of a directory that is in use is looked at again
_CACHED_NAMES = 4096  # of one directory
_COUNTED = 64  # a directory counts its names in steps of so many
MAX_CACHED_NAMES = 65_536  # of all directories that are open, some 250 bytes each


class CachedNames:
    """How many names all directories of a vault remember. With too many, all of them begin anew."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0
        self._large: weakref.WeakSet[Directory] = weakref.WeakSet()

    def grown(self, directory: Directory) -> None:
        """A directory has come to remember _COUNTED names more."""
        with self._lock:
            self._count += _COUNTED
            self._large.add(directory)
            if self._count <= MAX_CACHED_NAMES:
                return
            large, self._large, self._count = self._large, weakref.WeakSet(), 0
        for other in large:
            other.forget_names()


def printable(name: str) -> str:
    """A name as found in the vault, for messages: whoever planted it has no say over lines or terminals."""
    if name.isascii() and name.isprintable():
        return name
    return name.encode("unicode_escape").decode("ascii")


class Directory:
    """One directory, held open by an O_PATH descriptor that stays right through renames.

    The descriptor is closed with the last reference, so that an operation that is under way never
    meets a descriptor that was closed, or used again, behind its back.
    """

    __slots__ = (
        *("__weakref__", "_cached", "_entry_names", "_names", "cipher_path", "dir_id", "fd"),
        *("looked", "record"),
    )

    def __init__(
        self, fd: int, dir_id: bytes, names: DirectoryNames, cipher_path: str, cached: CachedNames
    ) -> None:
        self.fd = fd
        self.dir_id = dir_id
        self.cipher_path = cipher_path
        self.record: tuple[int, int] | None = None  # inode and ctime in ns of its record; the root has none
        self.looked = 0.0  # when that was looked at last
        self._names = names
        self._cached = cached
        self._entry_names: dict[bytes, str] = {SELF: "."}

    def __del__(self) -> None:
        os.close(self.fd)

    def entry_name(self, name: bytes) -> str:
        """What a plaintext name (or SELF) is called in the backing directory.

        Raises: NameTooLongError: over 255 bytes.
        """
        known = self._entry_names.get(name)
        if known is None:
            known = entry_name_of(self._names.seal(name))
            if may_be_copy(name):
                copy = find_copy(self.fd, self._names, name, known)
                return (
                    known if copy is None else copy.entry_name
                )  # others make and remove them: not remembered
            self._remember(name, known)
        return known

    def cipher_name(self, name: bytes) -> str:
        """The full cipher name of a plaintext name; that of its original where it means a conflict copy."""
        if len(name) > MAX_NAME_SIZE:
            raise NameTooLongError(f"a name of {len(name)} bytes is over the limit of {MAX_NAME_SIZE}")
        cipher_name = self._names.seal(name)
        if CONFLICT_WORD in name:
            copy = find_copy(self.fd, self._names, name, entry_name_of(cipher_name))
            if copy is not None:
                return copy.cipher_name
        return cipher_name

    def open_name(self, cipher_name: str, entry_name: str) -> bytes:
        """Decrypt and verify a full cipher name that was found here; NameError_ where it is not."""
        name = self._names.open(cipher_name)
        if CONFLICT_WORD not in name:
            self._remember(name, entry_name)
        return name

    def open_copy(self, entry_name: str) -> Conflicting | None:
        """What an entry is shown as whose name is none of cryptfs; None where it is no conflict copy.

        Raises: NameError_: it is one, and cannot be shown.
        """
        return open_copy(self.fd, self._names, entry_name)

    def is_copy(self, name: bytes) -> bool:
        """Whether a plaintext name means a conflict copy."""
        if CONFLICT_WORD not in name:
            return False
        return find_copy(self.fd, self._names, name, entry_name_of(self._names.seal(name))) is not None

    def _remember(self, name: bytes, entry_name: str) -> None:
        names = self._entry_names
        if len(names) >= _CACHED_NAMES:
            self.forget_names()
            names = self._entry_names
        names[name] = entry_name
        if not len(names) % _COUNTED:
            self._cached.grown(self)

    def forget_names(self) -> None:
        """Remember no names: they are sealed again when they are asked for."""
        self._entry_names = {SELF: "."}

    def path_of(self, entry_name: str) -> str:
        """The cipher path of an entry, for messages."""
        name = printable(entry_name)
        return f"{self.cipher_path}/{name}" if self.cipher_path else name

    def proc_path(self, entry_name: str) -> str:
        """A path to an entry through the descriptor, for system calls without a directory argument."""
        return f"/proc/self/fd/{self.fd}/{entry_name}"


class Unnamed:
    """In place of a directory and a name: a file that is known by a descriptor only. Its name is SELF.

    Args: fd: O_PATH or other descriptor; stays the caller's.   cipher_path: for messages.
    """

    __slots__ = ("cipher_path", "fd")

    def __init__(self, fd: int, cipher_path: str = NO_NAME) -> None:
        self.fd = fd
        self.cipher_path = cipher_path


Place = tuple[Directory | Unnamed, bytes]
"""Where a file is: a directory and a name in it, or no place but a descriptor."""


class DirectoryOpener:
    """Opens directories of one vault."""

    def __init__(self, keys: Subkeys) -> None:
        self._keys = keys
        self._cipher = NameCipher(keys)
        self._cached = CachedNames()

    @property
    def name_cipher(self) -> NameCipher:
        """The vault's name cipher."""
        return self._cipher

    def root(self, vault_fd: int) -> Directory:
        """The root directory; its dir_id follows from the masterkey."""
        dir_id = self._keys.root_dir_id
        names = self._cipher.in_directory(dir_id)
        return Directory(open_directory(vault_fd, "."), dir_id, names, "", self._cached)

    def child(self, parent: Directory, name: bytes) -> Directory:
        """Open a subdirectory.

        Raises: DirectoryRecordError: its record is missing or not authentic.   OSError.
        """
        if name == SELF:
            return parent
        return self.child_by_entry(parent, parent.entry_name(name))

    def child_by_entry(self, parent: Directory, entry_name: str) -> Directory:
        """As child, by the name in the backing directory."""
        return self._verified(open_directory(parent.fd, entry_name), parent.path_of(entry_name))

    def of_descriptor(self, fd: int) -> Directory:
        """A directory that is known by a descriptor only. Raises: as child."""
        return self._verified(open_directory(fd, "."), NO_NAME)

    def is_current(self, directory: Directory) -> bool:
        """Whether a directory still has the record that it was opened with; looks once in RECORD_SECONDS.

        Two machines may make one directory at once: a sync client keeps the record of one of them.
        """
        now = time.monotonic()
        if directory.record is None or now - directory.looked < RECORD_SECONDS:
            return True
        directory.looked = now
        try:
            seen = _record_seen(directory.fd)
            if seen != directory.record:
                if unpack_directory_record(read_record(directory.fd), self._keys) != directory.dir_id:
                    return False
                directory.record = seen
        except FileNotFoundError:
            return not os.fstat(directory.fd).st_nlink  # gone with its directory, or alone
        except DirectoryRecordError:
            return False
        return True

    def _verified(self, fd: int, path: str) -> Directory:
        try:
            dir_id = unpack_directory_record(read_record(fd), self._keys)
            seen = _record_seen(fd)
        except DirectoryRecordError as error:
            os.close(fd)
            error.cipher_path = path
            raise
        except OSError:
            os.close(fd)
            raise
        found = Directory(fd, dir_id, self._cipher.in_directory(dir_id), path, self._cached)
        found.record, found.looked = seen, time.monotonic()
        return found


def _record_seen(dir_fd: int) -> tuple[int, int]:
    st = os.stat(RECORD_NAME, dir_fd=dir_fd, follow_symlinks=False)
    return st.st_ino, st.st_ctime_ns
