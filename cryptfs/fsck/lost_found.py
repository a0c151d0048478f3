"""`lost+found` in the root of the plaintext: a repair moves entries there that have lost their place.

Each entry keeps its path: photos/2024/july becomes lost+found/photos/2024/july. Each repair adds a report.
All of it is ordinary content of the vault.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time

from cryptfs.errors import DirectoryRecordError, IntegrityError
from cryptfs.storage.dirs import is_long, open_directory, rename_exclusive
from cryptfs.vfs.content.openfile import OpenFile
from cryptfs.vfs.scan.walk import WalkedEntry
from cryptfs.vfs.tree.attributes import Caller, backing_stat
from cryptfs.vfs.tree.directory import Directory
from cryptfs.vfs.tree.tree import VaultTree

LOST_FOUND = b"lost+found"
_MAX_NAME_SIZE = 255
_TRIED_NUMBERS = 1000
_MODE = stat.S_IRUSR | stat.S_IWUSR


class LostAndFound:
    """Makes places in lost+found, moves entries there, and writes the report.

    has_report: whether this repair has written to it.   has_entries: whether it has put anything else there.
    """

    def __init__(self, tree: VaultTree) -> None:
        self._tree = tree
        self._report: OpenFile | None = None
        st = os.fstat(tree.root.fd)
        self._owner = Caller(st.st_uid, st.st_gid)  # of the vault, also if root repairs it
        self.has_report = False
        self.has_entries = False

    def close(self) -> None:
        """After the last note."""
        if self._report is not None:
            self._tree.release(self._report)
            self._report = None

    def directory(self, plain_path: bytes | None) -> Directory:
        """The directory in lost+found for entries of this one; makes it if it is missing.

        Args: plain_path: of the entries' directory; None if unknown.
        """
        parts = [part for part in (plain_path or b"").split(b"/") if part]
        if parts[:1] == [LOST_FOUND]:
            parts = parts[1:]
        where = self._tree.root
        for part in (LOST_FOUND, *parts):
            where = self._child(where, part)
        return where

    def _child(self, parent: Directory, name: bytes) -> Directory:
        with contextlib.suppress(FileExistsError):
            self._tree.make_directory(parent, name, 0o700, self._owner)
        try:
            return self._tree.directory(parent, name)
        except (NotADirectoryError, IntegrityError):
            # Something else has the name: a file, or a directory that is damaged itself.
            other = self.free_name(parent, name)
            self._tree.make_directory(parent, other, 0o700, self._owner)
            return self._tree.directory(parent, other)

    def free_name(self, directory: Directory, wanted: bytes) -> bytes:
        """A free name in the directory, like the wanted one."""
        for number in range(1, _TRIED_NUMBERS):
            name = numbered(wanted, b"" if number == 1 else b" (%d)" % number)
            try:
                backing_stat(directory, name)
            except FileNotFoundError:
                return name
        return numbered(wanted, b" (%s)" % os.urandom(8).hex().encode())

    def move_in(self, entry: WalkedEntry, wanted: bytes) -> bytes:
        """Move an entry as it is; returns its plain path there. Its sidecar, if it has one, goes."""
        where = self.directory(entry.directory.plain_path)
        name = self.free_name(where, wanted)
        with self._tree.naming(where, name) as new_name:
            rename_exclusive(entry.directory.fd, entry.entry_name, where.fd, new_name)
            if stat.S_ISDIR(entry.st.st_mode):
                self.bind(where, name)
        self.has_entries = True
        if is_long(entry.entry_name):
            self._tree.sidecars.remove_if_orphaned(entry.directory.fd, entry.entry_name)
        return self.path_of(entry.directory.plain_path, name)

    def bind(self, parent: Directory, name: bytes) -> None:
        """Bind a directory that was just moved to its new place; one with a damaged record stays as it is."""
        if not self._tree.binding.is_on:
            return
        fd = open_directory(parent.fd, parent.entry_name(name))
        try:
            with contextlib.suppress(DirectoryRecordError):
                self._tree.binding.bind(fd, parent.place_of(name))
        finally:
            os.close(fd)

    def make_link(self, parent: bytes | None, wanted: bytes, target: bytes) -> bytes:
        """A new symlink; returns its plain path."""
        where = self.directory(parent)
        name = self.free_name(where, wanted)
        self._tree.make_symlink(where, name, target, self._owner)
        self.has_entries = True
        return self.path_of(parent, name)

    def make_file(self, parent: bytes | None, wanted: bytes) -> tuple[OpenFile, bytes]:
        """A new, empty file, open for writing, and its plain path; `finish` it."""
        where = self.directory(parent)
        name = self.free_name(where, wanted)
        file = self._tree.create(where, name, os.O_RDWR | os.O_CREAT | os.O_EXCL, _MODE, self._owner)
        return file, self.path_of(parent, name)

    def finish(self, file: OpenFile) -> None:
        """Bring a file from make_file to disk, with all directories above it, and close it."""
        try:
            self._tree.sync_file(file, data_only=False)
        finally:
            self._tree.release(file)
        self._tree.sync_all()
        self.has_entries = True

    @staticmethod
    def path_of(parent: bytes | None, name: bytes) -> bytes:
        """The plain path of a name in lost+found, for an entry of this directory."""
        inside = (parent or b"").removeprefix(LOST_FOUND).lstrip(b"/")
        return b"/".join(part for part in (LOST_FOUND, inside, name) if part)

    def note(self, text: str, *, synced: bool = False) -> None:
        """A line for the report. synced: it is on disk when this returns."""
        if self._report is None:
            self._report = self._open_report()
        self._report.append(text.encode("utf-8", "backslashreplace") + b"\n")
        self.has_report = True
        if synced:
            self._tree.sync_file(self._report, data_only=True)

    def _open_report(self) -> OpenFile:
        where = self.directory(b"")
        name = b"fsck-report-%s.txt" % time.strftime("%Y-%m-%d").encode()
        file = None
        try:
            file = self._tree.create(where, name, os.O_RDWR | os.O_CREAT, _MODE, self._owner)
            file.state.require_loaded()
        except (IntegrityError, PermissionError):  # the report of an earlier repair is damaged itself
            if file is not None:
                self._tree.release(file)
            file, _ = self.make_file(b"", name)
        return file


def numbered(name: bytes, number: bytes) -> bytes:
    """A name with a number after it, shortened to the limit of names."""
    return name[: _MAX_NAME_SIZE - len(number)] + number
