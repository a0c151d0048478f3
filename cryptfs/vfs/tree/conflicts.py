"""Conflict copies that sync clients leave in a directory: their plain names, and the way back to the copy.

A name is one entry. If the directory has the entry that cryptfs itself makes for a name, the name means that
one. Only if it has not, and there is a conflict copy, the name means the copy.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from cryptfs.core.names.conflicts import (
    CONFLICT_WORD,
    copies_of_entry,
    copies_of_name,
    entries_of_copy,
    may_be_cut,
    shown_name,
)
from cryptfs.core.names.names import DirectoryNames
from cryptfs.errors import NameError_
from cryptfs.storage.dirs import entry_name_of, is_long, list_names, read_sidecar


class Conflicting(NamedTuple):
    """A conflict copy. name: the one in listings.   cipher_name: the full one of its original."""

    entry_name: str
    name: bytes
    cipher_name: str


def may_be_copy(name: bytes) -> bool:
    """Whether a plain name may mean a conflict copy: asks no disk, and nearly all names cost nothing."""
    return CONFLICT_WORD in name and (bool(copies_of_name(name)) or may_be_cut(name))


def find_copy(dir_fd: int, names: DirectoryNames, name: bytes, entry_name: str) -> Conflicting | None:
    """The conflict copy that a plain name means; None if it means its own entry.

    A shortened name does not say what it is short for: only then this lists the directory.

    Args: entry_name: the one that cryptfs makes for that name.
    """
    if not may_be_copy(name) or stands(dir_fd, entry_name):
        return None
    for original, suffix in copies_of_name(name):
        cipher_name = names.seal(original)
        for candidate in entries_of_copy(entry_name_of(cipher_name), suffix):
            if stands(dir_fd, candidate):
                return Conflicting(candidate, name, cipher_name)
    if may_be_cut(name):
        for candidate in sorted(list_names(dir_fd)):
            copy = _read(dir_fd, names, candidate)
            if copy is not None and copy.name == name:
                return copy
    return None


def open_copy(dir_fd: int, names: DirectoryNames, entry_name: str) -> Conflicting | None:
    """The conflict copy behind an entry that cryptfs did not name; None if it is not a conflict copy.

    Raises: NameError_: it is one, and cannot be shown, because its name means another entry.
    """
    copy = _read(dir_fd, names, entry_name)
    if copy is None:
        return None
    found = find_copy(dir_fd, names, copy.name, entry_name_of(names.seal(copy.name)))
    if found is None or found.entry_name != entry_name:
        raise NameError_("a conflict copy, and another entry has its name", cipher_path=entry_name)
    return found


def _read(dir_fd: int, names: DirectoryNames, entry_name: str) -> Conflicting | None:
    """An entry as the conflict copy that its name claims; None if it is not one."""
    for original, suffix in copies_of_entry(entry_name):
        try:
            cipher_name = read_sidecar(dir_fd, original) if is_long(original) else original
            shown = shown_name(names.open(cipher_name), suffix)
        except NameError_:
            continue
        if shown is not None:
            return Conflicting(entry_name, shown, cipher_name)
    return None


def stands(dir_fd: int, entry_name: str) -> bool:
    """Whether a directory has an entry of this name; yes if it does not let us look."""
    try:
        os.stat(entry_name, dir_fd=dir_fd, follow_symlinks=False)
    except PermissionError:
        return True
    except OSError:
        return False
    return True
