"""Repairs directories: their records, and the names that depend on them.

A name decrypts without its directory's dir_id, but verifies only with it. So a repair restores the record
with the old dir_id if a name in the directory proves one; then nothing else has to change. Otherwise the
directory gets a new dir_id, and the repair seals every name for it (*adopts* the names). An authentic mark in
the directory says so from before the new record appears until the last name is done. So an interrupted repair
can go on.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import stat
from collections.abc import Iterator

from cryptfs.core.format.salvage import adoption_mark, dir_id_candidates
from cryptfs.core.keys import DIR_ID_SIZE
from cryptfs.core.names.dirrecord import (
    BOUND_RECORD_SIZE,
    RECORD_NAME,
    unpack_directory_record,
)
from cryptfs.core.names.names import TEMP_PREFIX
from cryptfs.errors import DirectoryRecordError, IntegrityError
from cryptfs.fsck.directories import (
    ADOPTION_MARK,
    directory_id,
    proves,
    sample_of,
    sealed_names,
)
from cryptfs.fsck.lost_found import LostAndFound
from cryptfs.storage.backing import read_small
from cryptfs.storage.dirs import is_long, open_directory, put_small, rename_exclusive, temp_name
from cryptfs.storage.records import read_record
from cryptfs.vfs.scan.roles import Role
from cryptfs.vfs.scan.walk import WalkedDirectory, WalkedEntry, Walker
from cryptfs.vfs.tree.tree import VaultTree

_SIBLINGS = 10_000  # records of other directories to try
_KEPT_RECORDS = 64  # each holds its directory open


class DirectoryMender:
    """Repairs directory records, and finishes interrupted operations in directories."""

    def __init__(self, tree: VaultTree, lost: LostAndFound) -> None:
        self._tree = tree
        self._keys = tree.context.keys
        self._lost = lost
        self._kept: list[tuple[WalkedDirectory, str]] = []

    def close(self) -> None:
        """At the end: remove records kept for another directory that did not need them."""
        for directory, name in self._kept:
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=directory.fd)
        self._kept.clear()

    # ---- records

    def mend_record(self, walker: Walker, directory: WalkedDirectory) -> str:
        """Give a directory a record that verifies; returns the action in words."""
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
        """Possible dir_ids of the directory, the likeliest first; and whether each is from its own record."""
        with contextlib.suppress(OSError, IntegrityError):
            for dir_id in dir_id_candidates(read_small(directory.fd, RECORD_NAME, BOUND_RECORD_SIZE)):
                yield dir_id, True
        parent = _parent_of(directory)
        if parent is not None:
            for dir_id in itertools.chain(self._spares(parent), self._siblings(parent)):
                yield dir_id, False

    def _spare_of_parent(self, directory: WalkedDirectory) -> bytes | None:
        parent = _parent_of(directory)
        return None if parent is None else next(self._spares(parent), None)

    def _spares(self, parent: WalkedDirectory) -> Iterator[bytes]:
        """From records without a directory: an interrupted removal leaves one beside it.

        An interrupted rename of the parent leaves one of the parent's own.
        """
        own = self.record_in(parent, RECORD_NAME)
        for name in _names_of(parent):
            if name.startswith(TEMP_PREFIX):
                dir_id = self.record_in(parent, name)
                if dir_id is not None and dir_id != own:
                    yield dir_id

    def _siblings(self, parent: WalkedDirectory) -> Iterator[bytes]:
        """From the directories beside it: somebody may have exchanged the records."""
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
        """The dir_id of the directory record in a file with any name; None if it holds none."""
        try:
            return unpack_directory_record(read_small(directory.fd, name, BOUND_RECORD_SIZE), self._keys)
        except (DirectoryRecordError, IntegrityError, OSError):
            return None

    def _replace_record(self, walker: Walker, directory: WalkedDirectory, dir_id: bytes) -> None:
        self._keep_old_record(directory, dir_id)
        record = self._tree.binding.pack(dir_id, directory.place)
        self._write(directory.fd, RECORD_NAME, record)
        walker.read_record(directory)

    def bind(self, walker: Walker, directory: WalkedDirectory) -> str:
        """Bind a directory to the place where it is; returns the action in words."""
        assert directory.place is not None  # else nothing is known of its place
        self._tree.binding.bind(directory.fd, directory.place)
        walker.read_record(directory)
        return "accepted where it is"

    def _keep_old_record(self, directory: WalkedDirectory, dir_id: bytes) -> None:
        """Move another directory's authentic record beside the directory, where the other finds it.

        If it is not a file, no rename can replace it: leave it to the repair of leftovers.
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
        os.close(put_small(dir_fd, name, content, self._tree.context.owner, sync=True))

    def put_back(self, walker: Walker, entry: WalkedEntry, dir_id: bytes) -> bool:
        """Undo a removal: move a record in the parent back into its directory, if that still exists."""
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
        """Seal again every name that does not verify; returns the action in words."""
        adopted = 0
        while True:
            # A listing may show a renamed entry again, and miss another: so repeat until no name is left.
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
            if stat.S_ISDIR(entry.st.st_mode):
                self._lost.bind(target, name)
        if is_long(entry.entry_name):
            self._tree.sidecars.remove_if_orphaned(directory.fd, entry.entry_name)
        return True


def _parent_of(directory: WalkedDirectory) -> WalkedDirectory | None:
    """The directory above, if the walk came from there."""
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
