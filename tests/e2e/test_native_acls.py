"""POSIX ACLs: the same commands on a mount and on a plain directory, and the same answers."""

from __future__ import annotations

import itertools
import os
import stat
import struct
import subprocess
from collections.abc import Iterator

import pytest

from cryptfs.core.acl import AclEntry, pack_acl
from tests.e2e.conftest import ENGINES, Pair, require_fuse
from tests.e2e.mounting import MountSpec, mounted
from tests.e2e.posix import MAKING, open_with, write
from tests.e2e.trace import Case, Cases, Trace
from tests.e2e.users import MEMBER, OTHER, OWNER, ROOT, USERS, do_as, watch
from tests.support import everything_below

CASES = Cases()
ACCESS, DEFAULT = "system.posix_acl_access", "system.posix_acl_default"
U, M, O = OWNER.uid, MEMBER.uid, OTHER.uid  # noqa: E741


def run(t: Trace, *command: str) -> None:
    """Run a command; its exit code and what it says, without the directory's name."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    t.note(" ".join(command), (done.returncode, done.stdout, done.stderr))


def getfacl(t: Trace, *paths: str) -> None:
    run(t, "getfacl", "--numeric", "--absolute-names", "--physical", *paths)


def make_pair_of_kinds() -> None:
    write(b"file")
    os.mkdir(b"directory")


SCRIPTS: dict[str, tuple[str, ...]] = {
    "named user": (f"-m u:{U}:rwx",),
    "named group": (f"-m g:{U}:r-x",),
    "many": (f"-m u:{U}:rw,u:{M}:r,g:{O}:w,g:{M}:-", f"-m u:{O}:x", f"-x u:{M}"),
    "mask": (f"-m u:{U}:rwx", "-m m::r", "-m o::rwx", "-m g::rwx"),
    "no mask": (f"-n -m u:{U}:rwx", f"-n -m u:{M}:rwx"),
    "remove all": (f"-m u:{U}:rwx,g:{M}:rx", "-b"),
    "minimal": ("-m u::rw,g::r,o::-",),
    "set": (f"--set u::rwx,u:{U}:r,g::-,m::rx,o::x",),
    "default": (f"-d -m u:{U}:rwx", f"-d -m g:{M}:r", "-k"),
    "default then kept": (f"-d -m u:{U}:rwx,o::-", f"-m u:{M}:w"),
    "default minimal": ("-d -m u::rwx,g::rx,o::-",),
    "refused": ("-m u:nobody-like-this:r", f"-x u:{U}", "-m m::"),
    "recalculated": (f"-m u:{U}:rwx", "-m m::-", f"--mask -m g:{M}:r"),
}


def script(name: str, lines: tuple[str, ...]) -> Case:
    def case(t: Trace) -> None:
        for mode in (0o640, 0o777, 0o2750, 0o4711):
            make_pair_of_kinds()
            for path in ("file", "directory"):
                os.chmod(path, mode)
                for line in lines:
                    run(t, "setfacl", *line.split(), path)
                    getfacl(t, path)
                    t.stat(f"stat {path}", path.encode())
                    t.do("names", lambda path=path: sorted(os.listxattr(path)))
                for changed in (0o000, 0o777, 0o700, 0o070, 0o007, 0o2755, 0o1777):
                    t.do(f"chmod {changed:o}", os.chmod, path, changed)
                    getfacl(t, path)
                t.stat(f"stat {path}", path.encode())
            os.unlink(b"file")
            os.rmdir(b"directory")

    case.__name__ = f"script_{name}".replace(" ", "_")
    return case


for script_name, script_lines in SCRIPTS.items():
    CASES.add(script(script_name, script_lines))

DEFAULTS = (
    f"u::rwx,g::rx,o::-,u:{M}:rwx,m::rwx",
    "u::rwx,g::rwx,o::rwx",
    f"u::r,g::-,o::-,g:{O}:rwx,m::x",
    "u::rwx,g::rx,o::rx",
)


FILES = {name: MAKING[name] for name in ("mkdir", "mknod file", "symlink", "create", "create exclusive")}
"""What can have ACLs here; for FIFOs, sockets and devices see test_native_inherent.py."""


@CASES.add
def new_entries_inherit(t: Trace) -> None:
    for (number, default), mask in itertools.product(enumerate(DEFAULTS), (0o000, 0o022, 0o077)):
        top = f"d{number}-{mask:o}"
        os.mkdir(top)
        run(t, "setfacl", "-d", "-m", default, top)
        before = os.umask(mask)
        try:
            for name, call in FILES.items():
                t.do(name, call, f"{top}/{name}".encode())
            for mode in (0o600, 0o644, 0o755, 0o777, 0o4755, 0o2710):
                os.close(os.open(f"{top}/created {mode:o}", os.O_CREAT | os.O_WRONLY | os.O_EXCL, mode))
                os.mkdir(f"{top}/made {mode:o}", mode)
            os.mkdir(f"{top}/made 755/deeper")
            write(f"{top}/made 755/deeper/file".encode())
            os.symlink("x", f"{top}/a link")
            fd = os.open(top, os.O_TMPFILE | os.O_RDWR, 0o666)
            t.stat("tmpfile", fd)
            t.do("its ACL", os.getxattr, fd, ACCESS)
            os.close(fd)
        finally:
            os.umask(before)
        t.tree("made")
        paths = sorted(
            os.path.join(where, name) for where, *both in os.walk(top) for name in both[0] + both[1]
        )
        getfacl(t, *paths)


@CASES.add
def a_new_file_of_a_user_inherits(t: Trace) -> None:
    os.mkdir(b"d")
    os.chmod(b"d", 0o777)
    run(t, "setfacl", "-d", "-m", f"u::rwx,u:{M}:rw,g::r,o::-", "d")
    for user in USERS:
        file, directory = f"d/file of {user.name}", f"d/directory of {user.name}"
        do_as(t, user, "write", write, file.encode())
        do_as(t, user, "mkdir", os.mkdir, directory)
        getfacl(t, file, directory)
    t.tree("made")


@CASES.add
def access_is_what_the_acl_says(t: Trace) -> None:
    acls = (
        f"u:{O}:rwx", f"u:{O}:r", f"u:{O}:-", f"g:{O}:rw", f"u:{M}:-,g::rwx", f"u:{O}:rwx,m::r",
        f"g:{U}:-", f"u:{M}:w,g:{U}:r", f"g:{O}:-,o::rwx", "g::rwx,m::-",
    )  # fmt: skip
    for acl, mode in itertools.product(acls, (0o600, 0o644, 0o777)):
        write(b"file", b"#!/bin/true\n")
        os.chown(b"file", U, OWNER.gid)
        os.chmod(b"file", mode)
        run(t, "setfacl", "-m", acl, "file")
        for user in USERS:
            for label, flags in {"r": os.O_RDONLY, "w": os.O_WRONLY, "rw": os.O_RDWR}.items():
                do_as(t, user, f"{acl} {mode:o} {user.name} {label}", open_with(flags), b"file")
            for label, wanted in {"R": os.R_OK, "W": os.W_OK, "X": os.X_OK}.items():
                do_as(t, user, f"access {label}", os.access, b"file", wanted)
        os.unlink(b"file")


@CASES.add
def directories_admit_whom_the_acl_says(t: Trace) -> None:
    for acl in (f"u:{O}:rwx", f"u:{O}:x", f"u:{O}:rx", f"g:{U}:wx", f"u:{M}:-", f"u:{O}:rwx,m::x"):
        os.mkdir(b"d")
        write(b"d/x")
        os.chown(b"d", U, OWNER.gid)
        os.chmod(b"d", 0o750)
        run(t, "setfacl", "-m", acl, "d")
        for user in USERS:
            do_as(t, user, f"{acl} {user.name} list", lambda: sorted(os.listdir(b"d")))
            do_as(t, user, "enter", lambda: os.stat(b"d/x").st_size)
            do_as(t, user, "create", write, b"d/y")
            do_as(t, user, "unlink", os.unlink, b"d/y")
        os.unlink(b"d/x")
        if os.path.exists(b"d/y"):
            os.unlink(b"d/y")
        os.rmdir(b"d")


@CASES.add
def only_owners_set_acls(t: Trace) -> None:
    good = pack_acl((AclEntry(1, 6), AclEntry(2, 7, M), AclEntry(4, 4), AclEntry(16, 7), AclEntry(32, 0)))
    for owner, user in itertools.product((OWNER, ROOT), USERS):
        write(b"file")
        os.chown(b"file", owner.uid, owner.gid)
        os.chmod(b"file", 0o2666)
        watch(t, f"{user.name} on {owner.name}'s", [b"file"], os.setxattr, b"file", ACCESS, good, user=user)
        t.stat("stat", b"file")
        watch(t, "remove", [b"file"], os.removexattr, b"file", ACCESS, user=user)
        t.stat("stat", b"file")
        os.unlink(b"file")


def raw(*entries: tuple[int, int, int], version: int = 2) -> bytes:
    return struct.pack("<I", version) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


NO_ID = 0xFFFFFFFF
BASE = ((1, 7, NO_ID), (4, 5, NO_ID), (32, 0, NO_ID))
VALUES = {
    "base": raw(*BASE),
    "empty": b"",
    "header only": raw(),
    "short header": b"\x02\0",
    "version 1": raw(*BASE, version=1),
    "version 3": raw(*BASE, version=3),
    "torn": raw(*BASE)[:-1],
    "surplus": raw(*BASE) + b"\0",
    "no owner": raw(*BASE[1:]),
    "no other": raw(*BASE[:2]),
    "no group": raw(BASE[0], BASE[2]),
    "two owners": raw(BASE[0], *BASE),
    "named without mask": raw(BASE[0], (2, 7, M), *BASE[1:]),
    "mask alone": raw(*BASE[:2], (16, 7, NO_ID), BASE[2]),
    "two masks": raw(BASE[0], (2, 7, M), BASE[1], (16, 7, NO_ID), (16, 7, NO_ID), BASE[2]),
    "bad tag": raw(*BASE, (64, 7, NO_ID)),
    "tag of two": raw(*BASE, (3, 7, NO_ID)),
    "bad permission": raw((1, 8, NO_ID), *BASE[1:]),
    "wrong order": raw(BASE[2], BASE[1], BASE[0]),
    "named twice": raw(BASE[0], (2, 7, M), (2, 4, M), BASE[1], (16, 7, NO_ID), BASE[2]),
    "named unsorted": raw(BASE[0], (2, 7, O), (2, 4, M), BASE[1], (16, 7, NO_ID), BASE[2]),
    "named without an id": raw(BASE[0], (2, 7, NO_ID), BASE[1], (16, 7, NO_ID), BASE[2]),
    "owner with an id": raw((1, 7, 5), *BASE[1:]),
}


@CASES.add
def values_of_all_sorts(t: Trace) -> None:
    for label, value in VALUES.items():
        make_pair_of_kinds()
        os.symlink(b"file", b"link")
        for path in (b"file", b"directory"):
            for attribute in (ACCESS, DEFAULT):
                t.do(f"{label} {attribute} of {path!r}", os.setxattr, path, attribute, value)
                t.do("seen", os.getxattr, path, attribute)
                t.stat("mode", path)
                t.do("remove", os.removexattr, path, attribute)
                t.do("gone", os.getxattr, path, attribute)
        t.do("on a link", os.setxattr, b"link", ACCESS, value, follow_symlinks=False)
        t.do("by create", os.setxattr, b"file", ACCESS, value, os.XATTR_CREATE)
        t.do("by replace", os.setxattr, b"file", ACCESS, value, os.XATTR_REPLACE)
        os.unlink(b"file")
        os.unlink(b"link")
        os.rmdir(b"directory")


@CASES.add
def copies_keep_them(t: Trace) -> None:
    os.makedirs("tree/sub")
    write(b"tree/file")
    write(b"tree/sub/file")
    run(t, "setfacl", "-R", "-m", f"u:{M}:rwX,g:{O}:r", "tree")
    run(t, "setfacl", "-d", "-m", f"u:{M}:rwx,o::-", "tree/sub")
    write(b"tree/sub/inherited")
    run(t, "cp", "-a", "tree", "copied")
    run(t, "rsync", "-aAX", "tree/", "synced/")
    run(t, "tar", "--acls", "-cf", "tree.tar", "tree")
    os.mkdir("unpacked")
    run(t, "tar", "--acls", "-xf", "tree.tar", "-C", "unpacked")
    os.unlink("tree.tar")
    for top in ("tree", "copied", "synced", "unpacked/tree"):
        getfacl(t, top, f"{top}/file", f"{top}/sub", f"{top}/sub/file", f"{top}/sub/inherited")
    run(t, "rsync", "-aAX", "--dry-run", "--itemize-changes", "tree/", "synced/")
    t.tree("all")


@CASES.add
def they_follow_renames_and_links(t: Trace) -> None:
    write(b"file")
    run(t, "setfacl", "-m", f"u:{M}:rw", "file")
    os.link(b"file", b"second")
    os.rename(b"file", b"renamed")
    getfacl(t, "renamed", "second")
    run(t, "setfacl", "-m", f"u:{O}:r", "second")
    getfacl(t, "renamed")
    fd = os.open(b"renamed", os.O_RDWR)
    os.unlink(b"renamed")
    os.unlink(b"second")
    t.do("of a file without a name", os.getxattr, fd, ACCESS)
    t.do("chmod of it", os.fchmod, fd, 0o604)
    t.do("changed with it", os.getxattr, fd, ACCESS)
    t.do("remove it", os.removexattr, fd, ACCESS)
    t.note("mode", stat.S_IMODE(os.fstat(fd).st_mode))
    os.close(fd)


@CASES.add
def writing_clears_set_id_bits_beside_an_acl(t: Trace) -> None:
    for acl in ("m::rwx", "m::rx", "m::x"):  # without x for the group: see test_native_inherent.py
        write(b"file")
        os.chown(b"file", U, OWNER.gid)
        run(t, "setfacl", "-m", f"u:{O}:rwx,{acl}", "file")
        os.chmod(b"file", 0o6777)
        run(t, "setfacl", "-m", acl, "file")
        t.stat("before", b"file")
        do_as(t, OTHER, "write", open_with(os.O_WRONLY | os.O_TRUNC), b"file")
        t.stat("after", b"file")
        getfacl(t, "file")
        os.unlink(b"file")


@CASES.add
def setfacl_clears_setgid_as_chmod_does(t: Trace) -> None:
    for user, group in ((OWNER, OWNER.gid), (OWNER, OTHER.gid), (ROOT, OTHER.gid)):
        for acl in (f"u:{M}:rwx", "u::rwx,g::rwx,o::rwx", f"-d,u:{M}:rx"):
            write(b"file")
            os.mkdir(b"directory")
            for path in ("file", "directory"):
                os.chown(path, OWNER.uid, group)
                os.chmod(path, 0o2777)
                options = ("-d", "-m") if acl.startswith("-d") else ("-m",)
                command = ("setfacl", *options, acl.removeprefix("-d,"), path)
                do_as(t, user, "setfacl", subprocess.run, command, check=False, capture_output=True)
                t.stat(f"{user.name}, group {group}, {acl}", path.encode())
            os.unlink(b"file")
            os.rmdir(b"directory")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_acls(case: Case, users_pair: Pair) -> None:
    users_pair.check(case)


@CASES.add
def new_entries_inherit_without_a_umask(t: Trace) -> None:
    os.mkdir(b"d")
    run(t, "setfacl", "-d", "-m", DEFAULTS[0], "d")
    write(b"d/present", b"x")
    run(t, "setfacl", "-b", "d/present")
    before = os.umask(0)
    try:
        for name, call in FILES.items():
            t.do(name, call, f"d/{name}".encode())
        t.do("no inheritance", open_with(os.O_CREAT | os.O_WRONLY), b"d/present")
    finally:
        os.umask(before)
    getfacl(t, *sorted(os.path.join("d", name) for name in os.listdir("d")))


KEPT = [
    next(case for case in CASES if case.__name__ == name)
    for name in ("script_named_user", "script_mask", "script_default_then_kept")
] + [new_entries_inherit_without_a_umask]


@pytest.fixture(scope="module", params=ENGINES)
def private_pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    """A mount for one user: the kernel enforces no ACLs there."""
    spec = MountSpec(request.param, tmpfs=False)
    require_fuse(spec)
    with mounted(spec) as mount:
        pair = Pair(mount)
        yield pair
        pair.check_after_remount()


@pytest.mark.parametrize("case", KEPT, ids=lambda case: case.__name__)
def test_a_private_mount_keeps_them(case: Case, private_pair: Pair) -> None:
    private_pair.check(case)


def test_a_private_mount_applies_no_umask_where_acls_are_inherited(private_pair: Pair) -> None:
    if private_pair.mount.spec.engine == "native":  # libfuse applies it first: docs/ENGINES.md
        private_pair.check(new_entries_inherit)


def test_they_are_sealed(private_pair: Pair) -> None:
    """No backing file has an ACL of its own, and no name of one."""
    write(os.fsencode(private_pair.mount.mountpoint / "file"))
    acl = f"u:{U}:rwx"
    subprocess.run(["setfacl", "-m", acl, str(private_pair.mount.mountpoint / "file")], check=True)
    for path in everything_below(private_pair.mount.vault_dir):
        for name in os.listxattr(path, follow_symlinks=False):
            assert name.startswith("user.cryptfs.") and b"\x02\0\0\0\x01\0" not in os.getxattr(path, name)
