"""A daemon with too few descriptors, or too little memory: errors for the callers, and the mount lives on."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import require_fuse
from tests.e2e.mounting import Mounted, MountSpec, mounted
from tests.support import pattern

pytestmark = pytest.mark.serial

DESCRIPTORS = 60
LARGE = 700  # files at once; more than the daemon may have open


@pytest.fixture(params=["", "nowriteback"], ids=["writeback", "nowriteback"])
def mount(request: pytest.FixtureRequest) -> Iterator[Mounted]:
    spec = MountSpec("native", options=request.param)
    require_fuse(spec)
    with mounted(spec) as one:
        yield one


def test_too_few_descriptors(mount: Mounted) -> None:
    """Who opens too many files is told so; nobody else is disturbed, and when they are closed all works."""
    mount.allow_log(r".*(Too many open files|could not be).*")
    kept = mount.mountpoint / "kept"
    kept.write_bytes(pattern(200_000))
    usual = resource.prlimit(mount.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(mount.pid, resource.RLIMIT_NOFILE, (DESCRIPTORS, usual[1]))
    opened: list[int] = []
    refused: list[OSError] = []
    try:
        for number in range(LARGE):
            try:
                opened.append(os.open(mount.mountpoint / f"file {number}", os.O_RDWR | os.O_CREAT))
            except OSError as error:
                refused.append(error)
        assert refused
        assert {error.errno for error in refused} <= {errno.EMFILE, errno.ENFILE}
        assert len(opened) > 10
        for fd in opened:
            os.pwrite(fd, b"works", 0)
            assert os.pread(fd, 9, 0) == b"works"
    finally:
        for fd in opened:
            with contextlib.suppress(OSError):
                os.close(fd)
    resource.prlimit(mount.pid, resource.RLIMIT_NOFILE, usual)
    assert kept.read_bytes() == pattern(200_000)
    for number in range(LARGE):
        (mount.mountpoint / f"file {number}").write_bytes(b"again")
    mount.remount()
    assert (mount.mountpoint / f"file {LARGE - 1}").read_bytes() == b"again"
    assert kept.read_bytes() == pattern(200_000)


def test_too_little_memory(mount: Mounted) -> None:
    """Large requests find no buffers: their callers are told, and small ones go on."""
    mount.allow_log(r".*")
    kept = mount.mountpoint / "kept"
    kept.write_bytes(pattern(2_000_000))
    with Path(f"/proc/{mount.pid}/status").open() as status:
        size = next(int(line.split()[1]) for line in status if line.startswith("VmSize:")) << 10
    resource.prlimit(mount.pid, resource.RLIMIT_AS, (size, -1))
    outcomes = set()
    for number in range(30):
        try:
            with (mount.mountpoint / f"large {number}").open("wb", buffering=0) as file:
                for _ in range(8):
                    file.write(pattern(1 << 20))
                os.fsync(file.fileno())
            outcomes.add(0)
        except OSError as error:
            outcomes.add(error.errno or 0)
    assert outcomes <= {0, errno.ENOMEM, errno.EIO}
    resource.prlimit(mount.pid, resource.RLIMIT_AS, (-1, -1))
    assert kept.read_bytes() == pattern(2_000_000)
    (mount.mountpoint / "after").write_bytes(pattern(3_000_000))
    mount.remount()
    assert kept.read_bytes() == pattern(2_000_000)
    assert (mount.mountpoint / "after").read_bytes() == pattern(3_000_000)
