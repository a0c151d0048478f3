"""What keeps a vault open after its mount was taken away, and waiting until it is closed.

Taking a mount away removes one place of it. The filesystem behind it, and with it the daemon and the lock on
the vault, lives as long as anything refers to it: a bind mount, a copy in another mount namespace (a
container or a service got it when it started), a file or directory that a program has open. All of them have
the same device number, and /proc shows it; nothing here asks the filesystem itself.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cryptfs.core.printable import shell_word, shown
from cryptfs.errors import MountError, VaultLockedError
from cryptfs.mount.holders import Holder, command_of, find_users, process_ids
from cryptfs.mount.mounts import (
    Mount,
    absolute,
    mount_at,
    mounts_of,
    parse_mountinfo,
    read_mounts,
    wait_until,
)
from cryptfs.mount.statistics import ask_status, device_served_by
from cryptfs.storage.vaultdir import LOOK_SECONDS, LockHolder, lock_holder

CLOSE_TIMEOUT = 120.0  # seconds; a daemon may have gigabytes to write back
MOUNT_AGAIN_TIMEOUT = 20.0  # seconds; for a person or a program that wants the vault now
SAY_AFTER = 1.0  # seconds of silent waiting
_SHOWN = 8
_PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """A place of the mount in another mount namespace, and a process that lives there."""

    pid: int
    command: str
    mountpoint: str


@dataclass(frozen=True, slots=True)
class Keepers:
    """What keeps one filesystem alive. mountpoints: further places of it in this mount namespace."""

    mountpoints: tuple[str, ...] = ()
    elsewhere: tuple[Elsewhere, ...] = ()
    users: tuple[Holder, ...] = ()

    def lines(self) -> list[str]:
        """A line for each, fit for a terminal; no more than a person reads."""
        found = [
            f"{shown(place)} is a bind mount of it; remove it with: umount {shell_word(place)}"
            for place in self.mountpoints
        ]
        found += [
            f"process {each.pid} ({shown(each.command)}) has it mounted on {shown(each.mountpoint)}, "
            "in another mount namespace (a container or a service)"
            for each in self.elsewhere
        ]
        inside = {each.pid for each in self.elsewhere}
        found += [
            f"process {each.pid} ({shown(each.command)}) uses it: {each.uses}"
            for each in self.users
            if each.pid not in inside or each.uses != "root directory"
        ]
        more = len(found) - _SHOWN
        return found[:_SHOWN] + ([f"and {more} more"] if more > 0 else [])


def find_keepers(device: str, proc: Path = _PROC) -> Keepers:
    """What keeps the filesystem with this device number alive, as far as this user can see."""
    here = [mount for mount in read_mounts() if mount.device == device]
    known = {mount.mount_id for mount in here}
    return Keepers(
        tuple(mount.mountpoint for mount in here),
        tuple(_elsewhere(device, known, proc)),
        tuple(find_users(device, proc)),
    )


def _elsewhere(device: str, known: set[int], proc: Path) -> Iterator[Elsewhere]:
    """Mounts of other namespaces: their numbers are of the whole system."""
    namespaces: set[str] = set()
    known = set(known)
    for pid in process_ids(proc):
        with contextlib.suppress(OSError):  # hidden from other users: then read all their lists
            namespace = str((proc / str(pid) / "ns" / "mnt").readlink())
            if namespace in namespaces:
                continue
            namespaces.add(namespace)
        try:
            raw = (proc / str(pid) / "mountinfo").read_bytes()
        except OSError:
            continue
        for mount in parse_mountinfo(raw):
            if mount.device == device and mount.mount_id not in known:
                known.add(mount.mount_id)
                yield Elsewhere(pid, command_of(proc / str(pid)), mount.mountpoint)


# ---- the daemon behind a mount


@dataclass(frozen=True, slots=True)
class Closing:
    """A mount that is to be taken away, and how to tell that its vault is closed.

    vault_dir: None if it is unknown.   pid: of the daemon; 0 if it is unknown.
    """

    mount: Mount
    vault_dir: Path | None
    pid: int

    def is_open(self) -> bool:
        """Whether the daemon still has the vault."""
        if self.pid and not _is_alive(self.pid):
            return False
        if self.vault_dir is not None:
            return holds_vault(self.mount, self.vault_dir)
        return self.pid != 0

    @property
    def name(self) -> str:
        """Of the vault, for messages."""
        return shown(self.mount.source if self.vault_dir is None else self.vault_dir)


def closing_of(mount: Mount, vault_dir: Path | None = None) -> Closing:
    """Before a mount goes: find its vault and daemon. Its source may be any text (--fsname)."""
    pid = 0
    with contextlib.suppress(MountError):
        told = ask_status(mount)
        pid = int(told["pid"])
        vault_dir = vault_dir or _vault_at(str(told["vault"]))
    return Closing(mount, vault_dir or _vault_at(mount.source), pid)


def _vault_at(source: str) -> Path | None:
    """The vault that a mount's source names; None if it names none, or one that no process holds."""
    path = Path(source)
    return path if path.is_absolute() and lock_holder(path) is not None else None


def holds_vault(taken: Mount, vault_dir: Path) -> bool:
    """Whether the daemon of a mount that was taken away still holds the lock of its vault."""
    holder = lock_holder(vault_dir)
    if holder is None or (taken.read_only and mounts_of(vault_dir)):  # read-only mounts share the lock
        return False
    # No mountpoint: read-only, or just about to let go.
    return holder.mountpoint in ("", taken.mountpoint)


def _is_alive(pid: int) -> bool:
    try:
        state = (_PROC / str(pid) / "stat").read_bytes().rpartition(b") ")[2][:1]
    except OSError:
        return False
    return state not in (b"Z", b"X")


# ---- waiting


def wait_closed(
    closing: Closing, say: Callable[[str], None] = lambda _: None, timeout: float = CLOSE_TIMEOUT
) -> None:
    """Wait until an unmounted vault is closed and can be mounted again.

    Args:   say: gets the reason for the waiting after SAY_AFTER seconds, and when it changes.
    Raises: MountError: it is still open at the end; the text says what keeps it.
    """
    deadline = time.monotonic() + timeout
    said: list[str] | None = None
    pause = min(SAY_AFTER, timeout)
    while not wait_until(lambda: not closing.is_open(), pause):
        lines = find_keepers(closing.mount.device).lines()
        left = deadline - time.monotonic()
        if left <= 0:
            raise MountError(_still_open(closing, lines, timeout))
        if lines != said and closing.is_open():
            said = lines
            say(_still_open(closing, lines, None))
        pause = min(left, 2 * pause, 10 * SAY_AFTER)


def _still_open(closing: Closing, lines: list[str], waited: float | None) -> str:
    """Why a vault is not closed. waited: seconds, at the end of the waiting."""
    place, vault = shown(closing.mount.mountpoint), closing.name
    after = "" if waited is None else f" after {waited:.0f} s"
    if lines:
        return (
            f"{place} is unmounted, but the vault {vault} is still open{after}. "
            f"It closes when these let go of it:\n{_indented(lines)}"
        )
    daemon = f"process {closing.pid}" if closing.pid else "its daemon"
    if waited is None:
        return f"{place} is unmounted; {daemon} is still writing to the vault {vault}"
    return (
        f"{place} is unmounted, but {daemon} has not closed the vault {vault}{after}; it may still be writing"
    )


def _indented(lines: list[str]) -> str:
    return "\n".join(f"  {line}" for line in lines)


# ---- a vault that is in use


def wait_while_closing(
    vault_dir: Path, say: Callable[[str], None] = lambda _: None, timeout: float = MOUNT_AGAIN_TIMEOUT
) -> LockHolder | None:
    """Wait until a daemon has closed a vault after its unmount, as umount(8) and fusermount3 do not.

    Nothing else is worth a wait: a mount, a command in the vault, and what keeps a filesystem after a lazy
    unmount end only when somebody wants it.

    Args:    say: gets the reason for the waiting after SAY_AFTER seconds.   timeout: seconds after that.
    Returns: who has the vault then; None if it is free.
    """

    def is_settled() -> bool:
        holder = lock_holder(vault_dir)
        return holder is None or mountpoint_of(vault_dir, holder) is not None

    if wait_until(is_settled, LOOK_SECONDS):
        return lock_holder(vault_dir)
    holder = lock_holder(vault_dir)
    if holder is not None and _is_closing(vault_dir, holder) and not wait_until(is_settled, SAY_AFTER):
        say(f"The vault {shown(vault_dir)} is still being closed after its unmount. Waiting for that ...")
        wait_until(is_settled, timeout)
    return lock_holder(vault_dir)


def _is_closing(vault_dir: Path, holder: LockHolder) -> bool:
    """Whether a holder without a mount will let go by itself: a daemon whose filesystem nothing keeps.

    A process that is gone has only left its text, and another one has the lock. The kernel gives the device
    number of a filesystem that is gone to the next one.
    """
    if not holder.mountpoint or not _is_alive(holder.pid):
        return False
    device = device_served_by(holder.pid)
    if device is None or find_keepers(device) == Keepers():
        return True
    return any(each.device == device and each.source != str(absolute(vault_dir)) for each in read_mounts())


def locked(vault_dir: Path, holder: LockHolder) -> VaultLockedError:
    """The error for a command that needs a vault which is in use."""
    vault = shown(vault_dir)
    place = mountpoint_of(vault_dir, holder)
    if place is not None:
        return VaultLockedError(
            f"{vault} is in use by {holder.describe()}; unmount it with: cryptfs umount {shell_word(place)}"
        )
    device = device_served_by(holder.pid)
    if device is None:
        return VaultLockedError(f"{vault} is in use by {holder.describe()}; try again later")
    lines = find_keepers(device).lines()
    if not lines:
        return VaultLockedError(f"{vault} is being closed by process {holder.pid}; try again in a moment")
    return VaultLockedError(
        f"{vault} is not mounted on {holder.shown_mountpoint} any more, but process {holder.pid} "
        f"still has it open. It closes when these let go of it:\n{_indented(lines)}"
    )


def mountpoint_of(vault_dir: Path, holder: LockHolder) -> str | None:
    """The mountpoint of the process that holds a vault, if that mount still exists; whatever its source."""
    if not holder.mountpoint:  # a full disk had no room for it
        return next((mount.mountpoint for mount in reversed(mounts_of(vault_dir))), None)
    mount = mount_at(Path(holder.mountpoint))
    if mount is None or not mount.is_cryptfs:
        return None
    if mount.source == str(absolute(vault_dir)):
        return mount.mountpoint
    with contextlib.suppress(MountError):
        if ask_status(mount)["pid"] == holder.pid:
            return mount.mountpoint
    return None
