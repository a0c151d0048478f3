"""Checks small things: symlinks, extended attributes, access control lists, long targets of symlinks."""

from __future__ import annotations

import errno
import os
import stat
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator
from typing import NamedTuple

from cryptfs.core.acl import mode_from_acl, unpack_acl
from cryptfs.core.aead import Kind, open_small
from cryptfs.core.format.smallvalues import link_owner, xattr_aad
from cryptfs.core.names.names import DirectoryNames, siv_of
from cryptfs.errors import NameError_
from cryptfs.fsck.files import Problem
from cryptfs.fsck.findings import FindingKind
from cryptfs.vfs.content.context import FileContext
from cryptfs.vfs.scan.walk import WalkedEntry
from cryptfs.vfs.tree.directory import printable
from cryptfs.vfs.tree.symlinks import long_target_id, read_target, sealed_target
from cryptfs.vfs.tree.xattrs import ACL_ACCESS, ACL_NAMES, LINK_PREFIX, PREFIX, name_on_file, open_attribute

_NO_XATTRS = (errno.ENODATA, errno.EOPNOTSUPP, errno.ENOENT, errno.EACCES, errno.EPERM)


class Owner(NamedTuple):
    """A file, directory or symlink to which xattrs are bound. id: b'' for none or an unknown one."""

    kind: Kind
    id: bytes


class BadXattr(NamedTuple):
    """A backing attribute that does not verify, and why; stored is its value."""

    backing_name: str
    stored: bytes
    problem: Problem


def backing_xattrs(fd: int, prefix: str = PREFIX) -> Iterator[tuple[str, bytes]]:
    """Our backing attributes on a descriptor's file, with their values. prefix: LINK_PREFIX of a symlink."""
    path = f"/proc/self/fd/{fd}"  # the descriptor may be an O_PATH one
    try:
        names = [name for name in os.listxattr(path) if name.startswith(prefix)]
    except OSError as error:
        if error.errno in _NO_XATTRS:
            return
        raise
    for name in names:
        try:
            yield name, os.getxattr(path, name)
        except OSError as error:
            if error.errno not in _NO_XATTRS:
                raise


def check_xattrs(
    context: FileContext, names: DirectoryNames, fd: int, owner: Owner, mode: int
) -> list[BadXattr]:
    """The attributes that do not verify. names: NameCipher.of_xattrs.   mode: of the file."""
    found = []
    prefix = LINK_PREFIX if owner.kind is Kind.XATTR_OF_LINK else PREFIX
    for backing_name, stored in backing_xattrs(fd, prefix):
        problem = _check_xattr(context, names, backing_name, stored, owner, mode)
        if problem is not None:
            found.append(BadXattr(backing_name, stored, problem))
    return found


def _check_xattr(
    context: FileContext, names: DirectoryNames, backing_name: str, stored: bytes, owner: Owner, mode: int
) -> Problem | None:
    try:
        attribute, sealed = open_attribute(names, name_on_file(backing_name), stored)
    except NameError_ as error:
        return Problem(FindingKind.XATTR, f"{printable(backing_name)}: {error.reason}")
    value = open_small(context.keys.xattrs_key, sealed, xattr_aad(owner.kind, owner.id, attribute))
    if value is None:
        return Problem(FindingKind.XATTR, f"{printable(backing_name)}: the value does not authenticate")
    if attribute not in ACL_NAMES:
        return None
    try:
        acl = unpack_acl(value)
    except ValueError as error:
        return Problem(FindingKind.ACL, str(error))
    if attribute == ACL_ACCESS and mode_from_acl(acl, mode) != mode:
        wanted = stat.S_IMODE(mode_from_acl(acl, mode))
        return Problem(FindingKind.ACL_MODE, f"mode {stat.S_IMODE(mode):04o}, list {wanted:04o}")
    return None


class LinkCheck:
    """Checks symlinks, and remembers which long targets they name: eight bytes each."""

    def __init__(self, context: FileContext, links_fd: int | None) -> None:
        self._keys = context.keys
        self.links_fd = links_fd
        self._named = array("Q")
        self._sorted = True
        self.complete = True  # whether every symlink was readable: then a target that none names is an orphan

    def owner(self, fd: int) -> Owner:
        """The owner of a symlink's attributes. fd: O_PATH.   Raises: NameError_: it has lost its target."""
        sealed = sealed_target(os.readlink("", dir_fd=fd), self.links_fd)
        return Owner(Kind.XATTR_OF_LINK, link_owner(self._keys.xattrs_key, sealed))

    def check(self, entry: WalkedEntry) -> Problem | None:
        """The problem of a symlink, if any. If its directory has no record, this checks only the form."""
        directory = entry.directory
        text = os.readlink(entry.entry_name, dir_fd=directory.fd)
        link_id = long_target_id(text)
        if link_id is not None:
            self._named.append(_digest(link_id))
            self._sorted = False
        if directory.dir_id is None or entry.cipher_name is None:
            return None
        try:
            siv = siv_of(entry.cipher_name)
            read_target(text, self.links_fd, self._keys.links_key, directory.dir_id, siv)
        except NameError_ as error:
            self.complete = False
            return Problem(FindingKind.SYMLINK, error.reason)
        return None

    def removing(self, link_id: str) -> Callable[[object], str]:
        """The repair that removes a long target without a symlink."""

        def remove(_: object) -> str:
            os.unlink(link_id, dir_fd=self.links_fd)
            return "removed"

        return remove

    def close(self) -> None:
        """The last use."""
        if self.links_fd is not None:
            os.close(self.links_fd)
            self.links_fd = None

    def is_named(self, link_id: str) -> bool:
        """Whether one of the checked symlinks names this long target."""
        if not self._sorted:
            self._named = array("Q", sorted(self._named))
            self._sorted = True
        wanted = _digest(link_id)
        place = bisect_left(self._named, wanted)
        return place < len(self._named) and self._named[place] == wanted


def _digest(link_id: str) -> int:
    """The ids are random, so a piece of one tells them apart as well as any hash would."""
    return int.from_bytes(link_id.encode("ascii")[:8].ljust(8, b"\0"), "little")
