"""POSIX ACLs as bytes and as mode bits: against tables that were worked out by hand from acl(5)."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryptfs.core.acl import (
    GROUP,
    GROUP_OBJ,
    MASK,
    OTHER,
    USER,
    USER_OBJ,
    Acl,
    AclEntry,
    acl_after_chmod,
    inherited_acl,
    inherited_mode,
    is_minimal,
    mode_from_acl,
    pack_acl,
    unpack_acl,
)

NO_ID = 0xFFFFFFFF
KINDS = {"u:": USER_OBJ, "g:": GROUP_OBJ, "m:": MASK, "o:": OTHER}


def acl(text: str) -> Acl:
    """From `u:7 u5:6 g:5 g9:4 m:7 o:0`: tag, id of a named one, permissions."""
    entries = []
    for word in text.split():
        head, _, perm = word.partition(":")
        if head + ":" in KINDS:
            entries.append(AclEntry(KINDS[head + ":"], int(perm)))
        else:
            entries.append(AclEntry(USER if head[0] == "u" else GROUP, int(perm), int(head[1:])))
    return tuple(entries)


def test_bytes_are_those_of_the_kernel() -> None:
    # getfattr -e hex -n system.posix_acl_access after setfacl -m u:1000:rw on a file of mode 0640.
    value = bytes.fromhex(
        "0200000001000600ffffffff02000600e803000004000400ffffffff10000600ffffffff20000000ffffffff"
    )
    unpacked = acl("u:6 u1000:6 g:4 m:6 o:0")
    assert unpack_acl(value) == unpacked
    assert pack_acl(unpacked) == value


@pytest.mark.parametrize(
    ("text", "minimal"),
    [("u:7 g:5 o:0", True), ("u:7 g:5 m:7 o:0", False), ("u:7 u5:6 g:5 m:7 o:0", False)],
)
def test_what_mode_bits_alone_can_say(text: str, minimal: bool) -> None:
    assert is_minimal(acl(text)) == minimal


@pytest.mark.parametrize(
    ("text", "before", "after"),
    [
        ("u:7 g:5 o:0", 0o640, 0o750),
        ("u:0 g:0 o:0", 0o777, 0o000),
        ("u:7 g:5 m:2 o:1", 0o640, 0o721),  # with a mask the group bits are the mask's
        ("u:6 u5:7 g:7 g6:7 m:0 o:4", 0o000, 0o604),
        ("u:7 g:5 o:0", 0o106755, 0o106750),  # the rest of the mode stays
        ("u:4 g:4 o:4", 0o41777, 0o41444),
    ],
)
def test_the_mode_of_an_acl(text: str, before: int, after: int) -> None:
    assert mode_from_acl(acl(text), before) == after


@pytest.mark.parametrize(
    ("text", "mode", "after"),
    [
        ("u:7 g:5 o:0", 0o640, "u:6 g:4 o:0"),
        ("u:7 u5:7 g:5 m:7 o:0", 0o640, "u:6 u5:7 g:5 m:4 o:0"),  # group and named entries stay
        ("u:0 u5:7 g:5 g6:6 m:0 o:0", 0o777, "u:7 u5:7 g:5 g6:6 m:7 o:7"),
        ("u:7 g:5 m:7 o:0", 0o4070, "u:0 g:5 m:7 o:0"),
    ],
)
def test_chmod(text: str, mode: int, after: str) -> None:
    assert acl_after_chmod(acl(text), mode) == acl(after)


@pytest.mark.parametrize(
    ("default", "asked", "access", "mode"),
    [
        ("u:7 g:7 o:7", 0o644, "u:6 g:4 o:4", 0o644),
        ("u:7 g:5 o:0", 0o666, "u:6 g:4 o:0", 0o640),
        ("u:7 u5:7 g:5 m:7 o:0", 0o666, "u:6 u5:7 g:5 m:6 o:0", 0o660),  # the mask takes the group bits
        ("u:7 u5:7 g:5 m:7 o:0", 0o777, "u:7 u5:7 g:5 m:7 o:0", 0o770),
        ("u:7 u5:6 g:0 g6:7 m:3 o:1", 0o755, "u:7 u5:6 g:0 g6:7 m:1 o:1", 0o711),
        ("u:0 g:0 o:0", 0o777, "u:0 g:0 o:0", 0o000),
        ("u:7 g:7 o:7", 0o104755, "u:7 g:5 o:5", 0o104755),
    ],
)
def test_inheritance(default: str, asked: int, access: str, mode: int) -> None:
    assert inherited_acl(acl(default), asked) == (acl(access), mode)


@pytest.mark.parametrize(
    ("default", "asked", "mode"),
    [
        ("u:7 g:5 o:0", 0o666, 0o640),
        ("u:7 u5:7 g:5 m:7 o:0", 0o676, 0o650),  # the group gets its own entry, not the mask
        ("u:7 u5:7 g:7 m:1 o:4", 0o777, 0o714),  # and no more than the mask
        ("u:6 g:6 o:6", 0o10777, 0o10666),
        ("u:7 g:7 o:7", 0o140611, 0o140611),
    ],
)
def test_inheritance_of_what_can_have_no_acl(default: str, asked: int, mode: int) -> None:
    assert inherited_mode(acl(default), asked) == mode


PERMS = st.integers(0, 7)
IDS = st.integers(0, 2**32 - 2)


@st.composite
def acls(draw: st.DrawFn) -> Acl:
    """Any valid one, in the kernel's order."""
    users = sorted(draw(st.dictionaries(IDS, PERMS, max_size=5)).items())
    groups = sorted(draw(st.dictionaries(IDS, PERMS, max_size=5)).items())
    entries = [AclEntry(USER_OBJ, draw(PERMS)), *(AclEntry(USER, perm, uid) for uid, perm in users)]
    entries += [AclEntry(GROUP_OBJ, draw(PERMS)), *(AclEntry(GROUP, perm, gid) for gid, perm in groups)]
    bare = not users and not groups
    if not bare or draw(st.booleans(), label="mask"):
        entries.append(AclEntry(MASK, draw(PERMS)))
    return (*entries, AclEntry(OTHER, draw(PERMS)))


@given(acls())
def test_round_trip(made: Acl) -> None:
    assert unpack_acl(pack_acl(made)) == made


@given(acls(), st.integers(0, 0o7777))
def test_mode_and_acl_agree_after_chmod(made: Acl, mode: int) -> None:
    after = acl_after_chmod(made, mode)
    assert mode_from_acl(after, mode) == mode
    assert [(entry.tag, entry.id) for entry in after] == [(entry.tag, entry.id) for entry in made]


@given(acls(), st.integers(0, 0o7777))
def test_nobody_inherits_more_than_the_default_or_the_mode_gives(default: Acl, mode: int) -> None:
    access, got = inherited_acl(default, mode)
    assert got & 0o777 & ~mode == 0
    assert got & ~0o777 == mode & ~0o777
    assert all(new.perm & ~old.perm == 0 for new, old in zip(access, default, strict=True))
    narrow = inherited_mode(default, mode)
    assert narrow & ~got == 0


MALFORMED = {
    "nothing": b"",
    "a version alone": b"\x02\0\0\0",
    "half a version": b"\x02\0",
    "another version": b"\x01\0\0\0" + pack_acl(acl("u:7 g:5 o:0"))[4:],
    "torn": pack_acl(acl("u:7 g:5 o:0"))[:-1],
    "surplus": pack_acl(acl("u:7 g:5 o:0")) + b"\0",
    "no owner": pack_acl(acl("g:5 o:0")),
    "no group": pack_acl(acl("u:7 o:0")),
    "no other": pack_acl(acl("u:7 g:5")),
    "two owners": pack_acl(acl("u:7 u:7 g:5 o:0")),
    "two masks": pack_acl(acl("u:7 g:5 m:7 m:7 o:0")),
    "a named user and no mask": pack_acl(acl("u:7 u5:7 g:5 o:0")),
    "a named group and no mask": pack_acl(acl("u:7 g:5 g5:7 o:0")),
    "an unknown tag": pack_acl((*acl("u:7 g:5 o:0"), AclEntry(0x40, 7))),
    "no tag": pack_acl((*acl("u:7 g:5 o:0"), AclEntry(0, 7))),
    "two tags in one": pack_acl((*acl("u:7 g:5 o:0"), AclEntry(3, 7))),
    "a permission too many": pack_acl((AclEntry(USER_OBJ, 8), *acl("g:5 o:0"))),
}


@pytest.mark.parametrize("value", MALFORMED.values(), ids=MALFORMED)
def test_malformed(value: bytes) -> None:
    with pytest.raises(ValueError, match="POSIX ACL"):
        unpack_acl(value)


@given(st.binary(max_size=100))
def test_any_bytes_are_an_acl_or_a_value_error(value: bytes) -> None:
    try:
        found = unpack_acl(value)
    except ValueError:
        return
    assert pack_acl(found) == value


@given(acls(), st.data())
def test_a_flipped_byte_is_an_acl_or_a_value_error(made: Acl, data: st.DataObject) -> None:
    raw = bytearray(pack_acl(made))
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        unpack_acl(bytes(raw))
    except ValueError:
        return
    assert struct.unpack_from("<I", raw) == (2,)
