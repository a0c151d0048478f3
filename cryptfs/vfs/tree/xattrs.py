"""Extended attributes: names sealed like names, values bound to their file and name.

The backing attribute is `user.cryptfs.` and the cipher name; or `user.cryptfs.long.` and a hash, with the
cipher name before the value. On a symlink `trusted.` is in the place of `user.`, since Linux keeps no user
attributes there, and a value is bound to the sealed target. Source: docs/FORMAT.md, section 8.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple

from cryptfs.core.aead import SMALL_NONCE_SIZE, Kind, open_small, seal_small
from cryptfs.core.format.smallvalues import link_owner, xattr_aad
from cryptfs.core.keys import Subkeys
from cryptfs.core.names.names import LONG_PREFIX, MAX_NAME_SIZE, DirectoryNames, NameCipher, long_entry_name
from cryptfs.errors import NameError_
from cryptfs.storage.backing import HELD_FILE_FLAGS, open_quietly, reopen
from cryptfs.storage.libc import AT_FDCWD, UTIME_OMIT, os_error, restore_mtime, utimensat
from cryptfs.vfs.content.filestate import FileState
from cryptfs.vfs.content.filetable import FileTable
from cryptfs.vfs.tree.attributes import backing_stat
from cryptfs.vfs.tree.directory import SELF, Directory, DirectoryOpener, HeldFile, Unnamed, printable
from cryptfs.vfs.tree.leftout import LeftOut
from cryptfs.vfs.tree.symlinks import Symlinks

PREFIX = "user.cryptfs."
LINK_PREFIX = "trusted.cryptfs."  # on symlinks; only CAP_SYS_ADMIN sees and changes these
_LONG_PREFIX = "user." + LONG_PREFIX
_MAX_BACKING_NAME = 255
_KEPT_NAMES = 256
_NAMESPACES = (b"user.", b"trusted.", b"security.", b"system.")
_SYSTEM = b"system."
_OF_LINKS = (b"trusted.", b"security.")
_REFUSED = (errno.EOPNOTSUPP, errno.EPERM, errno.EACCES)
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


def _can_have_user(st: os.stat_result) -> bool:
    """Whether Linux allows user attributes of an entry."""
    return stat.S_ISREG(st.st_mode) or stat.S_ISDIR(st.st_mode)


def _is_link(directory: Directory | Unnamed, name: bytes) -> bool:
    if isinstance(directory, Unnamed):
        return stat.S_ISLNK(os.fstat(directory.fd).st_mode)
    return stat.S_ISLNK(backing_stat(directory, name).st_mode)


def _remove_from_link(target: _Target, backing_name: str) -> None:
    try:
        os.removexattr(target.path, backing_name, follow_symlinks=target.follow)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        raise os_error(errno.ENODATA) from None  # this disk keeps none there


def name_on_link(backing_name: str) -> str:
    """The backing name that an attribute has on a symlink. backing_name: the one on a file."""
    return "trusted." + backing_name.removeprefix("user.")


def name_on_file(backing_name: str) -> str:
    """The reverse of name_on_link; a name that is on a file stays as it is."""
    on_link = backing_name.startswith(LINK_PREFIX)
    return "user." + backing_name.removeprefix("trusted.") if on_link else backing_name


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

    Args: symlinks: None: the vault keeps no attributes of symlinks.
    """

    def __init__(
        self,
        keys: Subkeys,
        names: NameCipher,
        files: FileTable,
        opener: DirectoryOpener,
        symlinks: Symlinks | None = None,
    ) -> None:
        self.supports_acls = False
        # Programs use the same few names on all files. They follow from the masterkey alone.
        self._backing_names: dict[bytes, tuple[str, bytes]] = {}
        self._plain_names: dict[str, bytes] = {}  # the reverse, of those that need no prefix
        self._key = keys.xattrs_key
        self._names = names.of_xattrs()
        self._files = files
        self._opener = opener
        self._symlinks = symlinks

    def get(self, directory: Directory | Unnamed, name: bytes, attribute: bytes) -> bytes:
        """The value.

        Raises: OSError: ENODATA if there is none.   NameError_: it does not authenticate here.
        """
        backing_name, prefix = self._backing_name(attribute)
        target = _target(directory, name)
        try:
            stored = os.getxattr(target.path, backing_name, follow_symlinks=target.follow)
        except OSError as error:
            if error.errno != errno.ENODATA or not self._may_be_on_link(target, attribute, backing_name):
                raise
            backing_name = name_on_link(backing_name)
            with self._held_link(directory, name) as fd:
                stored = os.getxattr(f"/proc/self/fd/{fd}", backing_name)
                kind, owner_id = Kind.XATTR_OF_LINK, self._link_owner(directory, name, fd)
        else:
            kind, owner_id = self._owner(directory, name, create=False)
        value = None
        if owner_id and stored.startswith(prefix):
            value = open_small(self._key, stored[len(prefix) :], xattr_aad(kind, owner_id, attribute))
        if value is None:
            raise NameError_(
                f"the xattr {printable(backing_name)} does not authenticate", cipher_path=target.cipher_path
            )
        return value

    def _may_be_on_link(self, target: _Target, attribute: bytes, backing_name: str) -> bool:
        """Whether a symlink may have an attribute; one call of the system, as most have none."""
        if self._symlinks is None or not attribute.startswith(_OF_LINKS):
            return False
        try:
            os.getxattr(target.path, name_on_link(backing_name), follow_symlinks=target.follow)
        except OSError:
            return False
        return True

    def set(
        self, directory: Directory | Unnamed, name: bytes, attribute: bytes, value: bytes, flags: int
    ) -> None:
        """Set a value; flags: os.XATTR_CREATE, os.XATTR_REPLACE or 0."""
        backing_name, prefix = self._backing_name(attribute)
        if self._symlinks is not None and attribute.startswith(_OF_LINKS) and _is_link(directory, name):
            with self._symlinks.lock, self._held_link(directory, name) as fd:
                self._set_on_link(directory, name, fd, attribute, value, flags)
            return
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
            if error.errno != errno.EPERM or attribute.startswith(b"user.") or _can_have_user(st):
                raise  # as Linux itself refuses user attributes of a link
            if self._symlinks is None or not stat.S_ISLNK(st.st_mode):
                raise os_error(errno.ENODATA) from None
            with self._symlinks.lock:
                _remove_from_link(target, name_on_link(backing_name))

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
            if backing_name.startswith(LINK_PREFIX):
                if self._symlinks is None or not _is_link(directory, name):
                    continue
            elif not backing_name.startswith(PREFIX):
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
        as_on_file = name_on_file(backing_name)
        if not as_on_file.startswith(_LONG_PREFIX):
            if len(self._plain_names) >= _KEPT_NAMES:
                self._plain_names.clear()
            self._plain_names[backing_name] = name = self._names.open(as_on_file.removeprefix(PREFIX))
            return name
        stored = os.getxattr(target.path, backing_name, follow_symlinks=target.follow)
        return open_attribute(self._names, as_on_file, stored)[0]

    # ---- symlinks

    @contextlib.contextmanager
    def _held_link(self, directory: Directory | Unnamed, name: bytes) -> Iterator[int]:
        """An O_PATH descriptor of a symlink. Raises: OSError: ENODATA: it is something else by now."""
        with contextlib.ExitStack() as stack:
            fd = directory.fd
            if name != SELF and not isinstance(directory, Unnamed):
                fd = os.open(directory.entry_name(name), HELD_FILE_FLAGS, dir_fd=fd)
                stack.callback(os.close, fd)
            if not stat.S_ISLNK(os.fstat(fd).st_mode):
                raise os_error(errno.ENODATA)
            yield fd

    def _link_owner(self, directory: Directory | Unnamed, name: bytes, fd: int) -> bytes:
        """The owner of a symlink's values. Raises: NameError_: its target does not authenticate here."""
        assert self._symlinks is not None
        place = (directory, name) if not isinstance(directory, Unnamed) else None
        if isinstance(directory, HeldFile):
            place = directory.found_at
        return link_owner(self._key, self._symlinks.sealed_at(place, fd))

    def _set_on_link(
        self, directory: Directory | Unnamed, name: bytes, fd: int, attribute: bytes, value: bytes, flags: int
    ) -> None:
        path, atime_ns = f"/proc/self/fd/{fd}", os.fstat(fd).st_atime_ns
        backing_name, prefix = self._backing_name(attribute)
        stored = prefix + self._seal_on_link(self._link_owner(directory, name, fd), attribute, value)
        try:
            os.setxattr(path, name_on_link(backing_name), stored, flags)
        except OSError as error:
            if error.errno not in _REFUSED:
                raise
            # EOPNOTSUPP would make overlayfs give up its attributes of all files.
            raise os_error(errno.EPERM) from None
        with contextlib.suppress(OSError):  # somebody else's: the target was read for ourselves
            utimensat(AT_FDCWD, path, (*divmod(atime_ns, 10**9), 0, UTIME_OMIT), follow=True)

    def _seal_on_link(self, owner_id: bytes, attribute: bytes, value: bytes) -> bytes:
        aad = xattr_aad(Kind.XATTR_OF_LINK, owner_id, attribute)
        return seal_small(self._key, value, aad, os.urandom(SMALL_NONCE_SIZE))

    def carry(self, old_fd: int, new_path: str, targets: Callable[[], tuple[bytes, bytes]]) -> None:
        """Give a new symlink the attributes of the one that it replaces, sealed for its own target.

        An attribute that does not verify goes along as it is: it verifies no more than before.

        Args:   old_fd: O_PATH.   targets: the sealed targets of both.
        Raises: OSError: the disk does not take all of them.
        """
        old_path = f"/proc/self/fd/{old_fd}"
        try:
            names = [name for name in os.listxattr(old_path) if name.startswith(LINK_PREFIX)]
        except OSError as error:
            if error.errno not in _REFUSED:
                raise
            return
        if not names:
            return
        old, new = (link_owner(self._key, sealed) for sealed in targets())
        for name in names:
            stored = os.getxattr(old_path, name)
            fresh = self._for_other_link(name, stored, old, new)
            os.setxattr(new_path, name, stored if fresh is None else fresh, follow_symlinks=False)

    def _for_other_link(self, name: str, stored: bytes, old: bytes, new: bytes) -> bytes | None:
        """A backing value for another owner; None if it does not verify."""
        try:
            attribute, sealed = open_attribute(self._names, name_on_file(name), stored)
        except NameError_:
            return None
        value = open_small(self._key, sealed, xattr_aad(Kind.XATTR_OF_LINK, old, attribute))
        if value is None:
            return None
        return stored[: len(stored) - len(sealed)] + self._seal_on_link(new, attribute, value)

    # ---- names and owners

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
