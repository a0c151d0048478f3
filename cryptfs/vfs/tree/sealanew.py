"""A copy of an open file as a new one: sealed under a file_id of its own, with all its attributes."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat

from cryptfs.errors import NameError_
from cryptfs.storage.backing import open_backing
from cryptfs.storage.dirs import temp_name
from cryptfs.storage.libc import keeping_mtime
from cryptfs.vfs.content import ranges
from cryptfs.vfs.content.filestate import FileState
from cryptfs.vfs.content.openfile import OpenFile
from cryptfs.vfs.tree.directory import SELF, Directory, Unnamed
from cryptfs.vfs.tree.entries import EntryOperations

log = logging.getLogger(__name__)

_PIECE = 1024 * 1024


def seal_anew(entries: EntryOperations, state: FileState, directory: Directory) -> str:
    """Copy a file into a new one on disk; returns its temporary name in the directory, for a rename.

    Args:   state: of the file.
    Raises: IntegrityError, OSError: then nothing stays behind.
    """
    temporary = temp_name(entries.context.owner)
    with keeping_mtime(directory.fd):
        fd, st = open_backing(directory.fd, temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        new = entries.files.acquire(fd, st, writable=True, cipher_path=directory.path_of(temporary))
        try:
            copy = OpenFile(new, writable=True)
            _copy_content(OpenFile(state, writable=False), copy)
            _copy_xattrs(entries, state, new)
            _copy_attributes(state, new)
            copy.sync(data_only=False)
        finally:
            entries.files.release(new, writable=True)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary, dir_fd=directory.fd)
        raise
    return temporary


def _copy_content(source: OpenFile, copy: OpenFile) -> None:
    """All bytes; holes stay holes. Nobody else knows of the copy, so its writes need no make_room."""
    source.state.require_loaded()
    copy.state.require_loaded()
    room = memoryview(bytearray(_PIECE))
    with source.state.lock, copy.state.lock:
        at, size = 0, source.state.size
        while at < size:
            start = _next_data(source, at)
            if start > at:
                copy.grow_hole(start)
            got = source.read_into(start, room) if start < size else 0
            if got:
                copy.writer.write_run(start, room[:got])
            at = start + got


def _next_data(source: OpenFile, at: int) -> int:
    """The next offset with data, at the latest the end of the file."""
    if not source.state.sparse:
        return at
    try:
        found = ranges.seek(source, at, os.SEEK_DATA)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return source.state.size
    return max(at, found // _PIECE * _PIECE)  # runs begin at chunks, so that no chunk is sealed twice


def _copy_xattrs(entries: EntryOperations, state: FileState, new: FileState) -> None:
    source, target = Unnamed(state.fd, state.cipher_path), Unnamed(new.fd, new.cipher_path)
    try:
        names = entries.xattrs.list(source, SELF)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        return
    for name in names:
        try:
            value = entries.xattrs.get(source, SELF, name)
        except NameError_ as error:
            log.warning("%s: an attribute was not copied: %s", state.cipher_path, error.reason)
            continue
        entries.xattrs.set(target, SELF, name, value, 0)


def _copy_attributes(state: FileState, new: FileState) -> None:
    st = os.fstat(state.fd)
    if (st.st_uid, st.st_gid) != (os.geteuid(), os.getegid()):
        with contextlib.suppress(PermissionError):
            os.fchown(new.fd, st.st_uid, st.st_gid)
    os.fchmod(new.fd, stat.S_IMODE(st.st_mode))
    mtime = st.st_mtime_ns if state.kept_mtime_ns is None else state.kept_mtime_ns
    os.utime(new.fd, ns=(st.st_atime_ns, mtime))
