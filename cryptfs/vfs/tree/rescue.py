"""Saves the writes of a program to a file that somebody else deletes or replaces meanwhile.

Such a file has no name now, so its content would go with its last handle. The rescuer seals it again under
its own name if that is free: a change wins over a deletion. If another version has the name, that version
keeps it, and the content goes beside it under a name that says so.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterator

from cryptfs.core.names.conflicts import kept_name
from cryptfs.errors import IntegrityError
from cryptfs.storage.dirs import rename_exclusive, sync_directory
from cryptfs.vfs.content.filestate import FileState
from cryptfs.vfs.tree.directory import Directory
from cryptfs.vfs.tree.entries import EntryOperations
from cryptfs.vfs.tree.sealanew import seal_anew

log = logging.getLogger(__name__)

_TRIED_NUMBERS = 100


def is_lost(state: FileState) -> bool:
    """Whether a file was changed here, has no name left, and nobody here has taken its names.

    A request that takes the last name says so first. So ask who took it after you have seen it gone.
    """
    where = state.whereabouts
    return (
        where.place is not None
        and state.change_count != where.kept_change
        and not state.overtaken
        and os.fstat(state.fd).st_nlink == 0
        and not (where.removed_here or where.being_kept)
    )


class Kept:
    """A file that was made of another file's content, and its stat from then.

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


class _Unwanted(Exception):
    """A program has removed the name while its content was being sealed again."""


class Rescuer:
    """Keeps the content of files that somebody else has taken away.

    Args: root: the directory for files whose own directories are all gone.
    """

    def __init__(self, entries: EntryOperations, root: Directory) -> None:
        self._entries = entries
        self._root = root

    def before_close(self, state: FileState) -> None:
        """Before the last close of a lost file. If the file cannot be kept, the log says so, once."""
        try:
            self.keep(state)
        except (OSError, IntegrityError) as error:
            log.error(
                "%s: somebody else removed it while a program had it open, and it could not be kept: %s",
                state.cipher_path, error,
            )  # fmt: skip
            state.whereabouts.removed_here = True

    def keep(self, state: FileState) -> None:
        """Seal a lost file again, over its older copy if there is one. On return, copy and entry are on disk.

        Raises: OSError, IntegrityError: it was not kept.
        """
        where = state.whereabouts
        assert where.place is not None  # else it is not lost
        directory, name = where.place
        assert isinstance(directory, Directory)
        change, before = state.change_count, where.kept_as
        where.being_kept = True
        try:
            if isinstance(before, Kept) and before.is_untouched():
                kept = self._refresh(state, before)
            else:
                kept = self._put(state, directory, name)
            where.kept_as = kept
            sync_directory(kept.directory.fd)
        except _Unwanted:
            return
        finally:
            where.being_kept = False
        where.kept_change = change

    def _refresh(self, state: FileState, kept: Kept) -> Kept:
        directory = kept.directory
        temporary = seal_anew(self._entries, state, directory)
        entry_name = directory.entry_name(kept.name)
        try:
            os.rename(temporary, entry_name, src_dir_fd=directory.fd, dst_dir_fd=directory.fd)
        except BaseException:
            _discard(directory, temporary)
            raise
        return Kept(directory, kept.name)

    def _put(self, state: FileState, directory: Directory, name: bytes) -> Kept:
        directory = self._standing(directory)
        temporary = seal_anew(self._entries, state, directory)
        try:
            if state.whereabouts.removed_here:
                raise _Unwanted
            kept = self._name(directory, temporary, name)
        except BaseException:
            _discard(directory, temporary)
            raise
        log.warning(
            "%s: somebody else deleted or replaced it while a program was writing to it; kept as %s",
            state.cipher_path,
            directory.path_of(directory.entry_name(kept.name)),
        )
        return kept

    def _name(self, directory: Directory, temporary: str, name: bytes) -> Kept:
        for candidate in _candidates(name):
            with self._entries.naming(directory, candidate) as entry_name:
                self._entries.pending.flush()
                try:
                    rename_exclusive(directory.fd, temporary, directory.fd, entry_name)
                except FileExistsError:
                    continue
            return Kept(directory, candidate)
        raise FileExistsError("every name that was tried is taken")

    def _standing(self, directory: Directory) -> Directory:
        """The directory, or the nearest one above that has not been removed."""
        if os.fstat(directory.fd).st_nlink:
            return directory
        found = self._root
        for entry_name in directory.cipher_path.split("/"):
            try:
                found = self._entries.opener.child_by_entry(found, entry_name)
            except (OSError, IntegrityError):
                break
        return found


def _candidates(name: bytes) -> Iterator[bytes]:
    yield name
    stamp = time.strftime("%Y-%m-%d %H.%M.%S")
    for number in range(1, _TRIED_NUMBERS):
        yield kept_name(name, stamp, number)
    for _ in range(_TRIED_NUMBERS):  # hundreds in one second
        yield kept_name(name, stamp, int.from_bytes(os.urandom(6), "little"))


def _discard(directory: Directory, temporary: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(temporary, dir_fd=directory.fd)
