"""The kernel's FUSE structs: sizes, field places and the variable-length pieces, against <linux/fuse.h>.

The numbers come from that header, version 7.38, by sizeof and offsetof of a C compiler; those of fuse_statx
from version 7.39. They are written down here, so that the test needs no header and no compiler.
"""

from __future__ import annotations

import os
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryptfs.mount.native import structs
from cryptfs.mount.native.structs import Cap, Notification, SetAttr
from cryptfs.mount.opcodes import Op
from tests.mount.native_kernel import fake_stat

SIZES = {
    "IN_HEADER": 40,  # fuse_in_header
    "OUT_HEADER": 16,  # fuse_out_header
    "INIT_IN": 16,  # FUSE_COMPAT's fuse_init_in; with flags2 and reserve it has 64 since 7.36
    "INIT_IN_EXT": 4,  # fuse_init_in.flags2
    "INIT_OUT": 64,  # fuse_init_out
    "ATTR": 88,  # fuse_attr
    "ENTRY_OUT": 128 - 88,  # fuse_entry_out without its fuse_attr
    "ATTR_OUT": 104 - 88,  # fuse_attr_out without its fuse_attr
    "ENTRY": 128,  # all of fuse_entry_out
    "ATTRIBUTES": 104,  # all of fuse_attr_out
    "FORGET_IN": 8,  # fuse_forget_in
    "FORGET_ONE": 16,  # fuse_forget_one
    "BATCH_FORGET_IN": 8,  # fuse_batch_forget_in
    "GETATTR_IN": 16,  # fuse_getattr_in
    "SETATTR_IN": 88,  # fuse_setattr_in
    "MKNOD_IN": 16,  # fuse_mknod_in
    "MKDIR_IN": 8,  # fuse_mkdir_in
    "RENAME_IN": 8,  # fuse_rename_in
    "RENAME2_IN": 16,  # fuse_rename2_in
    "LINK_IN": 8,  # fuse_link_in
    "OPEN_IN": 8,  # fuse_open_in
    "CREATE_IN": 16,  # fuse_create_in
    "OPEN_OUT": 16,  # fuse_open_out
    "RELEASE_IN": 24,  # fuse_release_in
    "READ_IN": 40,  # fuse_read_in
    "WRITE_IN": 40,  # fuse_write_in
    "WRITE_OUT": 8,  # fuse_write_out
    "STATFS_OUT": 80,  # fuse_kstatfs, all of fuse_statfs_out
    "FSYNC_IN": 16,  # fuse_fsync_in
    "SETXATTR_IN": 8,  # FUSE_COMPAT_SETXATTR_IN_SIZE: if SETXATTR_EXT is not negotiated
    "SETXATTR_IN_EXT": 16,  # fuse_setxattr_in
    "GETXATTR_IN": 8,  # fuse_getxattr_in
    "GETXATTR_OUT": 8,  # fuse_getxattr_out
    "ACCESS_IN": 8,  # fuse_access_in
    "FALLOCATE_IN": 32,  # fuse_fallocate_in
    "LSEEK_IN": 24,  # fuse_lseek_in
    "LSEEK_OUT": 8,  # fuse_lseek_out
    "COPY_FILE_RANGE_IN": 56,  # fuse_copy_file_range_in
    "INVAL_INODE_OUT": 24,  # fuse_notify_inval_inode_out
    "PRUNE_OUT": 16,  # fuse_notify_prune_out
    "NODEID": 8,  # one of those behind it
    "STATX_OUT": 288 - 256,  # fuse_statx_out without its fuse_statx
    "STATX": 256,  # fuse_statx
    "DIRENT": 24,  # fuse_dirent without its name
}

OPCODES = {
    "LOOKUP": 1, "FORGET": 2, "GETATTR": 3, "SETATTR": 4, "READLINK": 5, "SYMLINK": 6, "MKNOD": 8, "MKDIR": 9,
    "UNLINK": 10, "RMDIR": 11, "RENAME": 12, "LINK": 13, "OPEN": 14, "READ": 15, "WRITE": 16, "STATFS": 17,
    "RELEASE": 18, "FSYNC": 20, "SETXATTR": 21, "GETXATTR": 22, "LISTXATTR": 23, "REMOVEXATTR": 24,
    "FLUSH": 25, "INIT": 26, "OPENDIR": 27, "READDIR": 28, "RELEASEDIR": 29, "FSYNCDIR": 30, "ACCESS": 34,
    "CREATE": 35, "INTERRUPT": 36, "DESTROY": 38, "BATCH_FORGET": 42, "FALLOCATE": 43, "READDIRPLUS": 44,
    "RENAME2": 45, "LSEEK": 46, "COPY_FILE_RANGE": 47, "SYNCFS": 50, "TMPFILE": 51, "STATX": 52,
}  # fmt: skip

CAPABILITIES = {
    "ASYNC_READ": 0, "ATOMIC_O_TRUNC": 3, "BIG_WRITES": 5, "DONT_MASK": 6, "DO_READDIRPLUS": 13,
    "READDIRPLUS_AUTO": 14, "ASYNC_DIO": 15, "WRITEBACK_CACHE": 16, "PARALLEL_DIROPS": 18, "POSIX_ACL": 20,
    "EXPORT_SUPPORT": 4, "NO_EXPORT_SUPPORT": 38, "MAX_PAGES": 22, "CACHE_SYMLINKS": 23,
    "HANDLE_KILLPRIV_V2": 28, "SETXATTR_EXT": 29, "INIT_EXT": 30,
}  # fmt: skip

SET_ATTRIBUTES = {
    "MODE": 0, "UID": 1, "GID": 2, "SIZE": 3, "ATIME": 4, "MTIME": 5, "FH": 6, "ATIME_NOW": 7, "MTIME_NOW": 8,
    "CTIME": 10, "KILL_SUIDGID": 11,
}  # fmt: skip


@pytest.mark.parametrize(("name", "size"), SIZES.items())
def test_sizes(name: str, size: int) -> None:
    assert getattr(structs, name).size == size


def test_every_struct_is_in_the_table() -> None:
    found = {name for name, value in vars(structs).items() if isinstance(value, struct.Struct)}
    assert found == set(SIZES)


def test_numbers_that_the_kernel_knows() -> None:
    # A number that is added or changed has to be checked against the header, and then written down here.
    assert OPCODES.items() >= {op.name: op.value for op in Op}.items()
    assert {name: 1 << bit for name, bit in CAPABILITIES.items()}.items() >= {
        cap.name: cap.value for cap in Cap
    }.items()
    assert {name: 1 << bit for name, bit in SET_ATTRIBUTES.items()} == {
        name: value for name, value in vars(SetAttr).items() if name.isupper()
    }
    assert (structs.OPEN_KILL_SUIDGID, structs.WRITE_CACHE, structs.WRITE_KILL_SUIDGID) == (1, 1, 4)
    assert (Notification.INVAL_INODE, Notification.PRUNE) == (2, 9)
    assert structs.PRUNE_MINOR == 45
    assert (structs.FOPEN_KEEP_CACHE, structs.FOPEN_CACHE_DIR, structs.FSYNC_FDATASYNC) == (2, 8, 1)


@pytest.mark.parametrize(
    ("layout", "index", "offset"),
    [
        (structs.ATTR, 9, 60),  # fuse_attr.mode
        (structs.ATTR, 13, 76),  # fuse_attr.rdev
        (structs.ENTRY, 15, 100),  # fuse_entry_out.attr.mode
        (structs.ATTRIBUTES, 12, 76),  # fuse_attr_out.attr.mode
        (structs.SETATTR_IN, 11, 68),  # fuse_setattr_in.mode
        (structs.INIT_OUT, 8, 28),  # fuse_init_out.max_pages
        (structs.INIT_OUT, 10, 32),  # fuse_init_out.flags2
        (structs.STATX, 6, 28),  # fuse_statx.mode
        (structs.STATX, 7, 32),  # fuse_statx.ino
        (structs.STATX, 13, 80),  # fuse_statx.btime
        (structs.STATX, 19, 128),  # fuse_statx.rdev_major
        (structs.SETXATTR_IN, 1, 4),  # fuse_setxattr_in.flags
        (structs.IN_HEADER, 4, 24),  # fuse_in_header.uid
    ],
)
def test_places_of_fields(layout: struct.Struct, index: int, offset: int) -> None:
    raw = bytearray(layout.size)
    raw[offset] = 1
    fields = layout.unpack(raw)
    assert [position for position, value in enumerate(fields) if value] == [index]


@pytest.mark.parametrize("length", [1, 2, 7, 8, 9, 15, 16, 17, 254, 255])
def test_dirents_are_padded_to_eight(length: int) -> None:
    name = bytes(range(1, 256))[:length]
    packed = structs.pack_dirent(2**64 - 1, 2**63 - 1, 10, name)
    assert len(packed) % 8 == 0
    assert len(packed) - 24 - length < 8
    assert struct.unpack_from("=QQII", packed) == (2**64 - 1, 2**63 - 1, length, 10)
    assert packed[24 : 24 + length] == name
    assert not any(packed[24 + length :])


@given(st.lists(st.binary(min_size=1, max_size=255), max_size=20))
def test_dirents_of_a_listing_are_found_again(names: list[bytes]) -> None:
    packed = b"".join(structs.pack_dirent(1, index, 8, name) for index, name in enumerate(names))
    found = []
    at = 0
    while at < len(packed):
        _, _, size, _ = structs.DIRENT.unpack_from(packed, at)
        found.append(packed[at + 24 : at + 24 + size])
        at += 24 + (size + 7) // 8 * 8  # FUSE_DIRENT_ALIGN
    assert found == names


@given(
    st.lists(st.binary().map(lambda raw: raw.replace(b"\0", b"x") or b"x"), min_size=1, max_size=3),
    st.binary(),
)
def test_names_are_taken(names: list[bytes], rest: bytes) -> None:
    body = memoryview(b"head" + b"".join(name + b"\0" for name in names) + rest)
    assert structs.take_names(body, 4, len(names)) == names


@pytest.mark.parametrize(
    ("body", "count"), [(b"", 1), (b"name", 1), (b"one\0two", 2), (b"one\0", 2), (b"\0", 1), (b"a\0\0", 2)]
)
def test_names_without_an_end_are_refused(body: bytes, count: int) -> None:
    with pytest.raises(struct.error, match="empty or not terminated"):
        structs.take_names(memoryview(body), 0, count)


@pytest.mark.parametrize("body", [b"", b"\0", b"name", b"na\0me\0", b"name\0\0", b"\0name"])
def test_a_body_that_is_no_single_name_is_refused(body: bytes) -> None:
    with pytest.raises(struct.error, match="empty or not terminated"):
        structs.only_name(memoryview(body))


def test_a_body_that_is_a_single_name() -> None:
    assert structs.only_name(memoryview(b"\xff \n\0")) == b"\xff \n"


def test_an_offset_behind_the_end_is_refused() -> None:
    with pytest.raises(struct.error):
        structs.take_names(memoryview(b"abc\0"), 10, 1)


def test_statx() -> None:
    found = fake_stat(
        st_mode=0o100640, st_nlink=3, st_uid=70_000, st_gid=80_000, st_blocks=17, st_blksize=4096,
        st_rdev=os.makedev(0xFFF, 0xFFFFF), st_atime_ns=-1, st_mtime_ns=5 * 10**18 + 7, st_ctime_ns=10**9 - 1,
    )  # fmt: skip
    birth = 3 * 10**9 + 2
    fields = structs.STATX.unpack(structs.pack_statx(found, 12345, 2**40, birth))
    assert fields[:7] == (0xFFF, 4096, 0, 3, 70_000, 80_000, 0o100640)
    assert fields[7:11] == (12345, 2**40, 17, 0)
    assert fields[11:13] == (-1, 999_999_999)  # atime: a nanosecond before 1970
    assert fields[13:15] == (3, 2)  # btime
    assert fields[15:17] == (0, 10**9 - 1)  # ctime
    assert fields[17:19] == (5 * 10**9, 7)  # mtime
    assert fields[19:] == (0xFFF, 0xFFFFF, 0, 0)


def test_statx_without_a_time_of_birth() -> None:
    fields = structs.STATX.unpack(structs.pack_statx(fake_stat(), 1, 0, None))
    assert fields[0] == 0x7FF  # STATX_BASIC_STATS
    assert fields[13:15] == (0, 0)
