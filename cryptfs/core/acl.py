"""POSIX ACLs as bytes: the value of system.posix_acl_access and system.posix_acl_default.

    u32 version 2, then for each entry u16 tag, u16 permissions, u32 id

The rules are those of POSIX.1e draft 17, as in acl(5): the mode bits that an ACL implies, the effect of a
chmod on it, and the ACL that a new entry inherits from its directory's default ACL.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
_VERSION = struct.pack("<I", 2)
_ENTRY = struct.Struct("<HHI")
_SINGLE = (USER_OBJ, GROUP_OBJ, OTHER)
_NO_ID = 0xFFFFFFFF


class AclEntry(NamedTuple):
    """One line of an ACL. perm: rwx as 4, 2, 1."""

    tag: int
    perm: int
    id: int = _NO_ID


Acl = tuple[AclEntry, ...]


def unpack_acl(value: bytes) -> Acl:
    """Decode an xattr's value.

    Raises: ValueError: not an ACL, or a mandatory entry is missing.
    """
    if value[:4] != _VERSION or (len(value) - 4) % _ENTRY.size:
        raise ValueError("not a POSIX ACL")
    acl = tuple(AclEntry(*fields) for fields in _ENTRY.iter_unpack(value[4:]))
    tags = [entry.tag for entry in acl]
    named = any(tag in (USER, GROUP) for tag in tags)
    if any(tags.count(tag) != 1 for tag in _SINGLE) or tags.count(MASK) > 1 or (named and MASK not in tags):
        raise ValueError("a POSIX ACL without the entries that it must have")
    if any(entry.perm & ~7 or entry.tag & (entry.tag - 1) or not 0 < entry.tag <= OTHER for entry in acl):
        raise ValueError("a POSIX ACL with an impossible entry")
    return acl


def pack_acl(acl: Acl) -> bytes:
    """Encode as an xattr's value."""
    return _VERSION + b"".join(_ENTRY.pack(*entry) for entry in acl)


def is_minimal(acl: Acl) -> bool:
    """Whether mode bits alone say the same."""
    return all(entry.tag in _SINGLE for entry in acl)


def _group_tag(acl: Acl) -> int:
    """The entry that the group bits of the mode stand for."""
    return MASK if any(entry.tag == MASK for entry in acl) else GROUP_OBJ


def mode_from_acl(acl: Acl, mode: int) -> int:
    """The mode after this access ACL was set on a file of that mode."""
    shifts = {USER_OBJ: 6, _group_tag(acl): 3, OTHER: 0}
    bits = sum(entry.perm << shifts[entry.tag] for entry in acl if entry.tag in shifts)
    return mode & ~0o777 | bits


def acl_after_chmod(acl: Acl, mode: int) -> Acl:
    """The access ACL after a chmod to that mode."""
    shifts = {USER_OBJ: 6, _group_tag(acl): 3, OTHER: 0}
    return tuple(
        entry._replace(perm=mode >> shifts[entry.tag] & 7) if entry.tag in shifts else entry for entry in acl
    )


def inherited_acl(default: Acl, mode: int) -> tuple[Acl, int]:
    """A new entry's inheritance from its directory's default ACL: (access ACL, mode).

    Args: mode: as the creator asked for; no umask applies where there is a default ACL.
    """
    shifts = {USER_OBJ: 6, _group_tag(default): 3, OTHER: 0}
    acl = tuple(
        entry._replace(perm=entry.perm & mode >> shifts[entry.tag]) if entry.tag in shifts else entry
        for entry in default
    )
    return acl, mode_from_acl(acl, mode)


def inherited_mode(default: Acl, mode: int) -> int:
    """The mode of a new entry that can have no ACL: never more rights than the default ACL gives.

    The group bits are those of the owning group, since there is no mask.
    """
    perms = {entry.tag: entry.perm for entry in default}
    group = perms[GROUP_OBJ] & perms.get(MASK, 7)
    return mode & (~0o777 | perms[USER_OBJ] << 6 | group << 3 | perms[OTHER])
