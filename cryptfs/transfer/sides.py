"""What a copy needs of each side: the vault, or the plain filesystem.

A place is a directory and a name in it.
"""

from __future__ import annotations

import abc
import os
from collections.abc import Callable
from typing import Generic, TypeVar

Folder = TypeVar("Folder")
OnLost = Callable[[bytes, Exception], None]
"""Gets each attribute that cannot be read or kept: its name, and why."""


class SideFile(abc.ABC):
    """An open file of one side."""

    @abc.abstractmethod
    def read_into(self, offset: int, out: memoryview) -> int:
        """Bytes from an offset; 0 at the end. Raises: OSError, IntegrityError."""

    @abc.abstractmethod
    def write(self, offset: int, data: memoryview) -> None:
        """Write all of data at an offset; a gap before it becomes a hole."""

    @abc.abstractmethod
    def set_size(self, size: int) -> None:
        """Set the length; what is new is a hole."""

    @abc.abstractmethod
    def data_from(self, offset: int) -> tuple[int, int] | None:
        """(start, stop) of the next data; None if only a hole follows."""

    @abc.abstractmethod
    def close(self) -> None:
        """Give it back. Raises: OSError: not everything could be written."""


class Side(abc.ABC, Generic[Folder]):
    """One side. All methods raise OSError, those of a vault also CryptfsError.

    may_change: whether others may change a file while it is copied.
    """

    may_change = True

    # ---- looking

    @abc.abstractmethod
    def stat(self, where: Folder, name: bytes) -> os.stat_result:
        """As lstat, with the plaintext size."""

    @abc.abstractmethod
    def enter(self, where: Folder, name: bytes) -> Folder:
        """Open a subdirectory; never through a symlink."""

    @abc.abstractmethod
    def names(self, where: Folder, path: bytes) -> list[bytes]:
        """The sorted names in a directory. path: of it, for reports of names that do not authenticate."""

    @abc.abstractmethod
    def readlink(self, where: Folder, name: bytes) -> bytes:
        """The target of a symlink."""

    @abc.abstractmethod
    def attributes(self, where: Folder, name: bytes, on_lost: OnLost) -> dict[bytes, bytes]:
        """Extended attributes and ACLs by name. on_lost: gets those that cannot be read."""

    @abc.abstractmethod
    def open(self, where: Folder, name: bytes) -> SideFile:
        """Open a regular file for reading."""

    # ---- making; nothing replaces what is there

    @abc.abstractmethod
    def create(self, where: Folder, name: bytes, mode: int) -> SideFile:
        """A new regular file. mode: as it will be; nobody may read it before `finish` who may not then."""

    @abc.abstractmethod
    def mkdir(self, where: Folder, name: bytes) -> None:
        """A new directory that only its owner may enter."""

    @abc.abstractmethod
    def symlink(self, where: Folder, name: bytes, target: bytes) -> None:
        """A new symlink."""

    @abc.abstractmethod
    def mknod(self, where: Folder, name: bytes, mode: int, device: int) -> None:
        """A new FIFO, socket or device."""

    @abc.abstractmethod
    def link(self, where: Folder, name: bytes, new_where: Folder, new_name: bytes) -> None:
        """A second name of a file."""

    @abc.abstractmethod
    def rename(self, where: Folder, name: bytes, new_name: bytes, *, replace: bool) -> None:
        """A new name in the same directory. Raises: OSError: EEXIST: it is taken, and replace is False."""

    @abc.abstractmethod
    def unlink(self, where: Folder, name: bytes) -> None:
        """Remove a name."""

    @abc.abstractmethod
    def let_in(self, where: Folder, name: bytes) -> None:
        """Let the owner of a directory work in it, whatever its mode; `finish` gives it the right one."""

    @abc.abstractmethod
    def finish(
        self, where: Folder, name: bytes, st: os.stat_result, attributes: dict[bytes, bytes], on_lost: OnLost
    ) -> None:
        """Give an entry its owner, attributes, mode and times, in this order.

        Only root gives files away; what another user cannot keep of owner and group stays as it is, and then
        set-id bits go.
        """

    @abc.abstractmethod
    def sync(self) -> None:
        """Bring everything to disk."""
