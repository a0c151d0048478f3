"""A real disk that is full: the caller is told, what was there stays, and room comes back."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crash.blockdevice import loop_device, missing, mounted_disk
from tests.e2e.mounting import Mounted, MountSpec, scratch_directory
from tests.support import pattern

pytestmark = [pytest.mark.serial, pytest.mark.skipif(bool(missing()), reason=missing() or "-")]

SIZE = 64 << 20
KEPT = {f"kept {number}": pattern(300_000, number) for number in range(5)}
FULL = (errno.ENOSPC, errno.EDQUOT)
OPTIONS = ("", "nowriteback", "durability=process", "durability=off,nowriteback")


@pytest.fixture(params=OPTIONS, ids=lambda options: options or "defaults")
def on_small_disk(request: pytest.FixtureRequest) -> Iterator[Mounted]:
    """A mount whose vault is on a small ext4 of its own, with some files that are on disk."""
    scratch = scratch_directory(tmpfs=True)
    image = scratch / "image"
    with image.open("wb") as file:
        file.truncate(SIZE)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", image], check=True)
    try:
        with loop_device(image) as device, mounted_disk(device, scratch / "disk") as disk:
            mount = Mounted(MountSpec("native", options=request.param), scratch / "mount")
            mount.scratch.mkdir()
            (disk / "vault").mkdir()
            (mount.scratch / "vault").symlink_to(disk / "vault")
            try:
                mount.create()
                mount.start()
                for name, content in KEPT.items():
                    with (mount.mountpoint / name).open("wb") as file:
                        file.write(content)
                        os.fsync(file.fileno())
                yield mount
                mount.unmount()
            finally:
                mount.abandon()
    finally:
        shutil.rmtree(scratch)


def fill(mount: Mounted) -> int:
    """Write until the disk is full, to the last few bytes; returns the number of files."""
    number = 0
    for size in (1 << 20, 64 << 10, 4 << 10, 100):
        failures = 0
        while failures < 3:
            number += 1
            try:
                fd = os.open(mount.mountpoint / f"filler {number}", os.O_WRONLY | os.O_CREAT)
            except OSError as error:
                assert error.errno in FULL, error
                failures += 1
                continue
            try:
                os.write(fd, pattern(size, number))
                os.fsync(fd)
            except OSError as error:
                assert error.errno in FULL, error
                failures += 1
            finally:
                with contextlib.suppress(OSError):  # the same once more
                    os.close(fd)
            assert number < 5000, "the disk does not get full"
    return number


def assert_kept(mount: Mounted, contents: dict[str, bytes]) -> None:
    for name, content in contents.items():
        assert (mount.mountpoint / name).read_bytes() == content, name


def test_a_full_disk(on_small_disk: Mounted) -> None:
    mount = on_small_disk
    mount.allow_log(r".*(room|space|brought|journal|No space).*")
    made = fill(mount)
    assert_kept(mount, KEPT)
    with pytest.raises(OSError) as raised:
        fd = os.open(mount.mountpoint / "kept 0", os.O_WRONLY | os.O_APPEND)
        try:
            os.write(fd, pattern(2 << 20))
            os.fsync(fd)
        finally:
            os.close(fd)
    assert raised.value.errno in FULL
    assert (mount.mountpoint / "kept 0").read_bytes()[:300_000] == KEPT["kept 0"]
    for number in range(1, made + 1):
        with contextlib.suppress(FileNotFoundError):
            (mount.mountpoint / f"filler {number}").unlink()
    os.truncate(mount.mountpoint / "kept 0", 300_000)
    assert_kept(mount, KEPT)
    again = pattern(10 << 20, 77)
    with (mount.mountpoint / "again").open("wb") as file:
        file.write(again)
        os.fsync(file.fileno())
    mount.remount()
    assert_kept(mount, KEPT | {"again": again})
    mount.assert_quiet()


def test_overwriting_on_a_full_disk(on_small_disk: Mounted) -> None:
    """Old or new, chunk by chunk, whatever the caller was told; never damaged, also after a kill."""
    mount = on_small_disk
    mount.allow_log(r".*")
    fill(mount)
    new = pattern(300_000, 99)
    for name in list(KEPT)[:3]:
        fd = os.open(mount.mountpoint / name, os.O_RDWR)
        try:
            for start in range(0, len(new), 10_000):
                os.pwrite(fd, new[start : start + 10_000], start)
            os.fsync(fd)
        except OSError as error:
            assert error.errno in FULL, error
        finally:
            with contextlib.suppress(OSError):
                os.close(fd)
    assert_old_or_new(mount, new)
    if "durability=off" in mount.spec.options:
        mount.remount()
    else:
        mount.kill()
        mount.start()
    assert_old_or_new(mount, new)


def assert_old_or_new(mount: Mounted, new: bytes) -> None:
    for name, old in KEPT.items():
        found = Path(mount.mountpoint / name).read_bytes()
        assert len(found) == len(old)
        for start in range(0, len(old), 500):
            piece = slice(start, start + 500)
            assert found[piece] in (old[piece], new[piece]), f"{name}, byte {start}"
