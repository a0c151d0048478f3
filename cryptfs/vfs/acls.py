"""POSIX ACLs: kept as sealed xattrs, in step with mode bits, inherited from directories.

The kernel enforces them; keeping ACL and mode in step is the filesystem's part.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass

from cryptfs.core.acl import (
    Acl,
    acl_after_chmod,
    inherited_acl,
    inherited_mode,
    is_minimal,
    mode_from_acl,
    pack_acl,
    unpack_acl,
)
from cryptfs.vfs.attributes import backing_stat, change_mode
from cryptfs.vfs.directory import SELF, Directory, Unnamed
from cryptfs.vfs.tree import VaultTree
from cryptfs.vfs.xattrs import ACL_ACCESS, ACL_DEFAULT

_ABSENT = (errno.ENODATA, errno.EOPNOTSUPP, errno.EPERM)  # none there, or none possible there


@dataclass(frozen=True, slots=True)
class Inherited:
    """What a new entry gets from its directory: mode, access ACL and, for a directory, default ACL.

    Both are empty for what can have none: backing FIFOs, sockets and devices have no xattrs.
    """

    mode: int
    access: Acl
    default: Acl


class Acls:
    """The ACLs of one vault. Places are as in Xattrs."""

    def __init__(self, tree: VaultTree) -> None:
        self._xattrs = tree.xattrs

    def _get(self, directory: Directory | Unnamed, name: bytes, attribute: bytes) -> Acl | None:
        try:
            return unpack_acl(self._xattrs.get(directory, name, attribute))
        except OSError as error:
            if error.errno in _ABSENT:
                return None
            raise

    def set(
        self, directory: Directory | Unnamed, name: bytes, attribute: bytes, value: bytes, flags: int
    ) -> None:
        """setxattr(2) of an ACL. An access ACL sets the mode, too; one that says no more is not kept.

        Raises: OSError: EINVAL: no ACL; EACCES: a default ACL of something that is no directory.
        """
        try:
            acl = unpack_acl(value)
        except ValueError:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL)) from None
        mode = _stat(directory, name).st_mode
        if attribute == ACL_DEFAULT:
            if not stat.S_ISDIR(mode):
                raise OSError(errno.EACCES, os.strerror(errno.EACCES))
            self._xattrs.set(directory, name, attribute, value, flags)
            return
        if is_minimal(acl):
            self._xattrs.drop(directory, name, attribute)
        else:
            self._xattrs.set(directory, name, attribute, value, flags)
        change_mode(directory, name, stat.S_IMODE(mode_from_acl(acl, mode)))

    def remove(self, directory: Directory | Unnamed, name: bytes, attribute: bytes) -> None:
        """removexattr(2) of an ACL, which need not be there."""
        self._xattrs.drop(directory, name, attribute)

    def mode_changed(self, directory: Directory | Unnamed, name: bytes, mode: int) -> None:
        """After a chmod: the access ACL says the same."""
        acl = self._get(directory, name, ACL_ACCESS)
        if acl is not None:
            self._xattrs.set(directory, name, ACL_ACCESS, pack_acl(acl_after_chmod(acl, mode)), 0)

    def inherited(self, directory: Directory, mode: int) -> Inherited | None:
        """What a new entry of that mode gets; None where the directory has no default ACL."""
        default = self._get(directory, SELF, ACL_DEFAULT)
        if default is None:
            return None
        if stat.S_IFMT(mode) not in (stat.S_IFREG, stat.S_IFDIR):
            return Inherited(inherited_mode(default, mode), (), ())
        access, mode = inherited_acl(default, mode)
        return Inherited(mode, access, default)

    def give(self, directory: Directory | Unnamed, name: bytes, inherited: Inherited) -> None:
        """Give a new entry its ACLs; its mode it has."""
        if not is_minimal(inherited.access):
            self._xattrs.set(directory, name, ACL_ACCESS, pack_acl(inherited.access), 0)
        if inherited.default and stat.S_ISDIR(_stat(directory, name).st_mode):
            self._xattrs.set(directory, name, ACL_DEFAULT, pack_acl(inherited.default), 0)


def _stat(directory: Directory | Unnamed, name: bytes) -> os.stat_result:
    return os.fstat(directory.fd) if isinstance(directory, Unnamed) else backing_stat(directory, name)
