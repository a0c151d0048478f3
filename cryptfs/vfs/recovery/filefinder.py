"""Finds the backing files that a journal's records are about: by path, by inode number, by file_id.

Source: docs/FORMAT.md, section 10.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Iterator, Sequence, Set
from typing import NamedTuple

from cryptfs.core.format.header import FileHeader
from cryptfs.errors import HeaderError
from cryptfs.storage.backing import DIRECTORY_FLAGS, HELD_FILE_FLAGS, reopen, reopen_for_owner
from cryptfs.storage.dirs import open_for_listing, scan
from cryptfs.vfs.content.context import FileContext

log = logging.getLogger(__name__)

_NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)


class WantedFile(NamedTuple):
    """The file of a record. A file_id alone is not enough: conflict copies and copied files share it.

    inode: the backing file's number at the time of the record; a copy of the vault has other numbers.
    """

    inode: int
    file_id: bytes


class FileFinder:
    """Opens backing files for writing, each once.

    Args: vault_fd: the vault directory.   copied: whether the vault is a copy, with other inode numbers.
    """

    def __init__(self, context: FileContext, vault_fd: int, *, copied: bool) -> None:
        self._context = context
        self._vault_fd = vault_fd
        self._copied = copied
        self._taken: set[tuple[int, int]] = set()

    def at(self, paths: Sequence[bytes], key: WantedFile) -> int | None:
        """A descriptor of the file at one of the paths that it had; None if it is at none of them.

        In a copy only the newest path counts: an earlier one may now hold another file with this file_id.

        Args:   paths: the newest first.
        Raises: OSError: it may be there, and cannot be opened.
        """
        for path in paths[:1] if self._copied else paths:
            fd = self._by_path(path, key)
            if fd is not None:
                return fd
        return None

    def restored_at(self, path: bytes, key: WantedFile) -> int | None:
        """As at, with any inode number: the files were restored into the same directory."""
        return self._by_path(path, key, any_inode=True)

    def _by_path(self, path: bytes, key: WantedFile, *, any_inode: bool = False) -> int | None:
        """A descriptor of the file at a path in the vault, never through a link; None if it is elsewhere."""
        held_fd = self._hold(path, HELD_FILE_FLAGS)
        if held_fd is None:
            return None
        try:
            st = os.fstat(held_fd)
            identity = (st.st_dev, st.st_ino)
            if not stat.S_ISREG(st.st_mode) or identity in self._taken:
                return None
            if not (self._copied or any_inode or st.st_ino == key.inode):
                return None
            fd = self._if_it_is(reopen_for_owner(held_fd), key.file_id)
        finally:
            os.close(held_fd)
        if fd is not None:
            self._taken.add(identity)
        return fd

    def search(self, wanted: Set[WantedFile]) -> Iterator[tuple[WantedFile, int]]:
        """Search the vault for renamed files; yields the key of each, and a descriptor.

        By inode number, which costs a listing; in a copy of the vault by all headers.

        Raises: OSError: such a file cannot be opened.
        """
        yield from self._by_file_id(wanted) if self._copied else self._by_inode(wanted)

    def _by_inode(self, wanted: Set[WantedFile]) -> Iterator[tuple[WantedFile, int]]:
        """The search ends when it has found all files; those that it does not find were removed."""
        left = set(wanted)
        for path, inode in self._files():
            if not left:
                return
            for key in [each for each in left if each.inode == inode]:
                fd = self._by_path(path, key)
                if fd is not None:
                    left.discard(key)
                    yield key, fd

    def _by_file_id(self, wanted: Set[WantedFile]) -> Iterator[tuple[WantedFile, int]]:
        """Only if exactly one file has the file_id: otherwise nothing shows which one the record means."""
        by_id = {key.file_id: key for key in wanted}
        unique = {key.file_id for key in wanted if sum(key.file_id == each.file_id for each in wanted) == 1}
        found: dict[bytes, dict[int, bytes]] = {}
        for path, inode in self._files():
            file_id = self._peek(path)
            if file_id in unique:
                found.setdefault(file_id, {})[inode] = path
        for file_id, places in found.items():
            if len(places) == 1:
                fd = self._by_path(next(iter(places.values())), by_id[file_id])
                if fd is not None:
                    yield by_id[file_id], fd

    def header_of(self, fd: int) -> FileHeader | None:
        """The header of an open file; None if it has none, or none that verifies."""
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
        """The file_id at a path, b"" if it cannot be read."""
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
        """Open a path part by part, since it may be longer than system calls allow; None if it is missing."""
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
