"""The answers that the kernel got about each path, for the engine that gets paths.

Others change the vault as well, while the kernel keeps names and attributes for a second: a request that
names a path means the file in our last answer about it. So before an operation opens, changes or removes by a
path, it verifies that this file is still there (vfs/tree/identity.py), and says ESTALE otherwise. The kernel
then looks the name up, gets a new answer, and asks again; the program notices nothing.

libfuse gives a path one inode, whatever file it leads to. All files that were opened under a path share its
size and page cache. So pages stay from one open to the next only while the content does; and a file does
without pages if an older one is still open under its path at its opening.
"""

from __future__ import annotations

import os
import stat
import threading
import weakref
from collections.abc import Callable

from cryptfs.storage.backing import HELD_FILE_FLAGS
from cryptfs.vfs.content.filestate import FileKey, FileState
from cryptfs.vfs.content.openfile import OpenFile
from cryptfs.vfs.tree.attributes import Attributes
from cryptfs.vfs.tree.directory import Directory, HeldFile
from cryptfs.vfs.tree.identity import Known, stale
from cryptfs.vfs.tree.tree import VaultTree

MAX_TOLD = 16_384
"""Paths. Linux uses a name for as long as our answer allows; no engine answers so many in a second."""

MAX_KEPT_NUMBERS = 256  # of renamed symlinks


def _nobody_asks(_: bool) -> None:
    pass


_NOTHING: FileKey = (0, 0)
_UNSURE = -1  # in place of a size: the kernel may know another one


class Told(Known):
    """Our last answer about one path, and the files that are open under it.

    key:          device and inode of the file in that answer.
    is_directory: whether it was a directory.
    files:        handle -> state of the regular files that are open under the path, also older ones.
    direct:       handles among them that do without the page cache.
    heard:        handles that the kernel may have got another size by, since that answer.
    never_cached: the kernel keeps a wrong size of the path: with the writeback cache it takes no smaller one.
    """

    __slots__ = ("_cached", "_last", "direct", "files", "heard", "is_directory", "key", "never_cached")

    def __init__(self) -> None:
        super().__init__()
        self.key = _NOTHING
        self.is_directory = self.never_cached = False
        self.files: dict[int, FileState] = {}
        self.direct: set[int] = set()
        self.heard: set[int] = set()
        self._last: weakref.ref[FileState] | None = None  # the file that was last opened under the path
        self._cached: tuple[FileKey, int] = (
            _NOTHING,
            0,
        )  # key and header_version of the content of the pages

    def holds(self, key: FileKey) -> bool:
        """Whether a file is open under this path: then no other can have its number."""
        return any(state.key == key for state in list(self.files.values()))

    @property
    def is_shared(self) -> bool:
        """Whether an open file of this path is another one than in our last answer about the path."""
        states = set(self.files.values())
        return len(states) > 1 or any(state.key != self.key for state in states)

    def doubt(self) -> None:
        """The kernel may know another size: the next open of the path makes it look again."""
        self.ctime, self.size = 0, _UNSURE

    def is_last(self, state: FileState) -> bool:
        """Whether this is the last file that was opened under the path."""
        return self._last is not None and self._last() is state

    def has_pages_of(self, state: FileState) -> bool:
        """Whether the kernel's pages of this path have the present content of an open file."""
        if self.is_last(state):
            return True
        return bool(state.version) and not state.changes and self._cached == (state.key, state.version)

    def will_cache(self, state: FileState) -> None:
        """From now on the kernel's pages are of this file."""
        self._last = weakref.ref(state)
        self._cached = (state.key, state.version)

    def left(self, state: FileState) -> None:
        """After the close of a file that was written to here: the kernel knows its final state."""
        self.ctime, self.mtime, _ = state.left
        self.size, self.version = state.size, state.version
        if self.is_last(state):
            self._cached = (state.key, state.version)


class ToldTable:
    """Our last answers about all paths. Its lock covers the maps, for moments only.

    Args: tree: of the vault.
    writeback: whether the kernel keeps sizes; on_init says so.
    on_shared: called when two files begin to share a path's inode in the kernel, and when the last two cease.
    """

    def __init__(self, tree: VaultTree) -> None:
        self._tree = tree
        self._exclusive = tree.context.exclusive
        self.writeback = False
        self.on_shared: Callable[[bool], None] = _nobody_asks
        self._shared: set[Told] = set()
        self._lock = threading.Lock()
        self._by_path: dict[str, Told] = {}
        self._by_key: dict[FileKey, Told] = {}  # of the path in the last answer
        self._by_handle: dict[int, Told] = {}
        self._numbers: dict[FileKey, HeldFile] = {}  # the first file of a renamed symlink
        tree.files.on_left = self._left

    def __len__(self) -> int:
        return len(self._by_path)

    @property
    def files(self) -> int:
        """The number of files in the last answers."""
        return len(self._by_key)

    # ---- telling

    def at(self, path: str) -> Told:
        """The last answer about a path; an empty one if there was none."""
        told = self._by_path.get(path)
        if told is None:
            with self._lock:
                if len(self._by_path) >= MAX_TOLD:
                    self._forget_oldest()
                told = self._by_path.setdefault(path, Told())
        return told

    def of_handle(self, fh: int) -> Told:
        """The last answer about the path under which a file was opened."""
        return self._by_handle[fh]

    def _forget_oldest(self) -> None:
        oldest = list(self._by_path.items())[: MAX_TOLD // 2]
        for path, told in oldest:
            if not told.files:
                del self._by_path[path]
                self._drop_key(told)

    def _drop_key(self, told: Told) -> None:
        """The path leads to another file now: the last close of this one tells nothing about the path."""
        if self._by_key.get(told.key) is told:
            self._by_key.pop(told.key, None)

    def saw(self, path: str, found: Attributes) -> None:
        """Note the next answer to the kernel, about a path."""
        self._note(self.at(path), found)

    def renewed(self, path: str, found: Attributes, old: HeldFile | None) -> None:
        """As saw, of what may be a symlink that was sealed again. old: the file whose number it shows."""
        key = (found.st.st_dev, found.st.st_ino)
        if old is not None and stat.S_ISLNK(found.st.st_mode) and key != (old.st.st_dev, old.st.st_ino):
            first = self._numbers.pop((old.st.st_dev, old.st.st_ino), old)
            self._numbers[key] = first  # held, so that no other file gets the number
            while len(self._numbers) > MAX_KEPT_NUMBERS:
                del self._numbers[next(iter(self._numbers))]
        self.saw(path, found)

    def number_of(self, device: int, inode: int, mode: int) -> int:
        """The inode number that the kernel gets."""
        first = self._numbers.get((device, inode)) if stat.S_ISLNK(mode) else None
        return inode if first is None else first.st.st_ino

    def _note(self, told: Told, found: Attributes) -> None:
        st = found.st
        if told.heard:
            told.heard.clear()
        key = (st.st_dev, st.st_ino)
        if told.key == key and told.ctime == st.st_ctime_ns and told.size == found.size:
            return
        if told.key != key:
            self._drop_key(told)
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
        """Note the next answer to the kernel, about an open file: it takes this for the path's file now."""
        told = self._by_handle.get(fh)
        if told is not None:
            if told.key in (file.state.key, _NOTHING):
                self._note(told, found)
            else:
                told.doubt()

    def gone(self, path: str) -> None:
        """The next answer says that the path leads nowhere. libfuse keeps the inode for the next file."""
        told = self._by_path.get(path)
        if told is not None:
            self._drop_key(told)
            told.key = _NOTHING

    # ---- whether it is still so

    def hold(self, path: str, directory: Directory, name: bytes) -> HeldFile:
        """The file that a path means, by a descriptor.

        Raises: OSError: ESTALE: another file is there.   ENOENT.
        """
        entry_name = directory.entry_name(name)
        fd = os.open(entry_name, HELD_FILE_FLAGS, dir_fd=directory.fd)
        held = HeldFile(fd, directory.path_of(entry_name))
        if stat.S_ISLNK(held.st.st_mode):
            held.found_at = (directory, name)  # what it holds is bound to its place
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
            told.size = state.size  # the kernel has followed all writes under this path
        try:
            return told, self._tree.open(directory, name, flags, (told.key, told))
        except OSError:
            told.never_cached = told.never_cached or (self.writeback and not told.ctime)
            raise

    # ---- open handles

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
        # Each name of a file has pages of its own, so a file with several names goes without. So does a file
        # that is opened beside an older one of its path, as both would share pages.
        if others:
            self._note_shared(told)
        if not single or others or told.direct or told.never_cached:
            told.direct.add(fh)
            return False, True
        keep = told.has_pages_of(state)
        told.will_cache(state)
        return keep or self._exclusive, False

    def hears(self, fh: int) -> None:
        """At a read or a write by a handle: it may tell the kernel the size of its own file."""
        if self._shared:
            self._by_handle[fh].heard.add(fh)

    def releasing(self, fh: int) -> None:
        """Before a handle is given back: all its requests have their answers.

        Answers about the path are right from now on, even if it takes time to give the handle back. The
        kernel gives handles back late: it may have a newer answer about the path than by this handle.
        """
        told = self._by_handle[fh]
        state = told.files[fh]
        others = {other.key for handle, other in list(told.files.items()) if handle != fh}
        if told.key != state.key:
            if fh in told.heard:
                told.doubt()
        elif not told.is_last(state) and state.key not in others:
            told.doubt()  # its last write, or a read at its end, may have told the kernel its size

    def released(self, fh: int) -> None:
        """After a handle was given back."""
        told = self._by_handle.pop(fh)
        del told.files[fh]
        told.direct.discard(fh)
        told.heard.discard(fh)
        if told in self._shared:
            self._note_shared(told)

    def open_handle(self, path: str, held: HeldFile | None) -> int | None:
        """A handle on an open file of a path: on this file, else on an older one; None: none is open."""
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
        """After a name went. held: its file; the last answers about its other names are in doubt."""
        with self._lock:
            self._take_away(path)
        if held is not None and held.st.st_nlink == 1:
            self._numbers.pop((held.st.st_dev, held.st.st_ino), None)
        if held is not None and held.st.st_nlink > 1:
            told = self._by_key.get((held.st.st_dev, held.st.st_ino))
            if told is not None:
                told.doubt()

    def moved(self, old: str, new: str, *, exchange: bool = False) -> None:
        """After a rename: the kernel's knowledge moves along, also of all paths below a directory."""
        with self._lock:
            gone = self._take(old)
            if exchange:
                self._put(old, self._take(new))
            else:
                self._take_away(new)
            self._put(new, gone)

    def _take_away(self, path: str) -> None:
        told = self._by_path.pop(path, None)
        if told is not None:
            self._drop_key(told)

    def _take(self, path: str) -> dict[str, Told | None]:
        """Take a path and all below it out of the table: rest of the path -> last answer."""
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
