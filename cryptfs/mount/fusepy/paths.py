"""From a path to a place, for an engine that gets paths.

The resolver keeps the directories on the way open, so that a path costs one look into a dictionary. Others
also move, replace and remove directories: if it found one some time ago, it looks at it again before using
it.
"""

from __future__ import annotations

import errno
import math
import os
import stat
import threading
import time

from cryptfs.errors import NameTooLongError
from cryptfs.storage.libc import os_error
from cryptfs.vfs.tree.attributes import Attributes
from cryptfs.vfs.tree.directory import SELF, Directory
from cryptfs.vfs.tree.identity import stale
from cryptfs.vfs.tree.tree import VaultTree

MAX_OPEN_DIRECTORIES = 512


class _Known:
    """A directory that is open. inode: its device and inode.   checked: when it was last seen at its path."""

    __slots__ = ("checked", "directory", "inode")

    def __init__(self, directory: Directory, checked: float) -> None:
        st = os.fstat(directory.fd)
        self.directory = directory
        self.inode = (st.st_dev, st.st_ino)
        self.checked = checked


class PathResolver:
    """Finds (directory, name) of a path below the mountpoint. Paths are latin-1 text: a byte a character.

    Args: tree: of the vault.   fresh_seconds: how long to use a directory before a new look at it.
    """

    def __init__(self, tree: VaultTree, fresh_seconds: float = math.inf) -> None:
        self._tree = tree
        self._fresh_seconds = fresh_seconds
        self._not_before = -math.inf  # earlier observations may be wrong
        self._lock = threading.Lock()
        self._directories: dict[str, _Known] = {"": _Known(tree.root, math.inf)}

    def resolve(self, path: str) -> tuple[Directory, bytes]:
        """The directory that holds the last component, and its name; (root, SELF) for '/'.

        Raises: OSError: ESTALE: an entry on the way is not a directory now.   IntegrityError.
        """
        parent, _, name = path.rpartition("/")
        if not name:
            return self._tree.root, SELF
        return self.directory(parent), name.encode("latin-1")

    def directory(self, path: str) -> Directory:
        """The open directory of a path without a slash at its end; '' is the root. Raises: as resolve."""
        now = time.monotonic()
        oldest = max(now - self._fresh_seconds, self._not_before)
        at = path
        names: list[str] = []  # below it, the lowest first
        while (known := self._directories.get(at)) is None or known.checked <= oldest:
            at, _, name = at.rpartition("/")
            if len(name) > 255:
                raise NameTooLongError("a name on the path is over the limit of 255 bytes")
            names.append(name)
        found = known.directory
        while names:  # not by recursion: a path can have two thousand names
            name = names.pop()
            at = f"{at}/{name}"
            try:
                found = self._below(found, at, name, now)
            except (FileNotFoundError, NotADirectoryError):
                self.forget(at)
                raise stale() from None
        return found

    def open_at(self, path: str, st: os.stat_result) -> Directory | None:
        """The directory of this stat, if it is open at this path: then nobody needs to read its record."""
        known = self._directories.get(path)
        return known.directory if known is not None and known.inode == (st.st_dev, st.st_ino) else None

    def _below(self, parent: Directory, path: str, name: str, now: float) -> Directory:
        """A subdirectory: the open one, if it is still at this place."""
        plain_name = name.encode("latin-1")
        known = self._directories.get(path)
        if known is not None:
            st = os.stat(parent.entry_name(plain_name), dir_fd=parent.fd, follow_symlinks=False)
            if (st.st_dev, st.st_ino) == known.inode and self._tree.opener.is_current(known.directory):
                known.checked = now
                return known.directory
            self.forget(path)
        known = _Known(self._tree.directory(parent, plain_name), now)
        with self._lock:
            if len(self._directories) >= MAX_OPEN_DIRECTORIES:
                self._forget_oldest()
            self._directories[path] = known
        return known.directory

    def _forget_oldest(self) -> None:
        """Make room: the oldest half goes, except the root."""
        for path in list(self._directories)[1 : MAX_OPEN_DIRECTORIES // 2]:
            del self._directories[path]

    def stat(self, path: str) -> Attributes:
        """Attributes of the present file of a path. Raises: OSError: ENOENT.   IntegrityError."""
        try:
            found = self._stat(path)
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
            # Before it makes an entry, the kernel looks its name up, and does not ask again after ESTALE.
            raise os_error(errno.ENOENT) from None
        if stat.S_ISDIR(found.st.st_mode):
            known = self._directories.get(path)
            if known is not None and known.inode != (found.st.st_dev, found.st.st_ino):
                self.forget(path)
        return found

    def _stat(self, path: str) -> Attributes:
        directory, name = self.resolve(path)
        try:
            return self._tree.stat(directory, name)
        except FileNotFoundError:
            if os.fstat(directory.fd).st_nlink:
                raise
            self.look_again()  # somebody else has removed the directory; there may be another
            return self._tree.stat(*self.resolve(path))

    def look_again(self) -> None:
        """Something was not at its expected place: trust no earlier observation."""
        if self._fresh_seconds != math.inf:
            self._not_before = time.monotonic()

    def forget(self, path: str) -> None:
        """After a directory was removed or renamed: its path and all below lead nowhere, or elsewhere."""
        below = path + "/"
        with self._lock:
            for known in [each for each in self._directories if each == path or each.startswith(below)]:
                del self._directories[known]
