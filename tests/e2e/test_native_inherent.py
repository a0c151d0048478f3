"""Where the native engine must differ from a plain directory: what the kernel does, each with its reason.

A difference stands here with both results, so that one that is gone is noticed, and a new one is no excuse.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from cryptfs.core.acl import AclEntry, pack_acl
from tests.e2e.conftest import Pair
from tests.e2e.posix import write
from tests.e2e.trace import Case, Trace, run_case
from tests.e2e.users import OTHER, OWNER, as_user, do_as, moved, stamp

Difference = tuple[Callable[[Trace], None], object, object]
DIFFERENCES: dict[str, Difference] = {}


def differs(reason: str, *, mount: object, plain: object) -> Callable[[Case], Case]:
    """Register a case that notes one value, which is known for both sides."""

    def register(case: Case) -> Case:
        DIFFERENCES[f"{case.__name__}: {reason}"] = (case, mount, plain)
        return case

    return register


@differs("a FUSE server is not told the caller's groups, on which it depends", mount=None, plain="EPERM")
def chown_of_nothing_on_a_set_group_file_that_nobody_executes(t: Trace) -> None:
    write(b"file")
    os.chown(b"file", OWNER.uid, OWNER.gid)
    os.chmod(b"file", 0o2644)
    do_as(t, OTHER, "chown -1 -1", os.chown, b"file", -1, -1)


@differs("and neither for what a write takes away", mount=0o102644, plain=0o100644)
def writing_a_set_group_file_of_a_group_that_is_not_the_writers(t: Trace) -> None:
    write(b"file")
    os.chown(b"file", OTHER.uid, OWNER.gid)
    os.chmod(b"file", 0o2644)
    as_user(t, OTHER, lambda _: os.truncate(b"file", 3))
    t.note("mode", os.stat(b"file").st_mode)


NO_BACKING_XATTRS = "backing FIFOs, sockets and devices can have no user xattrs, in which ACLs are kept"


@differs(NO_BACKING_XATTRS, mount="EPERM", plain=None)
def an_acl_of_a_fifo(t: Trace) -> None:
    os.mkfifo(b"fifo")
    entries = (AclEntry(1, 6), AclEntry(2, 7, OWNER.uid), AclEntry(4, 4), AclEntry(16, 7), AclEntry(32, 0))
    t.do("set", os.setxattr, b"fifo", "system.posix_acl_access", pack_acl(entries))


@differs(NO_BACKING_XATTRS + "; nobody gets more than by the ACL", mount="0o10650", plain="0o10670")
def a_fifo_in_a_directory_with_a_default_acl(t: Trace) -> None:
    os.mkdir(b"d")
    entries = (AclEntry(1, 7), AclEntry(2, 7, OWNER.uid), AclEntry(4, 5), AclEntry(16, 7), AclEntry(32, 0))
    os.setxattr(b"d", "system.posix_acl_default", pack_acl(entries))
    os.mkfifo(b"d/fifo", 0o676)
    t.note("mode", oct(os.stat(b"d/fifo").st_mode))


@differs("the kernel answers cached reads alone and keeps no time of access of its own", mount="", plain="a")
def reading_from_the_page_cache(t: Trace) -> None:
    write(b"file", b"content")
    fd = os.open(b"file", os.O_RDWR)
    os.pread(fd, 100, 0)
    before = stamp(fd)
    os.pread(fd, 100, 0)
    t.note("times moved", moved(fd, before))
    os.close(fd)


@differs(
    "the writeback cache's kernel sets times only where the size changes, as POSIX asks", mount="", plain="mc"
)
def truncating_to_the_same_size(t: Trace) -> None:
    write(b"file", b"")
    before = stamp(b"file")
    os.truncate(b"file", 0)
    t.note("times moved", moved(b"file", before))


FAR_NS = 2**36 * 10**9  # in the year 4147; inodes of ext4 end in 2446


@differs(
    "the kernel keeps a time that the disk cannot hold until it forgets the file",
    mount=[True, False],
    plain=[False, False],
)
def a_time_beyond_what_the_disk_can_hold(t: Trace) -> None:
    write(b"file")
    os.utime(b"file", ns=(FAR_NS, FAR_NS))
    found = os.stat(b"file")
    os.unlink(b"file")  # a remount would show another time
    t.note("kept: mtime, atime", [found.st_mtime_ns == FAR_NS, found.st_atime_ns == FAR_NS])


@differs(
    "a directory gets its record before it appears: three calls, each a moment later", mount=False, plain=True
)
def times_of_a_new_directory(t: Trace) -> None:
    os.mkdir(b"d")
    found = os.stat(b"d")
    t.note("all the same", found.st_atime_ns == found.st_mtime_ns == found.st_ctime_ns)


@pytest.mark.parametrize("name", DIFFERENCES, ids=lambda name: name.partition(":")[0])
def test_inherent(name: str, users_pair: Pair) -> None:
    case, mount, plain = DIFFERENCES[name]
    on_mount, on_plain = users_pair.directories(case.__name__)
    assert run_case(case, on_plain)[0][1] == plain
    assert run_case(case, on_mount)[0][1] == mount
    users_pair.mount.assert_quiet()
