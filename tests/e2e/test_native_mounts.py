"""Mounts of the native engine: read-only, remounted, with options for the kernel, by an ordinary user."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from cryptfs.errors import MountError
from cryptfs.mount.native.device import open_mount
from cryptfs.mount.options import MountOptions
from tests.e2e.conftest import ENGINES, require_fuse
from tests.e2e.mounting import Mounted, MountSpec, is_mounted, mounted, scratch_directory
from tests.e2e.posix import ALL_CALLS, open_with, write
from tests.e2e.test_users import as_user as in_child
from tests.e2e.trace import Trace, first_difference, run_case
from tests.e2e.users import OTHER, OWNER, do_as, moved, stamp
from tests.support import everything_below

pytestmark = [
    pytest.mark.serial,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount with all options"),
]
SPEC = MountSpec("native", tmpfs=False)
USER = (65_534, 65_534)  # fusermount3 wants a line in /etc/passwd


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A directory that others may enter."""
    directory = scratch_directory(tmpfs=True)
    yield directory
    shutil.rmtree(directory)


@contextmanager
def mounted_with(options: str, **changes: int | str) -> Iterator[Mounted]:
    spec = replace(SPEC, options=options, **changes)  # type: ignore[arg-type]
    require_fuse(spec)
    with mounted(spec) as mount:
        yield mount


def mount_line(mountpoint: Path) -> tuple[set[str], str, str]:
    """(flags, type, source) in mountinfo."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        if before.split()[4] == str(mountpoint):
            kind, source, _ = after.split(" ", 2)
            return set(before.split()[5].split(",")), kind, source
    raise AssertionError(f"{mountpoint} is not mounted")


def fill(top: Path) -> None:
    """What the read-only cases look at."""
    (top / "file").write_bytes(b"content")
    (top / "source").write_bytes(b"source")
    (top / "source-directory").mkdir()
    (top / "directory").mkdir()
    (top / "directory" / "inner").write_bytes(b"inner")
    (top / "link").symlink_to("file")
    os.setxattr(top / "file", "user.name", b"value")
    (top / "file").chmod(0o666)
    top.chmod(0o777)


def everything_on_a_read_only_mount(t: Trace) -> None:
    for name, call in ALL_CALLS.items():
        for path in (b"file", b"directory", b"link", b"missing", b"missing/x", b"file/x", b"directory/inner"):
            before = os.lstat(b"file"), os.lstat(b".")
            t.do(f"{name} {path!r}", call, path)
            after = os.lstat(b"file"), os.lstat(b".")
            t.note("times stay", [(a.st_mtime_ns, a.st_ctime_ns) for a in before] == [
                (a.st_mtime_ns, a.st_ctime_ns) for a in after
            ])  # fmt: skip
            do_as(t, OTHER, f"{name} {path!r} by another", call, path)
    fd = t.open("open", b"file", os.O_RDONLY)
    t.do("read", os.read, fd, 100)
    t.do("fchmod", os.fchmod, fd, 0o600)
    t.do("fchown", os.fchown, fd, 1, 1)
    t.do("futimens", os.utime, fd, ns=(1, 1))
    t.do("fsetxattr", os.setxattr, fd, "user.x", b"y")
    t.do("fsync", os.fsync, fd)
    os.close(fd)
    t.note("statvfs", bool(os.statvfs(b".").f_flag & os.ST_RDONLY))


def test_read_only_mounts_say_erofs_where_others_do() -> None:
    with mounted_with("allow_other") as mount:
        fill(mount.mountpoint)
        mount.unmount()
        mount.spec = replace(mount.spec, options="ro,allow_other")
        mount.start()
        plain = (
            mount.scratch / "plain"
        )  # a filesystem of its own: the bind mount of one is not read-only itself
        plain.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "nosuid,nodev", "tmpfs", plain], check=True)
        try:
            fill(plain)
            subprocess.run(["mount", "-o", "remount,ro", plain], check=True)
            expected = run_case(everything_on_a_read_only_mount, plain)
        finally:
            subprocess.run(["umount", plain], check=True)
        seen = run_case(everything_on_a_read_only_mount, mount.mountpoint)
        assert not first_difference(seen, expected)
        assert "ro" in mount_line(mount.mountpoint)[0]
        mount.assert_quiet()


def vault_bytes(vault_dir: Path) -> dict[str, tuple[int, bytes]]:
    files = [
        path for path in sorted(everything_below(vault_dir)) if path.is_file() and path.name != "cryptfs.lock"
    ]
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def test_a_read_only_mount_leaves_the_vault_as_it_is() -> None:
    with mounted_with("") as mount:
        fill(mount.mountpoint)
        mount.unmount()
        before = vault_bytes(mount.vault_dir)
        mount.spec = replace(mount.spec, options="ro")
        mount.start()
        assert (mount.mountpoint / "file").read_bytes() == b"content"
        assert sorted(os.listdir(mount.mountpoint)) == [
            "directory",
            "file",
            "link",
            "source",
            "source-directory",
        ]
        with pytest.raises(OSError, match="Read-only"):
            (mount.mountpoint / "new").touch()
        mount.unmount()
        assert vault_bytes(mount.vault_dir) == before


def test_remounting_read_only_and_back() -> None:
    with mounted_with("") as mount:
        file = mount.mountpoint / "file"
        file.write_bytes(b"dirty pages" * 10_000)
        with file.open("r+b") as opened:
            busy = subprocess.run(
                ["mount", "-i", "-o", "remount,ro", mount.mountpoint], capture_output=True, check=False
            )
            assert busy.returncode != 0  # as everywhere while a file is open for writing
            opened.write(b"still writable")
        subprocess.run(["mount", "-i", "-o", "remount,ro", mount.mountpoint], check=True)
        assert "ro" in mount_line(mount.mountpoint)[0]
        for change in (file.unlink, file.touch, lambda: file.write_bytes(b"x"), lambda: file.chmod(0)):
            with pytest.raises(OSError, match="Read-only"):
                change()
        assert file.read_bytes()[:14] == b"still writable"
        subprocess.run(["mount", "-i", "-o", "remount,rw", mount.mountpoint], check=True)
        file.write_bytes(b"written after it")
        mount.remount()
        assert file.read_bytes() == b"written after it"


def test_nosuid_and_nodev_are_the_defaults() -> None:
    with mounted_with("allow_other") as mount:
        flags, kind, source = mount_line(mount.mountpoint)
        assert {"nosuid", "nodev", "rw"} <= flags
        assert (kind, source) == ("fuse.cryptfs", str(mount.vault_dir))
        assert set_id_program(mount.mountpoint) == OTHER.uid
        with pytest.raises(PermissionError):
            open_device(mount.mountpoint)


def test_root_may_have_suid_and_dev() -> None:
    with mounted_with("allow_other,suid,dev") as mount:
        assert not {"nosuid", "nodev"} & mount_line(mount.mountpoint)[0]
        assert set_id_program(mount.mountpoint) == 0
        open_device(mount.mountpoint)


def test_noexec() -> None:
    with mounted_with("noexec") as mount:
        program = mount.mountpoint / "program"
        shutil.copy("/bin/true", program)
        with pytest.raises(PermissionError):
            subprocess.run([program], check=True)


def set_id_program(top: Path) -> int:
    """The effective uid of a set-id program of root's, run by another."""
    program = top / "program"
    shutil.copy("/usr/bin/id", program)
    program.chmod(0o4755)
    top.chmod(0o755)
    done = subprocess.run([program, "-u"], user=OTHER.uid, capture_output=True, text=True, check=True)
    return int(done.stdout)


def open_device(top: Path) -> None:
    """Write to a null device."""
    os.mknod(top / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    with (top / "null").open("wb") as device:
        device.write(b"gone")


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("options", "expected"), [("noatime", ""), ("", "a")])
def test_noatime(engine: str, options: str, expected: str) -> None:
    with mounted_with(options, engine=engine) as mount:
        assert ("noatime" in mount_line(mount.mountpoint)[0]) == bool(options)
        file, directory = os.fsencode(mount.mountpoint / "file"), os.fsencode(mount.mountpoint / "directory")
        write(file, b"content")
        os.mkdir(directory)
        mount.remount()  # so that nothing is in the kernel's cache
        before = {path: stamp(path) for path in (file, directory)}
        assert Path(os.fsdecode(file)).read_bytes() == b"content"
        assert os.listdir(directory) == []
        assert {path: moved(path, then) for path, then in before.items()} == dict.fromkeys(before, expected)


@pytest.mark.usefixtures("fuse_for_everybody")
def test_a_mount_of_an_ordinary_user_is_theirs_alone() -> None:
    with mounted_with("", uid=USER[0], gid=USER[1]) as mount:
        flags, kind, source = mount_line(mount.mountpoint)
        assert {"nosuid", "nodev"} <= flags
        assert (kind, source) == ("fuse.cryptfs", str(mount.vault_dir))
        with pytest.raises(PermissionError):
            os.listdir(mount.mountpoint)  # root as well

        def by_the_owner() -> tuple[bytes, int, int, list[str]]:
            top = mount.mountpoint
            (top / "file").write_bytes(b"mine")
            (top / "directory").mkdir(0o700)
            found = (top / "file").stat()
            with pytest.raises(PermissionError):
                os.chown(top / "file", 0, 0)
            with pytest.raises(PermissionError):
                os.mknod(top / "device", stat.S_IFCHR | 0o600, os.makedev(1, 3))
            os.setxattr(top / "file", "user.name", b"value")
            with pytest.raises(OSError):
                os.setxattr(top / "file", "system.posix_acl_access", b"x")
            (top / "file").chmod(0o400)
            with pytest.raises(PermissionError):
                open_with(os.O_WRONLY)(os.fsencode(top / "file"))
            return (top / "file").read_bytes(), found.st_uid, found.st_gid, sorted(os.listdir(top))

        assert in_child(USER, by_the_owner) == (b"mine", *USER, ["directory", "file"])
        with pytest.raises(AssertionError, match="PermissionError"):
            in_child((OWNER.uid + 7, OWNER.gid + 7), lambda: os.listdir(mount.mountpoint))


@pytest.mark.usefixtures("fuse_for_everybody")
def test_an_ordinary_user_unmounts_alone() -> None:
    with mounted_with("", uid=USER[0], gid=USER[1]) as mount:
        command = ["fusermount3", "-u", str(mount.mountpoint)]
        in_child(USER, lambda: subprocess.run(command, check=True).returncode)
        assert not is_mounted(mount.mountpoint)


def message_of(mountpoint: Path, options: MountOptions, user: tuple[int, int] | None = None) -> str:
    """What MountError says when it should not be possible to mount."""

    def attempt() -> str:
        try:
            os.close(open_mount("source", mountpoint, options))
        except MountError as error:
            return str(error)
        return "mounted"

    said: str = attempt() if user is None else in_child(user, attempt)
    return said


@pytest.fixture
def only_root_shares(scratch: Path) -> Iterator[None]:
    """An /etc/fuse.conf without user_allow_other, whatever other tests have put there."""
    ours = scratch / "fuse.conf"
    ours.touch()
    subprocess.run(["mount", "--bind", str(ours), "/etc/fuse.conf"], check=True)
    yield
    subprocess.run(["umount", "/etc/fuse.conf"], check=True)


@pytest.mark.usefixtures("fuse_for_everybody", "only_root_shares")
def test_what_cannot_be_mounted_is_said(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = MountOptions(engine="native")
    point, file = scratch / "point", scratch / "file"
    point.mkdir()
    file.touch()
    missing = scratch / "missing"
    for user in (None, USER):
        assert str(missing) in message_of(missing, options, user)
        assert str(file) in message_of(file, options, user)
    assert "mounted" not in message_of(point, options, USER)  # it is not theirs
    os.chown(point, *USER)
    shared = MountOptions(engine="native", allow_other=True)
    assert "user_allow_other" in message_of(point, shared, USER)
    monkeypatch.setenv("PATH", str(scratch))
    said = message_of(point, options, USER)
    assert "fusermount3" in said
    assert "apt-get install fuse3" in said
    assert not is_mounted(point)
    assert not is_mounted(file)
