"""A vault under two masterkeys: the old one, which is on its way out, and the new one.

A structure is old if it verifies under the old masterkey, and new if it does under the new one. One that
verifies under neither is damaged, and nothing seals it again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from cryptfs.core.names.conflicts import copies_of_entry, entries_of_copy
from cryptfs.core.names.host import StateNames
from cryptfs.core.names.names import DirectoryNames, NameCipher
from cryptfs.errors import NameError_
from cryptfs.storage.dirs import entry_name_of, is_long, read_sidecar
from cryptfs.vfs.content.context import FileContext

TEMP_MARK = "rekey."
"""After the prefix of temporary names: the name of an unfinished file of a change of the masterkey."""


@dataclass(frozen=True, slots=True)
class BothKeys:
    """The vault under the old and the new masterkey.

    vault_fd: the vault directory.   rekey_fd: its directory `cryptfs.rekey`.
    """

    old: FileContext
    new: FileContext
    vault_fd: int
    rekey_fd: int
    old_names: NameCipher
    new_names: NameCipher

    @property
    def owner(self) -> StateNames:
        """This machine's names."""
        return self.new.owner

    def names_in(self, old_dir_id: bytes, new_dir_id: bytes) -> DirNames:
        """The names of a directory."""
        return DirNames(self.old_names.in_directory(old_dir_id), self.new_names.in_directory(new_dir_id))


class Located(NamedTuple):
    """An entry with a name that verifies.

    name:   the plain name; of a conflict copy, that of its original.
    is_new: under which masterkey it verified.
    cipher_name: the full one that did.
    suffix, form: of a conflict copy: its suffix, and which of the possible spellings; else "" and 0.
    """

    name: bytes
    is_new: bool
    cipher_name: str
    suffix: str = ""
    form: int = 0


class DirNames:
    """The names of one directory under both masterkeys."""

    __slots__ = ("_new", "_old")

    def __init__(self, old: DirectoryNames, new: DirectoryNames) -> None:
        self._old = old
        self._new = new

    def locate(self, dir_fd: int, entry_name: str) -> Located | None:
        """The name of an entry, as itself or as a conflict copy; None if it verifies as neither."""
        found = self._open(dir_fd, entry_name)
        if found is not None:
            return found
        for original, suffix in copies_of_entry(entry_name):
            found = self._open(dir_fd, original)
            if found is not None:
                spellings = entries_of_copy(original, suffix)
                form = spellings.index(entry_name) if entry_name in spellings else 0
                return found._replace(suffix=suffix, form=form)
        return None

    def _open(self, dir_fd: int, entry_name: str) -> Located | None:
        try:
            cipher_name = read_sidecar(dir_fd, entry_name) if is_long(entry_name) else entry_name
        except NameError_:
            return None
        for names, is_new in ((self._new, True), (self._old, False)):
            try:
                return Located(names.open(cipher_name), is_new, cipher_name)
            except NameError_:
                continue
        return None

    def new_cipher_name(self, found: Located) -> str:
        """The full cipher name under the new masterkey; of a conflict copy, that of its original."""
        return found.cipher_name if found.is_new else self._new.seal(found.name)

    def new_entry_name(self, found: Located) -> str:
        """The entry's name under the new masterkey."""
        entry_name = entry_name_of(self.new_cipher_name(found))
        return entries_of_copy(entry_name, found.suffix)[found.form] if found.suffix else entry_name
