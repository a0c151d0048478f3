"""A block device that remembers every write and every flush: a real filesystem's disk, at any moment.

A process of its own shows one file through FUSE; a loop device stands on that file. What the kernel writes to
the device comes here in the order in which it was written, and what it flushes is a mark in that order. So
the disk after a power cut at any moment can be made: all writes before the last flush, and any of those after
it, by sectors.

Needs root, /dev/fuse and loop devices.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.crash.power.filechanges import SECTOR
from tests.e2e.mounting import PROJECT, detach, is_mounted

_RECORD = struct.Struct("<cQI")  # W or F, offset, length; then the data
_NAME = "disk"


def missing() -> str:
    """Why there can be no such device here; '' where there can."""
    if os.geteuid() != 0:
        return "loop devices need root"
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "/dev/fuse is not accessible here"
    found = subprocess.run(["losetup", "--find"], capture_output=True, check=False)
    return "" if found.returncode == 0 else "there is no free loop device here"


@contextlib.contextmanager
def loop_device(path: Path) -> Iterator[str]:
    """A loop device on a file."""
    shown = subprocess.run(["losetup", "--find", "--show", path], capture_output=True, text=True, check=True)
    device = shown.stdout.strip()
    try:
        yield device
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


@contextlib.contextmanager
def mounted_disk(device: str, directory: Path) -> Iterator[Path]:
    """A filesystem on a device, mounted."""
    directory.mkdir(exist_ok=True)
    subprocess.run(["mount", device, directory], check=True, capture_output=True)
    try:
        yield directory
    finally:
        for _ in range(50):
            if subprocess.run(["umount", directory], capture_output=True, check=False).returncode == 0:
                break
            time.sleep(0.1)
        else:
            subprocess.run(["umount", "--lazy", directory], check=True)


class RecordingDevice:
    """The device. Use it in a with statement; then `device` is its name in /dev.

    Args: scratch: a directory for the log of writes, best on tmpfs.   size: bytes.
    """

    def __init__(self, scratch: Path, size: int) -> None:
        self.size = size
        self._log = scratch / "writes"
        self._mountpoint = scratch / "device"
        self.device = ""
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> RecordingDevice:
        with contextlib.ExitStack() as stack:
            self._mountpoint.mkdir()
            server = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "tests.crash.blockdevice",
                    self._mountpoint,
                    self._log,
                    str(self.size),
                ],
                cwd=PROJECT,
                env=os.environ | {"PYTHONPATH": str(PROJECT)},
                start_new_session=True,  # Ctrl-C is for the tests: the filesystem on the device goes first
            )
            stack.callback(server.wait, 30)
            stack.callback(detach, self._mountpoint)
            deadline = time.monotonic() + 30
            while not is_mounted(self._mountpoint):
                assert server.poll() is None, "the server of the block device did not start"
                assert time.monotonic() < deadline, "the block device did not come up"
                time.sleep(0.02)
            self.device = stack.enter_context(loop_device(self._mountpoint / _NAME))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def moment(self) -> int:
        """Now, as a place in the log: everything that was promised before is before it."""
        return self._log.stat().st_size

    def _entries(self, moment: int) -> list[tuple[bytes, int, bytes]]:
        raw = self._log.read_bytes()[:moment]
        entries, place = [], 0
        while place + _RECORD.size <= len(raw):
            kind, offset, length = _RECORD.unpack_from(raw, place)
            place += _RECORD.size
            if place + length > len(raw):
                break
            entries.append((kind, offset, raw[place : place + length]))
            place += length
        return entries

    def after_power_cut(self, moment: int, dice: random.Random, target: Path) -> int:
        """Make the disk as it may be when the power goes at a moment; returns how many writes were open.

        Up to the last flush all is there. Of the writes behind it: most, few, or all, torn by sectors.
        """
        entries = self._entries(moment)
        flushes = [number for number, entry in enumerate(entries) if entry[0] == b"F"]
        settled = flushes[-1] if flushes else 0
        likely = dice.choice((0.0, 0.1, 0.5, 0.9, 1.0))
        with target.open("wb") as image:
            image.truncate(self.size)
            for number, (_, offset, data) in enumerate(entries):
                if number <= settled or likely == 1.0:
                    os.pwrite(image.fileno(), data, offset)
                elif dice.random() < 0.7:
                    if dice.random() < likely:
                        os.pwrite(image.fileno(), data, offset)
                else:
                    for at in range(0, len(data), SECTOR):
                        if dice.random() < likely:
                            os.pwrite(image.fileno(), data[at : at + SECTOR], offset + at)
        return len(entries) - settled


def serve(mountpoint: str, log: str, size: int) -> None:
    """Show the file until it is unmounted."""
    from cryptfs.mount.fusepy.libfuse import mfusepy  # loads a library: for this process only

    content = bytearray(size)
    log_fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    class Disk(mfusepy.Operations):  # type: ignore[misc]
        """One file, in memory, and the log."""

        use_ns = True

        def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
            if path == "/":
                return {"st_mode": stat.S_IFDIR | 0o755, "st_nlink": 2}
            if path == f"/{_NAME}":
                return {"st_mode": stat.S_IFREG | 0o600, "st_nlink": 1, "st_size": size}
            raise mfusepy.FuseOSError(errno.ENOENT)

        def readdir(self, path: str, fh: int) -> list[str]:
            return [".", "..", _NAME]

        def open(self, path: str, flags: int) -> int:
            return 0

        def read(self, path: str, length: int, offset: int, fh: int) -> bytes:
            return bytes(content[offset : offset + length])

        def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
            content[offset : offset + len(data)] = data
            os.write(log_fd, _RECORD.pack(b"W", offset, len(data)) + data)
            return len(data)

        def fsync(self, path: str, datasync: int, fh: int) -> int:
            os.write(log_fd, _RECORD.pack(b"F", 0, 0))
            return 0

    mfusepy.FUSE(
        Disk(), mountpoint, foreground=True, nothreads=True, direct_io=True, fsname="a recorded disk"
    )


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2], int(sys.argv[3]))
