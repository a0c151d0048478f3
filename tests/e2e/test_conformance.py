"""What a conformance suite asks beyond the rest: read-only mounts, full disks, sticky directories."""

from __future__ import annotations

import itertools
import os
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.conftest import ENGINES, Pair, require_fuse
from tests.e2e.mounting import Mounted, MountSpec, mounted, scratch_directory
from tests.e2e.posix import ALL_CALLS, MAKING, PathCall, bind, rename_exchange, rename_noreplace, write
from tests.e2e.test_native_errnos import PATHS, make_scene
from tests.e2e.trace import Cases, Record, Trace, first_difference
from tests.e2e.users import MEMBER, OTHER, OWNER, ROOT, User, as_user, do_as

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to act as several users, and to mount")

CASES = Cases()
SECONDS = 10.0


@contextmanager
def working_in(directory: Path) -> Iterator[None]:
    """The current directory meanwhile; umask as usual."""
    before, umask = Path.cwd(), os.umask(0o022)
    os.chdir(directory)
    try:
        yield
    finally:
        os.chdir(before)
        os.umask(umask)


# ---- read-only mounts


def calls_on_every_path(directory: Path) -> list[Record]:
    """Each call on each path, by several users; nothing changes there."""
    t = Trace()
    with working_in(directory):
        t.tree("before")
        for user in (ROOT, OWNER, OTHER):

            def work(trace: Trace, user: User = user) -> None:
                for (name, call), (where, path) in itertools.product(ALL_CALLS.items(), PATHS.items()):
                    trace.do(f"{name} of {where} by {user.name}", call, path)

            as_user(t, user, work)
        t.tree("after")
    return t.records


def make_everything(top: Path) -> None:
    """What the calls find."""
    top.chmod(0o755)
    (top / "scene").mkdir()  # not the root itself, whose ACL the kernel asks for at every step of others
    with working_in(top / "scene"):
        make_scene()


@contextmanager
def plain_read_only(place: Path) -> Iterator[Path]:
    """A filesystem that is read-only as a whole: binding a directory read-only is checked later in a call."""
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", place], check=True)
    try:
        make_everything(place)
        subprocess.run(["mount", "-o", "remount,ro,nosuid,nodev", place], check=True)
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_read_only_mount_refuses_as_others_do(engine: str) -> None:
    spec = MountSpec(engine, options="allow_other")
    require_fuse(spec)
    with mounted(spec) as mount:
        make_everything(mount.mountpoint)
        mount.unmount()
        mount.spec = MountSpec(engine, options="allow_other,ro")
        mount.start()
        with plain_read_only(mount.scratch / "plain") as plain:
            expected = calls_on_every_path(plain / "scene")
            seen = calls_on_every_path(mount.mountpoint / "scene")
        assert sum(result == "EROFS" for _, result in expected) > 300
        assert not first_difference(seen, expected)


# ---- full disks


@pytest.fixture(params=ENGINES)
def full_mount(request: pytest.FixtureRequest) -> Iterator[Mounted]:
    """A mount whose vault is on a small disk, full but for what a test frees."""
    spec = MountSpec(request.param)
    require_fuse(spec)
    mount = Mounted(spec, scratch_directory(tmpfs=True))
    mount.vault_dir.mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m,nr_inodes=200", "none", mount.vault_dir], check=True
    )
    try:
        mount.create()
        mount.start()
        yield mount
        mount.unmount()
    finally:
        if mount.mountpoint.exists():
            mount.unmount()
        subprocess.run(["umount", mount.vault_dir], check=True)
        mount.abandon()


def fill_inodes(top: Path) -> int:
    """Make empty files until there is no inode left; how many."""
    for number in itertools.count():
        try:
            os.mknod(top / f"filler {number}")
        except OSError as error:
            assert error.errno == 28
            return number
    raise AssertionError


def wait_for_inodes(top: Path, wanted: int) -> None:
    """Return when that many are free."""
    deadline = time.monotonic() + SECONDS
    while os.statvfs(top).f_ffree < wanted:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_no_inodes_left(full_mount: Mounted) -> None:
    top = full_mount.mountpoint
    (top / "source").write_bytes(b"content")
    (top / "directory").mkdir()
    assert fill_inodes(top) > 100
    t = Trace()
    with working_in(top):
        for name, call in MAKING.items():
            t.do(name, call, b"directory/new")
            if call is not bind:  # an address has room for 108 bytes
                t.do(name, call, b"directory/" + b"n" * 255)
        t.tree("nothing was made", b"directory")
    assert [result for label, result in t.records[:-1]] == ["ENOSPC"] * (2 * len(MAKING) - 1)
    assert t.records[-1][1] == []
    os.rename(top / "source", top / "directory" / "renamed")
    assert (top / "directory" / "renamed").read_bytes() == b"content"
    for number in range(10):
        os.unlink(top / f"filler {number}")
    wait_for_inodes(top, 8)  # those that are gone are held until the kernel has forgotten them
    os.mkfifo(top / "one fits now")
    full_mount.assert_quiet()
    full_mount.remount()
    assert os.listdir(top / "directory") == ["renamed"]
    assert stat.S_ISFIFO((top / "one fits now").lstat().st_mode)


def test_no_room_left(full_mount: Mounted) -> None:
    top = full_mount.mountpoint
    kept = os.urandom(1 << 20)
    (top / "kept").write_bytes(kept)
    block = os.urandom(64 << 10)
    fd = os.open(top / "big", os.O_RDWR | os.O_CREAT | os.O_DSYNC)
    written = 0
    with pytest.raises(OSError, match="No space left"):
        while True:
            written += os.pwrite(fd, block, written)
    assert written > 4 << 20
    assert (top / "kept").read_bytes() == kept
    for offset in range(0, written, len(block)):
        assert os.pread(fd, len(block), offset) == block
    os.ftruncate(fd, len(block))
    os.fsync(fd)
    os.pwrite(fd, block, len(block))
    os.fsync(fd)
    os.close(fd)
    full_mount.remount()
    assert (top / "big").read_bytes() == 2 * block
    assert (top / "kept").read_bytes() == kept


# ---- sticky directories


MAKERS: dict[str, Callable[[bytes], object]] = {
    "file": write,
    "directory": os.mkdir,
    "fifo": os.mkfifo,
    "link": lambda path: os.symlink(b"nowhere", path),
    "socket": bind,
}
MOVES: dict[str, Callable[[bytes, bytes], object]] = {
    "rename": os.rename, "noreplace": rename_noreplace, "exchange": rename_exchange,
}  # fmt: skip


def remove(path: bytes) -> None:
    if os.path.lexists(path):
        (os.rmdir if stat.S_ISDIR(os.lstat(path).st_mode) else os.unlink)(path)


@CASES.add
def moves_between_sticky_directories(t: Trace) -> None:
    # Who may take a name away in a sticky directory: the owner of the entry, of the directory, and root.
    os.chmod(b".", 0o777)
    os.mkdir(b"from")
    os.mkdir(b"to")
    owners = (OWNER, OTHER)
    for kind, make in MAKERS.items():
        for from_owner, to_owner, entry_owner in itertools.product(owners, (OWNER, MEMBER), owners):
            for top, owner in ((b"from", from_owner), (b"to", to_owner)):
                os.chown(top, owner.uid, owner.gid)
                os.chmod(top, 0o1777)
            for replaced_owner, (name, move) in itertools.product((None, *owners), MOVES.items()):
                for user in (OWNER, MEMBER):
                    make(b"from/x")
                    os.chown(b"from/x", entry_owner.uid, entry_owner.gid, follow_symlinks=False)
                    if replaced_owner is not None:
                        make(b"to/y")
                        os.chown(b"to/y", replaced_owner.uid, replaced_owner.gid, follow_symlinks=False)

                    do_as(t, user, f"{name} of a {kind}", move, b"from/x", b"to/y")
                    t.note("left", [os.path.lexists(path) for path in (b"from/x", b"to/y")])
                    remove(b"from/x")
                    remove(b"to/y")


@CASES.add
def removals_in_sticky_directories(t: Trace) -> None:
    os.chmod(b".", 0o777)
    os.mkdir(b"top")
    for (kind, make), top_owner, owner in itertools.product(
        MAKERS.items(), (OWNER, OTHER), (OWNER, OTHER, ROOT)
    ):
        os.chown(b"top", top_owner.uid, top_owner.gid)
        os.chmod(b"top", 0o1777)
        calls: tuple[PathCall, ...] = (os.unlink, os.rmdir)
        for user, call in itertools.product((OWNER, MEMBER, OTHER), calls):
            make(b"top/x")
            os.chown(b"top/x", owner.uid, owner.gid, follow_symlinks=False)
            do_as(t, user, kind, call, b"top/x")
            remove(b"top/x")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_sticky(case: Callable[[Trace], None], users_pair: Pair) -> None:
    users_pair.check(case)


def test_a_vault_on_a_full_disk_can_be_unmounted_and_mounted(full_mount: Mounted) -> None:
    full_mount.allow_log("the session could not be ended: No space left", "did not end with an unmount")
    top = full_mount.mountpoint
    (top / "kept").write_bytes(b"content")
    assert fill_inodes(top) > 100
    full_mount.remount()
    assert (top / "kept").read_bytes() == b"content"
    os.unlink(top / "filler 0")
    full_mount.remount()
    assert not (top / "filler 0").exists()
