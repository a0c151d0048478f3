"""From a path to a node, for an engine that is given paths.

The directories on the way are kept open, so that a path costs one look into a dictionary.
"""

from __future__ import annotations

import threading

from cryptfs.errors import NameTooLongError
from cryptfs.vfs.directory import SELF, Directory
from cryptfs.vfs.tree import VaultTree

MAX_OPEN_DIRECTORIES = 512


class PathResolver:
    """Finds (directory, name) of a path below the mountpoint. Paths are latin-1 text: a byte a character.

    Args: tree: of the vault.
    """

    def __init__(self, tree: VaultTree) -> None:
        self._tree = tree
        self._lock = threading.Lock()
        self._directories: dict[str, Directory] = {"": tree.root}

    def resolve(self, path: str) -> tuple[Directory, bytes]:
        """The directory that holds the last component, and its name; (root, SELF) for '/'.

        Raises: OSError: ENOENT, ENOTDIR.   IntegrityError.
        """
        parent, _, name = path.rpartition("/")
        if not name:
            return self._tree.root, SELF
        return self.directory(parent), name.encode("latin-1")

    def directory(self, path: str) -> Directory:
        """The open directory of a path without a slash at its end; '' is the root."""
        at = path
        names: list[str] = []  # below it, the lowest first
        while (found := self._directories.get(at)) is None:
            at, _, name = at.rpartition("/")
            if len(name) > 255:
                raise NameTooLongError("a name on the path is over the limit of 255 bytes")
            names.append(name)
        while names:  # not by recursion: a path can have two thousand names
            name = names.pop()
            found = self._tree.directory(found, name.encode("latin-1"))
            at = f"{at}/{name}"
            with self._lock:
                if len(self._directories) >= MAX_OPEN_DIRECTORIES:
                    self._forget_oldest()
                self._directories[at] = found
        return found

    def _forget_oldest(self) -> None:
        """Make room: the oldest half goes, but for the root."""
        for path in list(self._directories)[1 : MAX_OPEN_DIRECTORIES // 2]:
            del self._directories[path]

    def forget(self, path: str) -> None:
        """After a directory was removed or renamed: its path and all below lead nowhere, or elsewhere."""
        below = path + "/"
        with self._lock:
            for known in [each for each in self._directories if each == path or each.startswith(below)]:
                del self._directories[known]
