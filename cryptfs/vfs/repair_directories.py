"""Repairs directories: their records, and the names that hang on them.

A name can be decrypted without its directory's dir_id, but is only known to be right with it. So a record is
restored with the old dir_id wherever one can be proven by a name in the directory; then nothing else has to
change. Otherwise the directory gets a new dir_id and every name is sealed anew for it (*adopted*). A mark in
the directory, itself authentic, says so from before the new record appears until the last name is done, so
that a repair that is interrupted goes on where it was.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import stat
from collections.abc import Iterator

from cryptfs.core.dirrecord import RECORD_NAME, RECORD_SIZE, pack_directory_record, unpack_directory_record
from cryptfs.core.keys import DIR_ID_SIZE
from cryptfs.core.salvage import adoption_mark, dir_id_candidates
from cryptfs.errors import DirectoryRecordError, IntegrityError
from cryptfs.storage.backing import create_small, read_small
from cryptfs.storage.dirs import is_long, open_directory, read_record, rename_exclusive, temp_name
from cryptfs.vfs.check_directories import (
    ADOPTION_MARK,
    directory_id,
    proves,
    sample_of,
    sealed_names,
)
from cryptfs.vfs.lost_found import LostAndFound
from cryptfs.vfs.roles import Role
from cryptfs.vfs.tree import VaultTree
from cryptfs.vfs.walk import WalkedDirectory, WalkedEntry, Walker

_SIBLINGS = 10_000  # records of other directories that are tried
_KEPT_RECORDS = 64  # each holds its directory open
_RECORD_MODE = 0o600


class DirectoryMender:
    """Mends directory records, and finishes what was interrupted in directories."""

    def __init__(self, tree: VaultTree, lost: LostAndFound) -> None:
        self._tree = tree
        self._keys = tree.context.keys
        self._lost = lost
        self._kept: list[tuple[WalkedDirectory, str]] = []

    def close(self) -> None:
        """At the end: records that were kept for another directory, which did not need them, go."""
        for directory, name in self._kept:
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=directory.fd)
        self._kept.clear()

    # ---- records

    def mend_record(self, walker: Walker, directory: WalkedDirectory) -> str:
        """Give a directory a record that holds; says what was done."""
        sample = sample_of(walker, directory)
        if not sample:
            dir_id = self._spare_of_parent(directory) or os.urandom(DIR_ID_SIZE)
            self._replace_record(walker, directory, dir_id)
            return "made a new record; there were no names to keep"
        for dir_id, own in self._candidates(directory):
            if proves(walker.name_cipher.in_directory(dir_id), sample, most=not own):
                self._replace_record(walker, directory, dir_id)
                return "restored the record as it was"
        dir_id = os.urandom(DIR_ID_SIZE)
        self._write(directory.fd, ADOPTION_MARK, adoption_mark(dir_id, self._keys))
        self._replace_record(walker, directory, dir_id)
        return "made a new record; " + self.adopt(walker, directory)

    def _candidates(self, directory: WalkedDirectory) -> Iterator[tuple[bytes, bool]]:
        """dir_ids that the directory may have had, the likeliest first; and whether from its own record."""
        with contextlib.suppress(OSError, IntegrityError):
            for dir_id in dir_id_candidates(read_small(directory.fd, RECORD_NAME, RECORD_SIZE)):
                yield dir_id, True
        parent = _parent_of(directory)
        if parent is not None:
            for dir_id in itertools.chain(self._spares(parent), self._siblings(parent)):
                yield dir_id, False

    def _spare_of_parent(self, directory: WalkedDirectory) -> bytes | None:
        parent = _parent_of(directory)
        return None if parent is None else next(self._spares(parent), None)

    def _spares(self, parent: WalkedDirectory) -> Iterator[bytes]:
        """Of records without a directory: an interrupted removal leaves one beside it."""
        for name in _names_of(parent):
            if name.startswith("cryptfs.tmp."):
                dir_id = self.record_in(parent, name)
                if dir_id is not None:
                    yield dir_id

    def _siblings(self, parent: WalkedDirectory) -> Iterator[bytes]:
        """Of the other directories beside it, whose records may have been exchanged."""
        tried = 0
        for name in _names_of(parent):
            entry = _entry_of(parent, name)
            if entry is None or entry.role is not Role.ENTRY or not stat.S_ISDIR(entry.st.st_mode):
                continue
            with contextlib.suppress(OSError):
                dir_id = directory_id(self._tree.context, entry)
                if dir_id is not None:
                    yield dir_id
            tried += 1
            if tried >= _SIBLINGS:
                return

    def record_in(self, directory: WalkedDirectory, name: str) -> bytes | None:
        """The dir_id of the directory record that a file of any name holds; None where it holds none."""
        try:
            return unpack_directory_record(read_small(directory.fd, name, RECORD_SIZE), self._keys)
        except (DirectoryRecordError, IntegrityError, OSError):
            return None

    def _replace_record(self, walker: Walker, directory: WalkedDirectory, dir_id: bytes) -> None:
        self._keep_old_record(directory, dir_id)
        self._write(directory.fd, RECORD_NAME, pack_directory_record(dir_id, self._keys))
        walker.read_record(directory)

    def _keep_old_record(self, directory: WalkedDirectory, dir_id: bytes) -> None:
        """An authentic record that is another's goes beside the directory, where the other finds it.

        What is no file, so that no file can be renamed over it, is left to the repair of leftovers.
        """
        try:
            old = unpack_directory_record(read_record(directory.fd), self._keys)
        except DirectoryRecordError:
            with contextlib.suppress(FileNotFoundError):
                st = os.stat(RECORD_NAME, dir_fd=directory.fd, follow_symlinks=False)
                if stat.S_ISDIR(st.st_mode):
                    aside = temp_name(self._tree.context.owner)
                    os.rename(RECORD_NAME, aside, src_dir_fd=directory.fd, dst_dir_fd=directory.fd)
            return
        parent = _parent_of(directory)
        if parent is not None and old != dir_id and len(self._kept) < _KEPT_RECORDS:
            name = temp_name(self._tree.context.owner)
            os.rename(RECORD_NAME, name, src_dir_fd=directory.fd, dst_dir_fd=parent.fd)
            self._kept.append((parent, name))

    def _write(self, dir_fd: int, name: str, content: bytes) -> None:
        """Make or replace a small file, whole and on disk at once."""
        temporary = temp_name(self._tree.context.owner)
        fd = create_small(dir_fd, temporary, content, _RECORD_MODE)
        try:
            os.fsync(fd)
            os.rename(temporary, name, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
        except OSError:
            os.unlink(temporary, dir_fd=dir_fd)
            raise
        finally:
            os.close(fd)

    def put_back(self, walker: Walker, entry: WalkedEntry, dir_id: bytes) -> bool:
        """Undo a removal: give a record that lies in the parent back to its directory, if that is there."""
        for sibling in walker.scan(entry.directory):
            if sibling.role is not Role.ENTRY or not stat.S_ISDIR(sibling.st.st_mode):
                continue
            fd = open_directory(entry.directory.fd, sibling.entry_name)
            found = WalkedDirectory(fd, sibling.cipher_path, None, verified=False)
            walker.read_record(found)
            sample = sample_of(walker, found)
            proven = proves(walker.name_cipher.in_directory(dir_id), sample, most=True)
            if found.dir_id != dir_id and (proven or (not sample and found.dir_id is None)):
                self._keep_old_record(found, dir_id)
                os.rename(entry.entry_name, RECORD_NAME, src_dir_fd=entry.directory.fd, dst_dir_fd=fd)
                return True
        return False

    # ---- adopting names

    def adopt(self, walker: Walker, directory: WalkedDirectory) -> str:
        """Seal anew every name that does not verify; says what was done."""
        adopted = 0
        while True:
            # An entry that is renamed may come by again, and one that is not may be missed: so until none is.
            in_pass = sum(
                self._adopt_entry(directory, entry)
                for entry in sealed_names(walker, directory)
                if entry.damage is not None
            )
            if not in_pass:
                break
            adopted += in_pass
        self._tree.sync_all()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(ADOPTION_MARK, dir_fd=directory.fd)
        names = "1 name" if adopted == 1 else f"{adopted} names"
        return f"kept {names}, which could not be verified"

    def _adopt_entry(self, directory: WalkedDirectory, entry: WalkedEntry) -> bool:
        assert entry.name is not None  # sealed_names gives no others
        target = self._tree.opener.of_descriptor(directory.fd)
        name = self._lost.free_name(target, entry.name)
        with self._tree.naming(target, name) as new_name:
            try:
                rename_exclusive(directory.fd, entry.entry_name, directory.fd, new_name)
            except FileNotFoundError:
                return False
        if is_long(entry.entry_name):
            self._tree.sidecars.remove_if_orphaned(directory.fd, entry.entry_name)
        return True


def _parent_of(directory: WalkedDirectory) -> WalkedDirectory | None:
    """The directory above, if it is where the walk came from."""
    if directory.is_root:
        return None
    cipher_path = directory.cipher_path.rpartition("/")[0]
    try:
        return WalkedDirectory(open_directory(directory.fd, ".."), cipher_path, None, verified=False)
    except OSError:
        return None


def _names_of(directory: WalkedDirectory) -> Iterator[str]:
    fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory.fd)
    try:
        with os.scandir(fd) as found:
            for item in found:
                yield item.name
    finally:
        os.close(fd)


def _entry_of(directory: WalkedDirectory, name: str) -> WalkedEntry | None:
    try:
        st = os.stat(name, dir_fd=directory.fd, follow_symlinks=False)
    except OSError:
        return None
    return WalkedEntry(directory, name, st)
