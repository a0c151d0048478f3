"""What a copy needs of each side: the vault, or the plain filesystem.

A place is a directory and a name in it. A *part* is a file that a copy has not finished: its name is of this
copy alone, until it gets its final one.
"""

from __future__ import annotations

import abc
import contextlib
import hashlib
import os
import re
from collections.abc import Callable, Container
from typing import Generic, NamedTuple, TypeVar

from cryptfs.errors import CryptfsError

Folder = TypeVar("Folder")
From = TypeVar("From")
To = TypeVar("To")
"""The folders of the source, and of the target, of a copy."""


PART_PREFIX = b".cryptfs-part-"
_PART = re.compile(re.escape(PART_PREFIX) + rb"[0-9a-f]{24}(?:[0-9a-f]{8})?", re.ASCII)
PARTS_BY_LENGTH = (PART_PREFIX + b"0" * 24, PART_PREFIX + b"0" * 32)
"""A part of each length: of copies, and of fsspec/."""
OLD_PART = 86_400.0
"""Seconds without a change after which nobody writes to a part any longer."""


def part_name(copy_id: bytes, name: bytes) -> bytes:
    """The name of a part. copy_id: random bytes of the copy, so that no other one touches its parts."""
    return PART_PREFIX + hashlib.blake2b(name, digest_size=12, key=copy_id).hexdigest().encode()


def is_part(name: bytes) -> bool:
    """Whether it is the name of a part."""
    return _PART.fullmatch(name) is not None


class DiffersError(Exception):
    """The copy is not what was to be copied."""


class Small(NamedTuple):
    """All of a small file: content, and extended attributes and ACLs by name."""

    content: memoryview
    attributes: dict[bytes, bytes]


OnLost = Callable[[bytes, Exception], None]
"""Gets each attribute that cannot be read or kept: its name, and why."""


class PartFile(abc.ABC):
    """A new file that another process has made and has open: this one writes some of its content."""

    @abc.abstractmethod
    def write(self, offset: int, data: memoryview) -> None:
        """Write all of data at an offset; a gap before it becomes a hole."""

    @abc.abstractmethod
    def close(self) -> None:
        """Give it back. Raises: OSError: not everything could be written."""


class SideFile(PartFile):
    """An open file of one side."""

    @abc.abstractmethod
    def read_into(self, offset: int, out: memoryview) -> int:
        """Bytes from an offset; 0 at the end. Raises: OSError, IntegrityError."""

    @abc.abstractmethod
    def set_size(self, size: int) -> None:
        """Set the length; what is new is a hole."""

    @abc.abstractmethod
    def data_from(self, offset: int) -> tuple[int, int] | None:
        """(start, stop) of the next data; None if only a hole follows."""

    @abc.abstractmethod
    def expect(self, size: int) -> bytes:
        """This new file will get so many bytes from other processes. Returns what `reopen` needs there."""

    @abc.abstractmethod
    def arrived(self, size: int) -> None:
        """They are there."""


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

    @abc.abstractmethod
    def read_small(self, where: Folder, name: bytes, st: os.stat_result, on_lost: OnLost) -> Small | None:
        """All of a regular file at once; None if it has holes. on_lost: as in `attributes`.

        Raises: DiffersError: it is not as its stat says any longer.
        """

    # ---- making; nothing replaces what is there

    @abc.abstractmethod
    def tidy(self, where: Folder, kept: Container[bytes], *, fresh: bool) -> None:
        """Before a copy works in a directory: remove the parts that copies left which were killed.

        It leaves them while another copy works there; and others leave ours, for as long as it is open.

        Args: kept: names that stay.   fresh: the directory was made just now.
        """

    @abc.abstractmethod
    def create(self, where: Folder, name: bytes, mode: int) -> SideFile:
        """A new regular file. mode: as it will be; nobody may read it before `finish` who may not then."""

    @abc.abstractmethod
    def put_small(
        self, where: Folder, name: bytes, st: os.stat_result, small: Small, on_lost: OnLost
    ) -> None:
        """A new regular file at once, with all that `finish` gives it."""

    @abc.abstractmethod
    def reopen(self, where: Folder, name: bytes, expected: bytes) -> PartFile:
        """A regular file that another process has created, to write pieces at multiples of `PIECE`.

        Args: expected: as its `expect` returned it there.
        """

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


class Parts(Generic[To]):
    """The parts of one copy: their names, and where there may be one now. Safe from many threads.

    Args: target: the side that has them.
    """

    def __init__(self, target: Side[To]) -> None:
        self._target = target
        self._copy_id = os.urandom(16)
        self._tidied: To | None = None
        self._in_hand: dict[bytes, tuple[To, bytes]] = {}

    def name(self, final: bytes) -> bytes:
        """The name of a part. final: the one that it gets when it is whole."""
        return part_name(self._copy_id, final)

    def begin(self, path: bytes, where: To, final: bytes) -> bytes:
        """A part will be made. path: of its entry, as long as it is in hand. Returns its name."""
        part = self.name(final)
        self._in_hand[path] = (where, part)
        return part

    def end(self, path: bytes) -> None:
        """It has its final name, or is gone."""
        self._in_hand.pop(path, None)

    def remove(self, where: To, part: bytes) -> None:
        """Remove a part, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            self._target.unlink(where, part)

    def drop(self, path: bytes, where: To, part: bytes) -> None:
        """As remove and end."""
        self.remove(where, part)
        self.end(path)

    def drop_all(self) -> None:
        """Remove those in hand: an interrupt may come between any two steps, also of cleaning up."""
        for where, part in list(self._in_hand.values()):
            with contextlib.suppress(OSError, CryptfsError):
                self.remove(where, part)
        self._in_hand.clear()

    def tidy(self, where: To, kept: Container[bytes] = (), *, fresh: bool = False) -> None:
        """As `Side.tidy`, once for entries one after the other. Where it fails, the copy goes on."""
        if where is not self._tidied:
            self._tidied = where
            with contextlib.suppress(OSError, CryptfsError):
                self._target.tidy(where, kept, fresh=fresh)
