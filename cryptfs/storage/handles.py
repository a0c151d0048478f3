"""File handles of the filesystem that holds a vault, open_by_handle_at(2), as numbers of 64 bits.

A handle is an inode number and its generation: no later file gets the same. So the numbers need no table, and
lead to their files after a new mount as well. Only root can open a handle.
"""

from __future__ import annotations

import errno
import os
import struct

from cryptfs.storage.dirs import open_for_listing
from cryptfs.storage.libc import name_to_handle_at, open_by_handle_at, os_error

_NUMBER = struct.Struct("=Q")
_HALF = 2**32 - 1


class BackingHandles:
    """The handles of one filesystem: those of 8 bytes (ext4, XFS), and those of tmpfs.

    Raises: OSError: EOPNOTSUPP: the filesystem has others, or this process may not open any.

    Args: dir_fd: a descriptor of any directory in it.
    """

    def __init__(self, dir_fd: int) -> None:
        self._type, handle = name_to_handle_at(dir_fd, "")
        self._tail = handle[_NUMBER.size :]
        self._inode_shift = 32 if self._tail else 0  # tmpfs has the generation first
        self._fs_fd = open_for_listing(dir_fd, keep_atime=True)
        try:
            number = self._number(self._type, handle, os.fstat(dir_fd).st_ino)
            if number is None or any(self._tail):
                raise os_error(errno.EOPNOTSUPP)
            os.close(self.open(number))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """The last use."""
        os.close(self._fs_fd)

    def number_of(self, dir_fd: int, name: str, inode: int) -> int | None:
        """The number of an entry, or with the name '' of a descriptor itself; None if it has none.

        Args: inode: of the entry; if it has another one by now, the answer is None.
        """
        try:
            return self._number(*name_to_handle_at(dir_fd, name), inode)
        except OSError:
            return None

    def _number(self, kind: int, handle: bytes, inode: int) -> int | None:
        if kind != self._type or len(handle) < _NUMBER.size or handle[_NUMBER.size :] != self._tail:
            return None
        number: int = _NUMBER.unpack_from(handle)[0]
        return number if number >> self._inode_shift & _HALF == inode else None

    def open(self, number: int) -> int:
        """An O_PATH descriptor of the file of a number, in the vault or not. Raises: OSError: ESTALE."""
        try:
            return open_by_handle_at(self._fs_fd, self._type, _NUMBER.pack(number) + self._tail)
        except OSError as error:
            if error.errno == errno.EPERM:
                raise os_error(errno.EOPNOTSUPP) from None
            raise
