"""How much there is to do, and how much room that takes."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass

from cryptfs.errors import VaultError
from cryptfs.vfs.content.context import FileContext
from cryptfs.vfs.scan.roles import Role
from cryptfs.vfs.scan.walk import Walker

LEAST_BUDGET = 4 * 1024 * 1024  # bytes beside the vault that small files may take in any case
SHARE_OF_VAULT = 100  # beyond the largest file: the hundredth part of the vault


@dataclass(frozen=True, slots=True)
class Survey:
    """The backing files of a vault. Sizes are bytes."""

    files: int
    size: int
    largest: int

    @property
    def budget(self) -> int:
        """Bytes that a change of the masterkey takes beside the vault."""
        return max(self.largest, self.size // SHARE_OF_VAULT, LEAST_BUDGET)


def survey(context: FileContext, vault_fd: int) -> Survey:
    """Count the files of a vault by their stat alone."""
    files = size = largest = 0
    walker = Walker(context, vault_fd)
    for directory in walker.directories():
        for entry in walker.entries(directory):
            if entry.role in (Role.ENTRY, Role.CONFLICT) and stat.S_ISREG(entry.st.st_mode):
                files, size = files + 1, size + entry.st.st_size
                largest = max(largest, entry.st.st_size)
    return Survey(files, size, largest)


def require_room(context: FileContext, vault_fd: int) -> None:
    """Raises: VaultError: there is less free space than a change of the masterkey takes."""
    needed = survey(context, vault_fd).budget
    found = os.statvfs(vault_fd)
    free = found.f_bavail * found.f_frsize
    if free < needed:
        raise VaultError(
            f"a change of the masterkey needs {needed >> 20} MiB of free space beside the vault, as its "
            f"largest file takes; there are {free >> 20} MiB"
        )
