"""POSIX ACLs: kept as sealed xattrs, in step with mode bits, inherited from directories.

The kernel enforces them, if it checks permissions; keeping ACL and mode in step is the filesystem's part.
"""

from __future__ import annotations

import errno
import math
import os
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

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
from cryptfs.storage.libc import os_error
from cryptfs.vfs.tree.attributes import backing_stat, change_mode
from cryptfs.vfs.tree.directory import RECORD_SECONDS, SELF, Directory, Unnamed
from cryptfs.vfs.tree.tree import VaultTree
from cryptfs.vfs.tree.xattrs import ACL_ACCESS, ACL_DEFAULT

T = TypeVar("T")
_ABSENT = (errno.ENODATA, errno.EOPNOTSUPP, errno.EPERM)  # it has none, or can have none


@dataclass(frozen=True, slots=True)
class Inherited:
    """The mode, access ACL and (for a directory) default ACL that a new entry gets from its directory.

    Both ACLs are empty for entries without xattrs: backing FIFOs, sockets and devices.
    """

    mode: int
    access: Acl
    default: Acl


class Acls:
    """The ACLs of one vault. Places are as in Xattrs."""

    def __init__(self, tree: VaultTree) -> None:
        self._xattrs = tree.xattrs
        self._context = tree.context
        self._defaults_set = 0  # how often somebody has set a default ACL here

    def get(self, directory: Directory | Unnamed, name: bytes, attribute: bytes) -> bytes:
        """getxattr(2) of an ACL. Raises: as Xattrs.get."""
        return _whatever_the_mode(directory, name, lambda: self._xattrs.get(directory, name, attribute))

    def _set(
        self, directory: Directory | Unnamed, name: bytes, attribute: bytes, value: bytes, flags: int = 0
    ) -> None:
        _whatever_the_mode(
            directory, name, lambda: self._xattrs.set(directory, name, attribute, value, flags)
        )

    def _get(self, directory: Directory | Unnamed, name: bytes, attribute: bytes) -> Acl | None:
        try:
            return unpack_acl(self.get(directory, name, attribute))
        except OSError as error:
            if error.errno in _ABSENT:
                return None
            raise

    def set(
        self,
        directory: Directory | Unnamed,
        name: bytes,
        attribute: bytes,
        value: bytes,
        flags: int,
        *,
        kill_sgid: bool = False,
    ) -> None:
        """setxattr(2) of an ACL. An access ACL also sets the mode; one that says no more than the mode goes.

        Args:   kill_sgid: the setgid bit goes with it, as at a chmod by somebody outside of the group.
        Raises: OSError: EINVAL: no ACL; EACCES: a default ACL, and the entry is not a directory.
        """
        try:
            acl = unpack_acl(value)
        except ValueError:
            raise os_error(errno.EINVAL) from None
        mode = _stat(directory, name).st_mode
        if attribute == ACL_DEFAULT:
            if not stat.S_ISDIR(mode):
                raise os_error(errno.EACCES)
            self._set(directory, name, attribute, value, flags)
            self._defaults_set += 1  # after it: an answer from before must not stay
            return
        if is_minimal(acl):
            self.remove(directory, name, attribute)
        else:
            self._set(directory, name, attribute, value, flags)
        mode = stat.S_IMODE(mode_from_acl(acl, mode))
        change_mode(directory, name, mode & ~stat.S_ISGID if kill_sgid else mode)

    def remove(self, directory: Directory | Unnamed, name: bytes, attribute: bytes) -> None:
        """removexattr(2) of an ACL, present or not."""
        _whatever_the_mode(directory, name, lambda: self._xattrs.drop(directory, name, attribute))

    def mode_changed(self, directory: Directory | Unnamed, name: bytes, mode: int) -> None:
        """After a chmod: make the access ACL say the same."""
        acl = self._get(directory, name, ACL_ACCESS)
        if acl is not None:
            self._set(directory, name, ACL_ACCESS, pack_acl(acl_after_chmod(acl, mode)))

    def inherited(self, directory: Directory, mode: int) -> Inherited | None:
        """The mode and ACLs of a new entry of that mode; None if the directory has no default ACL.

        Each new entry asks. So a directory without one is not looked at again for RECORD_SECONDS, in which
        somebody may give it one behind the mount; an ACL that is set here counts at once.
        """
        defaults_set, now = self._defaults_set, time.monotonic()
        known_at, until = directory.lacks_default_acl
        if known_at == defaults_set and now < until:
            return None
        default = self._get(directory, SELF, ACL_DEFAULT)
        if default is None:
            until = math.inf if self._context.exclusive else now + RECORD_SECONDS
            directory.lacks_default_acl = (defaults_set, until)
            return None
        if stat.S_IFMT(mode) not in (stat.S_IFREG, stat.S_IFDIR):
            return Inherited(inherited_mode(default, mode), (), ())
        access, mode = inherited_acl(default, mode)
        return Inherited(mode, access, default)

    def give(self, directory: Directory | Unnamed, name: bytes, inherited: Inherited) -> None:
        """Give a new entry its ACLs; it has its mode already."""
        if not is_minimal(inherited.access):
            self._set(directory, name, ACL_ACCESS, pack_acl(inherited.access))
        if inherited.default and stat.S_ISDIR(_stat(directory, name).st_mode):
            self._set(directory, name, ACL_DEFAULT, pack_acl(inherited.default))
            self._defaults_set += 1


def _whatever_the_mode(directory: Directory | Unnamed, name: bytes, action: Callable[[], T]) -> T:
    """Do something with an ACL: that needs no right to the file, but its backing attribute needs one.

    So the file's owner gets all rights for a moment.
    """
    try:
        return action()
    except PermissionError as error:
        st = _stat(directory, name)
        if error.errno != errno.EACCES or st.st_uid != os.geteuid():
            raise
    mode = stat.S_IMODE(st.st_mode)
    lifted = mode | stat.S_IRWXU
    change_mode(directory, name, lifted)
    try:
        return action()
    finally:
        if stat.S_IMODE(_stat(directory, name).st_mode) == lifted:  # else somebody has changed it meanwhile
            change_mode(directory, name, mode)


def _stat(directory: Directory | Unnamed, name: bytes) -> os.stat_result:
    return os.fstat(directory.fd) if isinstance(directory, Unnamed) else backing_stat(directory, name)
