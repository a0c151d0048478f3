"""Open directories of the vault: a descriptor, a dir_id, and the names below it."""

from __future__ import annotations

import os

from cryptfs.core.dirrecord import unpack_directory_record
from cryptfs.core.keys import Subkeys
from cryptfs.core.names import MAX_NAME_SIZE, DirectoryNames, NameCipher
from cryptfs.errors import DirectoryRecordError, NameTooLongError
from cryptfs.storage.dirs import entry_name_of, open_directory, read_record

SELF = b""
"""In place of a name: the directory itself, as the root has no entry anywhere."""

_CACHED_NAMES = 4096


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

    __slots__ = ("__weakref__", "_entry_names", "_names", "cipher_path", "dir_id", "fd")

    def __init__(self, fd: int, dir_id: bytes, names: DirectoryNames, cipher_path: str) -> None:
        self.fd = fd
        self.dir_id = dir_id
        self.cipher_path = cipher_path
        self._names = names
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
            self._remember(name, known)
        return known

    def cipher_name(self, name: bytes) -> str:
        """The full cipher name of a plaintext name."""
        if len(name) > MAX_NAME_SIZE:
            raise NameTooLongError(f"a name of {len(name)} bytes is over the limit of {MAX_NAME_SIZE}")
        return self._names.seal(name)

    def open_name(self, cipher_name: str, entry_name: str) -> bytes:
        """Decrypt and verify a full cipher name that was found here; NameError_ where it is not."""
        name = self._names.open(cipher_name)
        self._remember(name, entry_name)
        return name

    def _remember(self, name: bytes, entry_name: str) -> None:
        if len(self._entry_names) >= _CACHED_NAMES:
            self._entry_names = {SELF: "."}
        self._entry_names[name] = entry_name

    def path_of(self, entry_name: str) -> str:
        """The cipher path of an entry, for messages."""
        name = printable(entry_name)
        return f"{self.cipher_path}/{name}" if self.cipher_path else name

    def proc_path(self, entry_name: str) -> str:
        """A path to an entry through the descriptor, for system calls without a directory argument."""
        return f"/proc/self/fd/{self.fd}/{entry_name}"


class DirectoryOpener:
    """Opens directories of one vault."""

    def __init__(self, keys: Subkeys) -> None:
        self._keys = keys
        self._cipher = NameCipher(keys)

    @property
    def name_cipher(self) -> NameCipher:
        """The vault's name cipher."""
        return self._cipher

    def root(self, vault_fd: int) -> Directory:
        """The root directory; its dir_id follows from the masterkey."""
        dir_id = self._keys.root_dir_id
        return Directory(open_directory(vault_fd, "."), dir_id, self._cipher.in_directory(dir_id), "")

    def child(self, parent: Directory, name: bytes) -> Directory:
        """Open a subdirectory.

        Raises: DirectoryRecordError: its record is missing or not authentic.   OSError.
        """
        if name == SELF:
            return parent
        entry_name = parent.entry_name(name)
        fd = open_directory(parent.fd, entry_name)
        path = parent.path_of(entry_name)
        try:
            dir_id = unpack_directory_record(read_record(fd), self._keys)
        except DirectoryRecordError as error:
            os.close(fd)
            error.cipher_path = path
            raise
        except OSError:
            os.close(fd)
            raise
        return Directory(fd, dir_id, self._cipher.in_directory(dir_id), path)
