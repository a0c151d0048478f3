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
    """The backing files of a vault. Sizes are bytes.

    others: files and links whose owner or group this process cannot give to a new file.
    """

    files: int
    size: int
    largest: int
    others: int

    @property
    def budget(self) -> int:
        """Bytes that a change of the masterkey takes beside the vault."""
        return max(self.largest, self.size // SHARE_OF_VAULT, LEAST_BUDGET)


def survey(context: FileContext, vault_fd: int) -> Survey:
    """Count the files of a vault by their stat alone."""
    files = size = largest = others = 0
    groups = {os.getegid(), *os.getgroups()}
    user = os.geteuid()
    walker = Walker(context, vault_fd)
    for directory in walker.directories():
        for entry in walker.entries(directory):
            if entry.role not in (Role.ENTRY, Role.CONFLICT) or stat.S_ISDIR(entry.st.st_mode):
                continue
            if user and (entry.st.st_uid != user or entry.st.st_gid not in groups):
                others += 1
            if stat.S_ISREG(entry.st.st_mode):
                files, size = files + 1, size + entry.st.st_size
                largest = max(largest, entry.st.st_size)
    return Survey(files, size, largest, others)


def require_possible(context: FileContext, vault_fd: int) -> None:
    """Raises: VaultError: too little free space, or files whose owner only root can keep."""
    found = survey(context, vault_fd)
    require_owners(found)
    needed = found.budget
    disk = os.statvfs(vault_fd)
    free = disk.f_bavail * disk.f_frsize
    if free < needed:
        raise VaultError(
            f"a change of the masterkey needs {needed >> 20} MiB of free space on the disk of the vault, for "
            f"its largest file; {free >> 20} MiB are free"
        )


def require_owners(found: Survey) -> None:
    """Raises: VaultError: there are files whose owner only root can keep."""
    if found.others:
        raise VaultError(
            f"{found.others} files or links in the vault belong to another user or group. A change of the "
            "masterkey writes new files, and only root can keep their owners: run it as root"
        )
