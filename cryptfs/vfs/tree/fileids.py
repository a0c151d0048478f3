"""A conflict copy gets a file_id of its own at its first write.

A sync client copies or renames whole backing files, so two of them may share a file_id. That does no harm as
long as everybody only reads them. But the redo log and the extended attributes know a file by its file_id.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections import OrderedDict
from typing import NamedTuple

from cryptfs.errors import IntegrityError
from cryptfs.storage.backing import open_backing
from cryptfs.storage.dirs import entry_name_of
from cryptfs.storage.libc import keeping_mtime
from cryptfs.vfs.content.filestate import FileKey, FileState
from cryptfs.vfs.tree.directory import Directory
from cryptfs.vfs.tree.entries import EntryOperations
from cryptfs.vfs.tree.identity import stale
from cryptfs.vfs.tree.sealanew import seal_anew

log = logging.getLogger(__name__)

MAX_KNOWN = 4096


class _Owner(NamedTuple):
    key: FileKey
    path: str


class FileIds:
    """Which file has which file_id, for files with writes in this session; forgets the oldest of too many.

    Args: vault_fd: the vault directory.
    """

    def __init__(self, entries: EntryOperations, vault_fd: int) -> None:
        self._entries = entries
        self._vault_fd = vault_fd
        self._owners: OrderedDict[bytes, _Owner] = OrderedDict()

    def written(self, state: FileState) -> None:
        """Before the close of a file that was changed here."""
        header = state.header
        if header is not None and header.file_id not in self._owners and state.whereabouts.place is not None:
            self._note(header.file_id, state)

    def _note(self, file_id: bytes, state: FileState) -> None:
        self._owners[file_id] = _Owner(state.key, state.cipher_path)
        if len(self._owners) > MAX_KNOWN:
            self._owners.popitem(last=False)

    def is_shared(self, directory: Directory, name: bytes, state: FileState) -> bool:
        """Before a file is opened for writing: whether another file has its file_id.

        Leaves a file with several names as it is: they belong together.
        """
        try:
            state.require_loaded()
        except IntegrityError:
            return False
        if state.header is None or state.header_is_planned:
            return False
        file_id = state.header.file_id
        owner = self._owners.get(file_id)
        if owner is None:
            others = self._entries.files.having(file_id, state)
            shared = others or (directory.is_copy(name) and self._has_original(directory, name, file_id))
        else:
            shared = owner.key != state.key and self._is_there(owner)
        if shared and os.fstat(state.fd).st_nlink == 1:
            return True
        if owner is None or owner.key != state.key:
            self._note(file_id, state)
        return False

    def _is_there(self, owner: _Owner) -> bool:
        has_name = self._entries.files.has_name(owner.key)
        if has_name is not None:
            return has_name
        try:
            st = os.stat(owner.path, dir_fd=self._vault_fd, follow_symlinks=False)
        except OSError:
            return False
        return (st.st_dev, st.st_ino) == owner.key

    def _has_original(self, directory: Directory, name: bytes, file_id: bytes) -> bool:
        """Whether a conflict copy may share its file_id with its original."""
        original = entry_name_of(directory.cipher_name(name))
        try:
            fd, _ = open_backing(directory.fd, original, os.O_RDONLY)
        except (OSError, IntegrityError):
            return True
        try:
            header = self._entries.context.header_of(fd)
        except (OSError, IntegrityError):
            return True
        finally:
            os.close(fd)
        return header is not None and header.file_id == file_id

    def _keep(self, state: FileState) -> None:
        if state.header is not None:
            self._note(state.header.file_id, state)

    def replaced(self, directory: Directory, name: bytes, state: FileState) -> bool:
        """After opening for writing: whether another file has its place now; then this handle has gone.

        Raises: as give_own: the handle has gone.
        """
        done = False
        try:
            shared = self.is_shared(directory, name, state)
            if shared:
                try:
                    self.give_own(directory, name, state)
                except (PermissionError, IntegrityError) as error:
                    # A new file takes more rights than a write; a truncate can empty a damaged file.
                    log.warning("%s: keeps the file_id of another file: %s", state.cipher_path, error)
                    self._keep(state)
                    shared = False
            done = not shared
        finally:
            if not done:
                self._entries.files.release(state, writable=True)
        return not done

    def give_own(self, directory: Directory, name: bytes, state: FileState) -> None:
        """Put a copy with a file_id of its own in the place of a file.

        Raises: OSError: ESTALE: another file has its place by now.   IntegrityError: it is damaged.
        """
        entry_name = directory.entry_name(name)
        temporary = seal_anew(self._entries, state, directory)
        try:
            st = os.stat(entry_name, dir_fd=directory.fd, follow_symlinks=False)
            if (st.st_dev, st.st_ino) != state.key:
                raise stale()
            with keeping_mtime(directory.fd):
                os.rename(temporary, entry_name, src_dir_fd=directory.fd, dst_dir_fd=directory.fd)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary, dir_fd=directory.fd)
            raise
        state.whereabouts.removed_here = True
        log.info("%s: a copy of another file; sealed it again before the first write", state.cipher_path)
