"""rename(2) and renameat2(2): every kind of entry over every other, flags, open files and directories."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from cryptfs.storage.libc import AT_FDCWD, RENAME_EXCHANGE, RENAME_NOREPLACE, RENAME_WHITEOUT, renameat2
from tests.e2e.conftest import Pair
from tests.e2e.trace import Case, Cases, Trace, settle

CASES = Cases()
LONG = b"long-" + b"n" * 240


def write(name: bytes, content: bytes) -> None:
    with open(name, "wb") as file:
        file.write(content)


def full_directory(name: bytes) -> None:
    os.mkdir(name)
    write(name + b"/child", b"child of " + name[:5])
    os.symlink(b"child", name + b"/link")


KINDS: dict[str, Callable[[bytes], None]] = {
    "nothing": lambda _name: None,
    "file": lambda name: write(name, b"content of " + name[:5]),
    "empty": lambda name: write(name, b""),
    "dir": os.mkdir,
    "full dir": full_directory,
    "symlink": lambda name: os.symlink(b"target of " + name[:5], name),
    "dirlink": lambda name: os.symlink(b".", name),
    "fifo": os.mkfifo,
}


def renames(t: Trace, flags: int, old_name: bytes, new_name: bytes) -> None:
    for old_kind, make_old in KINDS.items():
        for new_kind, make_new in KINDS.items():
            label = f"{old_kind} to {new_kind}"
            os.mkdir(label)
            os.chdir(label)
            os.mkdir(b"sub")
            make_old(old_name)
            make_new(b"sub/" + new_name)
            t.do(
                label,
                renameat2,
                AT_FDCWD,
                os.fsdecode(old_name),
                AT_FDCWD,
                "sub/" + os.fsdecode(new_name),
                flags,
            )
            t.do("back", os.rename, b"sub/" + new_name, old_name)
            t.tree(label)
            os.chdir("..")


@CASES.add
def rename_matrix(t: Trace) -> None:
    renames(t, 0, b"old", b"new")


@CASES.add
def rename_matrix_with_long_names(t: Trace) -> None:
    renames(t, 0, LONG + b"old", b"new" + LONG)


@CASES.add
def rename_noreplace_matrix(t: Trace) -> None:
    renames(t, RENAME_NOREPLACE, b"old", b"new" + LONG)


@CASES.add
def rename_exchange_matrix(t: Trace) -> None:
    renames(t, RENAME_EXCHANGE, b"old" + LONG, b"new")


@CASES.add
def rename_whiteout_matrix(t: Trace) -> None:
    renames(t, RENAME_WHITEOUT, b"old" + LONG, b"new")
    for name in ("a", "b"):
        write(name.encode(), b"content")
    t.do("noreplace", renameat2, AT_FDCWD, "a", AT_FDCWD, "b", RENAME_NOREPLACE | RENAME_WHITEOUT)
    t.do("exchange", renameat2, AT_FDCWD, "a", AT_FDCWD, "b", RENAME_EXCHANGE | RENAME_WHITEOUT)
    t.do("both", renameat2, AT_FDCWD, "a", AT_FDCWD, "c", RENAME_NOREPLACE | RENAME_WHITEOUT)
    t.tree("after")


@CASES.add
def rename_with_bad_flags(t: Trace) -> None:
    write(b"a", b"a")
    write(b"b", b"b")
    t.do("both", renameat2, AT_FDCWD, "a", AT_FDCWD, "b", RENAME_NOREPLACE | RENAME_EXCHANGE)
    t.do("unknown", renameat2, AT_FDCWD, "a", AT_FDCWD, "b", 1 << 20)


@CASES.add
def rename_to_itself_and_into_itself(t: Trace) -> None:
    for kind, make in KINDS.items():
        name = kind.replace(" ", "-").encode()
        make(name)
        t.do(f"{kind} to itself", os.rename, name, name)
        t.do(f"{kind} to itself with a dot", os.rename, name, b"./" + name)
        t.do(f"{kind} into itself", os.rename, name, name + b"/inside")
    os.makedirs(b"a/b/c")
    t.do("into a grandchild", os.rename, b"a", b"a/b/c/d")
    t.do("over its parent", os.rename, b"a/b/c", b"a/b")
    t.do("over its grandparent", os.rename, b"a/b/c", b"a")
    t.do("dot", os.rename, b".", b"x")
    t.do("dotdot", os.rename, b"a/..", b"x")
    t.do("onto dot", os.rename, b"a", b"a/.")
    t.do("trailing slash on a file", os.rename, b"file/", b"x")
    t.do("file to a trailing slash", os.rename, b"file", b"x/")
    t.do("directory to a trailing slash", os.rename, b"dir/", b"moved/")


@CASES.add
def rename_between_hard_links(t: Trace) -> None:
    for name, other in ((b"a", b"b"), (b"a" + LONG, b"b" + LONG)):
        write(name, b"one inode")
        os.link(name, other)
        t.do("to the same inode: nothing happens", os.rename, name, other)
        t.note("both are there", sorted(os.listdir(b".")))
        t.do(
            "exchange", renameat2, AT_FDCWD, os.fsdecode(name), AT_FDCWD, os.fsdecode(other), RENAME_EXCHANGE
        )
        t.do("third name", os.rename, other, b"c" + other)
        os.unlink(name)
    os.symlink(b"target", b"s1")
    os.link(b"s1", b"s2", follow_symlinks=False)
    t.do("linked symlinks", os.rename, b"s1", b"s2")
    t.do("linked symlink away", os.rename, b"s1", b"s3")
    t.do("readlink", os.readlink, b"s3")
    t.do("readlink", os.readlink, b"s2")
    settle()


@CASES.add
def rename_of_open_files(t: Trace) -> None:
    write(b"a", b"A" * 30_000)
    write(b"b", b"B" * 30_000)
    a = t.open("a", b"a", os.O_RDWR)
    b = t.open("b", b"b", os.O_RDWR)
    t.do("over an open file", os.rename, b"a", b"b")
    t.stat("a's descriptor", a)
    t.stat("b's descriptor has no name", b)
    t.do("write a", os.pwrite, a, b"new a", 40_000)
    t.do("write b", os.pwrite, b, b"new b", 40_000)
    t.do("read a", os.pread, a, 50_000, 0)
    t.do("read b", os.pread, b, 50_000, 0)
    t.do("ftruncate b", os.ftruncate, b, 10)
    t.do("fchmod b", os.fchmod, b, 0o600)
    t.stat("b", b)
    t.note("names", os.listdir(b"."))
    write(b"b2", b"second life")
    t.do("replace again", os.rename, b"b2", b"b")
    t.do("read a", os.pread, a, 10, 29_995)
    t.stat("a's descriptor", a)
    os.close(a)
    os.close(b)


@CASES.add
def rename_of_directories_with_open_children(t: Trace) -> None:
    os.makedirs(b"top/mid/low")
    write(b"top/mid/low/file", b"x" * 1000)
    fd = t.open("file", b"top/mid/low/file", os.O_RDWR)
    dir_fd = t.open("directory", b"top/mid", os.O_RDONLY | os.O_DIRECTORY)
    t.do("rename top", os.rename, b"top", b"renamed")
    t.do("write", os.pwrite, fd, b"written after the rename", 900)
    t.do("read", os.pread, fd, 2000, 0)
    t.stat("stat", fd)
    t.do("listdir of the descriptor", os.listdir, dir_fd)
    os.mkdir(b"other")
    t.do("move mid", os.rename, b"renamed/mid", b"other/mid")
    t.do("through the descriptor", lambda: os.stat("low/file", dir_fd=dir_fd).st_size)
    t.do("create through the descriptor", os.mkdir, "fresh", dir_fd=dir_fd)
    t.do("unlink through the descriptor", os.unlink, "low/file", dir_fd=dir_fd)
    t.do("still readable", os.pread, fd, 10, 0)
    t.stat("no name left", fd)
    os.makedirs(b"top/mid/low")
    t.do("same path, other directory", os.listdir, b"top/mid")
    os.close(fd)
    os.close(dir_fd)


@CASES.add
def rename_deep_trees(t: Trace) -> None:
    path = b"/".join([b"d%d" % i for i in range(40)])
    os.makedirs(path)
    write(path + b"/leaf", b"leaf")
    for number in range(39, -1, -1):
        parent = b"/".join([b"d%d" % i for i in range(number)])
        where = parent + b"/" if parent else b""
        t.do("rename", os.rename, where + b"d%d" % number, where + b"e%d" % number)
        t.do("look", os.listdir, where + b"e%d" % number)
    leaf = b"/".join([b"e%d" % i for i in range(40)]) + b"/leaf"
    with open(leaf, "rb") as file:
        t.note("leaf", file.read())


@CASES.add
def unlinked_open_files(t: Trace) -> None:
    os.mkdir(b"d")
    write(b"d/f", b"x" * 20_000)
    fd = t.open("open", b"d/f", os.O_RDWR)
    t.do("unlink", os.unlink, b"d/f")
    t.note("names", os.listdir(b"d"))
    t.stat("nlink 0", fd)
    t.do("write", os.pwrite, fd, b"after unlink", 30_000)
    t.do("read", os.pread, fd, 40_000, 0)
    t.do("ftruncate", os.ftruncate, fd, 100_000)
    t.do("ftruncate", os.ftruncate, fd, 50)
    t.do("fchmod", os.fchmod, fd, 0o4711)
    t.do("fchown", os.fchown, fd, 12, 13)
    t.do("futimens", os.utime, fd, ns=(123_456_789, 987_654_321))
    t.stat("all of it", fd, mtime=True)
    t.do("fsync", os.fsync, fd)
    write(b"d/f", b"another file")
    t.do("the old one", os.pread, fd, 100, 0)
    t.do("link it back", os.link, f"/proc/self/fd/{fd}", b"back")
    os.close(fd)


@CASES.add
def unlinked_open_file_in_a_removed_directory(t: Trace) -> None:
    os.mkdir(b"d")
    write(b"d/f", b"x" * 20_000)
    fd = t.open("open", b"d/f", os.O_RDWR)
    t.do("unlink", os.unlink, b"d/f")
    t.do("directory can go", os.rmdir, b"d")
    t.do("write", os.pwrite, fd, b"after rmdir", 30_000)
    t.do("read", os.pread, fd, 40_000, 0)
    t.do("ftruncate", os.ftruncate, fd, 50)
    t.do("read", os.pread, fd, 40_000, 0)
    os.close(fd)


@CASES.add
def fstat_of_a_file_in_a_removed_directory(t: Trace) -> None:
    os.mkdir(b"d")
    write(b"d/f", b"x" * 20_000)
    fd = t.open("open", b"d/f", os.O_RDWR)
    os.unlink(b"d/f")
    os.rmdir(b"d")
    t.stat("nlink 0", fd)
    t.do("fchmod", os.fchmod, fd, 0o600)
    os.close(fd)


@CASES.add
def unlink_with_several_handles(t: Trace) -> None:
    for suffix in (b"", LONG[:245]):
        name = b"f" + suffix
        first = t.open("create", name, os.O_RDWR | os.O_CREAT)
        second = t.open("second", name, os.O_RDONLY)
        t.do("unlink", os.unlink, name)
        t.do("write", os.pwrite, first, b"data" * 10_000, 0)
        t.do("read by the other", os.pread, second, 50_000, 0)
        os.close(first)
        t.do("read when the writer has gone", os.pread, second, 50_000, 0)
        t.stat("stat", second)
        third = t.open("new file of that name", name, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        t.do("unlink that, too", os.unlink, name)
        t.do("write", os.write, third, b"third")
        t.do("second is unchanged", os.pread, second, 20, 0)
        os.close(second)
        t.do("third", os.pread, third, 20, 0)
        os.close(third)


@CASES.add
def unlinked_hard_link_keeps_the_rest(t: Trace) -> None:
    write(b"a", b"content" * 1000)
    os.link(b"a", b"b")
    fd = t.open("open a", b"a", os.O_RDWR)
    t.do("unlink a", os.unlink, b"a")
    t.do("read through the descriptor", os.pread, fd, 10_000, 0)
    os.close(fd)
    with open(b"b", "rb") as file:
        t.note("b", file.read())
    t.stat("b", b"b")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_rename(case: Case, pair: Pair) -> None:
    pair.check(case)
