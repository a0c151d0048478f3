"""Extended attributes under another masterkey; owner, mode and times of a new file."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import NamedTuple

from cryptfs.core.aead import SMALL_NONCE_SIZE, Kind, open_small, seal_small
from cryptfs.core.format.smallvalues import xattr_aad
from cryptfs.errors import NameError_
from cryptfs.rekey.both import BothKeys
from cryptfs.vfs.tree.xattrs import (
    LINK_PREFIX,
    PREFIX,
    backing_attribute,
    name_on_file,
    name_on_link,
    open_attribute,
)

_NO_XATTRS = (errno.EOPNOTSUPP, errno.ENOSYS)


class AttributeOwner(NamedTuple):
    """The owner of an attribute, before and after: file_id, dir_id, or link_owner."""

    kind: Kind
    old_id: bytes
    new_id: bytes


class Attribute(NamedTuple):
    """A backing attribute: name and value."""

    name: str
    value: bytes


def backing_attributes(fd: int) -> list[Attribute]:
    """All attributes of a backing file or directory, by any descriptor. Raises: OSError."""
    path = f"/proc/self/fd/{fd}"
    try:
        return [Attribute(name, os.getxattr(path, name)) for name in os.listxattr(path)]
    except OSError as error:
        if error.errno in _NO_XATTRS:
            return []
        raise


def renewed(both: BothKeys, attribute: Attribute, owner: AttributeOwner) -> Attribute | None:
    """An old attribute under the new masterkey; None if it does not verify under the old one."""
    keys = both.old.keys
    try:
        on_file = name_on_file(attribute.name)
        name, sealed = open_attribute(both.old_names.of_xattrs(), on_file, attribute.value)
    except NameError_:
        return None
    value = open_small(keys.xattrs_key, sealed, xattr_aad(owner.kind, owner.old_id, name))
    if value is None:
        return None
    backing_name, prefix = backing_attribute(both.new_names.of_xattrs(), name)
    aad = xattr_aad(owner.kind, owner.new_id, name)
    fresh = seal_small(both.new.keys.xattrs_key, value, aad, os.urandom(SMALL_NONCE_SIZE))
    if owner.kind is Kind.XATTR_OF_LINK:
        backing_name = name_on_link(backing_name)
    return Attribute(backing_name, prefix + fresh)


def is_new(both: BothKeys, attribute: Attribute, owner: AttributeOwner) -> bool:
    """Whether an attribute verifies under the new masterkey."""
    try:
        name, sealed = open_attribute(both.new_names.of_xattrs(), attribute.name, attribute.value)
    except NameError_:
        return False
    aad = xattr_aad(owner.kind, owner.new_id, name)
    return open_small(both.new.keys.xattrs_key, sealed, aad) is not None


def copy_xattrs(both: BothKeys, source_fd: int, target_fd: int, owner: AttributeOwner) -> list[str]:
    """All attributes of a file or symlink for its new one; returns the backing names of damaged ones.

    Those are copied as they are. So are attributes that are not the vault's, where the system allows it.
    """
    damaged = []
    path = f"/proc/self/fd/{target_fd}"
    prefix = LINK_PREFIX if owner.kind is Kind.XATTR_OF_LINK else PREFIX
    for attribute in backing_attributes(source_fd):
        if not attribute.name.startswith(prefix):
            with contextlib.suppress(OSError):
                os.setxattr(path, attribute.name, attribute.value)
            continue
        fresh = renewed(both, attribute, owner)
        if fresh is None:
            damaged.append(attribute.name)
        name, value = attribute if fresh is None else fresh
        os.setxattr(path, name, value)
    return damaged


def copy_attributes(st: os.stat_result, fd: int, mode: int | None = None) -> None:
    """Owner, mode and times of a file for its new one. mode: in place of the one in st."""
    made = os.fstat(fd)
    if (st.st_uid, st.st_gid) != (made.st_uid, made.st_gid):
        with contextlib.suppress(PermissionError):
            os.fchown(fd, st.st_uid, st.st_gid)
    os.fchmod(fd, stat.S_IMODE(st.st_mode) if mode is None else mode)
    os.utime(fd, ns=(st.st_atime_ns, st.st_mtime_ns))
