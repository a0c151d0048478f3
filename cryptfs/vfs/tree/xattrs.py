"""Extended attributes: names sealed like names, values bound to their file and name.

The backing attribute is `user.cryptfs.` and the cipher name; or `user.cryptfs.long.` and a hash, with the
cipher name before the value. Source: docs/FORMAT.md, section 8.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from typing import NamedTuple

from cryptfs.core.aead import SMALL_NONCE_SIZE, Kind, open_small, seal_small
from cryptfs.core.format.smallvalues import xattr_aad
from cryptfs.core.keys import Subkeys
from cryptfs.core.names.names import LONG_PREFIX, MAX_NAME_SIZE, DirectoryNames, NameCipher, long_entry_name
from cryptfs.errors import NameError_
from cryptfs.storage.backing import open_quietly, reopen
from cryptfs.storage.libc import os_error, restore_mtime
from cryptfs.vfs.content.filestate import FileState
from cryptfs.vfs.content.filetable import FileTable
from cryptfs.vfs.tree.attributes import backing_stat
from cryptfs.vfs.tree.directory import SELF, Directory, DirectoryOpener, HeldFile, Unnamed, printable
from cryptfs.vfs.tree.leftout import LeftOut

PREFIX = "user.cryptfs."
_LONG_PREFIX = "user." + LONG_PREFIX
_MAX_BACKING_NAME = 255
_KEPT_NAMES = 256
_NAMESPACES = (b"user.", b"trusted.", b"security.", b"system.")
_SYSTEM = b"system."
ACL_ACCESS = b"system.posix_acl_access"
ACL_DEFAULT = b"system.posix_acl_default"
ACL_NAMES = (ACL_ACCESS, ACL_DEFAULT)
CAPABILITY = b"security.capability"


class _Target(NamedTuple):
    """The file of an attribute. path: by way of /proc.   follow: it is a link in /proc."""

    path: str
    follow: bool
    cipher_path: str


def _target(directory: Directory | Unnamed, name: bytes) -> _Target:
    if name == SELF or isinstance(directory, Unnamed):
        return _Target(f"/proc/self/fd/{directory.fd}", True, directory.cipher_path or ".")
    entry_name = directory.entry_name(name)
    return _Target(directory.proc_path(entry_name), False, directory.path_of(entry_name))


def _can_have_any(st: os.stat_result) -> bool:
    """Whether an entry can have attributes here: a link or special file has no id to bind them to."""
    return stat.S_ISREG(st.st_mode) or stat.S_ISDIR(st.st_mode)


def open_attribute(names: DirectoryNames, backing_name: str, stored: bytes) -> tuple[bytes, bytes]:
    """(plain name, sealed value) of a backing attribute that begins with PREFIX.

    Raises: NameError_: the name does not verify.
    """
    if not backing_name.startswith(_LONG_PREFIX):
        return names.open(backing_name.removeprefix(PREFIX)), stored
    length = int.from_bytes(stored[:2], "little")
    cipher_name = stored[2 : 2 + length].decode("ascii", "replace")
    fits = len(PREFIX) + len(cipher_name) > _MAX_BACKING_NAME  # a shorter one would be a second spelling
    if not fits or "user." + long_entry_name(cipher_name) != backing_name:
        raise NameError_("a long xattr name does not match its hash")
    return names.open(cipher_name), stored[2 + length :]


def backing_attribute(names: DirectoryNames, attribute: bytes) -> tuple[str, bytes]:
    """The backing name of an attribute, and the prefix of its backing value.

    Args: names: NameCipher.of_xattrs.
    """
    cipher_name = names.seal(attribute)
    if len(PREFIX) + len(cipher_name) <= _MAX_BACKING_NAME:
        return PREFIX + cipher_name, b""
    prefix = len(cipher_name).to_bytes(2, "little") + cipher_name.encode("ascii")
    return "user." + long_entry_name(cipher_name), prefix


class Xattrs:
    """The extended attributes of one vault's files and directories.

    Each method takes a directory and a name in it, or an Unnamed and SELF.
    supports_acls: whether it keeps POSIX ACLs. The engine says so.
    """

    def __init__(self, keys: Subkeys, names: NameCipher, files: FileTable, opener: DirectoryOpener) -> None:
        self.supports_acls = False
        # Programs use the same few names on all files. They follow from the masterkey alone.
        self._backing_names: dict[bytes, tuple[str, bytes]] = {}
        self._plain_names: dict[str, bytes] = {}  # the reverse, of those that need no prefix
        self._key = keys.xattrs_key
        self._names = names.of_xattrs()
        self._files = files
        self._opener = opener

    def get(self, directory: Directory | Unnamed, name: bytes, attribute: bytes) -> bytes:
        """The value.

        Raises: OSError: ENODATA if there is none.   NameError_: it does not authenticate here.
        """
        backing_name, prefix = self._backing_name(attribute)
        target = _target(directory, name)
        stored = os.getxattr(target.path, backing_name, follow_symlinks=target.follow)
        kind, owner_id = self._owner(directory, name, create=False)
        value = None
        if owner_id and stored.startswith(prefix):
            value = open_small(self._key, stored[len(prefix) :], xattr_aad(kind, owner_id, attribute))
        if value is None:
            raise NameError_(
                f"the xattr {printable(backing_name)} does not authenticate", cipher_path=target.cipher_path
            )
        return value

    def set(
        self, directory: Directory | Unnamed, name: bytes, attribute: bytes, value: bytes, flags: int
    ) -> None:
        """Set a value; flags: os.XATTR_CREATE, os.XATTR_REPLACE or 0."""
        backing_name, prefix = self._backing_name(attribute)
        kind, owner_id = self._owner(directory, name, create=True)
        aad = xattr_aad(kind, owner_id, attribute)
        stored = prefix + seal_small(self._key, value, aad, os.urandom(SMALL_NONCE_SIZE))
        target = _target(directory, name)
        os.setxattr(target.path, backing_name, stored, flags, follow_symlinks=target.follow)

    def remove(self, directory: Directory | Unnamed, name: bytes, attribute: bytes) -> None:
        """Remove an attribute; ENODATA if there is none."""
        backing_name, _ = self._backing_name(attribute)
        target = _target(directory, name)
        try:
            os.removexattr(target.path, backing_name, follow_symlinks=target.follow)
        except PermissionError as error:
            st = os.stat(target.path, follow_symlinks=target.follow)
            if error.errno != errno.EPERM or attribute.startswith(b"user.") or _can_have_any(st):
                raise  # as Linux itself refuses user attributes of a link
            raise os_error(errno.ENODATA) from None

    def drop(self, directory: Directory | Unnamed, name: bytes, attribute: bytes) -> None:
        """Remove an attribute, present or not."""
        try:
            self.remove(directory, name, attribute)
        except OSError as error:
            if error.errno not in (errno.ENODATA, errno.EOPNOTSUPP, errno.EPERM):
                raise

    def list(
        self, directory: Directory | Unnamed, name: bytes, left_out: LeftOut | None = None
    ) -> list[bytes]:
        """The names, without those that do not verify.

        Args: left_out: gets those; None writes a warning into the log.
        """
        target = _target(directory, name)
        found = []
        if left_out is None:
            left_out = LeftOut(target.cipher_path, ("the list of xattrs", "xattrs"))
        for backing_name in os.listxattr(target.path, follow_symlinks=target.follow):
            if not backing_name.startswith(PREFIX):
                continue
            try:
                attribute = self._open_name(target, backing_name)
            except NameError_:
                left_out.add(target.cipher_path, f"the xattr {printable(backing_name)} does not verify")
                continue
            if self.supports_acls or not attribute.startswith(_SYSTEM):
                found.append(attribute)
        left_out.tell()
        return found

    def _open_name(self, target: _Target, backing_name: str) -> bytes:
        known = self._plain_names.get(backing_name)
        if known is not None:
            return known
        if not backing_name.startswith(_LONG_PREFIX):
            if len(self._plain_names) >= _KEPT_NAMES:
                self._plain_names.clear()
            self._plain_names[backing_name] = name = self._names.open(backing_name.removeprefix(PREFIX))
            return name
        stored = os.getxattr(target.path, backing_name, follow_symlinks=target.follow)
        return open_attribute(self._names, backing_name, stored)[0]

    def _backing_name(self, attribute: bytes) -> tuple[str, bytes]:
        """The backing attribute's name, and the prefix of its value."""
        if attribute.startswith(_SYSTEM) and not (self.supports_acls and attribute in ACL_NAMES):
            raise os_error(errno.EOPNOTSUPP)
        known = self._backing_names.get(attribute)
        if known is not None:
            return known
        if not 0 < len(attribute) <= MAX_NAME_SIZE:
            raise os_error(errno.ERANGE)
        if attribute in _NAMESPACES:
            raise os_error(errno.EINVAL)  # a namespace without a name in it
        if sys.platform == "linux" and not attribute.startswith(_NAMESPACES):
            raise os_error(errno.EOPNOTSUPP)
        backing = backing_attribute(self._names, attribute)
        if len(self._backing_names) >= _KEPT_NAMES:
            self._backing_names.clear()
        self._backing_names[attribute] = backing
        return backing

    def _owner(self, directory: Directory | Unnamed, name: bytes, *, create: bool) -> tuple[Kind, bytes]:
        """The owner that an entry's values are bound to: (kind, file_id or dir_id); b'' for none yet."""
        if isinstance(directory, Unnamed):
            mode = (directory.st if isinstance(directory, HeldFile) else os.fstat(directory.fd)).st_mode
            if stat.S_ISDIR(mode):
                return Kind.XATTR_OF_DIRECTORY, self._of_descriptor(directory)
        else:
            mode = backing_stat(directory, name).st_mode
            if stat.S_ISDIR(mode):
                return Kind.XATTR_OF_DIRECTORY, self._opener.child(directory, name).dir_id
        if not stat.S_ISREG(mode):
            raise os_error(errno.EPERM)  # Linux does the same for user attributes of links and special files
        return Kind.XATTR_OF_FILE, self._file_id(directory, name, create=create)

    def _of_descriptor(self, where: Unnamed) -> bytes:
        found_at = where.found_at if isinstance(where, HeldFile) else None
        return self._opener.of_descriptor(where.fd, found_at).dir_id

    def _file_id(self, directory: Directory | Unnamed, name: bytes, *, create: bool) -> bytes:
        flags = os.O_RDWR if create else os.O_RDONLY
        if isinstance(directory, Unnamed):
            fd, path, quiet = reopen(directory.fd, flags), directory.cipher_path, False
            st = os.fstat(fd)
        else:
            entry_name = directory.entry_name(name)
            fd, st, quiet = open_quietly(directory.fd, entry_name, flags)
            path = directory.path_of(entry_name)
        state = self._files.acquire(fd, st, writable=create, cipher_path=path, keeps_atime=quiet)
        try:
            state.require_loaded(st)
            if create:
                self._require_header(state)
            return state.header.file_id if state.header is not None else b""
        finally:
            self._files.release(state, writable=create)

    @staticmethod
    def _require_header(state: FileState) -> None:
        """An empty file gets its header with its first attribute."""
        with state.lock:
            if state.header is None or state.header_is_planned:
                mtime = os.fstat(state.fd).st_mtime_ns  # the content stays as it is
                state.write_header(state.context.new_header().closed_at(0))
                restore_mtime(state.fd, mtime)
                state.note_left()
