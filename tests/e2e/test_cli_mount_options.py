"""Each option of `mount` and of `mount -o`, by what it changes on a real mount, on both engines."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import subprocess
import time
from pathlib import Path

import pytest

from cryptfs.mount.latency import would_help
from cryptfs.mount.mounts import mount_at, wait_until
from tests.e2e.desk import Desk
from tests.e2e.deskmounts import ENDS, Mounts
from tests.support import state_files

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.skipif(not Path("/dev/fuse").exists(), reason="needs /dev/fuse"),
]

KEPT = 1.3  # seconds after which a name or an attribute is fresh by default
UNUSUAL = (
    *("--no-xattrs", "--no-writeback", "--attr-timeout", "3600", "--entry-timeout", "3600"),
    *("--max-threads", "1", "--durability", "off", "--no-fast-wake", "--default-permissions"),
    *("--log-size", "2k", "--fsname", "a name, of its own"),
)
AS_DEFAULT = (
    *("--xattrs", "--writeback", "--no-exclusive", "--fast-wake", "--no-default-permissions"),
    *("--durability", "power", "--log-size", "0"),
)


# ---- what an option changes; each check works for both values of its option


def check_xattrs(mounts: Mounts, wanted: bool) -> None:
    try:
        os.setxattr(mounts.point / "a" / "one.txt", "user.note", b"text")
    except OSError as error:
        assert (error.errno, wanted) == (errno.ENOTSUP, False)
    else:
        assert wanted


def check_writeback(mounts: Mounts, wanted: bool) -> None:
    """Whether the kernel collects a hundred writes of a byte; by libfuse, only with --exclusive."""
    descriptor = os.open(mounts.point / "small writes", os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        for number in range(100):
            os.pwrite(descriptor, b"x", number)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    writes = mounts.status()["operations"]
    count = next(number for name, number in writes.items() if name.lower() == "write")
    assert (count < 50) is wanted


def check_keeps(mounts: Mounts, attributes: bool, names: bool) -> None:
    """Whether the kernel still knows what has changed in the vault meanwhile."""
    file, backing = mounts.point / "a" / "one.txt", mounts.backing("a/one.txt")
    deep, directory = mounts.point / "a" / "b" / "c" / "deep", mounts.backing("a/b/c/deep")
    mode = file.stat().st_mode
    deep.stat()
    backing.chmod(mode ^ 0o111)
    directory.unlink()
    time.sleep(KEPT)
    assert (file.stat().st_mode == mode) is attributes
    assert deep.exists() is names
    backing.chmod(mode & 0o777)


def check_threads(mounts: Mounts, most: int | None) -> None:
    """The native engine has one thread for each request at once; libfuse makes them when it needs them."""
    count = len(os.listdir(f"/proc/{mounts.status()['pid']}/task"))
    mounts.desk.file(f"threads {most}", str(count))
    if most is not None:
        assert count < 16


def check_journal(mounts: Mounts, wanted: bool) -> None:
    """Whether an overwrite goes through the journal."""
    with (mounts.point / "a" / "b" / "large.TXT").open("r+b") as file:
        file.seek(5)
        file.write(b"changed")
        file.flush()
        os.fsync(file.fileno())
        assert bool(state_files(mounts.desk.vault, "journal")) is wanted


def check_wake(mounts: Mounts, wanted: bool) -> None:
    """A burst of requests: whether the daemon keeps processors awake. The native engine does, if it can."""
    pid = mounts.status()["pid"]
    until, seen = time.monotonic() + 0.8, False
    while time.monotonic() < until and not seen:
        for number in range(200):
            with contextlib.suppress(FileNotFoundError):
                os.stat(mounts.point / f"missing {number}")
        for each in os.scandir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                seen = seen or os.readlink(each.path) == "/dev/cpu_dma_latency"
        with contextlib.suppress(OSError):
            seen = seen or bool(Path(f"/proc/{pid}/task/{pid}/children").read_text())
    if not wanted or mounts.engine != "native":
        assert not seen
    elif would_help() and os.geteuid() == 0 and os.access("/dev/cpu_dma_latency", os.W_OK):
        assert seen


def check_permissions(mounts: Mounts, wanted: bool) -> None:
    assert ("default_permissions" in mounts.line.options) is wanted


def check_unusual(mounts: Mounts) -> None:
    """What UNUSUAL does, but for the engine."""
    assert mounts.line.source == "a name, of its own"
    check_permissions(mounts, wanted=True)
    check_wake(mounts, wanted=False)
    check_xattrs(mounts, wanted=False)
    check_writeback(mounts, wanted=False)
    check_journal(mounts, wanted=False)
    check_threads(mounts, 1)
    check_keeps(mounts, attributes=True, names=True)


# ---- the options themselves


def test_unusual_values(mounts: Mounts) -> None:
    """All that are not the default, on one mount."""
    mounts.mount(*UNUSUAL, "--no-exclusive")
    assert mounts.status()["engine"] == mounts.engine
    check_unusual(mounts)


def test_unusual_values_in_o(mounts: Mounts) -> None:
    """The same as fstab has them."""
    mounts.mount(
        "-o", "noxattrs,nowriteback,attr_timeout=3600,entry_timeout=3600,max_threads=1,noexclusive",
        "-o", "durability=off,nofast_wake,default_permissions,log_size=2k,fsname=a name\\, of its own,rw",
    )  # fmt: skip
    check_unusual(mounts)


def test_what_is_the_default_anyway(mounts: Mounts) -> None:
    mounts.mount(*AS_DEFAULT)
    assert mounts.line.source == str(mounts.desk.vault)
    check_permissions(mounts, wanted=False)
    check_wake(mounts, wanted=True)
    check_xattrs(mounts, wanted=True)
    check_writeback(mounts, wanted=mounts.engine == "native")
    check_journal(mounts, wanted=True)
    check_keeps(mounts, attributes=False, names=False)


def test_what_is_the_default_anyway_in_o(mounts: Mounts) -> None:
    mounts.mount("-o", "xattrs,writeback,fast_wake,no_default_permissions,durability=process")
    check_permissions(mounts, wanted=False)
    check_wake(mounts, wanted=True)
    check_xattrs(mounts, wanted=True)
    check_writeback(mounts, wanted=mounts.engine == "native")
    check_journal(mounts, wanted=True)
    check_keeps(mounts, attributes=False, names=False)


@pytest.mark.parametrize("words", [("--exclusive",), ("-o", "exclusive")])
def test_exclusive(mounts: Mounts, words: tuple[str, ...]) -> None:
    """The engine of libfuse asks for attributes all the same: docs/ENGINES.md."""
    mounts.mount(*words)
    check_writeback(mounts, wanted=True)
    is_native = mounts.engine == "native"
    check_keeps(mounts, attributes=is_native, names=is_native)


@pytest.mark.parametrize(
    "words", [("--attr-timeout", "0", "--entry-timeout", "0"), ("-o", "attr_timeout=0,entry_timeout=0")]
)
def test_nothing_is_kept(mounts: Mounts, words: tuple[str, ...]) -> None:
    mounts.mount("--exclusive", *words)
    check_keeps(mounts, attributes=False, names=False)


@pytest.mark.parametrize("words", [("--read-only",), ("-o", "ro")])
def test_read_only(mounts: Mounts, words: tuple[str, ...]) -> None:
    mounts.mount(*words)
    with pytest.raises(OSError, match="Read-only"):
        (mounts.point / "new").touch()
    assert mounts.line.read_only and mounts.status()["read_only"]


@pytest.mark.parametrize("words", [("--nonempty",), ("-o", "nonempty")])
def test_nonempty(mounts: Mounts, words: tuple[str, ...]) -> None:
    mounts.point.mkdir()
    (mounts.point / "below").touch()
    assert "not empty" in mounts.mount(code=10)
    assert "They are NOT encrypted, and the mount hides them" in mounts.mount(*words)
    assert not (mounts.point / "below").exists() and (mounts.point / "a").is_dir()


@pytest.mark.skipif(os.geteuid() != 0, reason="acting as another user needs root")
@pytest.mark.parametrize("words", [("--allow-other",), ("-o", "allow_other")])
def test_allow_other(mounts: Mounts, words: tuple[str, ...]) -> None:
    mounts.mount(*words)
    mounts.point.chmod(0o755)
    look = ["setpriv", "--reuid", "64001", "--clear-groups", "stat", str(mounts.point)]
    for above in mounts.point.parents:
        if not above.stat().st_mode & 0o001:
            above.chmod(above.stat().st_mode | 0o111)
    assert subprocess.run(look, capture_output=True, check=False).returncode == 0
    mounts.umount()
    mounts.mount()
    assert subprocess.run(look, capture_output=True, check=False).returncode != 0


# ---- the kernel's own, and those of other filesystems


def test_options_of_the_kernel(mounts: Mounts) -> None:
    mounts.mount("-o", "nosuid,nodev,noexec,noatime,nodiratime,sync,dirsync")
    assert {"nosuid", "nodev", "noexec", "noatime", "sync"} <= set(mounts.line.options)
    (mounts.point / "program").write_text("#!/bin/sh\n")
    (mounts.point / "program").chmod(0o755)
    with pytest.raises(PermissionError):
        subprocess.run([mounts.point / "program"], check=False)
    mounts.umount()
    mounts.mount("-o", "suid,dev,exec,async,symfollow")
    assert not {"nosuid", "nodev", "noexec", "sync"} & set(mounts.line.options)
    assert (mounts.point / "link").read_bytes() == b"0123456789"
    assert subprocess.run([mounts.point / "program"], check=False).returncode == 0
    mounts.umount()
    mounts.mount("-o", "nosymfollow")
    with pytest.raises(OSError, match="symbolic links"):
        (mounts.point / "link").read_bytes()


def test_options_that_mean_nothing_here(mounts: Mounts) -> None:
    """What fstab and other programs put in."""
    said = mounts.mount(
        "-o", "defaults,auto,noauto,user,users,nouser,owner,group,nofail,_netdev,quiet",
        "-o", "atime,diratime,relatime,norelatime,strictatime,nostrictatime,lazytime,nolazytime",
        "-o", "silent,loud,mand,nomand,iversion,noiversion",
        "-o", "x-gvfs-show,X-mount.mkdir,comment=of a person,subtype=x",
    )  # fmt: skip
    assert said == ""  # `quiet` is one of the command's own
    assert mounts.line.fs_type == "fuse.cryptfs"
    (mounts.point / "program").write_text("#!/bin/sh\n")
    (mounts.point / "program").chmod(0o755)
    assert subprocess.run([mounts.point / "program"], check=False).returncode == 0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--attr-timeout", "-1"), "give a number from 0 to 86,400"),
        (("--entry-timeout", "nan"), "give a number from 0 to 86,400"),
        (("--max-threads", "0"), "give a whole number from 1 to 64"),
        (("--durability", "paper"), "'power', 'process', 'off'"),
        (("--engine", "steam"), "'native', 'fusepy'"),
        (("--idle", "0"), "give a time from 1s to 30d"),
        (("--idle", "soon"), "is not a time; write for example 90s"),
        (("--unmount-on", "rain"), "give one or more of sleep, lock, logout"),
        (("--after-mount", "'"), "after_mount: No closing quotation"),
        (("--before-unmount", " "), "before_unmount: the command is empty"),
        (("--log-size", "much"), "is not a size"),
        (("-o", "attr_timeout=-1"), "attr_timeout must be from 0 to 86400 seconds"),
        (("-o", "entry_timeout=nan"), "entry_timeout must be from 0 to 86400 seconds"),
        (("-o", "attr_timeout=x"), "attr_timeout needs a number of seconds, not 'x'"),
        (("-o", "max_threads=0"), "max_threads must be from 1 to 64"),
        (("-o", "max_threads=\u0663"), "max_threads needs a whole number"),
        (("-o", "durability=paper"), "there is no durability 'paper'"),
        (("-o", "engine=steam"), "there is no engine 'steam'"),
        (("-o", "idle=0"), "idle must be from 1 second to 30 days"),
        (("-o", "unmount_on=rain"), "unmount_on takes sleep, lock, logout"),
        (("-o", "after_mount='"), "after_mount: No closing quotation"),
        (("-o", "before_unmount= "), "before_unmount: the command is empty"),
        (("-o", "log_size=much"), "is not a size"),
        (("-o", "log_file="), "mount option 'log_file' needs a value"),
        (("-o", "slot=x"), "mount option slot needs a number"),
        (("-o", "passfd=-1"), "mount option passfd needs a number"),
        (("-o", "foreground=1"), "mount option 'foreground' takes no value"),
        (("-o", "ro=1"), "mount option 'ro' takes no value"),
        (("-o", "engine"), "mount option 'engine' needs a value"),
        (("-o", "rain"), "unknown mount option 'rain'"),
        (("-o", "=x"), "a mount option has a value but no name"),
        (("-o", "ro\\"), "the mount options end in a lone backslash"),
    ],
)
def test_wrong_values_mount_nothing(desk: Desk, words: tuple[str, ...], says: str) -> None:
    said = desk("mount", desk.vault, desk.base / "mountpoint", *words, code=1)
    assert says in said.err and said.err.startswith("cryptfs: ") and said.out == ""
    assert not (desk.base / "mountpoint").exists()


# ---- hooks, idleness, logs


def test_commands_around_a_mount(mounts: Mounts) -> None:
    noted = mounts.desk.base / "noted"
    after = f"sh -c 'ls \"$CRYPTFS_MOUNTPOINT\" >{noted}; echo $CRYPTFS_EVENT >>{noted}'"
    before = f"sh -c 'echo $CRYPTFS_EVENT >>{noted}; ls \"$CRYPTFS_MOUNTPOINT\" >>{noted}'"
    mounts.mount("--after-mount", after, "--before-unmount", before)
    assert noted.read_text() == "a\nlink\nnew\nline\nmount\n"
    mounts.umount()
    assert noted.read_text().endswith("mount\numount\na\nlink\nnew\nline\n")
    mounts.mount("-o", f"after_mount=touch {noted}.after,before_unmount=false")
    assert Path(f"{noted}.after").exists()
    assert "before-unmount" in mounts.umount(code=10)
    assert mount_at(mounts.point) is not None
    mounts.umount("--no-hook")
    said = mounts.mount("--after-mount", "false", code=11)
    assert "the vault is mounted, but there was a problem with --after-mount" in said


@pytest.mark.parametrize("words", [("--idle", "5s"), ("-o", "idle=5")])
def test_idle(mounts: Mounts, words: tuple[str, ...]) -> None:
    mounts.mount(*words)
    assert mounts.status()["unmounts"]["idle_seconds"] == 5
    assert wait_until(lambda: mount_at(mounts.point) is None, ENDS)
    assert wait_until(lambda: "nobody used it" in mounts.log_file.read_text(), ENDS)


def test_a_log_of_a_bounded_size(mounts: Mounts) -> None:
    """A thousand bytes are a few lines; each file keeps below them."""
    mounts.mount("--log-size", "1000", "--debug")
    for number in range(40):
        (mounts.point / f"file {number}").write_text("content")
    (mounts.point / "a" / "b" / "large.TXT").read_bytes()
    mounts.umount()
    for _ in range(6):
        mounts.mount("-o", "log_size=1000,debug")
        mounts.umount()
    sizes = {each.name: each.stat().st_size for each in mounts.desk.base.glob("log*")}
    assert "log.1" in sizes and "log.4" not in sizes, sizes
    assert max(sizes.values()) <= 1000


def test_a_log_file_in_o(mounts: Mounts) -> None:
    other = mounts.desk.base / "another log"
    mounts.mount("-o", f"log_file={other}")
    assert not other.exists() or other.read_text() == ""
    mounts.desk.damage()
    with pytest.raises(OSError, match="Input/output"):
        (mounts.point / "a" / "b" / "large.TXT").read_bytes()
    assert re.search("ERROR .*chunk", mounts.log_file.read_text())
