"""Finds the backing files that a journal's records are about: by path, by inode number, by file_id.

Source: docs/FORMAT.md, section 10.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Iterator, Mapping

from cryptfs.core.header import FileHeader
from cryptfs.errors import HeaderError
from cryptfs.storage.backing import DIRECTORY_FLAGS, HELD_FILE_FLAGS, reopen
from cryptfs.storage.dirs import open_for_listing, scan
from cryptfs.vfs.context import FileContext

log = logging.getLogger(__name__)

_NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)


class FileFinder:
    """Opens backing files for writing.

    Args: vault_fd: the vault directory.   copied: whether the vault is a copy, with other inode numbers.
    """

    def __init__(self, context: FileContext, vault_fd: int, *, copied: bool) -> None:
        self._context = context
        self._vault_fd = vault_fd
        self._copied = copied

    def by_path(self, path: bytes, file_id: bytes) -> int | None:
        """A descriptor of the file at a path in the vault, through no link; None where it is not there.

        Raises: OSError: it may be there, and cannot be opened.
        """
        held_fd = self._hold(path, HELD_FILE_FLAGS)
        if held_fd is None:
            return None
        try:
            if not stat.S_ISREG(os.fstat(held_fd).st_mode):
                return None
            return self._if_it_is(_writable(held_fd), file_id)
        finally:
            os.close(held_fd)

    def search(self, wanted: Mapping[bytes, int]) -> Iterator[tuple[bytes, int]]:
        """Look through the vault for files that were renamed; yields file_id and descriptor.

        By inode number first, which costs a listing; in a copy of the vault all headers are read then.

        Args:   wanted: inode number by file_id. Looking ends where all were found.
        Raises: OSError: a file with such a number cannot be opened.
        """
        left = dict(wanted)
        for path, inode in self._files():
            if not left:
                return
            for file_id in [each for each, number in left.items() if number == inode]:
                fd = self.by_path(path, file_id)
                if fd is not None:
                    del left[file_id]
                    yield file_id, fd
        if not self._copied:
            return  # the numbers hold, so what was not found was removed
        for path, _ in self._files():
            if not left:
                return
            file_id = self._peek(path)
            if file_id in left:
                fd = self.by_path(path, file_id)
                if fd is not None:
                    del left[file_id]
                    yield file_id, fd

    def header_of(self, fd: int) -> FileHeader | None:
        """The header of an open file; None where there is none, or none that holds."""
        try:
            return self._context.header_of(fd)
        except HeaderError:
            return None

    def _if_it_is(self, fd: int, file_id: bytes) -> int | None:
        header = self.header_of(fd)
        if header is not None and header.file_id == file_id:
            return fd
        os.close(fd)
        return None

    def _peek(self, path: bytes) -> bytes:
        """The file_id at a path, b"" where it cannot be read."""
        try:
            held_fd = self._hold(path, HELD_FILE_FLAGS)
            if held_fd is None:
                return b""
            try:
                fd = reopen(held_fd, os.O_RDONLY)
            finally:
                os.close(held_fd)
        except OSError:
            return b""
        header = self.header_of(fd)
        os.close(fd)
        return b"" if header is None else header.file_id

    def _hold(self, path: bytes, flags: int) -> int | None:
        """A descriptor of what a path leads to, part by part: paths may be longer than system calls take."""
        parts = os.fsdecode(path).split("/")
        if any(part in ("", ".", "..") for part in parts):
            return None
        fd = os.dup(self._vault_fd)
        try:
            for number, part in enumerate(parts, 1):
                inner = os.open(part, flags if number == len(parts) else DIRECTORY_FLAGS, dir_fd=fd)
                os.close(fd)
                fd = inner
        except OSError as error:
            os.close(fd)
            if error.errno in _NOT_THERE:
                return None
            raise
        return fd

    def _files(self) -> Iterator[tuple[bytes, int]]:
        """Path and inode number of all regular files."""
        directories = [b""]
        while directories:
            top = directories.pop()
            try:
                entries = list(self._entries(top))
            except OSError as error:
                log.warning("%s: not searched: %s", os.fsdecode(top) or ".", error.strerror)
                continue
            for name, inode, kind in entries:
                path = top + b"/" + name if top else name
                if stat.S_ISDIR(kind):
                    directories.append(path)
                elif stat.S_ISREG(kind):
                    yield path, inode

    def _entries(self, top: bytes) -> Iterator[tuple[bytes, int, int]]:
        dir_fd = self._hold(top, DIRECTORY_FLAGS) if top else os.dup(self._vault_fd)
        if dir_fd is None:
            return
        try:
            listing_fd = open_for_listing(dir_fd)
        finally:
            os.close(dir_fd)
        try:
            for name, inode, kind in scan(listing_fd):
                yield os.fsencode(name), inode, kind
        finally:
            os.close(listing_fd)


def _writable(held_fd: int) -> int:
    """Open for reading and writing what an O_PATH descriptor holds.

    The session had it open, so its owner may have taken the right to write away since: it comes back for
    a moment.
    """
    try:
        return reopen(held_fd, os.O_RDWR)
    except PermissionError:
        st = os.fstat(held_fd)
        if st.st_uid != os.geteuid():
            raise
        place, mode = f"/proc/self/fd/{held_fd}", stat.S_IMODE(st.st_mode)
        os.chmod(place, mode | stat.S_IRUSR | stat.S_IWUSR)
        try:
            return reopen(held_fd, os.O_RDWR)
        finally:
            os.chmod(place, mode)
