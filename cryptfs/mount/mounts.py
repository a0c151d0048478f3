"""Finds the cryptfs mounts of this system, and takes them away.

The kernel's list, /proc/self/mountinfo, is the only source; nothing here opens a file on a mount, so
that a hanging or dead one cannot stop it. Source of the format: proc_pid_mountinfo(5).
"""

from __future__ import annotations

import errno
import grp
import os
import pwd
import re
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from cryptfs.core.printable import shell_word, shown
from cryptfs.core.slots.checks import CONFIG_NAME
from cryptfs.errors import MountError
from cryptfs.mount.holders import describe_holders, find_holders
from cryptfs.mount.leaving.control import ask_to_prepare
from cryptfs.storage.libc import UMOUNT_DETACH, UMOUNT_NOFOLLOW, has_umount2, os_error, umount2
from cryptfs.storage.noconfig import mistaken
from cryptfs.storage.vaultdir import lock_holder

MOUNTINFO = Path("/proc/self/mountinfo")
FUSE_TYPE = "fuse.cryptfs"
FUSE_DEVICE = Path("/dev/fuse")
HOOK_SECONDS = 60.0  # for the user's command before an unmount that may wait
_OCTAL = re.compile(rb"\\([0-3][0-7]{2})")
_DEAD = (errno.ENOTCONN, errno.ECONNABORTED, errno.EIO)


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of mountinfo. device: 'major:minor'; options: of the mount and its superblock.

    mount_id: unique in the system, across all mount namespaces.
    """

    device: str
    mountpoint: str
    options: tuple[str, ...]
    fs_type: str
    source: str
    mount_id: int = field(default=0, compare=False)

    @property
    def owner(self) -> int:
        """The user who mounted it, as the kernel's options say."""
        return next((int(each[8:]) for each in self.options if each.startswith("user_id=")), 0)

    @property
    def read_only(self) -> bool:
        """Whether the kernel refuses writes."""
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
        if len(fields) < 9 or b"-" not in fields[6:] or not fields[0][:19].isdigit():
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
                mount_id=int(fields[0][:19]),
            )
        )
    return mounts


def read_mounts() -> list[Mount]:
    """The mounts that this process sees; [] if the system has no mountinfo."""
    try:
        return parse_mountinfo(MOUNTINFO.read_bytes())
    except FileNotFoundError:
        return []


def absolute(path: Path) -> Path:
    """The path as the kernel writes it: absolute, without symlinks; works on dead mounts too."""
    return Path(os.path.realpath(path))


def mount_at(mountpoint: Path) -> Mount | None:
    """The topmost mount on exactly this directory, of any type."""
    wanted = str(absolute(mountpoint))
    return next((mount for mount in reversed(read_mounts()) if mount.mountpoint == wanted), None)


def mount_around(path: Path) -> Mount | None:
    """The mount, of any type, that a path is on."""
    place = absolute(path)
    around = [mount for mount in read_mounts() if place.is_relative_to(mount.mountpoint)]
    return max(reversed(around), key=lambda mount: len(mount.mountpoint), default=None)


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


def unmount(mountpoint: Path, *, lazy: bool = False, run_hook: bool = True) -> Mount:
    """Take away the cryptfs mount at `mountpoint`; returns it.

    Before the mount goes, the daemon runs the command of --before-unmount, unless run_hook is False, and
    the kernel writes back its cache; not with lazy.

    Raises: MountError: no cryptfs mount is there, programs still use it (the text names them), that command
            failed, or the system refuses.
    """
    mount = cryptfs_mount_at(mountpoint)
    if os.geteuid() not in (0, mount.owner):
        who = _user_name(mount.owner)
        raise MountError(f"{shown(mountpoint)}: {who} mounted it; only that user and root can unmount it")
    if run_hook:
        problem = ask_to_prepare(mount.device, mount.owner, HOOK_SECONDS + 5, lazily=lazy)
        if problem:
            raise MountError(
                f"{shown(mountpoint)} stays mounted, because of --before-unmount: {shown(problem)}\n"
                f"To unmount without it: cryptfs umount --no-hook {shell_word(mountpoint)}"
            )
    try:
        take_away(mount, lazy=lazy)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise MountError(f"{shown(mountpoint)}: cannot unmount: {error.strerror}") from None
        raise MountError(_busy(mount)) from None
    return mount


def cryptfs_mount_at(mountpoint: Path, command: str = "umount") -> Mount:
    """The cryptfs mount on exactly this directory.

    Args:   command: the cryptfs command to suggest in the message.
    Raises: MountError: there is none; the text suggests another path.
    """
    mount = mount_at(mountpoint)
    if mount is not None and mount.is_cryptfs:
        return mount
    place = shown(mountpoint)
    if mount is not None:
        raise MountError(
            f"{place}: this is a mount of type {mount.fs_type}, not of cryptfs; "
            f"use: umount {shell_word(mountpoint)}"
        )
    other = _mountpoint_of(mountpoint)
    if other is not None:
        raise MountError(
            f"{place} is a vault; it is mounted on {shown(other)}. Use: cryptfs {command} {shell_word(other)}"
        )
    raise MountError(_nothing_there(mountpoint, command))


def _nothing_there(mountpoint: Path, command: str) -> str:
    """About a place that is no mountpoint: what it is instead."""
    place = shown(mountpoint)
    around = mount_around(mountpoint)
    if around is not None and around.is_cryptfs:
        other = around.mountpoint
        return f"{place} is inside the mount on {shown(other)}. Use: cryptfs {command} {shell_word(other)}"
    try:
        names = os.listdir(mountpoint)
    except FileNotFoundError:
        return f"{place} does not exist"
    except OSError:
        names = []
    if CONFIG_NAME in names:
        return f"{place} is a vault, and it is not mounted"
    why = mistaken(mountpoint, names)
    return f"{place}: nothing is mounted there" + (
        f"\n{why}" if why else ". To list your mounts: cryptfs info"
    )


def _mountpoint_of(vault_dir: Path) -> str | None:
    """A vault's mountpoint, also if the mount's source is another text; None if it is not mounted."""
    found = mounts_of(vault_dir)
    if found:
        return found[-1].mountpoint
    holder = lock_holder(vault_dir)
    mount = mount_at(Path(holder.mountpoint)) if holder is not None and holder.mountpoint else None
    return mount.mountpoint if mount is not None and mount.is_cryptfs else None


def _busy(mount: Mount) -> str:
    """Why a mount cannot be taken away."""
    place = shown(mount.mountpoint)
    below = [each.mountpoint for each in read_mounts() if each.mountpoint.startswith(f"{mount.mountpoint}/")]
    if below:
        return (
            f"{place}: something else is mounted below it, on {shown(below[-1])}\n"
            f"Unmount that first: umount {shell_word(below[-1])}"
        )
    who = describe_holders(find_holders(mount.mountpoint))
    return (
        f"{place}: still in use{who}\n"
        "Close those programs (or leave the directory) and try again. With --lazy, the mount disappears at "
        "once, and the vault closes when the last program stops using it"
    )


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def take_away(mount: Mount, *, lazy: bool) -> None:
    """As detach. It is no error if somebody else is faster: --idle, a file manager, another umount.

    Raises: OSError, MountError: as detach, and the mount is still there.
    """
    try:
        detach(mount.mountpoint, lazy=lazy)
    except (OSError, MountError):
        if any((each.mountpoint, each.device) == (mount.mountpoint, mount.device) for each in read_mounts()):
            raise


def detach(mountpoint: str, *, lazy: bool) -> None:
    """Unmount by umount2(2), or through fusermount where that is not allowed.

    Raises: OSError: EBUSY where it is in use.
            MountError: fusermount is missing or refuses.
    """
    if os.geteuid() == 0 and has_umount2():
        umount2(mountpoint, UMOUNT_NOFOLLOW | (UMOUNT_DETACH if lazy else 0))
        return
    _fusermount(mountpoint, lazy=lazy)


def remount(mountpoint: Path, options: str) -> None:
    """Change the kernel's options of a mount, as `mount -o remount,...` does, without the daemon.

    Args:   options: names that mount(8) knows, with commas between.
    Raises: MountError: no vault is mounted there, or mount(8) refuses, as it does ordinary users.
    """
    import subprocess

    mount = cryptfs_mount_at(mountpoint)
    command = ["mount", "-i", "-o", f"remount,{options}" if options else "remount", mount.mountpoint]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise MountError(
            f"{shown(mountpoint)}: {shown(done.stderr.partition(chr(10))[0]) or 'mount refused to remount'}"
        )


def _fusermount(mountpoint: str, *, lazy: bool) -> None:
    import shutil
    import subprocess

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
        raise os_error(errno.EBUSY)
    raise MountError(f"{shown(mountpoint)}: {shown(text) or 'fusermount failed'}")


def require_fuse_device() -> None:
    """Raises: MountError: this user cannot open the device of FUSE; the text says what to do."""
    try:
        os.close(os.open(FUSE_DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        raise MountError(_about_device(error)) from None


def _about_device(error: OSError) -> str:
    """The reason why the device cannot be opened, and how to mend it."""
    device, container = FUSE_DEVICE, f"docker run --device {FUSE_DEVICE} --cap-add SYS_ADMIN"
    if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
        return (
            f"{device} is missing. Load the kernel module, as root: modprobe fuse. In a container, "
            f"pass the device in: {container}"
        )
    if error.errno == errno.EPERM:  # by the rules of a container: the mode of the device does not count
        return f"{device} cannot be opened: {error.strerror}. In a container, pass the device in: {container}"
    if error.errno != errno.EACCES:
        return f"{device} cannot be opened: {error.strerror}"
    st = device.stat()
    mode = stat.filemode(st.st_mode)
    why = f"{device} cannot be opened: {error.strerror}. ls -l {device} shows {mode}; it should be crw-rw-rw-"
    if st.st_gid and st.st_mode & 0o060 == 0o060:
        user, group = _user_name(os.geteuid()), _group_name(st.st_gid)
        return f"{why}, or you should be in its group. As root: adduser {user} {group}, and then log in again"
    return (
        f"{why}. As root, until the next restart: chmod 666 {device}. To keep that, write to "
        '/etc/udev/rules.d/99-fuse.rules the line KERNEL=="fuse", MODE="0666"'
    )


def wait_until(done: Callable[[], bool], timeout: float) -> bool:
    """Poll `done`, often at first, then less often; False when `timeout` seconds have passed."""
    deadline = time.monotonic() + timeout
    pause = 0.005
    while not done():
        if time.monotonic() >= deadline:
            return False
        time.sleep(pause)
        pause = min(pause * 1.5, 0.1)
    return True
