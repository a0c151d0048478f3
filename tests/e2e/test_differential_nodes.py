"""Entries that are not data: links, special files, modes, owners, access, statfs, removal."""

from __future__ import annotations

import os
import socket
import stat

import pytest

from tests.e2e.conftest import Pair
from tests.e2e.trace import Case, Cases, Trace, settle

CASES = Cases()


def write(name: bytes, content: bytes = b"") -> None:
    with open(name, "wb") as file:
        file.write(content)


@CASES.add
def symlinks_of_every_length(t: Trace) -> None:
    for length in [*range(1, 70), 100, 127, 128, 200, 255, 256, 500, 1000, 1023, 2000, 3000]:
        target = (b"/x/y" * 1000)[:length]
        t.do(f"symlink {length}", os.symlink, target, b"l%d" % length)
        t.do("readlink", os.readlink, b"l%d" % length)
        t.stat("lstat", b"l%d" % length)
    t.do("empty target", os.symlink, b"", b"empty")
    t.do("exists", os.symlink, b"x", b"l1")
    t.do("too long a target", os.symlink, b"x" * 4096, b"big")


@CASES.add
def symlinks_are_followed_and_not(t: Trace) -> None:
    write(b"file", b"content")
    os.mkdir(b"dir")
    write(b"dir/inner", b"inner")
    for name, target in (
        (b"to-file", b"file"),
        (b"to-dir", b"dir"),
        (b"to-inner", b"to-dir/inner"),
        (b"dangling", b"nowhere"),
        (b"absolute", b"/nonexistent/path"),
        (b"root", b"/"),
        (b"up", b".."),
        (b"loop", b"loop"),
        (b"odd", b"\xff\xfe\n"),
    ):
        os.symlink(target, name)
        t.do(f"readlink {name!r}", os.readlink, name)
        t.do(f"exists {name!r}", os.path.exists, name)
        t.do(f"access {name!r}", os.access, name, os.R_OK)
        t.do(f"rmdir {name!r}", os.rmdir, name)
        fd = t.open(f"open nofollow {name!r}", name, os.O_RDONLY | os.O_NOFOLLOW)
        if fd >= 0:
            os.close(fd)
    with open(b"to-inner", "rb") as file:
        t.note("through two links", file.read())
    t.do("readlink of a file", os.readlink, b"file")
    t.do("readlink of a directory", os.readlink, b"dir")
    t.do("readlink of nothing", os.readlink, b"no")
    t.do("lchown", os.lchown, b"to-file", 5, 6)
    t.do("utime of the link", os.utime, b"to-file", ns=(10, 20), follow_symlinks=False)
    t.stat("link", b"to-file", mtime=True)
    t.stat("its target is unchanged", b"file")
    t.do("unlink", os.unlink, b"to-dir")
    t.do("listing", lambda: sorted(os.listdir(b"dir")))


@CASES.add
def hard_links(t: Trace) -> None:
    long = b"x" * 255
    write(b"a", b"content")
    os.mkdir(b"d")
    t.do("link", os.link, b"a", b"b")
    t.do("into a directory, long name", os.link, b"a", b"d/" + long)
    t.do("exists", os.link, b"a", b"b")
    t.do("of a directory", os.link, b"d", b"e")
    t.do("of nothing", os.link, b"no", b"e")
    t.do("into nothing", os.link, b"a", b"no/e")
    t.do("into a file", os.link, b"a", b"a/e")
    os.mkfifo(b"p")
    t.do("of a fifo", os.link, b"p", b"p2")
    os.symlink(b"a", b"s")
    t.do("of a symlink", os.link, b"s", b"s2", follow_symlinks=False)
    t.do("of what a symlink means", os.link, b"s", b"s3", follow_symlinks=True)
    t.do("readlink s", os.readlink, b"s")
    t.do("readlink s2", os.readlink, b"s2")
    for name in (b"a", b"b", b"d/" + long, b"p", b"s", b"s2", b"s3"):
        t.do("same inode", lambda name=name: os.lstat(name).st_ino == os.lstat(b"a").st_ino)
    t.do("chmod", os.chmod, b"b", 0o751)
    t.do("unlink a", os.unlink, b"a")
    t.do("unlink s", os.unlink, b"s")
    t.do("readlink s2", os.readlink, b"s2")
    settle()


@CASES.add
def writes_through_hard_links(t: Trace) -> None:
    write(b"a", b"content")
    os.link(b"a", b"b")
    for name, other in ((b"a", b"b"), (b"b", b"a")):
        write(name, b"written through " + name * 20_000)
        with open(other, "rb") as file:
            t.note("seen through the other", file.read())
        with open(name, "r+b") as file:
            file.seek(100)
            file.write(b"in the middle")
        with open(other, "rb") as file:
            t.note("seen through the other", file.read())
        write(name, b"shorter")
        with open(other, "rb") as file:
            t.note("seen through the other", file.read())
    os.unlink(b"a")
    os.unlink(b"b")


@CASES.add
def hard_link_attributes_at_once(t: Trace) -> None:
    write(b"a", b"content")
    t.stat("a", b"a")
    os.link(b"a", b"b")
    t.stat("a has two names", b"a")
    t.stat("b, too", b"b")
    os.chmod(b"b", 0o600)
    t.stat("a's mode changed with b's", b"a")
    write(b"b", b"longer content")
    t.stat("and its size", b"a")
    os.unlink(b"b")
    t.stat("one name", b"a")
    os.unlink(b"a")


@CASES.add
def hard_links_both_open(t: Trace) -> None:
    write(b"a", b"content" * 100)
    os.link(b"a", b"b")
    a = t.open("a", b"a", os.O_RDWR)
    b = t.open("b", b"b", os.O_RDWR)
    t.do("read a", os.pread, a, 100, 0)
    t.do("read b", os.pread, b, 100, 0)
    t.do("write a", os.pwrite, a, b"through a", 50)
    t.do("b sees it", os.pread, b, 100, 0)
    os.close(a)
    os.close(b)
    os.unlink(b"a")
    os.unlink(b"b")


@CASES.add
def hard_links_open_before_the_link(t: Trace) -> None:
    write(b"a", b"content" * 100)
    a = t.open("a", b"a", os.O_RDWR)
    t.do("read a", os.pread, a, 100, 0)
    os.link(b"a", b"b")
    b = t.open("b", b"b", os.O_RDWR)
    t.do("write b", os.pwrite, b, b"through b", 50)
    t.do("a sees it", os.pread, a, 100, 0)
    os.close(a)
    os.close(b)
    os.unlink(b"a")
    os.unlink(b"b")


@CASES.add
def special_files(t: Trace) -> None:
    for name, mode, device in (
        (b"fifo", stat.S_IFIFO | 0o640, 0),
        (b"socket", stat.S_IFSOCK | 0o755, 0),
        (b"null", stat.S_IFCHR | 0o666, os.makedev(1, 3)),
        (b"block", stat.S_IFBLK | 0o600, os.makedev(240, 65_537)),
        (b"regular", stat.S_IFREG | 0o604, 0),
        (b"no type", 0o604, 0),
        (b"directory", stat.S_IFDIR | 0o755, 0),
        (b"link", stat.S_IFLNK | 0o777, 0),
        (b"n" * 255, stat.S_IFIFO | 0o644, 0),
    ):
        t.do(f"mknod {name!r}", os.mknod, name, mode, device)
        t.do("again", os.mknod, name, mode, device)
        t.stat("stat", name)
    reader = t.open("fifo reader", b"fifo", os.O_RDONLY | os.O_NONBLOCK)
    writer = t.open("fifo writer", b"fifo", os.O_WRONLY)
    t.do("through the fifo", os.write, writer, b"hello")
    t.do("arrived", os.read, reader, 10)
    os.close(reader)
    os.close(writer)
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        t.do("bind", server.bind, "sock")
        t.do("listen", server.listen)
        t.do("connect", client.connect, "sock")
    t.stat("bound socket", b"sock")


@CASES.add
def chmod_of_everything(t: Trace) -> None:
    write(b"file")
    os.mkdir(b"dir")
    os.mkfifo(b"fifo")
    os.symlink(b"file", b"link")
    os.symlink(b"no", b"dangling")
    for mode in [*range(0, 0o10000, 0o137), 0o7777, 0o4000, 0o2000, 0o1000, 0]:
        for name in (b"file", b"dir", b"fifo", b"link"):
            t.do(f"chmod {mode:o} {name!r}", os.chmod, name, mode)
            t.stat("stat", name)
    os.chmod(b"dir", 0o755)
    t.do("dangling", os.chmod, b"dangling", 0o644)
    t.do("nothing", os.chmod, b"no", 0o644)
    fd = t.open("open", b"file", os.O_RDONLY)
    t.do("fchmod", os.fchmod, fd, 0o6755)
    t.stat("fstat", fd)
    os.close(fd)
    fd = t.open("open directory", b"dir", os.O_RDONLY)
    t.do("fchmod of a directory", os.fchmod, fd, 0o1777)
    t.stat("fstat", fd)
    os.close(fd)


@CASES.add
def chown_and_the_set_id_bits(t: Trace) -> None:
    write(b"file")
    os.mkdir(b"dir")
    os.mkfifo(b"fifo")
    for kind in ("file", "dir", "fifo"):
        name = kind.encode()
        for mode in (0o6755, 0o6711, 0o2745, 0o4700):
            for uid, gid in ((-1, -1), (1, -1), (-1, 2), (3, 4), (0, 0), (2**31, 2**31 + 1)):
                os.chmod(name, mode)
                t.do(f"{kind} {mode:o} {uid} {gid}", os.chown, name, uid, gid)
                t.stat("stat", name)
    os.symlink(b"file", b"link")
    t.do("lchown", os.lchown, b"link", 7, 8)
    t.stat("link", b"link")
    t.stat("file", b"file")
    fd = t.open("open", b"file", os.O_RDONLY)
    t.do("fchown", os.fchown, fd, 9, 10)
    t.stat("fstat", fd)
    os.close(fd)
    t.do("nothing", os.chown, b"no", 1, 1)


@CASES.add
def chown_of_a_sticky_set_id_file(t: Trace) -> None:
    write(b"file")
    os.chmod(b"file", 0o7777)
    t.do("chown", os.chown, b"file", 1, 1)


@CASES.add
def appending_through_hard_links(t: Trace) -> None:
    write(b"a", b"start")
    os.link(b"a", b"b")
    t.note("sizes are known", [os.stat(b"a").st_size > 0, os.stat(b"b").st_size > 0])
    for number in range(10):
        for name in (b"a", b"b"):
            with open(name, "ab") as file:
                file.write(b"%s %d\n" % (name, number))
    for name in (b"a", b"b"):
        with open(name, "rb") as file:
            t.note("content", file.read())
    os.unlink(b"a")
    os.unlink(b"b")


@CASES.add
def writing_clears_set_id_bits_for_root_not(t: Trace) -> None:
    write(b"f", b"content")
    os.chmod(b"f", 0o6755)
    fd = t.open("open", b"f", os.O_RDWR)
    t.do("write", os.pwrite, fd, b"x", 0)
    t.stat("after write", fd)
    t.do("ftruncate", os.ftruncate, fd, 2)
    t.stat("after truncate", fd)
    os.close(fd)


@CASES.add
def setgid_directories_pass_their_group_on(t: Trace) -> None:
    os.mkdir(b"shared")
    os.chown(b"shared", -1, 1234)
    os.chmod(b"shared", 0o2775)
    write(b"shared/file")
    os.mkdir(b"shared/dir")
    os.mkfifo(b"shared/fifo")
    os.symlink(b"x", b"shared/link")
    os.mkdir(b"shared/dir/deeper")
    write(b"shared/dir/deeper/file")
    write(b"outside")
    t.do("moved in", os.rename, b"outside", b"shared/inside")


@CASES.add
def access_says_what_open_would(t: Trace) -> None:
    write(b"file")
    os.mkdir(b"dir")
    for mode in (0o000, 0o100, 0o200, 0o400, 0o644, 0o755):
        os.chmod(b"file", mode)
        for want in (os.F_OK, os.R_OK, os.W_OK, os.X_OK, os.R_OK | os.W_OK | os.X_OK):
            t.do(f"{mode:o} {want}", os.access, b"file", want)
            t.do(f"dir {want}", os.access, b"dir", want)
            t.do(f"none {want}", os.access, b"none", want)


@CASES.add
def removal(t: Trace) -> None:
    write(b"file")
    os.makedirs(b"full/child")
    os.mkdir(b"empty")
    os.symlink(b"empty", b"link")
    for name in (
        b"file",
        b"full",
        b"empty",
        b"link",
        b"none",
        b".",
        b"full/.",
        b"full/..",
        b"file/x",
        b"empty/",
    ):
        t.do(f"unlink {name!r}", os.unlink, name)
        t.do(f"rmdir {name!r}", os.rmdir, name)
    for name in (b"file", b"empty", b"mkdir again", b"full"):
        t.do(f"mkdir {name!r}", os.mkdir, name)
    t.do("mkdir in nothing", os.mkdir, b"none/x")
    t.do("mkdir with a slash", os.mkdir, b"slash/")
    t.do("mkdir dot", os.mkdir, b".")


@CASES.add
def nlink_of_directories(t: Trace) -> None:
    os.mkdir(b"top")
    t.stat("empty", b"top")
    for number in range(5):
        os.mkdir(b"top/%d" % number)
    write(b"top/file")
    t.stat("five subdirectories", b"top")
    os.rmdir(b"top/0")
    os.rename(b"top/1", b"moved")
    t.stat("three", b"top")


@CASES.add
def a_directory_without_a_name(t: Trace) -> None:
    os.mkdir(b"d")
    fd = t.open("open", b"d", os.O_RDONLY | os.O_DIRECTORY)
    t.do("rmdir", os.rmdir, b"d")
    t.do("list", os.listdir, fd)
    t.do("create", os.mkdir, "x", dir_fd=fd)
    os.close(fd)


@CASES.add
def statfs_says_255(t: Trace) -> None:
    found = os.statvfs(b".")
    t.note("namemax", found.f_namemax)
    t.note("room", found.f_bavail > 0 and found.f_blocks > 0)
    t.note("pathconf", os.pathconf(b".", "PC_NAME_MAX"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_nodes(case: Case, pair: Pair) -> None:
    pair.check(case)
