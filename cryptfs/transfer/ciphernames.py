"""From a path in the plaintext to the one in the vault directory, and back."""

from __future__ import annotations

import os

from cryptfs.errors import NameError_
from cryptfs.storage.dirs import holds_plaintext
from cryptfs.transfer.pathvault import PathVault
from cryptfs.transfer.places import Found
from cryptfs.vfs.tree.leftout import LeftOut


class NotAnEntryError(Exception):
    """The path in the vault directory is of a file that cryptfs keeps for itself, or of somebody else."""


class _Reason(LeftOut):
    """Keeps why a name does not authenticate."""

    __slots__ = ("reason",)

    def __init__(self) -> None:
        super().__init__("")
        self.reason = "the name does not authenticate"

    def add(self, path: str, reason: str) -> None:
        self.reason = reason


def cipher_path(vault: PathVault, path: bytes) -> str:
    """The path below the vault directory of an entry; '' for the root.

    Raises: OSError: there is none.   IntegrityError.
    """
    found = vault.places.find(path, follow=False)
    vault.tree.stat(*found)
    return cipher_path_of(found)


def cipher_path_of(found: Found) -> str:
    """The path below the vault directory of a place, which may be free; '' for the root."""
    directory, name = found
    return directory.path_of(directory.entry_name(name)) if name else directory.cipher_path


def require_entry(part: str, walked: str) -> None:
    """Raises: NotAnEntryError: a part of a path in the vault directory is no entry. walked: up to it."""
    if part == "..":
        raise NotAnEntryError("it leads out of the vault directory")
    if not holds_plaintext(part):
        raise NotAnEntryError(f"{walked} in the vault directory is not an encrypted file or directory")


def plain_path(vault: PathVault, cipher: str) -> bytes:
    """The path in the plaintext of an entry in the vault directory; b'' for the root.

    Raises: NotAnEntryError.   NameError_: a name of the path does not authenticate in its place.
            OSError: there is none.   DirectoryRecordError.
    """
    parts = [part for part in cipher.split("/") if part not in ("", ".")]
    here, walked = vault.tree.root, ""
    names: list[bytes] = []
    for number, part in enumerate(parts, 1):
        walked = f"{walked}/{part}" if walked else part
        os.stat(part, dir_fd=here.fd, follow_symlinks=False)
        require_entry(part, walked)
        reason = _Reason()
        name = vault.tree.listed_name(here, part, reason)
        if name is None:
            raise NameError_(reason.reason, cipher_path=walked)
        names.append(name)
        if number < len(parts):
            here = vault.tree.directory(here, name)
    return b"/".join(names)
