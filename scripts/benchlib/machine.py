"""The machine that is measured: what it is, how busy it is, what its processes used."""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import subprocess
import time
from importlib.metadata import version
from pathlib import Path

from cryptfs.interpreter import this_interpreter
from cryptfs.mount.mounts import read_mounts
from cryptfs.storage.libc import syncfs
from cryptfs.version import VERSION

_DROP_CACHES = Path("/proc/sys/vm/drop_caches")
_TICK = os.sysconf("SC_CLK_TCK")
_GLANCE = 0.3  # seconds
_IDLE = 0.9  # part of the processors' time


def cpu_seconds(pid: int) -> float:
    """Processor time that a process has used, its own and the kernel's for it (proc_pid_stat(5))."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICK


def resident_bytes(pid: int) -> tuple[int, int]:
    """Resident memory of a process: now, and at its highest."""
    found = {"VmRSS": 0, "VmHWM": 0}
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name in found:
            found[name] = int(rest.split()[0]) * 1024
    return found["VmRSS"], found["VmHWM"]


def bytes_written(pid: int) -> int | None:
    """Bytes that a process has given to write(2) and its kin so far, replies to the kernel among them.

    None where this user may not know (proc_pid_io(5)). What splice(2) moves does not count.
    """
    try:
        lines = Path(f"/proc/{pid}/io").read_text().splitlines()
    except OSError:
        return None
    return next(int(line.partition(":")[2]) for line in lines if line.startswith("wchar:"))


def _processor_times() -> tuple[int, int]:
    """All ticks of all processors since the start, and the idle ones among them (proc_stat(5))."""
    fields = [int(field) for field in Path("/proc/stat").read_text().partition("\n")[0].split()[1:]]
    return sum(fields), fields[3] + fields[4]


def wait_until_idle(seconds: float) -> bool:
    """Wait, `seconds` at most, for a moment in which the processors do next to nothing."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        total, idle = _processor_times()
        time.sleep(_GLANCE)
        now_total, now_idle = _processor_times()
        if now_idle - idle > _IDLE * (now_total - total):
            return True
    return False


def sync_filesystem(directory: Path) -> None:
    """Write back what is dirty on the filesystem of a directory; others are none of our business.

    ESTALE is no failure: libfuse answers so when the kernel tells the times of a file that was removed, and
    the kernel passes it on, once, to the next who syncs.
    """
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        syncfs(fd)
    except OSError as error:
        if error.errno != errno.ESTALE:
            raise
        syncfs(fd)
    finally:
        os.close(fd)


def drop_caches() -> bool:
    """Empty the kernel's caches, names and attributes too; False where only root may.

    What is dirty stays: see to it before.
    """
    try:
        _DROP_CACHES.write_text("3\n")
    except OSError:
        return False
    return True


def forget_file(path: Path) -> None:
    """Have the kernel drop a file's pages, where it may not drop all."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def _cpu_model() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def _first_line(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return "not installed"
    return (done.stdout or done.stderr).strip().partition("\n")[0]


def _package_version(name: str) -> str:
    """Of a Debian package; most of these programs print theirs among other things, or not at all."""
    found = _first_line("dpkg-query", "--show", "--showformat=${Version}", name)
    return "not installed" if not found or "no packages" in found else found


def filesystem_of(directory: Path) -> str:
    """The type of the filesystem that a directory is on: 'tmpfs', 'ext4' ..."""
    place = os.path.realpath(directory)
    known = [mount for mount in read_mounts() if Path(place).is_relative_to(mount.mountpoint)]
    return max(known, key=lambda mount: len(mount.mountpoint)).fs_type if known else "unknown"


def describe() -> dict[str, object]:
    """What a reader of the figures must know."""
    return {
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "build": "with PGO" if this_interpreter().pgo else "without PGO",
        "cryptfs": VERSION,
        "pynacl": version("pynacl"),
        "mfusepy": version("mfusepy"),
        "fusermount": _first_line("fusermount3", "--version"),
        **{
            name: _package_version(name)
            for name in ("gocryptfs", "securefs", "encfs", "cryfs", "libfuse3-dev")
        },
        "load_before": os.getloadavg()[0],
    }
