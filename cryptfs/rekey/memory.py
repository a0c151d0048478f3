"""The memory of a change of the masterkey, which outlives a kill: the directory `cryptfs.rekey`.

    <inode>                         the new file of an old one with several names
    d.<inode>.<mode>.<atime>.<mtime>  an empty file: a directory as it was before the first change in it
    f.<inode>.<mode>                the same for a file that its owner may not read

All of it is in names, so that each is there whole or not at all. It means something on one machine only, and
goes at the end. Source: docs/FORMAT.md, section 14.7.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from typing import NamedTuple

from cryptfs.core.names.names import REKEY_NAME
from cryptfs.storage.backing import give_to_owner, open_backing
from cryptfs.storage.dirs import list_names, open_directory
from cryptfs.storage.libc import AT_FDCWD, keeping_mtime, utimensat

_DIRECTORY = re.compile(r"d\.([0-9]+)\.([0-7]+)\.(-?[0-9]+)\.(-?[0-9]+)", re.ASCII)
_FILE = re.compile(r"f\.([0-9]+)\.([0-7]+)", re.ASCII)


class Before(NamedTuple):
    """A directory before the first change in it. Times are in nanoseconds."""

    mode: int
    atime_ns: int
    mtime_ns: int

    def restore(self, fd: int) -> None:
        """Give a directory its mode and times back. fd: any descriptor of it."""
        path = f"/proc/self/fd/{fd}"
        st = os.fstat(fd)
        if stat.S_IMODE(st.st_mode) != self.mode:
            os.chmod(path, self.mode)
        times = (*divmod(self.atime_ns, 10**9), *divmod(self.mtime_ns, 10**9))
        with contextlib.suppress(PermissionError):  # somebody else's
            utimensat(AT_FDCWD, path, times, follow=True)


def open_memory(vault_fd: int) -> int:
    """A descriptor of `cryptfs.rekey`; makes it if it is missing."""
    with contextlib.suppress(FileExistsError), keeping_mtime(vault_fd):
        os.mkdir(REKEY_NAME, 0o700, dir_fd=vault_fd)
    fd = open_directory(vault_fd, REKEY_NAME)
    give_to_owner(fd, vault_fd)
    return fd


class LinkMemory:
    """The memory of a change. Args: rekey_fd: the directory; stays the caller's."""

    def __init__(self, rekey_fd: int) -> None:
        self._fd = rekey_fd
        self._directories: dict[int, tuple[str, Before]] = {}
        self._files: dict[int, tuple[str, int]] = {}
        self.links: set[int] = set()  # numbers of old files whose new one is here
        for name in list_names(rekey_fd):
            if name.isascii() and name.isdecimal():
                self.links.add(int(name))
            match = _DIRECTORY.fullmatch(name)
            if match is not None:
                before = Before(int(match[2], 8), int(match[3]), int(match[4]))
                self._directories[int(match[1])] = name, before
            match = _FILE.fullmatch(name)
            if match is not None:
                self._files[int(match[1])] = name, int(match[2], 8)

    def directory(self, st: os.stat_result) -> Before:
        """A directory as it was; remembers it at the first call. st: before that call."""
        known = self._directories.get(st.st_ino)
        if known is not None:
            return known[1]
        before = Before(stat.S_IMODE(st.st_mode), st.st_atime_ns, st.st_mtime_ns)
        name = f"d.{st.st_ino}.{before.mode:o}.{before.atime_ns}.{before.mtime_ns}"
        self._make(name)
        self._directories[st.st_ino] = name, before
        return before

    def knows(self, inode: int) -> bool:
        """Whether a directory was changed, and did not get its times back."""
        return inode in self._directories

    def forget_directory(self, inode: int) -> None:
        """It has its mode and times again."""
        known = self._directories.pop(inode, None)
        if known is not None:
            os.unlink(known[0], dir_fd=self._fd)

    def file_mode(self, st: os.stat_result) -> int | None:
        """The mode of a file before its owner got the right to read it; None if that never happened."""
        known = self._files.get(st.st_ino)
        return None if known is None else known[1]

    def note_file_mode(self, st: os.stat_result) -> None:
        """Before the owner of a file gets the right to read it."""
        if st.st_ino not in self._files:
            mode = stat.S_IMODE(st.st_mode)
            name = f"f.{st.st_ino}.{mode:o}"
            self._make(name)
            self._files[st.st_ino] = name, mode

    def forget_file(self, inode: int) -> None:
        """It has its mode again; or it is about to go, and another file may get its number."""
        known = self._files.pop(inode, None)
        if known is not None:
            os.unlink(known[0], dir_fd=self._fd)

    def _make(self, name: str) -> None:
        os.close(open_backing(self._fd, name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)[0])

    def clear(self, vault_fd: int) -> None:
        """At the end: remove the directory with all that is in it."""
        for name in list_names(self._fd):
            os.unlink(name, dir_fd=self._fd)
        with keeping_mtime(vault_fd):
            os.rmdir(REKEY_NAME, dir_fd=vault_fd)
