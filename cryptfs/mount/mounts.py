"""The mounts of this system: finding those of cryptfs, and taking them away.

The kernel's list, /proc/self/mountinfo, is the only source; nothing here opens a file on a mount, so
that a hanging or dead one cannot stop it. Source of the format: proc_pid_mountinfo(5).
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cryptfs.errors import MountError
from cryptfs.mount.holders import describe_holders, find_holders

MOUNTINFO = Path("/proc/self/mountinfo")
FUSE_TYPE = "fuse.cryptfs"
CLOSE_TIMEOUT = 120.0  # seconds; a daemon may have gigabytes to write back
_MNT_DETACH = 2
_UMOUNT_NOFOLLOW = 8
_OCTAL = re.compile(rb"\\([0-3][0-7]{2})")
_DEAD = (errno.ENOTCONN, errno.ECONNABORTED, errno.EIO)


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of mountinfo. device: 'major:minor'; options: of the mount and its superblock."""

    device: str
    mountpoint: str
    options: tuple[str, ...]
    fs_type: str
    source: str

    @property
    def read_only(self) -> bool:
        """Whether writing is refused by the kernel."""
        return "ro" in self.options

    @property
    def is_cryptfs(self) -> bool:
        """Whether a cryptfs daemon serves it, or served it."""
        return self.fs_type == FUSE_TYPE


def _unescape(field: bytes) -> str:
    return os.fsdecode(_OCTAL.sub(lambda match: bytes((int(match[1], 8),)), field))


def parse_mountinfo(raw: bytes) -> list[Mount]:
    """Every mount in the text of /proc/self/mountinfo, in the order of mounting.

    Lines that do not have the documented form are left out.
    """
    mounts = []
    for line in raw.split(b"\n"):
        fields = line.split(b" ")
        if len(fields) < 9 or b"-" not in fields[6:]:
            continue
        tail = fields[fields.index(b"-", 6) + 1 :]
        if len(tail) < 2:
            continue
        options = fields[5].split(b",") + (tail[2].split(b",") if len(tail) > 2 else [])
        mounts.append(
            Mount(
                device=_unescape(fields[2]),
                mountpoint=_unescape(fields[4]),
                options=tuple(_unescape(option) for option in options),
                fs_type=_unescape(tail[0]),
                source=_unescape(tail[1]),
            )
        )
    return mounts


def read_mounts() -> list[Mount]:
    """The mounts that this process sees; [] where the system has no mountinfo."""
    try:
        return parse_mountinfo(MOUNTINFO.read_bytes())
    except FileNotFoundError:
        return []


def absolute(path: Path) -> Path:
    """The path as the kernel writes it: absolute, without symlinks; works on dead mounts too."""
    return Path(os.path.realpath(path))


def mount_at(mountpoint: Path) -> Mount | None:
    """The topmost mount on exactly this directory, of whatever type."""
    wanted = str(absolute(mountpoint))
    return next((mount for mount in reversed(read_mounts()) if mount.mountpoint == wanted), None)


def mounts_of(vault_dir: Path) -> list[Mount]:
    """The cryptfs mounts of one vault."""
    wanted = str(absolute(vault_dir))
    return [mount for mount in read_mounts() if mount.is_cryptfs and mount.source == wanted]


def is_stale(mountpoint: Path) -> bool:
    """Whether the daemon of the mount there is gone. Asks the mount: may wait for a busy daemon."""
    try:
        os.statvfs(mountpoint)  # the kernel answers stat from its cache for a while
    except OSError as error:
        return error.errno in _DEAD
    return False


def unmount(mountpoint: Path, *, lazy: bool = False) -> Mount:
    """Take away the cryptfs mount at `mountpoint`; returns what was mounted.

    The kernel writes back what it holds before a mount that is not lazy goes away.

    Raises: MountError: nothing of ours is mounted there, programs still use it (the text names them),
            or the system refuses.
    """
    mount = mount_at(mountpoint)
    if mount is None:
        raise MountError(f"{mountpoint}: nothing is mounted there")
    if not mount.is_cryptfs:
        raise MountError(f"{mountpoint}: this is a mount of type {mount.fs_type}, not of cryptfs; use umount")
    try:
        detach(mount.mountpoint, lazy=lazy)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise MountError(f"{mountpoint}: cannot unmount: {error.strerror}") from None
        who = describe_holders(find_holders(mount.mountpoint))
        raise MountError(
            f"{mountpoint}: still in use{who}\n"
            "Close those programs (or leave the directory) and try again. With --lazy it disappears at once, "
            "and the vault is closed when the last of them lets go"
        ) from None
    return mount


def detach(mountpoint: str, *, lazy: bool) -> None:
    """Unmount by umount2(2), or through fusermount where that is not allowed.

    Raises: OSError: EBUSY where it is in use.
            MountError: fusermount is missing or refuses.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if os.geteuid() == 0 and hasattr(libc, "umount2"):
        flags = _UMOUNT_NOFOLLOW | (_MNT_DETACH if lazy else 0)
        if libc.umount2(os.fsencode(mountpoint), flags) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return
    _fusermount(mountpoint, lazy=lazy)


def remount(mountpoint: Path, options: str) -> None:
    """Change the kernel's options of a mount, as `mount -o remount,...` does; the daemon is not asked.

    Args:   options: names that mount(8) knows, with commas between.
    Raises: MountError: no vault is mounted there, or mount(8) refuses, as it does ordinary users.
    """
    mount = mount_at(mountpoint)
    if mount is None or not mount.is_cryptfs:
        raise MountError(f"{mountpoint}: no vault is mounted there, so it cannot be remounted")
    command = ["mount", "-i", "-o", f"remount,{options}" if options else "remount", mount.mountpoint]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise MountError(f"{mountpoint}: {done.stderr.strip() or 'mount refused to remount'}")


def _fusermount(mountpoint: str, *, lazy: bool) -> None:
    program = shutil.which("fusermount3") or shutil.which("fusermount")
    if program is None:
        raise MountError(
            "neither fusermount3 nor fusermount is installed; install fuse3 (Debian: apt-get install fuse3)"
        )
    command = [program, "-u", *(["-z"] if lazy else []), "--", mountpoint]
    done = subprocess.run(command, capture_output=True, check=False, env={**os.environ, "LC_ALL": "C"})
    if done.returncode == 0:
        return
    text = os.fsdecode(done.stderr).strip()
    if "busy" in text:
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
    raise MountError(f"{mountpoint}: {text or 'fusermount failed'}")


def wait_until(done: Callable[[], bool], timeout: float) -> bool:
    """Ask `done` again and again, first often, then less so; False when `timeout` seconds have passed."""
    deadline = time.monotonic() + timeout
    pause = 0.005
    while not done():
        if time.monotonic() >= deadline:
            return False
        time.sleep(pause)
        pause = min(pause * 1.5, 0.1)
    return True


def wait_closed(mount: Mount, is_open: Callable[[], bool], timeout: float = CLOSE_TIMEOUT) -> None:
    """Wait until an unmounted vault is closed and can be mounted again.

    Args:   is_open: whether the daemon of that mount still holds the vault's lock.
    Raises: MountError: it does not let go in time.
    """
    if not wait_until(lambda: not is_open(), timeout):
        raise MountError(
            f"{mount.mountpoint} is unmounted, but its daemon has not closed the vault {mount.source} "
            f"after {timeout:.0f} s; it may still be writing. `cryptfs info` shows who holds the vault"
        )
