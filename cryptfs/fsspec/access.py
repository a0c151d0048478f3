"""How one filesystem comes to its vault: opened at the first use, given back at the end."""

from __future__ import annotations

import contextlib
import errno
import threading
import weakref
from pathlib import Path
from typing import Any

from cryptfs.fsspec.secret import offer_of, require_sound
from cryptfs.fsspec.shared import SharedVault, shared_vaults
from cryptfs.storage.libc import os_error
from cryptfs.transfer.fileio import OpenFiles
from cryptfs.transfer.pathvault import PathVault


class VaultAccess:
    """Belongs to one filesystem. Safe from many threads.

    Args:   options: by the names in `secret.OPTIONS`; the passphrase is forgotten after its use.
    Raises: ValueError, TypeError: options contradict each other.
    """

    def __init__(self, vault_dir: Path, options: dict[str, Any], *, read_only: bool) -> None:
        require_sound(options)
        self._vault_dir = vault_dir
        self._options = options
        self.read_only = read_only
        self.files = OpenFiles()  # that are open
        self._lock = threading.Lock()
        self._shared: SharedVault | None = None
        self._end: weakref.finalize[Any, Any] | None = None
        self._is_closed = False

    @property
    def named(self) -> list[tuple[str, Any]]:
        """The options but the passphrase, in a fixed order."""
        return sorted((name, value) for name, value in self._options.items() if name != "passphrase")

    @property
    def opened(self) -> PathVault:
        """The vault, opened if it is not.

        Raises: VaultError: it cannot be opened.   ValueError: `close` was called.
        """
        shared = self._shared
        if shared is None or not shared.is_of_this_process:
            shared = self._open_vault()
        return shared.vault

    @property
    def writable(self) -> PathVault:
        """The vault, to change it. Raises: OSError: EROFS, also if others have it open for writing."""
        if self.read_only:
            raise os_error(errno.EROFS)
        return self.opened

    def _open_vault(self) -> SharedVault:
        with self._lock:
            if self._is_closed:
                raise ValueError("the filesystem is closed; make another one")
            if self._shared is None or not self._shared.is_of_this_process:
                shared = shared_vaults().take(
                    self._vault_dir, lambda config: offer_of(self._options, config), read_only=self.read_only
                )
                self._end = weakref.finalize(self, _give_back, shared, self.files)
                self._shared = shared
                self._options["passphrase"] = None
            return self._shared

    def close(self) -> None:
        """Close the files, and give the vault back. Idempotent.

        Raises: OSError: a file could not be written.
        """
        with self._lock:
            self._is_closed = True
            self._shared, self._options["passphrase"] = None, None
            end, self._end = self._end, None
        if end is not None:
            end()


def _give_back(shared: SharedVault, files: OpenFiles) -> None:
    """Also at the end of the process."""
    with contextlib.ExitStack() as stack:
        stack.callback(shared_vaults().release, shared)
        if shared.is_of_this_process:
            for file in list(files):
                stack.callback(file.close)
