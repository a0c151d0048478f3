"""name_to_handle_at(2) and open_by_handle_at(2), as NFS servers and backup programs use them."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import time
from pathlib import Path

import pytest

from cryptfs.storage.libc import name_to_handle_at
from tests.e2e.conftest import require_fuse
from tests.e2e.mounting import Mounted, MountSpec, mounted
from tests.e2e.test_users import NOBODY, as_user

pytestmark = [pytest.mark.serial, pytest.mark.skipif(os.geteuid() != 0, reason="only root opens handles")]

_libc = ctypes.CDLL(None, use_errno=True)
Handle = tuple[int, bytes]


def handle_of(path: Path) -> Handle:
    parent = os.open(path.parent, os.O_RDONLY)
    try:
        return name_to_handle_at(parent, path.name)
    finally:
        os.close(parent)


def open_handle(top: Path, handle: Handle, flags: int = os.O_RDONLY) -> int:
    """A descriptor, or the negative errno."""
    kind, raw = handle
    packed = len(raw).to_bytes(4, "little") + kind.to_bytes(4, "little", signed=True) + raw
    mount_fd = os.open(top, os.O_RDONLY)
    try:
        fd: int = _libc.open_by_handle_at(mount_fd, packed, flags)
        return fd if fd >= 0 else -ctypes.get_errno()
    finally:
        os.close(mount_fd)


def open_soon(top: Path, handle: Handle, flags: int = os.O_RDONLY) -> int:
    """As open_handle. While a file is being closed it may be stale for a moment: docs/ENGINES.md."""
    deadline = time.monotonic() + 2.0
    while (fd := open_handle(top, handle, flags)) == -errno.ESTALE and time.monotonic() < deadline:
        pass
    return fd


def forget() -> None:
    """The kernel drops its unused inodes."""
    Path("/proc/sys/vm/drop_caches").write_text("2")


def check(mount: Mounted) -> None:
    top = mount.mountpoint
    deep = top / "a" / ("b" * 200) / "c"
    deep.mkdir(parents=True)
    (deep / "file").write_bytes(b"content")
    (top / "gone").write_bytes(b"content")
    (top / "gone directory").mkdir()
    handles = {path: handle_of(path) for path in (deep, deep / "file", top / "gone", top / "gone directory")}
    (top / "gone").unlink()
    (top / "gone directory").rmdir()
    for again in ("dropped", "remounted"):
        if again == "remounted":
            mount.remount()
        else:
            forget()
        before = mount.nodes()
        fd = open_soon(top, handles[deep / "file"], os.O_RDWR)
        assert fd >= 0, (again, os.strerror(-fd))
        assert os.read(fd, 20).startswith(b"content"), again
        os.pwrite(fd, b"content, written by a handle", 0)
        os.close(fd)
        directory = open_handle(top, handles[deep], os.O_RDONLY | os.O_DIRECTORY)
        assert os.listdir(directory) == ["file"]
        assert os.readlink(f"/proc/self/fd/{directory}") == str(deep)  # the kernel has found the way up
        inner = os.open("file", os.O_RDONLY, dir_fd=directory)
        assert os.fstat(inner).st_ino == (deep / "file").stat().st_ino
        os.close(inner)
        os.close(directory)
        assert (deep / "file").read_bytes() == b"content, written by a handle"
        for path in (top / "gone", top / "gone directory"):
            assert open_handle(top, handles[path]) == -errno.ESTALE
        forget()
        assert mount.nodes() <= before + 5, "the table keeps what the kernel has forgotten"
    (deep / "file").rename(top / "renamed")
    forget()
    fd = open_soon(top, handles[deep / "file"])
    assert os.read(fd, 20).startswith(b"content")
    os.close(fd)
    os.unlink(top / "renamed")


@pytest.mark.parametrize("tmpfs", [True, False], ids=["tmpfs", "disk"])
def test_a_handle_outlives_the_caches_of_the_kernel(tmpfs: bool) -> None:
    spec = MountSpec("native", tmpfs=tmpfs)
    require_fuse(spec)
    with mounted(spec) as mount:
        check(mount)


def test_a_handle_leads_to_no_file_outside_of_the_vault() -> None:
    """Its owner may make one up: here for files on the disk beside the vault, and for internal ones in it."""
    spec = MountSpec("native", tmpfs=False)
    require_fuse(spec)
    with mounted(spec) as mount:
        top = mount.mountpoint
        (top / "file").write_bytes(b"content")
        outside = mount.scratch / "outside"
        outside.write_bytes(b"secret")
        (mount.scratch / "directory").mkdir()
        kind, raw = handle_of(top / "file")
        (cipher_name,) = (name for name in os.listdir(mount.vault_dir) if not name.startswith("cryptfs."))

        def made_up(path: Path) -> Handle:
            """The mount's handle for a file on the disk; FUSE exchanges the halves of a number."""
            number = handle_of(path)[1]
            return kind, number[4:8] + number[:4] + raw[8:]

        assert made_up(mount.vault_dir / cipher_name) == (kind, raw), "it is one that would be decoded"
        for path in (outside, mount.scratch / "directory", mount.vault_dir / "cryptfs.json", mount.scratch):
            assert open_handle(top, made_up(path)) == -errno.ESTALE, path
        assert outside.read_bytes() == b"secret"


@pytest.mark.skipif(shutil.which("fusermount3") is None, reason="needs fusermount3: apt-get install fuse3")
@pytest.mark.usefixtures("fuse_for_everybody", "allow_other_for_everybody")
def test_the_mount_of_another_user_gives_out_none() -> None:
    spec = MountSpec("native", options="allow_other", uid=NOBODY[0], gid=NOBODY[1])
    require_fuse(spec)
    with mounted(spec) as mount:
        as_user(NOBODY, lambda: (mount.mountpoint / "file").write_bytes(b"content"))
        with pytest.raises(OSError, match="not supported"):
            handle_of(mount.mountpoint / "file")
