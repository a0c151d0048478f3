"""Conflict copies that sync clients leave in a directory: what they are shown as, and where a shown one is.

A name is one entry: where the entry stands that cryptfs itself makes for it, the name means that one. Only
where it does not, and a conflict copy does, it means the copy.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from cryptfs.core.conflicts import copies_of_entry, copies_of_name, entries_of_copy, shown_name
from cryptfs.core.names import DirectoryNames
from cryptfs.errors import NameError_
from cryptfs.storage.dirs import entry_name_of, is_long, read_sidecar


class Conflicting(NamedTuple):
    """A conflict copy. name: that it is shown under.   cipher_name: the full one of its original."""

    entry_name: str
    name: bytes
    cipher_name: str


def find_copy(dir_fd: int, names: DirectoryNames, name: bytes, entry_name: str) -> Conflicting | None:
    """The conflict copy that a plain name means; None where it means its own entry.

    Args: entry_name: of what cryptfs makes under that name.
    """
    copies = copies_of_name(name)
    if not copies or stands(dir_fd, entry_name):
        return None
    for original, suffix in copies:
        cipher_name = names.seal(original)
        for candidate in entries_of_copy(entry_name_of(cipher_name), suffix):
            if stands(dir_fd, candidate):
                return Conflicting(candidate, name, cipher_name)
    return None


def open_copy(dir_fd: int, names: DirectoryNames, entry_name: str) -> Conflicting | None:
    """What an entry is shown as whose name is none of cryptfs; None where it is no conflict copy.

    Raises: NameError_: it is one, and cannot be shown: its name is too long, or means another entry.
    """
    for original, suffix in copies_of_entry(entry_name):
        try:
            cipher_name = read_sidecar(dir_fd, original) if is_long(original) else original
            plain = names.open(cipher_name)
        except NameError_:
            continue
        name = shown_name(plain, suffix)
        if name is None:
            raise NameError_("a conflict copy, whose name would be too long", cipher_path=entry_name)
        found = find_copy(dir_fd, names, name, entry_name_of(names.seal(name)))
        if found is None or found.entry_name != entry_name:
            raise NameError_("a conflict copy, whose name another entry has", cipher_path=entry_name)
        return found
    return None


def stands(dir_fd: int, entry_name: str) -> bool:
    """Whether a directory has an entry of this name."""
    try:
        os.stat(entry_name, dir_fd=dir_fd, follow_symlinks=False)
    except OSError:
        return False
    return True
