"""What can be told of a directory from the names in it, and of an entry from its content."""

from __future__ import annotations

import contextlib
import itertools
import os
import stat
from collections.abc import Iterator

from cryptfs.core.dirrecord import unpack_directory_record
from cryptfs.core.geometry import HEADER_SIZE
from cryptfs.core.names import TEMP_PREFIX
from cryptfs.core.salvage import is_adoption_mark
from cryptfs.errors import DirectoryRecordError, HeaderError, IntegrityError, NameError_
from cryptfs.storage.backing import read_small
from cryptfs.storage.dirs import open_directory, read_record
from cryptfs.vfs.context import FileContext
from cryptfs.vfs.walk import Role, WalkedDirectory, WalkedEntry, Walker

ADOPTION_MARK = TEMP_PREFIX + "adopt"
"""Stands in a directory whose names are being sealed anew, for as long as that takes."""

SAMPLED_NAMES = 16  # names that a dir_id is tried on
_ENOUGH = 2  # names that do not verify, and none that does, are a matter of the record, not of the names
_MARK_SIZE = 32


def sealed_names(walker: Walker, directory: WalkedDirectory) -> Iterator[WalkedEntry]:
    """The entries whose names can be decrypted, verified or not."""
    return (
        entry
        for entry in walker.scan(directory)
        if entry.role is Role.ENTRY and entry.cipher_name is not None and entry.name is not None
    )


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


def proves(walker: Walker, directory: WalkedDirectory, dir_id: bytes, *, most: bool) -> bool:
    """Whether this is the directory's dir_id: names in it verify with it.

    Args: most: not one name is enough, which may have come from elsewhere, but more than half of a sample.
    """
    names = walker.name_cipher.in_directory(dir_id)
    seen = verified = 0
    for entry in itertools.islice(sealed_names(walker, directory), SAMPLED_NAMES):
        seen += 1
        with contextlib.suppress(NameError_):
            names.open(entry.cipher_name or "")
            verified += 1
            if not most:
                return True
    return 2 * verified > seen


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
            context.unpack_header(read_small(entry.directory.fd, entry.entry_name, HEADER_SIZE)[:HEADER_SIZE])
            return True
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
