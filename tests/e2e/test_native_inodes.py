"""Inodes: hard links as one file, what has no name, O_TMPFILE, exchanges, the time of birth."""

from __future__ import annotations

import ctypes
import fcntl
import itertools
import mmap
import os
import stat
from collections.abc import Callable

import pytest

from cryptfs.storage.libc import (
    AT_FDCWD,
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    renameat2,
    statx_birth_time,
    syncfs,
)
from tests.e2e.conftest import Pair, require_fuse
from tests.e2e.mounting import MountSpec, mounted
from tests.e2e.posix import write
from tests.e2e.trace import Case, Cases, Trace
from tests.e2e.users import OLD_NS, OWNER, as_user, moved, stamp, watch

CASES = Cases()
_AT_SYMLINK_FOLLOW = 0x400
_libc = ctypes.CDLL(None, use_errno=True)


def linkat(fd: int, name: bytes) -> None:
    """Give a name to what a descriptor holds: os.link has no AT_SYMLINK_FOLLOW for it everywhere."""
    path = f"/proc/self/fd/{fd}".encode()
    if _libc.linkat(AT_FDCWD, path, AT_FDCWD, name, _AT_SYMLINK_FOLLOW) != 0:
        raise OSError(ctypes.get_errno(), "linkat")


def use(t: Trace, label: str, fd: int) -> None:
    """All that an open regular file can do."""
    t.stat(f"{label}: fstat", fd)
    t.do(f"{label}: pwrite", os.pwrite, fd, b"written " * 3000, 100)
    t.do(f"{label}: pread", os.pread, fd, 50_000, 0)
    t.do(f"{label}: fchmod", os.fchmod, fd, 0o640)
    t.do(f"{label}: fchown", os.fchown, fd, 7, 8)
    t.do(f"{label}: futimens", os.utime, fd, ns=(OLD_NS, OLD_NS + 1))
    t.stat(f"{label}: fstat", fd, mtime=True)
    t.do(f"{label}: setxattr", os.setxattr, fd, "user.name", b"value")
    t.do(f"{label}: getxattr", os.getxattr, fd, "user.name")
    t.do(f"{label}: listxattr", os.listxattr, fd)
    t.do(f"{label}: removexattr", os.removexattr, fd, "user.name")
    t.do(f"{label}: getxattr", os.getxattr, fd, "user.name")
    t.do(f"{label}: ftruncate", os.ftruncate, fd, 200_000)
    t.do(f"{label}: fallocate", os.posix_fallocate, fd, 0, 210_000)
    with mmap.mmap(fd, 210_000) as mapping:
        mapping[150_000:150_007] = b"mapping"
        mapping.flush()
        t.note(f"{label}: mapped", bytes(mapping[:200_000]))
    t.do(f"{label}: pread", os.pread, fd, 300_000, 0)
    t.do(f"{label}: flock", fcntl.flock, fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    t.do(f"{label}: lockf", fcntl.lockf, fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    t.do(f"{label}: fsync", os.fsync, fd)
    t.do(f"{label}: ftruncate", os.ftruncate, fd, 0)
    t.do(f"{label}: at the end", os.write, fd, b"")
    t.stat(f"{label}: fstat", fd)
    with_path = f"/proc/self/fd/{fd}"
    again = t.open(f"{label}: reopen", with_path, os.O_RDWR)
    if again >= 0:
        t.do(f"{label}: write there", os.pwrite, again, b"by the other", 0)
        os.close(again)
        t.do(f"{label}: read here", os.pread, fd, 100, 0)
    t.do(f"{label}: chmod by path", os.chmod, with_path, 0o604)
    t.do(f"{label}: truncate by path", os.truncate, with_path, 5)
    t.do(f"{label}: stat by path", lambda: os.stat(with_path).st_size)
    t.stat(f"{label}: at last", fd)


Step = Callable[[], None]


def step(function: Callable[..., None], *arguments: object) -> Step:
    """One call, for later."""
    return lambda: function(*arguments)


def exchange(old: str, new: str) -> None:
    renameat2(AT_FDCWD, old, AT_FDCWD, new, RENAME_EXCHANGE)


LOSE = step(os.unlink, b"d/f")
LOSSES: dict[str, tuple[Step, ...]] = {
    "nothing": (),
    "unlinked": (LOSE,),
    "replaced by a file": (step(os.rename, b"g", b"d/f"),),
    "renamed": (step(os.rename, b"d/f", b"d/f2"),),
    "moved": (step(os.rename, b"d/f", b"e/f"),),
    "moved with its directory": (step(os.rename, b"d", b"e/d"),),
    "exchanged with a file": (step(exchange, "d/f", "g"),),
    "exchanged with a directory": (step(exchange, "d/f", "e"),),
    "one name of two lost": (step(os.link, b"d/f", b"h"), LOSE),
    "both names lost": (step(os.link, b"d/f", b"h"), LOSE, step(os.unlink, b"h")),
    "lost and made anew": (LOSE, step(write, b"d/f", b"another")),
    "lost with its directory": (LOSE, step(os.rmdir, b"d")),
    "lost and the directory made anew": (
        LOSE,
        step(os.rmdir, b"d"),
        step(os.mkdir, b"d"),
        step(write, b"d/f", b"another"),
    ),
    "lost and linked again": (step(os.link, b"d/f", b"h"), LOSE, step(os.rename, b"h", b"d/f")),
}


def open_file(name: str, steps: tuple[Step, ...]) -> Case:
    def case(t: Trace) -> None:
        os.mkdir(b"d")
        os.mkdir(b"e")
        write(b"g", b"replacement")
        fd = t.open("open", b"d/f", os.O_RDWR | os.O_CREAT)
        os.write(fd, bytes(range(256)) * 100)
        before = os.fstat(fd).st_ino
        for lose in steps:
            t.do(name, lose)
        use(t, name, fd)
        t.note("inode stays", os.fstat(fd).st_ino == before)
        t.tree("others are as they were")
        os.close(fd)

    case.__name__ = "open_file_" + name.replace(" ", "_")
    return case


for loss_name, loss in LOSSES.items():
    CASES.add(open_file(loss_name, loss))


@CASES.add
def open_directories_without_a_name(t: Trace) -> None:
    for replaced in (False, True):
        os.mkdir(b"d")
        os.mkdir(b"other")
        fd = t.open("open", b"d", os.O_RDONLY | os.O_DIRECTORY)
        if replaced:
            t.do("replace", os.rename, b"other", b"d")
        else:
            t.do("remove", os.rmdir, b"d")
        t.stat("fstat", fd)
        t.do("list", os.listdir, fd)
        t.do("fchmod", os.fchmod, fd, 0o700)
        t.do("fchown", os.fchown, fd, 3, 4)
        t.do("utimens", os.utime, fd, ns=(1, 2))
        t.stat("fstat", fd, mtime=True)
        t.do("create in it", os.open, b"x", os.O_CREAT | os.O_WRONLY, 0o600, dir_fd=fd)
        t.do("mkdir in it", os.mkdir, b"x", dir_fd=fd)
        t.do("symlink in it", os.symlink, b"x", b"y", dir_fd=fd)
        t.do("stat in it", os.stat, b"x", dir_fd=fd)
        t.do("setxattr", os.setxattr, fd, "user.x", b"y")
        t.do("getxattr", os.getxattr, fd, "user.x")
        t.do("fsync", os.fsync, fd)
        t.do("fchdir", os.fchdir, fd)
        t.do("getcwd", os.getcwd)
        t.do("stat of it", lambda: os.stat(b".").st_nlink)
        t.do("up", os.chdir, b"..")
        os.close(fd)
        for left in (b"d", b"other"):
            if os.path.exists(left):
                os.rmdir(left)


@CASES.add
def hard_links_are_one_file_at_once(t: Trace) -> None:
    write(b"a", b"content")
    os.mkdir(b"d")
    names = [b"b", b"d/c", b"l" * 255]
    first = t.open("first", b"a", os.O_RDWR)
    opened = [first]
    for name in names:
        os.link(b"a", name)
        t.stat("nlink by descriptor", first)
        opened.append(t.open("open", name, os.O_RDWR))
    t.note("one inode", len({os.stat(name).st_ino for name in (b"a", *names)}))
    for number, fd in enumerate(opened):
        os.pwrite(fd, b"from %d" % number, number * 10_000)
        for name in (b"a", *names):
            t.note(f"size after {number}", os.stat(name).st_size)
        for other in opened:
            t.note(f"seen after {number}", os.pread(other, 100_000, 0))
    maps = [mmap.mmap(fd, 30_006) for fd in opened]
    maps[0][20_000:20_004] = b"MMAP"
    t.note("mapped", [bytes(mapping[20_000:20_006]) for mapping in maps])
    for mapping in maps:
        mapping.close()
    os.truncate(names[0], 3)
    t.note("truncated", [os.fstat(fd).st_size for fd in opened])
    os.chmod(names[1], 0o604)
    t.note("mode", [oct(os.fstat(fd).st_mode) for fd in opened])
    for name in (b"a", *names):
        os.unlink(name)
        t.note("nlink", [os.fstat(fd).st_nlink for fd in opened])
    t.note("content", [os.pread(fd, 10, 0) for fd in opened])
    for fd in opened:
        os.close(fd)


@CASES.add
def tmpfiles(t: Trace) -> None:
    os.mkdir(b"d")
    for mode in (0o600, 0o4755, 0o000):
        before = stamp(b"d")
        fd = t.open(f"open {mode:o}", b"d", os.O_TMPFILE | os.O_RDWR, mode)
        t.note("times of the directory", moved(b"d", before))
        t.stat("fresh", fd)
        use(t, "used", fd)
        t.note("not listed", sorted(os.listdir(b"d")))
        name = b"d/name%o" % mode
        watch(t, "link", [fd, b"d"], linkat, fd, name)
        t.do("link again", linkat, fd, name + b"2")
        t.do("over what is there", linkat, fd, name)
        t.stat("by name", name)
        t.note("one inode", os.stat(name).st_ino == os.fstat(fd).st_ino)
        os.close(fd)
        t.do("unlink", os.unlink, name)
        t.stat("the other name", name + b"2")
    fd = t.open("exclusive", b"d", os.O_TMPFILE | os.O_RDWR | os.O_EXCL, 0o600)
    t.do("link of an exclusive one", linkat, fd, b"d/no")
    os.close(fd)
    t.open("read only", b"d", os.O_TMPFILE | os.O_RDONLY)
    t.open("missing", b"missing", os.O_TMPFILE | os.O_RDWR)
    write(b"file")
    t.open("in a file", b"file", os.O_TMPFILE | os.O_RDWR)
    os.chmod(b"d", 0o777)

    def by_owner(trace: Trace) -> None:
        fd = trace.open("by a user", b"d", os.O_TMPFILE | os.O_WRONLY, 0o640)
        trace.stat("theirs", fd)
        trace.do("link", linkat, fd, b"d/theirs")
        os.close(fd)

    as_user(t, OWNER, by_owner)
    t.stat("theirs by name", b"d/theirs")


KINDS = ("file", "empty", "full", "link", "fifo", "second name", "missing", "long")


def make(kind: str, name: bytes) -> bytes:
    """Something of that kind under a name; the name, which is another for `long`."""
    if kind == "file":
        write(name, name)
    elif kind in ("empty", "full"):
        os.mkdir(name)
        if kind == "full":
            write(name + b"/inner", b"inner of " + name)
    elif kind == "link":
        os.symlink(b"target of " + name, name)
    elif kind == "fifo":
        os.mkfifo(name)
    elif kind == "second name":
        write(b"first of " + name, name)
        os.link(b"first of " + name, name)
    elif kind == "long":
        name = name.ljust(250, b"x")
        write(name, b"long")
    return name


def renaming(flags: int, label: str) -> Case:
    def case(t: Trace) -> None:
        for old_kind, new_kind in itertools.product(KINDS, KINDS):
            top = f"{old_kind}-{new_kind}".replace(" ", "_").encode()
            os.mkdir(top)
            os.chdir(top)
            os.mkdir(b"d")
            old, new = make(old_kind, b"old"), make(new_kind, b"new")
            moved_in = b"d/" + new if new_kind == "missing" else new
            about = [name for name in (old, new, b".", b"d") if os.path.lexists(name)]
            inodes = {os.lstat(name).st_ino: name for name in (old, new) if os.path.lexists(name)}
            # ctime of what moved is compared by its own case below: the names differ afterwards.
            before = {name: stamp(name) for name in about if stat.S_ISDIR(os.lstat(name).st_mode)}
            t.do(top.decode(), renameat2, AT_FDCWD, os.fsdecode(old), AT_FDCWD, os.fsdecode(moved_in), flags)
            t.note("directories", {name: moved(name, before[name]) for name in (b".", b"d")})
            found = {
                name: inodes.get(os.lstat(name).st_ino)
                for name in sorted(os.listdir(b"."))
                if name in (old, new)
            }
            t.note("inodes moved along", found)
            t.tree("after it")
            os.chdir(b"..")

    case.__name__ = f"rename_{label}"
    return case


CASES.add(renaming(0, "plain"))
CASES.add(renaming(RENAME_NOREPLACE, "noreplace"))
CASES.add(renaming(RENAME_EXCHANGE, "exchange"))
CASES.add(renaming(RENAME_EXCHANGE | RENAME_NOREPLACE, "contradiction"))


@CASES.add
def renames_set_the_ctime_of_what_moves(t: Trace) -> None:
    for kind in ("file", "empty", "link", "linked link", "fifo", "second name", "long"):
        name = make(kind.removeprefix("linked "), b"x")
        if kind == "linked link":
            os.link(b"x", b"x2", follow_symlinks=False)
            os.unlink(b"x2")
        before = stamp(name)
        os.rename(name, b"y")
        t.note(f"{kind}", moved(b"y", before))
        other = stamp(make("file", b"z"))
        before = stamp(b"y")
        renameat2(AT_FDCWD, "y", AT_FDCWD, "z", RENAME_EXCHANGE)
        t.note(f"{kind} exchanged", (moved(b"z", before), moved(b"y", other)))
        os.unlink(b"y")
        (os.rmdir if kind == "empty" else os.unlink)(b"z")


@CASES.add
def symlinks_keep_their_inode_through_renames(t: Trace) -> None:
    for length in (5, 4000):
        os.symlink(b"t" * length, b"link")
        before = os.lstat(b"link")
        names = (b"link", b"a", b"b", b"c" * 250, b"link")
        for old, name in itertools.pairwise(names):
            os.rename(old, name)
            found = os.lstat(name)
            t.note("inode", found.st_ino == before.st_ino)
            t.note("mtime", found.st_mtime_ns == before.st_mtime_ns)
            t.do("target", os.readlink, name)
        os.unlink(b"link")


@CASES.add
def the_first_name_of_special_files_when_the_second_has_gone(t: Trace) -> None:
    os.symlink(b"/nonexistent", b"link")
    os.symlink(b"long" * 1000, b"long link")
    os.mkfifo(b"fifo")
    os.mknod(b"socket", stat.S_IFSOCK | 0o600)
    os.mknod(b"device", stat.S_IFCHR | 0o600, os.makedev(1, 7))  # /dev/full
    for name in (b"link", b"long link", b"fifo", b"socket", b"device"):
        for number in range(2):
            second = b"second %d" % number
            t.do("link", os.link, name, second, follow_symlinks=False)
            t.do("unlink", os.unlink, second)
            t.do("utimens", os.utime, name, ns=(5, 6), follow_symlinks=False)
            t.do("chown", os.chown, name, 3, 4, follow_symlinks=False)
            t.do("chmod", os.chmod, name, 0o640)
            t.do("readlink", os.readlink, name)
            t.stat("lstat", name, mtime=True)
        t.do("rename", os.rename, name, name + b"2")
        t.do("readlink", os.readlink, name + b"2")
        t.stat("lstat", name + b"2", mtime=True)


@CASES.add
def the_time_of_birth_is_constant(t: Trace) -> None:
    write(b"file")
    os.mkdir(b"directory")
    os.symlink(b"x", b"link")
    os.mkfifo(b"fifo")
    for name in ("file", "directory", "link", "fifo"):
        born = statx_birth_time(AT_FDCWD, name)
        t.note(f"{name}: known", born is not None)
        found = os.lstat(name)
        t.note(f"{name}: now", born is not None and abs(born - found.st_ctime_ns) < 10**9)
        os.utime(name, ns=(1, 1), follow_symlinks=False)
        os.chown(name, 5, 5, follow_symlinks=False)
        if name != "link":  # a renamed symlink is made anew
            os.rename(name, name + "2")
            t.note(f"{name}: stays", statx_birth_time(AT_FDCWD, name + "2") == born)
    fd = os.open(b"file2", os.O_RDWR)
    os.unlink(b"file2")
    t.note("without a name", statx_birth_time(fd, "") is not None)
    os.close(fd)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_inodes(case: Case, users_pair: Pair) -> None:
    users_pair.check(case)


@pytest.mark.parametrize(
    "spec",
    [
        MountSpec("native"),
        MountSpec("fusepy"),
        pytest.param(
            MountSpec("fusepy", options="exclusive"),
            marks=pytest.mark.xfail(
                strict=True, raises=OSError, reason="libfuse refuses the times that the kernel tells of it"
            ),
        ),
    ],
)
def test_a_removed_file_leaves_no_error_for_syncfs(spec: MountSpec) -> None:
    require_fuse(spec)
    with mounted(spec) as mount:
        path = mount.mountpoint / "file"
        path.write_bytes(b"content")
        fd = os.open(mount.mountpoint, os.O_RDONLY)
        try:
            syncfs(fd)
            path.unlink()
            syncfs(fd)
        finally:
            os.close(fd)
