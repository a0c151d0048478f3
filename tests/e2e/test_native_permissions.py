"""Several users on one mount: each call by owner, group member, other and root, under all sorts of modes."""

from __future__ import annotations

import os
import stat
from functools import partial

import pytest

from tests.e2e.conftest import Pair
from tests.e2e.posix import ALL_CALLS, MAKING, ON_EXISTING, PathCall, open_with, rename_exchange, write
from tests.e2e.trace import Case, Cases, Trace
from tests.e2e.users import MEMBER, OTHER, OWNER, ROOT, USERS, User, as_user, do_as, watch

CASES = Cases()
FILE_MODES = (0o000, 0o400, 0o200, 0o100, 0o040, 0o020, 0o004, 0o002, 0o600, 0o644, 0o664, 0o666, 0o777)
DIRECTORY_MODES = (
    0o000, 0o100, 0o300, 0o500, 0o700, 0o010, 0o030, 0o070, 0o001, 0o003, 0o007, 0o711, 0o733, 0o755, 0o775,
    0o777, 0o1777, 0o1775, 0o1770, 0o2777, 0o2770, 0o3777,
)  # fmt: skip
FEW_DIRECTORY_MODES = (0o700, 0o555, 0o733, 0o775, 0o777, 0o1777, 0o2777)
TIMED_MODES = (0o600, 0o644, 0o666, 0o700, 0o733, 0o775, 0o777, 0o1777)
"""With these the times are compared, too; waiting for the clock is what takes long here."""

THOROUGH = ("mkdir", "create", "unlink", "rename to", "rmdir", "link to")
"""These go through all modes; what the kernel checks for the others is the same."""


def give(path: bytes, user: User, mode: int) -> None:
    """Make something a user's."""
    os.chown(path, user.uid, user.gid, follow_symlinks=False)
    os.chmod(path, mode)


def attempt(t: Trace, label: str, path: bytes, call: PathCall, mode: int, user: User) -> None:
    """The call as a user on something of that mode."""
    about = [path if path == b"file" else b"d"]
    if mode in TIMED_MODES:
        watch(t, label, about, call, path, user=user)
    else:
        do_as(t, user, label, call, path)


def files_of_every_mode(name: str, call: PathCall) -> Case:
    def case(t: Trace) -> None:
        for mode in FILE_MODES:
            for user in USERS:
                write(b"file")
                give(b"file", OWNER, mode)
                attempt(t, f"{name} {mode:o} by {user.name}", b"file", call, mode, user)
                t.stat("stat", b"file")
                os.unlink(b"file")

    case.__name__ = f"file_{name}".replace(" ", "_")
    return case


for call_name, path_call in ON_EXISTING.items():
    if call_name not in ("open tmpfile", "open directory", "readlink", "listdir"):
        CASES.add(files_of_every_mode(call_name, path_call))


def in_directories_of_every_mode(name: str, call: PathCall, *, existing: str) -> Case:
    """The call on d/x, for each mode of d and each user. existing: what d/x is: '', 'file' or 'directory'."""

    def case(t: Trace) -> None:
        for mode in DIRECTORY_MODES if name in THOROUGH else FEW_DIRECTORY_MODES:
            for user in USERS:
                label = f"{name} in {mode:o} by {user.name}"
                os.mkdir(b"d", 0o777)
                write(b"source")
                give(b"source", user, 0o644)
                os.mkdir(b"source-directory")
                give(b"source-directory", user, 0o755)
                if existing == "file":
                    write(b"d/x")
                    give(b"d/x", OTHER, 0o666)
                elif existing == "directory":
                    os.mkdir(b"d/x")
                    give(b"d/x", OTHER, 0o777)
                give(b"d", OWNER, mode)
                attempt(t, label, b"d/x", call, mode, user)
                t.tree(f"after {label}")
                for left in (b"d/x", b"d", b"source-directory", b"source", b"target"):
                    if os.path.lexists(left):
                        is_directory = stat.S_ISDIR(os.lstat(left).st_mode)
                        (os.rmdir if is_directory else os.unlink)(left)

    case.__name__ = f"{existing or 'nothing'}_{name}".replace(" ", "_")
    return case


for call_name, path_call in MAKING.items():
    CASES.add(in_directories_of_every_mode(call_name, path_call, existing=""))
for call_name in ("unlink", "link to", "link from", "rename to", "rename from", "exchange", "open truncate"):
    CASES.add(in_directories_of_every_mode(call_name, ALL_CALLS[call_name], existing="file"))
for call_name in ("rmdir", "rename from", "rename directory to", "chmod", "chown", "listdir", "open tmpfile"):
    CASES.add(in_directories_of_every_mode(call_name, ALL_CALLS[call_name], existing="directory"))
for call_name in ("link to", "rename to", "rename noreplace"):
    CASES.add(in_directories_of_every_mode(call_name, ALL_CALLS[call_name], existing=""))


@CASES.add
def chmod_to_every_mode(t: Trace) -> None:
    for kind in ("file", "directory"):
        for owner in (OWNER, OTHER):
            for user in USERS:
                for group in (OWNER.gid, OTHER.gid):
                    (write if kind == "file" else os.mkdir)(b"x")
                    for mode in (0o000, 0o777, 0o1777, 0o2755, 0o4755, 0o6755, 0o7777, 0o2644, 0o4000):
                        os.chmod(b"x", 0o644)
                        os.chown(b"x", owner.uid, group)
                        label = f"{kind} of {owner.name}:{group} to {mode:o} by {user.name}"
                        watch(t, label, [b"x"], os.chmod, b"x", mode, user=user)
                        t.stat("stat", b"x")
                    (os.unlink if kind == "file" else os.rmdir)(b"x")


@CASES.add
def chown_to_everybody(t: Trace) -> None:
    owners = (-1, OWNER.uid, MEMBER.uid)
    groups = (-1, OWNER.gid, MEMBER.gid, OTHER.gid)
    for kind, mode in (
        ("file", 0o6755),
        ("file", 0o2644),
        ("file", 0o644),
        ("directory", 0o6755),
        ("link", 0),
    ):
        for user in USERS:
            for uid in owners:
                for gid in groups:
                    if (mode, uid, gid) == (0o2644, -1, -1):
                        continue  # see test_native_inherent.py
                    if kind == "link":
                        os.symlink(b"nowhere", b"x")
                    else:
                        (write if kind == "file" else os.mkdir)(b"x")
                    os.chown(b"x", MEMBER.uid, OWNER.gid, follow_symlinks=False)
                    if kind != "link":
                        os.chmod(b"x", mode)
                    label = f"{kind} {mode:o} to {uid}:{gid} by {user.name}"
                    watch(t, label, [b"x"], os.chown, b"x", uid, gid, user=user, follow_symlinks=False)
                    t.stat("stat", b"x")
                    (os.rmdir if kind == "directory" else os.unlink)(b"x")


@CASES.add
def sticky_directories(t: Trace) -> None:
    removals: dict[str, PathCall] = {
        "unlink": os.unlink,
        "rename away": lambda path: os.rename(path, b"elsewhere/x"),
        "rename within": lambda path: os.rename(path, b"sticky/y"),
        "rename over": lambda path: os.rename(b"elsewhere/own", path),
        "exchange": lambda path: rename_exchange(b"elsewhere/own", path),
        "rmdir": os.rmdir,
    }
    for directory_owner in (OWNER, MEMBER, ROOT):
        for entry_owner in (OWNER, OTHER, ROOT):
            for user in USERS:
                for name, call in removals.items():
                    os.mkdir(b"sticky")
                    os.mkdir(b"elsewhere")
                    give(b"sticky", directory_owner, 0o1777)
                    give(b"elsewhere", user, 0o777)
                    (os.mkdir if name == "rmdir" else write)(b"sticky/x")
                    give(b"sticky/x", entry_owner, 0o666)
                    write(b"elsewhere/own")
                    give(b"elsewhere/own", user, 0o644)
                    label = f"{name} of {entry_owner.name}'s in {directory_owner.name}'s by {user.name}"
                    about = [b"sticky", b"elsewhere"] if entry_owner is OWNER else []
                    watch(t, label, about, call, b"sticky/x", user=user)
                    t.tree("after it")
                    for top in (b"sticky", b"elsewhere"):
                        for entry in os.listdir(top):
                            path = top + b"/" + entry
                            (os.rmdir if os.path.isdir(path) else os.unlink)(path)
                        os.rmdir(top)


@CASES.add
def moving_a_directory_needs_the_right_to_write_it(t: Trace) -> None:
    # '..' of a directory changes with its parent: the mover must be able to write the directory itself.
    for mode in (0o755, 0o777, 0o555):
        for user in USERS:
            os.mkdir(b"from")
            os.mkdir(b"to")
            os.chmod(b"from", 0o777)
            os.chmod(b"to", 0o777)
            os.mkdir(b"from/d")
            give(b"from/d", OWNER, mode)
            watch(t, f"{mode:o} by {user.name}", [b"from", b"to"], os.rename, b"from/d", b"to/d", user=user)
            t.tree("after it")
            os.rmdir(b"to/d" if os.path.exists(b"to/d") else b"from/d")
            os.rmdir(b"from")
            os.rmdir(b"to")


def create(path: bytes, flags: int, mode: int, t: Trace) -> None:
    """open(2) with a mode of one's own."""
    fd = t.open("create", path, flags, mode)
    if fd >= 0:
        os.close(fd)


@CASES.add
def set_group_directories(t: Trace) -> None:
    for user in USERS:
        for directory_mode in (0o777, 0o2777, 0o3777):
            os.mkdir(b"d")
            give(b"d", OWNER, directory_mode)
            for name, call in (MAKING | {"open tmpfile": open_with(os.O_TMPFILE | os.O_RDWR)}).items():
                path = b"d" if name == "open tmpfile" else b"d/" + name.encode()
                do_as(t, user, name, call, path)
            for mode in (0o2755, 0o2644, 0o6777):
                made = b"d/file%o" % mode
                do_as(t, user, "make", write, made)
                do_as(t, user, "chmod", os.chmod, made, mode)
                flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
                as_user(t, user, partial(create, b"d/created%o" % mode, flags, mode))
            t.tree(f"by {user.name} in {directory_mode:o}")
            for entry in os.listdir(b"d"):
                path = b"d/" + entry
                (os.rmdir if stat.S_ISDIR(os.lstat(path).st_mode) else os.unlink)(path)
            os.rmdir(b"d")


@CASES.add
def umask_of_the_caller(t: Trace) -> None:
    os.mkdir(b"d")
    give(b"d", OWNER, 0o777)
    for mask in (0, 0o022, 0o077, 0o777, 0o027):

        def work(trace: Trace, mask: int = mask) -> None:
            os.umask(mask)
            for name, call in MAKING.items():
                trace.do(name, call, f"d/{name} {mask:o}".encode())

        as_user(t, MEMBER, work)
    t.tree("all of them")


@CASES.add
def descriptors_keep_their_rights(t: Trace) -> None:
    write(b"file", b"content")
    give(b"file", OWNER, 0o600)

    def work(trace: Trace) -> None:
        fd = trace.open("open", b"file", os.O_RDWR)
        trace.do("chmod", os.chmod, b"file", 0)
        trace.do("open again", os.open, b"file", os.O_RDONLY)
        trace.do("read", os.pread, fd, 100, 0)
        trace.do("write", os.pwrite, fd, b"CONT", 0)
        trace.do("truncate", os.ftruncate, fd, 5)
        trace.do("sync", os.fsync, fd)
        trace.stat("stat", fd)
        os.close(fd)

    as_user(t, OWNER, work)
    t.stat("stat", b"file")


@CASES.add
def only_root_makes_devices_and_gives_files_away(t: Trace) -> None:
    os.chmod(b".", 0o777)
    for user in USERS:
        for kind in (stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFREG):
            name = f"{user.name} {kind:o}".encode()
            watch(t, f"mknod {name!r}", [b"."], os.mknod, name, kind | 0o644, os.makedev(7, 9), user=user)
        t.tree(f"after {user.name}")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_permissions(case: Case, users_pair: Pair) -> None:
    users_pair.check(case)
