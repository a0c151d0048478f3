"""Evidence: the names in a directory show its dir_id, and the content of an entry shows its origin."""

from __future__ import annotations

import contextlib
import itertools
import os
import stat
from collections.abc import Generator

from cryptfs.core.format.salvage import is_adoption_mark
from cryptfs.core.geometry import HEADER_SIZE
from cryptfs.core.keys import DIR_ID_SIZE
from cryptfs.core.names.dirrecord import unpack_directory_record
from cryptfs.core.names.names import TEMP_PREFIX, DirectoryNames
from cryptfs.errors import DirectoryRecordError, HeaderError, IntegrityError, NameError_
from cryptfs.storage.backing import open_backing, read_small
from cryptfs.storage.dirs import open_directory
from cryptfs.storage.records import read_record
from cryptfs.vfs.content.context import FileContext
from cryptfs.vfs.scan.roles import Role
from cryptfs.vfs.scan.walk import WalkedDirectory, WalkedEntry, Walker, place_in

ADOPTION_MARK = TEMP_PREFIX + "adopt"
"""Marks a directory while a repair seals its names for a new dir_id."""

SAMPLED_NAMES = 16  # names that a dir_id is tried on
_ENOUGH = 2  # so many names that do not verify, and none that does: the fault is the record's, not the names'
_MARK_SIZE = 32


def sealed_names(walker: Walker, directory: WalkedDirectory) -> Generator[WalkedEntry, None, None]:
    """The entries with a name that decrypts, verified or not."""
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


def belonging(walker: Walker, directory: WalkedDirectory) -> str:
    """Where a directory belongs, by its record, as far as its own parent tells; "" if that says nothing."""
    record, here = directory.record, directory.place
    if record is None or here is None or not record.places:
        return ""
    if all(place[:DIR_ID_SIZE] != here[:DIR_ID_SIZE] for place in record.places):
        return "it belongs in another directory"
    with contextlib.suppress(OSError):
        path = directory.cipher_path.rpartition("/")[0]
        parent = WalkedDirectory(open_directory(directory.fd, ".."), path, None, verified=False)
        walker.read_record(parent)
        if parent.is_root or parent.dir_id == here[:DIR_ID_SIZE]:
            with contextlib.closing(walker.scan(parent)) as found:
                for entry in found:
                    if entry.damage is None and place_in(parent, entry.cipher_name) in record.places:
                        return f"it belongs to the place of {entry.cipher_path}"
    return "it belongs to another name in the same directory"


def sample_of(walker: Walker, directory: WalkedDirectory) -> list[str]:
    """Some cipher names of the directory, to try dir_ids on."""
    with contextlib.closing(sealed_names(walker, directory)) as found:
        return [entry.cipher_name or "" for entry in itertools.islice(found, SAMPLED_NAMES)]


def proves(names: DirectoryNames, sample: list[str], *, most: bool) -> bool:
    """Whether a sample comes from the directory with these names: at least one of it verifies.

    Args: most: ask for more than half of the sample, since a single name may have come from elsewhere.
    """
    verified = 0
    for cipher_name in sample:
        with contextlib.suppress(NameError_):
            names.open(cipher_name)
            verified += 1
    return 2 * verified > len(sample) if most else verified > 0


def has_adoption_mark(context: FileContext, directory: WalkedDirectory) -> bool:
    """Whether an authentic mark says that a repair is sealing this directory's names again."""
    if directory.dir_id is None or directory.is_root:
        return False
    try:
        raw = read_small(directory.fd, ADOPTION_MARK, _MARK_SIZE)
    except (OSError, IntegrityError):
        return False
    return is_adoption_mark(raw, directory.dir_id, context.keys)


def holds_vault_content(context: FileContext, entry: WalkedEntry) -> bool:
    """Whether an entry with any name is a file or directory of this vault."""
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
    """The dir_id in a directory's record; None if the record does not verify. Raises: OSError."""
    fd = open_directory(entry.directory.fd, entry.entry_name)
    try:
        return unpack_directory_record(read_record(fd), context.keys)
    except DirectoryRecordError:
        return None
    finally:
        os.close(fd)
