"""What can be told of a directory from the names in it, and of an entry from its content."""

from __future__ import annotations

import contextlib
import itertools
import os
import stat
from collections.abc import Generator

from cryptfs.core.dirrecord import unpack_directory_record
from cryptfs.core.geometry import HEADER_SIZE
from cryptfs.core.names import TEMP_PREFIX, DirectoryNames
from cryptfs.core.salvage import is_adoption_mark
from cryptfs.errors import DirectoryRecordError, HeaderError, IntegrityError, NameError_
from cryptfs.storage.backing import open_backing, read_small
from cryptfs.storage.dirs import open_directory, read_record
from cryptfs.vfs.context import FileContext
from cryptfs.vfs.roles import Role
from cryptfs.vfs.walk import WalkedDirectory, WalkedEntry, Walker

ADOPTION_MARK = TEMP_PREFIX + "adopt"
"""Stands in a directory whose names are being sealed anew, for as long as that takes."""

SAMPLED_NAMES = 16  # names that a dir_id is tried on
_ENOUGH = 2  # names that do not verify, and none that does, are a matter of the record, not of the names
_MARK_SIZE = 32


def sealed_names(walker: Walker, directory: WalkedDirectory) -> Generator[WalkedEntry, None, None]:
    """The entries whose names can be decrypted, verified or not."""
    with contextlib.closing(walker.scan(directory)) as found:
        for entry in found:
            if entry.role is Role.ENTRY and entry.cipher_name is not None and entry.name is not None:
                yield entry


def belongs_elsewhere(walker: Walker, directory: WalkedDirectory) -> bool:
    """Whether an authentic record is another directory's: no name verifies with it."""
    if directory.is_root or directory.names is None:
        return False
    seen = 0
    for entry in sealed_names(walker, directory):
        if entry.damage is None:
            return False
        seen += 1
    return seen >= _ENOUGH


def sample_of(walker: Walker, directory: WalkedDirectory) -> list[str]:
    """Some cipher names of the directory, to try dir_ids on."""
    with contextlib.closing(sealed_names(walker, directory)) as found:
        return [entry.cipher_name or "" for entry in itertools.islice(found, SAMPLED_NAMES)]


def proves(names: DirectoryNames, sample: list[str], *, most: bool) -> bool:
    """Whether these are the names of the directory that a sample is of: some of it verify.

    Args: most: not one name is enough, which may have come from elsewhere, but more than half of them.
    """
    verified = 0
    for cipher_name in sample:
        with contextlib.suppress(NameError_):
            names.open(cipher_name)
            verified += 1
    return 2 * verified > len(sample) if most else verified > 0


def has_adoption_mark(context: FileContext, directory: WalkedDirectory) -> bool:
    """Whether an authentic mark says that this directory's names are being sealed anew."""
    if directory.dir_id is None or directory.is_root:
        return False
    try:
        raw = read_small(directory.fd, ADOPTION_MARK, _MARK_SIZE)
    except (OSError, IntegrityError):
        return False
    return is_adoption_mark(raw, directory.dir_id, context.keys)


def holds_vault_content(context: FileContext, entry: WalkedEntry) -> bool:
    """Whether an entry, whatever it is called, is a file or directory of this vault."""
    mode = entry.st.st_mode
    try:
        if stat.S_ISREG(mode) and entry.st.st_size >= HEADER_SIZE:
            fd = open_backing(entry.directory.fd, entry.entry_name, os.O_RDONLY)[0]
            try:
                return context.header_of(fd) is not None
            finally:
                os.close(fd)
        if stat.S_ISDIR(mode):
            return directory_id(context, entry) is not None
    except (HeaderError, IntegrityError, OSError):
        return False
    return False


def directory_id(context: FileContext, entry: WalkedEntry) -> bytes | None:
    """The dir_id that a directory's record gives; None where it gives none. Raises: OSError."""
    fd = open_directory(entry.directory.fd, entry.entry_name)
    try:
        return unpack_directory_record(read_record(fd), context.keys)
    except DirectoryRecordError:
        return None
    finally:
        os.close(fd)
