"""Sets aside what does not authenticate: the ciphertext as it is, in the directory `cryptfs.set-aside`.

Beside each entry is a text that says where it was, and why it is here. Nothing in it is sealed again.
"""

from __future__ import annotations

import contextlib
import os
import stat

from cryptfs.core.names.names import SET_ASIDE_NAME, encode_text
from cryptfs.storage.backing import create_small, give_to_owner
from cryptfs.storage.dirs import list_names, open_directory
from cryptfs.storage.libc import keeping_mtime
from cryptfs.storage.records import with_owner_rights

TEXT_SUFFIX = ".txt"


class Aside:
    """The directory for it. Args: vault_fd: the vault directory; stays the caller's."""

    def __init__(self, vault_fd: int) -> None:
        self._vault_fd = vault_fd
        self._fd: int | None = None

    def close(self) -> None:
        """The last use."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _open(self) -> int:
        if self._fd is None:
            with contextlib.suppress(FileExistsError), keeping_mtime(self._vault_fd):
                os.mkdir(SET_ASIDE_NAME, 0o700, dir_fd=self._vault_fd)
            self._fd = open_directory(self._vault_fd, SET_ASIDE_NAME)
            give_to_owner(self._fd, self._vault_fd)
        return self._fd

    def put(self, dir_fd: int, entry_name: str, cipher_path: str, reason: str) -> str:
        """Move an entry there; returns its new name. Raises: OSError: it is where it was."""
        aside_fd = self._open()
        name = encode_text(os.urandom(18))
        text = f"path: {cipher_path}\nreason: {reason}\n"
        os.close(create_small(aside_fd, name + TEXT_SUFFIX, text.encode("utf-8", "backslashreplace"), 0o600))
        with contextlib.ExitStack() as stack:
            if stat.S_ISDIR(os.stat(entry_name, dir_fd=dir_fd, follow_symlinks=False).st_mode):
                fd = open_directory(dir_fd, entry_name)  # its ".." changes, which takes the right to write
                stack.callback(os.close, fd)
                stack.enter_context(with_owner_rights(fd))
            os.rename(entry_name, name, src_dir_fd=dir_fd, dst_dir_fd=aside_fd)
        return name

    def tidy(self) -> None:
        """Remove texts whose entry a kill left in its place."""
        try:
            fd = self._fd if self._fd is not None else open_directory(self._vault_fd, SET_ASIDE_NAME)
        except FileNotFoundError:
            return
        self._fd = fd
        names = set(list_names(fd))
        for name in names:
            if name.endswith(TEXT_SUFFIX) and name.removesuffix(TEXT_SUFFIX) not in names:
                os.unlink(name, dir_fd=fd)
