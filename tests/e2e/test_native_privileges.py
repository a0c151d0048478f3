"""suid, sgid and security.capability: what takes them away and what does not, as a plain directory has it."""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Callable

import pytest

from tests.e2e.conftest import Pair
from tests.e2e.posix import open_with, write
from tests.e2e.trace import Case, Cases, Trace
from tests.e2e.users import MEMBER, OTHER, OWNER, ROOT, User, as_user

CASES = Cases()
MODES = (0o4755, 0o2755, 0o6755, 0o2745, 0o2644, 0o4600, 0o6777, 0o6666, 0o7777, 0o755)
# struct vfs_cap_data, VFS_CAP_REVISION_2 with the effective bit: cap_net_raw=ep
CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0)


def with_open(flags: int, work: Callable[[int], object]) -> Callable[[], None]:
    def run() -> None:
        fd = os.open(b"f", flags)
        try:
            work(fd)
        finally:
            os.close(fd)

    return run


def direct(fd: int) -> None:
    with mmap.mmap(-1, 4096) as page:
        os.pwritev(fd, [page], 0)


def through_a_mapping(fd: int) -> None:
    with mmap.mmap(fd, 4096) as mapping:
        mapping[7] = 7


CHANGES: dict[str, Callable[[], object]] = {
    "write": with_open(os.O_WRONLY, lambda fd: os.write(fd, b"x")),
    "write twice": with_open(os.O_WRONLY, lambda fd: (os.write(fd, b"x"), os.write(fd, b"y"))),
    "write nothing": with_open(os.O_WRONLY, lambda fd: os.write(fd, b"")),
    "append": with_open(os.O_WRONLY | os.O_APPEND, lambda fd: os.write(fd, b"x" * 9000)),
    "write synchronously": with_open(os.O_WRONLY | os.O_SYNC, lambda fd: os.write(fd, b"x")),
    "write directly": with_open(os.O_RDWR | os.O_DIRECT, direct),
    "write through a mapping": with_open(os.O_RDWR, through_a_mapping),
    "write behind the end": with_open(os.O_WRONLY, lambda fd: os.pwrite(fd, b"x", 100_000)),
    "truncate": lambda: os.truncate(b"f", 3),
    "truncate to zero": lambda: os.truncate(b"f", 0),
    "truncate to the same": lambda: os.truncate(b"f", 4096),
    "truncate up": lambda: os.truncate(b"f", 50_000),
    "ftruncate": with_open(os.O_WRONLY, lambda fd: os.ftruncate(fd, 3)),
    "ftruncate up": with_open(os.O_WRONLY, lambda fd: os.ftruncate(fd, 50_000)),
    "open truncate": lambda: open_with(os.O_WRONLY | os.O_TRUNC)(b"f"),
    "create truncate": lambda: open_with(os.O_WRONLY | os.O_TRUNC | os.O_CREAT)(b"f"),
    "allocate": with_open(os.O_WRONLY, lambda fd: os.posix_fallocate(fd, 0, 50_000)),
    "copy into": with_open(os.O_RDWR, lambda fd: os.copy_file_range(fd, fd, 100, 0, 2000)),
    "chown to oneself": lambda: os.chown(b"f", os.geteuid(), -1),
    "chgrp to oneself": lambda: os.chown(b"f", -1, os.getegid()),
    "chown of nothing": lambda: os.chown(b"f", -1, -1),
    "lchown": lambda: os.chown(b"f", -1, os.getegid(), follow_symlinks=False),
    "fchown": with_open(os.O_RDONLY, lambda fd: os.fchown(fd, -1, os.getegid())),
    "open": lambda: open_with(os.O_RDWR)(b"f"),
    "read": with_open(os.O_RDONLY, lambda fd: os.read(fd, 10)),
    "utimens": lambda: os.utime(b"f", ns=(1, 1)),
    "rename": lambda: os.rename(b"f", b"g"),
    "link": lambda: os.link(b"f", b"g"),
    "setxattr": lambda: os.setxattr(b"f", "user.x", b"y"),
    "fsync": with_open(os.O_RDWR, os.fsync),
}


def run(t: Trace, label: str, user: User, change: Callable[[], object]) -> None:
    def work(trace: Trace) -> None:
        try:
            change()
        except OSError as error:
            trace.note(label, error.errno)

    as_user(t, user, work)


def look(t: Trace, label: str) -> None:
    path = b"g" if os.path.exists(b"g") else b"f"
    t.stat(label, path)
    t.do(f"{label}: capability", os.getxattr, path, "security.capability")
    t.do(f"{label}: attributes", lambda: sorted(os.listxattr(path)))
    for name in (b"f", b"g"):
        if os.path.exists(name):
            os.unlink(name)


def set_id_bits(name: str, change: Callable[[], object]) -> Case:
    def case(t: Trace) -> None:
        os.chmod(b".", 0o777)
        for owner, user in ((OWNER, OWNER), (OWNER, MEMBER), (OTHER, OTHER), (MEMBER, ROOT), (OWNER, OTHER)):
            for group in (owner.gid, OWNER.gid):
                for mode in MODES:
                    outside = user is not ROOT and group not in (user.gid, *user.groups)
                    if outside and mode & 0o2010 == 0o2000:
                        continue  # see test_native_inherent.py
                    write(b"f", bytes(4096))
                    os.chown(b"f", owner.uid, group)
                    os.chmod(b"f", mode)
                    label = f"{name} {mode:o} of {owner.name}:{group} by {user.name}"
                    run(t, label, user, change)
                    look(t, label)

    case.__name__ = f"set_id_{name}".replace(" ", "_")
    return case


def capabilities(name: str, change: Callable[[], object]) -> Case:
    def case(t: Trace) -> None:
        os.chmod(b".", 0o777)
        for user in (OWNER, ROOT, OTHER):
            for handles in (0, 1):  # also where somebody has the file open meanwhile
                write(b"f", bytes(4096))
                os.chown(b"f", OWNER.uid, OWNER.gid)
                os.chmod(b"f", 0o755)
                os.setxattr(b"f", "security.capability", CAPABILITY)
                opened = [os.open(b"f", os.O_RDONLY) for _ in range(handles)]
                label = f"{name} by {user.name} beside {handles}"
                run(t, label, user, change)
                for fd in opened:
                    os.close(fd)
                look(t, label)

    case.__name__ = f"capability_{name}".replace(" ", "_")
    return case


for change_name, change_call in CHANGES.items():
    CASES.add(set_id_bits(change_name, change_call))
    CASES.add(capabilities(change_name, change_call))


@CASES.add
def an_open_file_loses_them_each_time(t: Trace) -> None:
    write(b"f", bytes(4096))
    os.chown(b"f", OWNER.uid, OWNER.gid)

    def work(trace: Trace) -> None:
        fd = os.open(b"f", os.O_RDWR)
        for number in range(3):
            os.fchmod(fd, 0o6777)
            trace.stat("set", fd)
            os.pwrite(fd, b"x", number)
            trace.stat("written", fd)
            os.fsync(fd)
            trace.stat("synced", b"f")
            os.fchmod(fd, 0o6777)
            os.ftruncate(fd, 100 * number)
            trace.stat("truncated", b"f")
        os.fchmod(fd, 0o6777)
        os.close(fd)
        trace.stat("closed with them", b"f")

    as_user(t, OWNER, work)


@CASES.add
def a_capability_set_while_open_goes_with_the_next_write(t: Trace) -> None:
    write(b"f", bytes(4096))
    fd = os.open(b"f", os.O_RDWR)
    for _ in range(2):
        os.pwrite(fd, b"x", 0)
        os.setxattr(b"f", "security.capability", CAPABILITY)
        t.do("set", os.getxattr, b"f", "security.capability")
        os.pwrite(fd, b"y", 1)
        t.do("gone", os.getxattr, b"f", "security.capability")
    os.close(fd)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_privileges(case: Case, users_pair: Pair) -> None:
    users_pair.check(case)
