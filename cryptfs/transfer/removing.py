"""Remove entries: those of the plaintext, and those of the vault that do not authenticate."""

from __future__ import annotations

import errno
import os
import shutil
import stat

from cryptfs.errors import CryptfsError, IntegrityError
from cryptfs.storage.dirs import holds_plaintext, is_long, open_directory, open_for_listing, scan
from cryptfs.storage.libc import os_error
from cryptfs.transfer.ciphernames import plain_path, require_entry
from cryptfs.transfer.pathvault import PathVault
from cryptfs.transfer.places import Found
from cryptfs.transfer.walking import OnProblem, ReportedNames, joined
from cryptfs.vfs.tree.attributes import backing_stat
from cryptfs.vfs.tree.directory import SELF, Directory


class Removal:
    """One removal.

    Args: recursive: directories with all that is in them.   damaged: also entries in them that do not
          authenticate.   on_problem: gets each entry that stays, and why.
    """

    def __init__(
        self, vault: PathVault, on_problem: OnProblem, *, recursive: bool = False, damaged: bool = False
    ) -> None:
        self._vault = vault
        self._tree = vault.tree
        self._on_problem = on_problem
        self._recursive = recursive
        self._damaged = damaged

    def entry(self, found: Found, path: bytes) -> None:
        """Remove an entry of the plaintext, by its name. Damage of its content does not matter."""
        try:
            self._require_removable(found)
        except (OSError, CryptfsError) as error:
            self._on_problem(path, error)
            return
        waiting = [(found, path, False)]  # True: all in it was seen
        while waiting:
            found, path, is_seen = waiting.pop()
            try:
                if is_seen:
                    self._tree.remove_directory(*found)
                elif not stat.S_ISDIR(backing_stat(*found).st_mode):
                    self._tree.unlink(*found)
                elif (below := self._opened(found)) is not None:
                    waiting.append((found, path, True))
                    names = self._names(below, path)
                    waiting += [(Found(below, name), joined(path, name), False) for name in names]
            except (OSError, CryptfsError) as error:
                self._on_problem(path, error)

    def _require_removable(self, found: Found) -> None:
        """Raises: OSError: it is the root, or a directory, or there is none."""
        self._tree.require_writable()
        if found.name == SELF:
            error = os_error(errno.EBUSY)
            error.strerror = "the root of a vault cannot be removed"
            raise error
        if stat.S_ISDIR(backing_stat(*found).st_mode) and not self._recursive:
            raise os_error(errno.EISDIR)

    def _opened(self, found: Found) -> Directory | None:
        """A directory; None if it does not authenticate, and is removed by that."""
        try:
            return self._tree.directory(*found)
        except IntegrityError:
            if not self._damaged:
                raise
        self._remove_backing(found.directory.fd, found.directory.entry_name(found.name))
        return None

    def _names(self, directory: Directory, path: bytes) -> list[bytes]:
        """The names in a directory. Those that do not authenticate are removed, or reported."""
        reported = ReportedNames(path, (lambda *_: None) if self._damaged else self._on_problem)
        listing_fd = open_for_listing(directory.fd, keep_atime=True)
        try:
            found = []
            for entry_name, _, _ in scan(listing_fd):
                name = self._tree.listed_name(directory, entry_name, reported)
                if name is not None:
                    found.append(name)
                elif self._damaged and holds_plaintext(entry_name):
                    self._remove_backing(directory.fd, entry_name)
            return sorted(found, reverse=True)
        finally:
            os.close(listing_fd)

    def cipher(self, cipher: str) -> None:
        """Remove an entry by its path in the vault directory, whether it authenticates or not.

        Raises: NotAnEntryError.   OSError.
        """
        self._tree.require_writable()
        try:
            path = plain_path(self._vault, cipher)
        except IntegrityError:
            self._by_parts([part for part in cipher.split("/") if part not in ("", ".")])
            return
        self.entry(self._vault.places.find(path, follow=False), path)

    def _by_parts(self, parts: list[str]) -> None:
        for part in parts:
            require_entry(part, "/".join(parts))
        held_fd = open_directory(self._vault.descriptor, ".")
        try:
            for part in parts[:-1]:
                below = open_directory(held_fd, part)
                os.close(held_fd)
                held_fd = below
            mode = os.stat(parts[-1], dir_fd=held_fd, follow_symlinks=False).st_mode
            if stat.S_ISDIR(mode) and not self._recursive:
                raise os_error(errno.EISDIR)
            self._remove_backing(held_fd, parts[-1])
        finally:
            os.close(held_fd)

    def _remove_backing(self, dir_fd: int, entry_name: str) -> None:
        sidecars = self._tree.sidecars
        with sidecars.lock:
            if stat.S_ISDIR(os.stat(entry_name, dir_fd=dir_fd, follow_symlinks=False).st_mode):
                shutil.rmtree(entry_name, dir_fd=dir_fd)  # through no symlink
            else:
                os.unlink(entry_name, dir_fd=dir_fd)
            if is_long(entry_name):
                sidecars.remove_if_orphaned(dir_fd, entry_name)
