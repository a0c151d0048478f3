"""Resident memory of a daemon that has copied 2 GiB."""

from __future__ import annotations

import os
from pathlib import Path

from tests.e2e.mounting import Mounted

MIB = 1 << 20
SIZE = int(os.environ.get("CRYPTFS_E2E_MEMORY_MIB", "2048")) * MIB
LIMIT_MIB = 150


def memory_of(pid: int) -> dict[str, int]:
    """VmRSS and VmHWM of a process in MiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return {name: int(fields[name].split()[0]) // 1024 for name in ("VmRSS", "VmHWM")}


def test_memory_after_two_gibibytes(own_mount: Mounted) -> None:
    idle = memory_of(own_mount.pid)
    path = own_mount.mountpoint / "large"
    block = os.urandom(4 * MIB)
    with path.open("wb", buffering=0) as file:
        for number in range(SIZE // len(block)):
            file.write(block)
            if number % 16 == 15:
                os.fsync(file.fileno())
    written = memory_of(own_mount.pid)
    with path.open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        for _ in range(SIZE // len(block)):
            assert file.read(len(block)) == block
        assert file.read(1) == b""
    path.unlink()
    after = memory_of(own_mount.pid)
    print(f"resident memory in MiB: idle {idle}, written {written}, read back {after}")
    assert max(*written.values(), *after.values()) < LIMIT_MIB
