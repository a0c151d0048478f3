"""Whether a backing file is still the intended one, and still as we left it.

Sync clients, restores and people change the vault beside a mount. They replace files under their names, and
the filesystem gives the number of a deleted inode to the next file. So we know a file by its inode number and
its time of birth, and its content by the header that was last read from it or written to it. A file's ctime
says when to look again: nobody can set it, every change moves it.

If the backing filesystem has no times of birth, every change of ctime that is not ours makes another file.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat

from cryptfs.core.format.header import header_version
from cryptfs.core.format.verdict import Length, verdict
from cryptfs.errors import IntegrityError
from cryptfs.storage.backing import O_NOATIME, read_header, reopen
from cryptfs.storage.libc import os_error, statx_birth_time
from cryptfs.vfs.content.context import FileContext
from cryptfs.vfs.content.filestate import FileKey, FileState
from cryptfs.vfs.content.filetable import FileTable
from cryptfs.vfs.content.others import steady_ctime
from cryptfs.vfs.tree.attributes import Attributes, plain_attributes
from cryptfs.vfs.tree.directory import NO_NAME, Directory, DirectoryOpener, HeldFile


class Known:
    """Our knowledge of a backing file that we told somebody about.

    inode:   its number.
    birth:   its time of birth in ns; below zero: we have not asked yet, it is at most -birth.
    ctime:   in ns, when all of this was true; 0: look again.
    mtime:   in ns, as told.
    size:    plaintext bytes of a regular file, as told.
    version: header_version at the last read or write of its content; 0: there was none.
    """

    __slots__ = ("birth", "ctime", "mtime", "size", "version")

    def __init__(self) -> None:
        self.birth = self.ctime = self.mtime = self.size = self.version = 0

    def saw(self, found: Attributes) -> None:
        """Note the attributes of a new file, as told."""
        st = found.st
        self.ctime, self.mtime, self.size = st.st_ctime_ns, st.st_mtime_ns, found.size
        self.birth = -st.st_ctime_ns

    def told(self, found: Attributes) -> None:
        """Note the attributes as told after a change of our own."""
        self.mtime, self.size = found.st.st_mtime_ns, found.size
        self.ctime = 0

    def kept(self, before: os.stat_result, after: os.stat_result) -> None:
        """After a change of our own that left the content as it was: we know the file as well as before."""
        self.ctime = after.st_ctime_ns if before.st_ctime_ns == self.ctime else 0
        self.mtime = after.st_mtime_ns

    def is_object(self, fd: int, st: os.stat_result) -> bool:
        """Whether the present file with its inode number is the same file.

        Args: fd: any descriptor of it, also with O_PATH.   st: its stat.
        """
        if st.st_ctime_ns == self.ctime:
            return True
        birth = statx_birth_time(fd, "")
        if birth is None:
            return self.ctime == 0
        return self.is_born(birth)

    def is_born(self, birth: int | None) -> bool:
        """Whether the present file with its inode number is the same, by its time of birth in ns, if any."""
        if birth is None:
            return True
        if self.birth >= 0:
            return birth == self.birth
        if birth > -self.birth:
            return False
        self.birth = birth
        return True

    def has_content(self, fd: int, found: Attributes) -> bool:
        """Whether the same regular file, while it is not open here, still has the content as told.

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
        self.ctime = steady_ctime(st)
        return True


class Identity:
    """Compares the files of one vault with what we told about them.

    Args: context: what the files share.
    """

    def __init__(self, context: FileContext) -> None:
        self._context = context

    def has_content(self, known: Known, held_fd: int, st: os.stat_result) -> bool:
        """Whether a regular file that is not open here still has the content as told.

        Args: held_fd: any descriptor of it, also with O_PATH.   st: its stat.
        """
        if not known.has_content(held_fd, plain_attributes(st, self._context)):
            return False
        if known.version and self._context.plain_size(st) != known.size:
            self._context.disagreeing.note(st, known.size)  # its header vouches for that, not for its length
        return True

    def require_object(self, known: Known, key: FileKey, fd: int, st: os.stat_result) -> None:
        """Before the use of a file that was opened by its name: verify that it is the right one.

        Args:   key: device and inode of the intended file.   fd: open now.   st: its stat.
        Raises: OSError: ESTALE: it is another one.
        """
        if not self._context.exclusive and (key != (st.st_dev, st.st_ino) or not known.is_object(fd, st)):
            raise stale()

    def require_told(self, known: Known, state: FileState, st: os.stat_result) -> None:
        """A kernel fills with zeros up to the size that it knows, and keeps the pages that it has read.

        Args:   state: loaded.   st: stat of the backing file from before the loading.
        Raises: OSError: ESTALE: size or content are not as told; the next look gets the new ones.
        """
        if not state.has_size or state.changes:  # damaged; or the kernel knows more than the disk
            return
        if not was_told(known, state):
            if state.size != self._context.plain_size(st):
                self._context.disagreeing.note(st, state.size)
            known.ctime = 0
            raise stale()
        if state.size == known.size:
            known.version = state.version
            known.ctime = steady_ctime(st)


def was_told(known: Known, state: FileState) -> bool:
    """Whether an open file has size and content as told.

    It has not if it was opened after a change by others. A file that was changed here passes as it is: the
    kernel has made the changes, and the close that seals them may be under way.
    """
    if state.was_changed or not state.has_size:
        return True
    return state.size == known.size and known.version in (0, state.version)


def size_before_cut(context: FileContext, held_fd: int, st: os.stat_result) -> int | None:
    """The size of a file that seems to be empty, if it was cut: not 0, so that the kernel asks for bytes.

    Returns: plaintext bytes by the header; the length of the rest if the header is cut; None: it is empty.
    """
    fd = reopen(held_fd, os.O_RDONLY | O_NOATIME)
    try:
        judged = verdict(context.header_of(fd), st.st_size, context.geometry)
    except IntegrityError:
        return st.st_size  # not empty, so the kernel asks for bytes, and gets an error
    finally:
        os.close(fd)
    return judged.size if judged.kind is Length.CUT else None


def stale() -> OSError:
    """The error at which a kernel looks a name up again."""
    return os_error(errno.ESTALE)


def version_on_disk(fd: int) -> int | None:
    """The present header_version of a file, 0 if it has no header; None if we cannot read it.

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
    """Open for a look of our own, which leaves the time of access as it is if we may do that."""
    try:
        return reopen(fd, os.O_RDONLY | O_NOATIME)
    except PermissionError:  # the file belongs to somebody else
        return reopen(fd, os.O_RDONLY)


def is_regular(st: os.stat_result) -> bool:
    """Whether a stat is that of a regular file."""
    return stat.S_ISREG(st.st_mode)


def held_of_vault(
    held: HeldFile, files: FileTable, opener: DirectoryOpener
) -> tuple[HeldFile, Directory | None]:
    """A file that a handle of the backing filesystem led to, and its Directory if it is one.

    A handle may lead to any file of that filesystem, and its owner may have made it up. So the file has to
    prove that it is of this vault: a directory by its record, a regular file by its header.

    Raises: OSError: ESTALE: it cannot, as an empty file, or a symlink.
    """
    with contextlib.suppress(IntegrityError, OSError):
        if stat.S_ISDIR(held.st.st_mode):
            return held, opener.of_descriptor(held.fd)
        if stat.S_ISREG(held.st.st_mode):
            fd = reopen(held.fd, os.O_RDONLY)
            state = files.acquire(fd, os.fstat(fd), writable=False, cipher_path=NO_NAME)
            try:
                state.require_loaded()
                if state.header is not None and not state.header_is_planned:
                    return held, None
            finally:
                files.release(state)
    raise stale()
