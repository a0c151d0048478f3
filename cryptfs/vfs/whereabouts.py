"""Where a file that is open was opened, and whether it is there still."""

from __future__ import annotations

import os

from cryptfs.vfs.directory import Directory


class Whereabouts:
    """Of one FileState.

    place:        directory and name of a file that was opened for writing by its name, kept through renames.
    removed_here: whether this mount has removed its last name: nobody misses it.
    being_kept:   its content is on its way to another file just now.
    kept_as:      what the content was kept as after somebody else had removed it.
    kept_change:  the change_count of then, or of when its last writer had closed it, with its name.
    """

    __slots__ = ("being_kept", "kept_as", "kept_change", "place", "removed_here")

    def __init__(self) -> None:
        self.place: tuple[Directory, bytes] | None = None
        self.removed_here = False
        self.being_kept = False
        self.kept_as: Kept | None = None
        self.kept_change = 0


class Kept:
    """A file that was made of another's content, as it was left.

    Raises: OSError: it is not there.
    """

    __slots__ = ("_left", "directory", "name")

    def __init__(self, directory: Directory, name: bytes) -> None:
        self.directory = directory
        self.name = name
        self._left = self._look()

    def _look(self) -> tuple[int, int, int]:
        entry_name = self.directory.entry_name(self.name)
        st = os.stat(entry_name, dir_fd=self.directory.fd, follow_symlinks=False)
        return st.st_dev, st.st_ino, st.st_ctime_ns

    def is_untouched(self) -> bool:
        """Whether nobody has changed, moved or replaced it."""
        try:
            return self._look() == self._left
        except OSError:
            return False
