"""What the kernel was told of each path, for the engine that is given paths.

Others change the vault, too, while the kernel keeps names and attributes for a second: a request that names
a path means what was told of it. So whatever opens, changes or removes by a path makes sure that this is what
stands there (vfs/identity.py), and says ESTALE otherwise. The kernel then looks the name up, is told anew,
and asks again; the program notices nothing.

libfuse gives a path one inode, whatever stands there: size and page cache are shared by all that was opened
under it. So the pages stay from one open to the next only while the content does, and a file that is opened
while an older one is still open under its path does without them.
"""

from __future__ import annotations

import os
import stat
import threading
import weakref
from collections.abc import Callable

from cryptfs.mount.native.node import HeldFile
from cryptfs.storage.backing import HELD_FILE_FLAGS
from cryptfs.vfs.attributes import Attributes
from cryptfs.vfs.directory import Directory
from cryptfs.vfs.filestate import FileKey, FileState
from cryptfs.vfs.identity import Known, stale
from cryptfs.vfs.openfile import OpenFile
from cryptfs.vfs.tree import VaultTree

MAX_TOLD = 16_384
"""Paths. Linux uses a name for no longer than it was told to, and no engine tells so many in a second."""


def _nobody_asks(_: bool) -> None:
    pass


_NOTHING: FileKey = (0, 0)
_UNSURE = -1  # in place of a size: the kernel may know another one


class Told(Known):
    """What was told of one path, and what is open under it.

    key:          device and inode of what stood there.
    is_directory: whether that was a directory.
    files:        handle -> state of the regular files that are open under the path, older ones too.
    direct:       handles among them that do without the page cache.
    never_cached: the kernel keeps a wrong size of the path: with the writeback cache it takes no smaller one.
    """

    __slots__ = ("_cached", "_last", "direct", "files", "is_directory", "key", "never_cached")

    def __init__(self) -> None:
        super().__init__()
        self.key = _NOTHING
        self.is_directory = self.never_cached = False
        self.files: dict[int, FileState] = {}
        self.direct: set[int] = set()
        self._last: weakref.ref[FileState] | None = None  # opened under the path
        self._cached: tuple[FileKey, int] = (
            _NOTHING,
            0,
        )  # key and header_version of the content of the pages

    def holds(self, key: FileKey) -> bool:
        """Whether a file is open under this path: then no other can have its number."""
        return any(state.key == key for state in list(self.files.values()))

    @property
    def is_shared(self) -> bool:
        """Whether a file is open under this path that is not what stands there, or not as it is there now."""
        states = set(self.files.values())
        return len(states) > 1 or any(state.key != self.key for state in states)

    def doubt(self) -> None:
        """The kernel may know another size: whoever opens the path next has it look again."""
        self.ctime, self.size = 0, _UNSURE

    def is_last(self, state: FileState) -> bool:
        """Whether no other file was opened under the path since this one."""
        return self._last is not None and self._last() is state

    def has_pages_of(self, state: FileState) -> bool:
        """Whether the kernel's pages of this path are of a file that is open, as it is now."""
        if self.is_last(state):
            return True
        return bool(state.version) and not state.changes and self._cached == (state.key, state.version)

    def will_cache(self, state: FileState) -> None:
        """From here on the kernel's pages are of this file."""
        self._last = weakref.ref(state)
        self._cached = (state.key, state.version)

    def left(self, state: FileState) -> None:
        """A file that was written to here was closed: the kernel knows what it was left like."""
        self.ctime, self.mtime, _ = state.left
        self.size, self.version = state.size, state.version
        if self.is_last(state):
            self._cached = (state.key, state.version)


class ToldTable:
    """What was told of all paths. Its lock covers the maps, for moments only.

    Args: tree: of the vault.
    writeback: whether the kernel keeps sizes, which on_init says.
    on_shared: called when two files begin to share a path's inode in the kernel, and when none do any more.
    """

    def __init__(self, tree: VaultTree) -> None:
        self._tree = tree
        self._exclusive = tree.context.exclusive
        self.writeback = False
        self.on_shared: Callable[[bool], None] = _nobody_asks
        self._shared: set[Told] = set()
        self._lock = threading.Lock()
        self._by_path: dict[str, Told] = {}
        self._by_key: dict[FileKey, Told] = {}  # of the path that was told last
        self._by_handle: dict[int, Told] = {}
        tree.files.on_left = self._left

    def __len__(self) -> int:
        return len(self._by_path)

    # ---- telling

    def at(self, path: str) -> Told:
        """What was told of a path; a fresh one, of nothing, where that was nothing."""
        told = self._by_path.get(path)
        if told is None:
            with self._lock:
                if len(self._by_path) >= MAX_TOLD:
                    self._forget_oldest()
                told = self._by_path.setdefault(path, Told())
        return told

    def of_handle(self, fh: int) -> Told:
        """What was told of the path under which a file was opened."""
        return self._by_handle[fh]

    def _forget_oldest(self) -> None:
        oldest = list(self._by_path.items())[: MAX_TOLD // 2]
        for path, told in oldest:
            if not told.files:
                del self._by_path[path]
                if self._by_key.get(told.key) is told:
                    self._by_key.pop(told.key, None)

    def saw(self, path: str, found: Attributes) -> None:
        """The kernel is about to be told this of a path."""
        self._note(self.at(path), found)

    def _note(self, told: Told, found: Attributes) -> None:
        st = found.st
        key = (st.st_dev, st.st_ino)
        if told.key == key and told.ctime == st.st_ctime_ns and told.size == found.size:
            return
        if told.key != key and self._by_key.get(told.key) is told:
            self._by_key.pop(told.key, None)
        told.key = key
        told.is_directory = stat.S_ISDIR(st.st_mode)
        told.saw(found)
        told.version = 0
        self._by_key[key] = told
        if told.files:
            self._note_shared(told)

    def _note_shared(self, told: Told) -> None:
        with self._lock:
            before = bool(self._shared)
            if told.is_shared:
                self._shared.add(told)
            else:
                self._shared.discard(told)
            if bool(self._shared) != before:
                self.on_shared(not before)

    def saw_open(self, fh: int, file: OpenFile, found: Attributes) -> None:
        """The kernel is about to be told this of an open file: it takes it for what the path is now."""
        told = self._by_handle.get(fh)
        if told is not None:
            if told.key in (file.state.key, _NOTHING):
                self._note(told, found)
            else:
                told.doubt()

    def gone(self, path: str) -> None:
        """The kernel is about to be told that nothing is there. libfuse keeps the inode for what comes."""
        told = self._by_path.get(path)
        if told is not None:
            told.key = _NOTHING

    # ---- whether it is still so

    def hold(self, path: str, directory: Directory, name: bytes) -> HeldFile:
        """The file that a path means, by a descriptor.

        Raises: OSError: ESTALE: something else stands there.   ENOENT.
        """
        entry_name = directory.entry_name(name)
        fd = os.open(entry_name, HELD_FILE_FLAGS, dir_fd=directory.fd)
        held = HeldFile(fd, directory.path_of(entry_name))
        if not self._exclusive:
            told, key = self._by_path.get(path), (held.st.st_dev, held.st.st_ino)
            if told is None or told.key != key:
                raise stale()
            if not told.holds(key) and not told.is_object(held.fd, held.st):
                raise stale()
        return held

    def open(self, path: str, directory: Directory, name: bytes, flags: int) -> tuple[Told, OpenFile]:
        """Open the file that a path means. Raises: OSError: ESTALE: it is another one, or not as told."""
        told = self.at(path)
        if told.key == _NOTHING:
            if not self._exclusive:
                raise stale()
            self.saw(path, self._tree.stat(directory, name))
        state = self._tree.files.find_key(told.key)
        if state is not None and state.has_size and state in told.files.values():
            told.size = state.size  # the kernel has followed all that was written under this path
        try:
            return told, self._tree.open(directory, name, flags, (told.key, told))
        except OSError:
            told.never_cached = told.never_cached or (self.writeback and not told.ctime)
            raise

    # ---- what is open

    def opened(self, told: Told, fh: int, file: OpenFile) -> tuple[bool, bool]:
        """Note a new handle of a path.

        Returns: keep_cache: whether the kernel's pages of the path are right.
                 direct_io: whether it must do without them.
        """
        state = file.state
        single = os.fstat(state.fd).st_nlink == 1
        others = any(other is not state for other in list(told.files.values()))
        told.files[fh] = state
        self._by_handle[fh] = told
        # Each name of a file has pages of its own, so a file with several goes without. So does one that is
        # opened beside an older one of its path, as both would share pages.
        if others:
            self._note_shared(told)
        if not single or others or told.direct or told.never_cached:
            told.direct.add(fh)
            return False, True
        keep = told.has_pages_of(state)
        told.will_cache(state)
        return keep or self._exclusive, False

    def releasing(self, fh: int) -> None:
        """Before a handle is given back: all that went through it has been answered.

        What is told of the path from here on is right, also while giving it back takes its time.
        """
        told = self._by_handle[fh]
        state = told.files[fh]
        others = {other.key for handle, other in list(told.files.items()) if handle != fh}
        if told.key != state.key or (not told.is_last(state) and state.key not in others):
            told.doubt()  # its last write, or a read at its end, may have told the kernel its size

    def released(self, fh: int) -> None:
        """After a handle was given back."""
        told = self._by_handle.pop(fh)
        del told.files[fh]
        told.direct.discard(fh)
        if told in self._shared:
            self._note_shared(told)

    def open_handle(self, path: str, held: HeldFile | None) -> int | None:
        """A handle of what is open under a path: of this file, else of an older one; None: nothing is."""
        told = self._by_path.get(path)
        if told is None:
            return None
        key = None if held is None else (held.st.st_dev, held.st.st_ino)
        files = list(told.files.items())
        return next((fh for fh, state in files if state.key == key), files[0][0] if files else None)

    def _left(self, state: FileState) -> None:
        told = self._by_key.get(state.key)
        if told is not None and state.was_changed and not state.overtaken:
            told.left(state)

    # ---- changes of our own

    def removed(self, path: str, held: HeldFile | None = None) -> None:
        """After a name went. held: what it was the name of; what was told of its other names is in doubt."""
        with self._lock:
            self._by_path.pop(path, None)
        if held is not None and held.st.st_nlink > 1:
            told = self._by_key.get((held.st.st_dev, held.st.st_ino))
            if told is not None:
                told.doubt()

    def moved(self, old: str, new: str, *, exchange: bool = False) -> None:
        """After a rename: the kernel takes what it knows along, of all that is below a directory, too."""
        with self._lock:
            gone = self._take(old)
            replaced = self._take(new) if exchange else {"": self._by_path.pop(new, None)}
            self._put(new, gone)
            if exchange:
                self._put(old, replaced)

    def _take(self, path: str) -> dict[str, Told | None]:
        """Take a path and all below it out of the table: what follows the path -> what was told."""
        told = self._by_path.pop(path, None)
        taken: dict[str, Told | None] = {"": told}
        if told is None or told.is_directory:
            below = path + "/"
            for known in [each for each in self._by_path if each.startswith(below)]:
                taken[known[len(path) :]] = self._by_path.pop(known)
        return taken

    def _put(self, path: str, taken: dict[str, Told | None]) -> None:
        for rest, told in taken.items():
            if told is not None:
                self._by_path[path + rest] = told
