"""Whether a backing file is still the one that was meant, and still as it was left.

Sync clients, restores and people change the vault beside a mount. They replace files under their names, and
the filesystem gives the number of a deleted inode to the next file. So a file is known by its inode number
and its time of birth, and its content by the header that was last read from it or written to it. A file's
ctime says when to look again: nobody can set it, every change moves it.

Where the backing filesystem has no times of birth, every change of ctime that is not ours makes another file.
"""

from __future__ import annotations

import errno
import os
import stat

from cryptfs.core.header import header_version
from cryptfs.storage.backing import O_NOATIME, read_header, reopen
from cryptfs.storage.libc import statx_birth_time
from cryptfs.vfs.attributes import Attributes, plain_attributes
from cryptfs.vfs.context import FileContext
from cryptfs.vfs.filestate import FileKey, FileState
from cryptfs.vfs.overtaking import settled_ctime


class Known:
    """What is known of a backing file that somebody was told of.

    inode:   its number.
    birth:   its time of birth in ns; below zero: not asked for yet, it is at most -birth.
    ctime:   in ns, when all of this was found to hold; 0: look again.
    mtime:   in ns, as it was told.
    size:    plaintext bytes as they were told, of a regular file.
    version: header_version that its content was read or written under; 0: nobody has.
    """

    __slots__ = ("birth", "ctime", "mtime", "size", "version")

    def __init__(self) -> None:
        self.birth = self.ctime = self.mtime = self.size = self.version = 0

    def saw(self, found: Attributes) -> None:
        """Note what is told of a file that is new here."""
        st = found.st
        self.ctime, self.mtime, self.size = st.st_ctime_ns, st.st_mtime_ns, found.size
        self.birth = -st.st_ctime_ns

    def told(self, found: Attributes) -> None:
        """Note what is told of it after a change of our own."""
        self.mtime, self.size = found.st.st_mtime_ns, found.size
        self.ctime = 0

    def kept(self, before: os.stat_result, after: os.stat_result) -> None:
        """After a change of our own that left the content as it was: it is known as well as before."""
        self.ctime = after.st_ctime_ns if before.st_ctime_ns == self.ctime else 0
        self.mtime = after.st_mtime_ns

    def is_object(self, fd: int, st: os.stat_result) -> bool:
        """Whether what has its inode number now is the same file.

        Args: fd: any descriptor of it, also with O_PATH.   st: its stat.
        """
        if st.st_ctime_ns == self.ctime:
            return True
        birth = statx_birth_time(fd, "")
        if birth is None:
            return self.ctime == 0
        return self.is_born(birth)

    def is_born(self, birth: int | None) -> bool:
        """Whether what has its inode number now is the same file, by its time of birth in ns, if any."""
        if birth is None:
            return True
        if self.birth >= 0:
            return birth == self.birth
        if birth > -self.birth:
            return False
        self.birth = birth
        return True

    def has_content(self, fd: int, found: Attributes) -> bool:
        """Whether a regular file that is the same, and that is not open here, has the content that was told.

        Args: fd: any descriptor of it, also with O_PATH.
        """
        st = found.st
        if st.st_ctime_ns == self.ctime:
            return found.size == self.size
        if st.st_mtime_ns != self.mtime:
            return False
        if not self.version:
            if found.size != self.size:
                return False
        elif version_on_disk(fd) not in (self.version, None):
            return False
        self.ctime = settled_ctime(st)
        return True


class Identity:
    """Says of the files of one vault whether they are what somebody was told of.

    Args: context: what the files share.
    """

    def __init__(self, context: FileContext) -> None:
        self._context = context

    def has_content(self, known: Known, held_fd: int, st: os.stat_result) -> bool:
        """Whether a regular file that nobody has open here has what somebody was told of it.

        Args: held_fd: any descriptor of it, also with O_PATH.   st: its stat.
        """
        if not known.has_content(held_fd, plain_attributes(st, self._context)):
            return False
        if known.version and self._context.plain_size(st) != known.size:
            self._context.disagreeing.note(st, known.size)  # its header vouches for that, not for its length
        return True

    def require_object(self, known: Known, key: FileKey, fd: int, st: os.stat_result) -> None:
        """Before a file that was opened by its name is used.

        Args:   key: device and inode of the file that is meant.   fd: open now.   st: its stat.
        Raises: OSError: ESTALE: it is another one.
        """
        if not self._context.exclusive and (key != (st.st_dev, st.st_ino) or not known.is_object(fd, st)):
            raise stale()

    def require_told(self, known: Known, state: FileState, st: os.stat_result) -> None:
        """A kernel fills up to the size that it was told with zeros, and keeps pages that it has read.

        Args:   state: loaded.   st: stat of the backing file from before that.
        Raises: OSError: ESTALE: size or content are not those that were told; whoever looks again is told.
        """
        if not state.has_size or state.changes:  # damaged; or the kernel knows more than the disk
            return
        if state.size != known.size or known.version not in (0, state.version):
            if state.size != self._context.plain_size(st):
                self._context.disagreeing.note(st, state.size)
            known.ctime = 0
            raise stale()
        known.version = state.version
        known.ctime = settled_ctime(st)


def stale() -> OSError:
    """The error at which a kernel looks a name up again."""
    return OSError(errno.ESTALE, os.strerror(errno.ESTALE))


def version_on_disk(fd: int) -> int | None:
    """The header_version of a file now, 0 for none; None where it cannot be read here.

    Args: fd: any descriptor of it, also with O_PATH.
    """
    try:
        reading = _reopen_quietly(fd)
    except OSError:
        return None
    try:
        return header_version(read_header(reading))
    except OSError:
        return None
    finally:
        os.close(reading)


def _reopen_quietly(fd: int) -> int:
    """Open for a look of our own, which leaves the time of access as it is where that can be had."""
    try:
        return reopen(fd, os.O_RDONLY | O_NOATIME)
    except PermissionError:  # the file is somebody else's
        return reopen(fd, os.O_RDONLY)


def is_regular(st: os.stat_result) -> bool:
    """Whether a stat is that of a regular file."""
    return stat.S_ISREG(st.st_mode)
