"""Extended attributes: names sealed like names, values bound to their file and name.

The backing attribute is `user.cryptfs.` and the cipher name, or `user.cryptfs.long.` and a hash, with
the cipher name before the value. Source: docs/FORMAT.md, section 8.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import sys

from cryptfs.core.aead import SMALL_NONCE_SIZE, Kind, open_small, seal_small
from cryptfs.core.header import HeaderFlag
from cryptfs.core.keys import Subkeys
from cryptfs.core.names import LONG_PREFIX, MAX_NAME_SIZE, NameCipher, long_entry_name
from cryptfs.core.smallvalues import xattr_aad
from cryptfs.errors import NameError_
from cryptfs.storage.backing import open_backing
from cryptfs.vfs.directory import Directory, DirectoryOpener, printable
from cryptfs.vfs.filestate import FileState
from cryptfs.vfs.filetable import FileTable

log = logging.getLogger(__name__)

_PREFIX = "user.cryptfs."
_LONG_PREFIX = "user." + LONG_PREFIX
_MAX_BACKING_NAME = 255
_NAMESPACES = (b"user.", b"trusted.", b"security.")
_UNSUPPORTED = b"system."  # POSIX ACLs would have to be enforced, not only kept


def _error(code: int) -> OSError:
    return OSError(code, os.strerror(code))


class Xattrs:
    """The extended attributes of one vault's files and directories."""

    def __init__(self, keys: Subkeys, names: NameCipher, files: FileTable, opener: DirectoryOpener) -> None:
        self._key = keys.xattrs_key
        self._names = names.of_xattrs()
        self._files = files
        self._opener = opener

    def get(self, directory: Directory, name: bytes, attribute: bytes) -> bytes:
        """The value.

        Raises: OSError: ENODATA where there is none.   NameError_: it does not authenticate here.
        """
        backing_name, prefix = self._backing_name(attribute)
        entry_name = directory.entry_name(name)
        stored = os.getxattr(directory.proc_path(entry_name), backing_name, follow_symlinks=False)
        kind, owner_id = self._owner(directory, name, create=False)
        value = None
        if owner_id and stored.startswith(prefix):
            value = open_small(self._key, stored[len(prefix) :], xattr_aad(kind, owner_id, attribute))
        if value is None:
            raise NameError_(
                f"the xattr {backing_name} does not authenticate", cipher_path=directory.path_of(entry_name)
            )
        return value

    def set(self, directory: Directory, name: bytes, attribute: bytes, value: bytes, flags: int) -> None:
        """Set a value; flags: os.XATTR_CREATE, os.XATTR_REPLACE or 0."""
        backing_name, prefix = self._backing_name(attribute)
        kind, owner_id = self._owner(directory, name, create=True)
        aad = xattr_aad(kind, owner_id, attribute)
        stored = prefix + seal_small(self._key, value, aad, os.urandom(SMALL_NONCE_SIZE))
        path = directory.proc_path(directory.entry_name(name))
        os.setxattr(path, backing_name, stored, flags, follow_symlinks=False)

    def remove(self, directory: Directory, name: bytes, attribute: bytes) -> None:
        """Remove an attribute; ENODATA where there is none."""
        backing_name, _ = self._backing_name(attribute)
        os.removexattr(directory.proc_path(directory.entry_name(name)), backing_name, follow_symlinks=False)

    def list(self, directory: Directory, name: bytes) -> list[bytes]:
        """The names; one that does not verify is left out, with a warning."""
        entry_name = directory.entry_name(name)
        path = directory.proc_path(entry_name)
        found = []
        for backing_name in os.listxattr(path, follow_symlinks=False):
            if not backing_name.startswith(_PREFIX):
                continue
            try:
                found.append(self._open_name(path, backing_name))
            except NameError_:
                log.warning(
                    "%s: the xattr %s does not verify and is left out",
                    directory.path_of(entry_name),
                    printable(backing_name),
                )
        return found

    def _open_name(self, path: str, backing_name: str) -> bytes:
        if not backing_name.startswith(_LONG_PREFIX):
            return self._names.open(backing_name.removeprefix(_PREFIX))
        stored = os.getxattr(path, backing_name, follow_symlinks=False)
        length = int.from_bytes(stored[:2], "little")
        cipher_name = stored[2 : 2 + length].decode("ascii", "replace")
        fits = len(_PREFIX) + len(cipher_name) > _MAX_BACKING_NAME  # a shorter one would be a second spelling
        if not fits or "user." + long_entry_name(cipher_name) != backing_name:
            raise NameError_("a long xattr name does not match its hash")
        return self._names.open(cipher_name)

    def _backing_name(self, attribute: bytes) -> tuple[str, bytes]:
        """The backing attribute's name, and what its value begins with."""
        if attribute.startswith(_UNSUPPORTED):
            raise _error(errno.EOPNOTSUPP)
        if not 0 < len(attribute) <= MAX_NAME_SIZE:
            raise _error(errno.ERANGE)
        if attribute in _NAMESPACES:
            raise _error(errno.EINVAL)  # a namespace without a name in it
        if sys.platform == "linux" and not attribute.startswith(_NAMESPACES):
            raise _error(errno.EOPNOTSUPP)
        cipher_name = self._names.seal(attribute)
        if len(_PREFIX) + len(cipher_name) <= _MAX_BACKING_NAME:
            return _PREFIX + cipher_name, b""
        prefix = len(cipher_name).to_bytes(2, "little") + cipher_name.encode("ascii")
        return "user." + long_entry_name(cipher_name), prefix

    def _owner(self, directory: Directory, name: bytes, *, create: bool) -> tuple[Kind, bytes]:
        """What the values of an entry are bound to: (kind, file_id or dir_id); b'' for none yet."""
        entry_name = directory.entry_name(name)
        mode = os.stat(entry_name, dir_fd=directory.fd, follow_symlinks=False).st_mode
        if stat.S_ISDIR(mode):
            return Kind.XATTR_OF_DIRECTORY, self._opener.child(directory, name).dir_id
        if not stat.S_ISREG(mode):
            raise _error(errno.EPERM)  # as Linux has it for user attributes of links and special files
        return Kind.XATTR_OF_FILE, self._file_id(directory, entry_name, create=create)

    def _file_id(self, directory: Directory, entry_name: str, *, create: bool) -> bytes:
        fd, st = open_backing(directory.fd, entry_name, os.O_RDWR if create else os.O_RDONLY)
        path = directory.path_of(entry_name)
        state = self._files.acquire(fd, st, writable=create, cipher_path=path)
        try:
            state.require_loaded()
            if create:
                self._require_header(state)
            return state.header.file_id if state.header is not None else b""
        finally:
            self._files.release(state)

    @staticmethod
    def _require_header(state: FileState) -> None:
        """An empty file gets its header with its first attribute."""
        with state.lock:
            if state.header is None or state.header_is_planned:
                state.write_header(state.context.new_header().changed(flags=HeaderFlag.CLEAN))
