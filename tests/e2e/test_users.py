"""Several users on one mount, and a daemon that runs as an ordinary user."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import ENGINES, Pair, require_fuse
from tests.e2e.mounting import MountSpec, mounted
from tests.e2e.trace import Cases, Record, Trace, first_difference, run_case

pytestmark = [
    pytest.mark.waits,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root to act as several users"),
]

NOBODY = (65_534, 65_534)
OTHER = (12_345, 23_456)
CASES = Cases()


def as_user(ids: tuple[int, int], action: Callable[[], Any]) -> Any:
    """Run an action in a child process with these ids and no other groups; its result, or its exception."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reader)
            os.setgroups([])
            os.setresgid(ids[1], ids[1], ids[1])
            os.setresuid(ids[0], ids[0], ids[0])
            try:
                answer = pickle.dumps((True, action()))
            except BaseException as error:  # noqa: BLE001 - goes to the parent as it is
                answer = pickle.dumps((False, repr(error)))
            with os.fdopen(writer, "wb") as pipe:
                pipe.write(answer)
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        raw = pipe.read()
    os.waitpid(child, 0)
    good, result = pickle.loads(raw)
    assert good, result
    return result


def records_of(ids: tuple[int, int], action: Callable[[Trace], None]) -> list[Record]:
    """What a case's part saw as another user."""

    def part() -> list[Record]:
        trace = Trace()
        action(trace)
        return trace.records

    records: list[Record] = as_user(ids, part)
    return records


def act(t: Trace, ids: tuple[int, int], action: Callable[[Trace], None]) -> None:
    t.records += records_of(ids, action)


def create_all(t: Trace) -> None:
    """One entry of each kind, as the present user."""
    fd = t.open("create", b"file", os.O_CREAT | os.O_RDWR, 0o666)
    if fd >= 0:
        t.do("write", os.write, fd, b"mine")
        os.close(fd)
    t.do("mkdir", os.mkdir, b"dir")
    t.do("symlink", os.symlink, b"file", b"link")
    t.do("fifo", os.mkfifo, b"fifo")
    t.do("mknod", os.mknod, b"node", 0o100600)
    t.do("device", os.mknod, b"device", 0o020600, os.makedev(1, 3))
    t.do("long", os.mkdir, b"l" * 255)
    for name in (b"file", b"dir", b"link", b"fifo", b"node", b"l" * 255):
        t.stat("owner", name)


@CASES.add
def new_entries_belong_to_the_caller(t: Trace) -> None:
    os.chmod(b".", 0o777)
    act(t, NOBODY, create_all)
    os.mkdir(b"setgid")
    os.chown(b"setgid", 0, 777)
    os.chmod(b"setgid", 0o2777)

    def inside(inner: Trace) -> None:
        os.chdir(b"setgid")
        create_all(inner)

    act(t, OTHER, inside)


@CASES.add
def rights_are_checked(t: Trace) -> None:
    os.chmod(b".", 0o755)
    for name, mode in ((b"private", 0o600), (b"readable", 0o644), (b"writable", 0o666), (b"none", 0o000)):
        Path(os.fsdecode(name)).write_bytes(b"content")
        os.chmod(name, mode)
    os.mkdir(b"closed", 0o700)
    Path("closed/file").write_bytes(b"x")
    os.mkdir(b"searchable")
    os.chmod(b"searchable", 0o711)
    Path("searchable/file").write_bytes(b"x")

    def try_all(inner: Trace) -> None:
        for name in (b"private", b"readable", b"writable", b"none", b"closed/file", b"searchable/file"):
            for flags in (
                os.O_RDONLY,
                os.O_WRONLY,
                os.O_RDWR,
                os.O_WRONLY | os.O_TRUNC,
                os.O_RDONLY | os.O_TRUNC,
            ):
                fd = inner.open(f"open {name!r} {flags}", name, flags)
                if fd >= 0:
                    os.close(fd)
            inner.do("stat", lambda name=name: os.stat(name).st_size)
            inner.do("access", os.access, name, os.R_OK | os.W_OK)
            inner.do("chmod", os.chmod, name, 0o777)
            inner.do("chown", os.chown, name, *NOBODY)
            inner.do("utime now", os.utime, name)
            inner.do("utime", os.utime, name, (1, 2))
            inner.do("truncate", os.truncate, name, 1)
            inner.do("link", os.link, name, name + b"2")
            inner.do("rename", os.rename, name, name + b"3")
            inner.do("unlink", os.unlink, name)
        inner.do("list closed", os.listdir, b"closed")
        inner.do("list searchable", os.listdir, b"searchable")
        inner.do("mkdir", os.mkdir, b"new")
        inner.do("rmdir", os.rmdir, b"searchable")

    act(t, NOBODY, try_all)


@CASES.add
def sticky_directories(t: Trace) -> None:
    os.chmod(b".", 0o777)
    os.mkdir(b"tmp")
    os.chmod(b"tmp", 0o1777)

    def fill(inner: Trace) -> None:
        for name in (b"tmp/mine", b"tmp/open"):
            fd = inner.open("create", name, os.O_CREAT | os.O_WRONLY, 0o666)
            os.close(fd)
        os.chmod(b"tmp/open", 0o666)

    def disturb(inner: Trace) -> None:
        inner.do("unlink another's", os.unlink, b"tmp/mine")
        inner.do("rename another's", os.rename, b"tmp/mine", b"tmp/yours")
        os.mkdir(b"tmp/own")
        inner.do("over another's", os.rename, b"tmp/own", b"tmp/mine")
        inner.do("own goes", os.rmdir, b"tmp/own")
        inner.do("write another's open file", Path("tmp/open").write_bytes, b"x")

    act(t, NOBODY, fill)
    act(t, OTHER, disturb)
    act(t, NOBODY, lambda inner: inner.do("owner may", os.unlink, b"tmp/mine"))


@CASES.add
def set_id_bits_and_ordinary_users(t: Trace) -> None:
    os.chmod(b".", 0o777)

    def own(inner: Trace) -> None:
        Path("f").write_bytes(b"content")
        for mode in (0o4755, 0o2755, 0o6755, 0o1644, 0o644):
            inner.do("chmod", os.chmod, "f", mode)
            inner.stat("mode", "f")
            fd = os.open("f", os.O_RDWR)
            inner.do("write", os.pwrite, fd, b"x", 0)
            inner.stat("a write clears them", fd)
            os.chmod("f", mode)
            inner.do("ftruncate", os.ftruncate, fd, 3)
            inner.stat("so does a truncate", fd)
            os.close(fd)
        inner.do("to a group of others", os.chown, "f", -1, 0)
        inner.do("to another user", os.chown, "f", 1, -1)
        inner.do("to oneself", os.chown, "f", *NOBODY)

    act(t, NOBODY, own)
    os.chown("f", NOBODY[0], 4242)
    act(t, NOBODY, lambda inner: inner.do("setgid of a foreign group", os.chmod, "f", 0o2755))
    t.stat("is dropped", "f")


@CASES.add
def unlinked_and_read_only_files_of_users(t: Trace) -> None:
    os.chmod(b".", 0o777)

    def own(inner: Trace) -> None:
        fd = inner.open("created without rights", b"f", os.O_CREAT | os.O_RDWR, 0o000)
        inner.do("write", os.pwrite, fd, b"content", 20_000)
        inner.do("read", os.pread, fd, 100, 19_990)
        inner.do("open again", os.open, b"f", os.O_RDONLY)
        os.unlink(b"f")
        inner.do("write", os.pwrite, fd, b"more", 0)
        os.close(fd)
        fd = inner.open("read only", b"g", os.O_CREAT | os.O_WRONLY, 0o444)
        inner.do("write", os.write, fd, b"content")
        os.close(fd)
        inner.do("open for writing", os.open, b"g", os.O_WRONLY)

    act(t, OTHER, own)


SPECS = [MountSpec(engine, options="allow_other") for engine in ENGINES]


@pytest.fixture(scope="module", params=SPECS, ids=str)
def shared_pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    """A mount that all users may enter, beside a plain directory."""
    require_fuse(request.param)
    with mounted(request.param) as mount:
        mount.mountpoint.chmod(0o755)
        yield Pair(mount)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_users(case: Callable[[Trace], None], shared_pair: Pair) -> None:
    shared_pair.check(case)


def test_a_private_mount_keeps_others_out() -> None:
    spec = MountSpec(ENGINES[0])
    require_fuse(spec)
    with mounted(spec) as mount:
        (mount.mountpoint / "file").write_bytes(b"secret")

        def look(t: Trace) -> None:
            t.do("list", os.listdir, mount.mountpoint)
            t.do("read", os.open, mount.mountpoint / "file", os.O_RDONLY)

        assert [result for _, result in records_of(NOBODY, look)] == ["EACCES", "EACCES"]


def basics_of_an_ordinary_user(t: Trace) -> None:
    create_all(t)
    t.do("chmod", os.chmod, b"file", 0o400)
    t.open("open for writing", b"file", os.O_WRONLY)
    t.do("chown", os.chown, b"file", 0, 0)
    t.do("mknod of a device", os.mknod, b"null", 0o020666, os.makedev(1, 3))
    os.mkdir(b"locked", 0o000)
    t.do("list", os.listdir, b"locked")
    t.do("rmdir", os.rmdir, b"locked")
    fd = t.open("no right to read", b"w", os.O_CREAT | os.O_WRONLY, 0o200)
    t.do("partial write", os.pwrite, fd, b"x", 100)
    os.close(fd)
    fd = t.open("again", b"w", os.O_WRONLY)
    t.do("partial write", os.pwrite, fd, b"y", 50_000)
    t.do("partial write", os.pwrite, fd, b"y", 20)
    os.close(fd)
    t.do("setxattr", os.setxattr, "dir", "user.x", b"value")
    t.do("getxattr", os.getxattr, "dir", "user.x")
    os.chmod(b"w", 0o600)
    os.chmod(b"file", 0o600)


@pytest.mark.usefixtures("fuse_for_everybody")
@pytest.mark.parametrize("engine", ENGINES)
def test_daemon_of_an_ordinary_user(engine: str) -> None:
    if shutil.which("fusermount3") is None:
        pytest.skip("fusermount3 is not installed: apt-get install fuse3")
    spec = MountSpec(engine, uid=NOBODY[0], gid=NOBODY[1])
    require_fuse(spec)
    with mounted(spec) as mount:
        plain = mount.scratch / "plain"
        plain.mkdir()
        os.chown(plain, *NOBODY)

        def on(directory: Path) -> list[Record]:
            (directory / "work").mkdir()
            return run_case(basics_of_an_ordinary_user, directory / "work")

        expected = as_user(NOBODY, lambda: on(plain))
        assert not first_difference(as_user(NOBODY, lambda: on(mount.mountpoint)), expected)
        mount.remount()
        assert as_user(NOBODY, lambda: sorted(os.listdir(mount.mountpoint / "work"))) == sorted(
            os.listdir(plain / "work")
        )
