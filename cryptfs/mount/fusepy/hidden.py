"""Files that are unlinked while they are open, for the engine on libfuse.

libfuse's path interface cannot name an open file without a name. So before an unlink or a replacing rename it
asks for a rename to `.fuse_hidden` and two numbers, and unlinks that after the last close. Such a file would
show in listings, and its directory could not be removed; and if the close comes between the two, libfuse
never removes it. Here the engine unlinks the file at once, and sends requests for the hidden path to the open
file.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import time
from collections import deque
from collections.abc import Iterator, Mapping

from cryptfs.mount.fusepy.paths import PathResolver
from cryptfs.mount.fusepy.told import Told, ToldTable
from cryptfs.storage.libc import os_error
from cryptfs.vfs.content.filestate import FileKey
from cryptfs.vfs.content.openfile import OpenFile
from cryptfs.vfs.tree.attributes import Attributes
from cryptfs.vfs.tree.directory import Directory, HeldFile
from cryptfs.vfs.tree.privileges import Privileges
from cryptfs.vfs.tree.tree import VaultTree

_NAME = re.compile(r"\.fuse_hidden[0-9a-f]{8}([0-9a-f]{8})")
"""The name that libfuse gives to an open file: inode and counter."""

_AT_ONCE = 64  # how far that counter may be out of order

_RELEASE_SECONDS = 1.0
"""How long after a file's release libfuse may still take it for open."""


class HiddenFiles:
    """The files that libfuse believes it has renamed.

    Args: handles: the open files, by handle.
    """

    def __init__(
        self,
        tree: VaultTree,
        paths: PathResolver,
        told: ToldTable,
        handles: Mapping[int, OpenFile],
        privileges: Privileges,
    ) -> None:
        self._tree = tree
        self._privileges = privileges
        self._paths = paths
        self._told = told
        self._handles = handles
        self._files: dict[str, OpenFile] = {}  # path that libfuse made up -> file without a name
        self._released: deque[tuple[Told, FileKey, float]] = deque(maxlen=_AT_ONCE)
        self._count = 0

    # libfuse unlinks such a path while other requests for it are under way: each takes a handle of its own.

    @contextlib.contextmanager
    def _sharing(self, path: str) -> Iterator[OpenFile | None]:
        hidden = self._files.get(path) if self._files else None
        if hidden is None or not self._tree.files.share(hidden.state, writable=hidden.writable):
            yield None
            return
        shared = OpenFile(hidden.state, writable=hidden.writable)
        try:
            yield shared
        finally:
            self._tree.release(shared)

    def stat(self, path: str) -> Attributes | None:
        """Attributes of a hidden path's file; None: the path is not hidden."""
        with self._sharing(path) as file:
            return None if file is None else self._tree.stat_open(file)

    def hold(self, path: str) -> HeldFile | None:
        """A descriptor of a hidden path's file; None: the path is not hidden."""
        with self._sharing(path) as file:
            if file is None:
                return None
            return HeldFile(os.open(f"/proc/self/fd/{file.state.fd}", os.O_PATH | os.O_CLOEXEC))

    def truncate(self, path: str, size: int) -> bool:
        """Set the length of a hidden path's file.

        False: the path is not hidden, or nobody has the file open for writing: then Linux has to look again.
        """
        with self._sharing(path) as file:
            if file is None or not file.writable:
                return False
            file.truncate(size)
            self._privileges.written(file.state)
            return True

    def unlink(self, path: str) -> bool:
        """After the last close: libfuse removes a path that it made up. False: the path is not hidden."""
        hidden = self._files.pop(path, None) if self._files else None
        if hidden is None:
            return False
        self._tree.release(hidden)
        return True

    def released(self, fh: int, file: OpenFile) -> None:
        """Note a release: until it returns, libfuse may take this file, or the next of its name, for open."""
        self._released.append((self._told.of_handle(fh), file.state.key, time.monotonic()))

    def hide(self, old: str, new: str) -> bool:
        """Take a name from an open file instead of giving it another; False: a person's own rename.

        Raises: OSError: ESTALE: the name now belongs to another file than the kernel knows.
        """
        match = _NAME.fullmatch(new.rpartition("/")[2])
        if match is None:
            return False
        counter = int(match[1], 16)  # counts libfuse's own renames of this kind from 1
        if not self._count < counter <= self._count + _AT_ONCE:
            return False
        directory, name = self._paths.resolve(old)
        try:
            held = self._told.hold(old, directory, name)
        except FileNotFoundError:
            held = None  # somebody else has removed the name of a file that is open here; libfuse cannot know
        fh = self._told.open_handle(old, held)
        file = None if fh is None else self._handles.get(fh)
        if file is not None:
            hidden = self._take_name(directory, name, file, held)
            if hidden is not None:
                self._files[new] = hidden
        elif held is None:
            raise os_error(errno.ENOENT)
        elif self._was_released(old, held):
            self._tree.unlink(directory, name)
        else:
            return False
        self._told.removed(old, held)
        self._count = max(self._count, counter - _AT_ONCE // 2)
        return True

    def _take_name(
        self, directory: Directory, name: bytes, file: OpenFile, held: HeldFile | None
    ) -> OpenFile | None:
        """Remove a name, and take a further handle on the file that is open under it, even an older one."""
        if held is not None and (held.st.st_dev, held.st.st_ino) == file.state.key:
            return self._tree.unlink_open(directory, name, file)
        if held is not None:
            self._tree.unlink(directory, name)
        writable = file.state.writable  # once: a handle that can write may come meanwhile
        shared = self._tree.files.share(file.state, writable=writable)
        return OpenFile(file.state, writable=writable) if shared else None

    def _was_released(self, path: str, held: HeldFile) -> bool:
        told, key = self._told.at(path), (held.st.st_dev, held.st.st_ino)
        recent = time.monotonic() - _RELEASE_SECONDS
        return any(
            when > recent and (known == key or where is told) for where, known, when in list(self._released)
        )
