"""From a path in the vault to a place: a directory and a name in it. Nothing leads out of the vault.

A relative symlink is followed as the kernel does it on a mount. An absolute one, and one with too many "..",
would lead out of the vault on a mount: here it is an error (EXDEV), as with RESOLVE_BENEATH of openat2(2).
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from typing import NamedTuple

from cryptfs.errors import NameTooLongError
from cryptfs.storage.libc import os_error
from cryptfs.vfs.tree.attributes import backing_stat
from cryptfs.vfs.tree.directory import SELF, Directory
from cryptfs.vfs.tree.tree import VaultTree

AnyPath = str | bytes | os.PathLike[str] | os.PathLike[bytes]
MAX_LINKS = 40  # followed for one path, as in Linux
MAX_OPEN_DIRECTORIES = 128
_MAX_NAME = 255


class Found(NamedTuple):
    """A place: a directory, and a name in it that need not exist; SELF for the directory itself."""

    directory: Directory
    name: bytes


def names_of(path: AnyPath) -> list[bytes]:
    """The components of a path below the root of the vault, without '' and '.'.

    Raises: ValueError: it holds a zero byte.
    """
    raw = os.fsencode(path)
    if b"\0" in raw:
        raise ValueError("embedded null byte")
    return [name for name in raw.split(b"/") if name not in (b"", b".")]


class Places:
    """Finds the places of one vault. Safe from many threads.

    Args: tree: of the vault.
    """

    def __init__(self, tree: VaultTree) -> None:
        self._tree = tree
        self._lock = threading.Lock()
        self._open: dict[tuple[bytes, ...], tuple[tuple[int, int], Directory]] = {}

    def find(self, path: AnyPath, *, follow: bool = True) -> Found:
        """The place of a path. '', '.' and '/' are the root of the vault.

        Args:   follow: also a symlink at the end of the path.
        Raises: OSError: ENOENT, ENOTDIR, ELOOP; EXDEV: it leads out of the vault.   IntegrityError.
        """
        raw = os.fsencode(path)
        waiting = names_of(path)[::-1]
        as_directory = raw.endswith((b"/", b"/.")) and bool(waiting)
        above: list[tuple[bytes, Directory]] = []
        links = 0
        while waiting:
            name = waiting.pop()
            here = above[-1][1] if above else self._tree.root
            if name == b"..":
                if not above:
                    raise _leads_out()
                above.pop()
                continue
            if len(name) > _MAX_NAME:
                raise NameTooLongError(f"a name of {len(name)} bytes is over the limit of {_MAX_NAME}")
            is_last = not waiting
            if is_last and not follow and not as_directory:
                return Found(here, name)
            try:
                st = backing_stat(here, name)
            except FileNotFoundError:
                if is_last:
                    return Found(here, name)
                raise
            if stat.S_ISLNK(st.st_mode):
                links += 1
                if links > MAX_LINKS:
                    raise os_error(errno.ELOOP)
                target = self._tree.symlinks.read(here, name)
                if target.startswith(b"/"):
                    raise _leads_out()
                if not target:
                    raise os_error(errno.ENOENT)
                as_directory = as_directory or (is_last and target.endswith((b"/", b"/.")))
                waiting += names_of(target)[::-1]
            elif is_last and not (as_directory and stat.S_ISDIR(st.st_mode)):
                if as_directory:
                    raise os_error(errno.ENOTDIR)
                return Found(here, name)
            elif stat.S_ISDIR(st.st_mode):
                way = (*(each for each, _ in above), name)
                above.append((name, self._below(way, here, name, st)))
            else:
                raise os_error(errno.ENOTDIR)
        if not above:
            return Found(self._tree.root, SELF)
        parent = above[-2][1] if len(above) > 1 else self._tree.root
        return Found(parent, above[-1][0])

    def directory(self, path: AnyPath) -> Directory:
        """The open directory of a path. Raises: as find; OSError: ENOTDIR."""
        found = self.find(path)
        if found.name == SELF:
            return found.directory
        st = backing_stat(*found)
        if not stat.S_ISDIR(st.st_mode):
            raise os_error(errno.ENOTDIR)
        return self._below(tuple(names_of(path)), found.directory, found.name, st)

    def _below(self, way: tuple[bytes, ...], parent: Directory, name: bytes, st: os.stat_result) -> Directory:
        """A subdirectory: the one that is open, if it is still at this place."""
        inode = (st.st_dev, st.st_ino)
        known = self._open.get(way)
        if known is not None and known[0] == inode and self._tree.opener.is_current(known[1]):
            return known[1]
        found = self._tree.directory(parent, name)
        with self._lock:
            if len(self._open) >= MAX_OPEN_DIRECTORIES:
                self._open.clear()
            self._open[way] = (inode, found)
        return found

    def forget(self) -> None:
        """Close the directories that are open for later; also needed when one has moved."""
        with self._lock:
            self._open.clear()


def _leads_out() -> OSError:
    error = os_error(errno.EXDEV)
    error.strerror = f"{error.strerror}: it leads out of the vault"
    return error
