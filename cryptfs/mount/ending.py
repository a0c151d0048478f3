"""How the daemon of a mount takes it away: for a signal, and for the reasons of leaving/."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import threading
from pathlib import Path
from typing import Any

from cryptfs.core.printable import shown
from cryptfs.errors import MountError
from cryptfs.mount.holders import describe_holders, find_holders, find_users
from cryptfs.mount.leaving.control import ControlServer
from cryptfs.mount.leaving.desktop import LOCK, LOGOUT, SLEEP, Desktop
from cryptfs.mount.leaving.hooks import Hook, split_command
from cryptfs.mount.leaving.idle import IdleClock
from cryptfs.mount.leaving.leaver import IDLE, Leaver, Outcome, Want
from cryptfs.mount.mounts import HOOK_SECONDS, Mount, mount_at, take_away
from cryptfs.mount.options import MountOptions
from cryptfs.mount.statistics import Statistics
from cryptfs.storage.libc import syncfs

log = logging.getLogger("cryptfs.mount")

GRACE = 5.0  # seconds that programs get to let go of open files after a stop signal
UMOUNT, SIGNAL = "umount", "signal"  # reasons, beside those of leaving/
HOOK_MOMENT = 3.0  # and for one that may not: logind waits 5 seconds before the machine sleeps
_WHY = {
    IDLE: "nobody used it",
    SLEEP: "the machine goes to sleep",
    LOCK: "the screen is locked",
    LOGOUT: "the session has ended",
}
_FUSE_CONNECTIONS = Path("/sys/fs/fuse/connections")


def hook_of(command: str, vault_dir: Path, mountpoint: Path, umask: int) -> Hook | None:
    """A command of MountOptions; None for ''."""
    if not command:
        return None
    return Hook(tuple(split_command(command)), str(vault_dir), str(mountpoint), umask)


def current_umask() -> int:
    """Of this process. Not for one with threads: it is another for a moment."""
    umask = os.umask(0o077)
    os.umask(umask)
    return umask


class Ending:
    """Takes one mount away.

    Args: ended: set when the engine has returned.   umask: for the user's command; the daemon's own is 0.
    """

    def __init__(
        self, mountpoint: Path, vault_dir: Path, options: MountOptions, ended: threading.Event, umask: int
    ) -> None:
        self.mountpoint = mountpoint
        self.device = ""  # '' until the mount is there
        self.why = ""  # this process unmounts it, if that is no signal
        self._options = options
        self._ended = ended
        self._hook = hook_of(options.before_unmount, vault_dir, mountpoint, umask)
        self._desktop: Desktop | None = None
        self._idle: IdleClock | None = None
        self._leaver: Leaver | None = None
        self._control: ControlServer | None = None

    # ---- reasons other than signals

    def connect(self) -> None:
        """Before the mount: reach what will say that the machine sleeps, and so on.

        Raises: MountError: nothing here would say so.
        """
        if self._options.unmount_on:
            self._desktop = Desktop(self._options.unmount_on, self._told)

    def _told(self, reason: str, begins: bool) -> None:
        if self._leaver is not None:
            (self._leaver.begin if begins else self._leaver.end)(reason)

    def begin(self, device: str, statistics: Statistics | None) -> None:
        """The mount is there: wait for reasons to take it away."""
        self.device = device
        if self._hook is not None:
            try:
                self._control = ControlServer(device, self._prepare_for_umount)
            except OSError as error:
                log.warning("`cryptfs umount` will not run --before-unmount: %s", error.strerror)
        idle = None
        if self._options.idle is not None and statistics is not None:
            idle = self._idle = IdleClock(self._options.idle, statistics.of_programs, statistics.has_open)
        if idle is None and self._desktop is None:
            return
        tried = self._desktop.tried if self._desktop is not None else (lambda _: None)
        self._leaver = Leaver(self._leave, idle, lazily=self._options.detach_busy, tried=tried)
        self._leaver.start()
        if self._desktop is not None:
            self._desktop.start()

    def describe(self) -> dict[str, Any]:
        """For `cryptfs status`, from any thread: when the mount goes by itself, as far as anybody knows."""
        left = None if self._idle is None else self._idle.left()
        return {
            "idle_seconds": self._options.idle,
            "idle_left_seconds": left if left is None else round(left, 3),
            "on": list(self._options.unmount_on),
            "detach_busy": self._options.detach_busy,
            "waiting": [] if self._leaver is None else list(self._leaver.waiting),
        }

    def close(self) -> None:
        """After the engine: wait for nothing more. Logind need not wait either: the vault is closed."""
        if self._control is not None:
            self._control.close()
        if self._leaver is not None:
            self._leaver.stop()
        if self._desktop is not None:
            self._desktop.close()

    def _leave(self, want: Want, *, lazily: bool) -> Outcome:
        """One attempt; see Attempt."""
        try:
            outcome = self._attempt(want, lazily=lazily)
        except (MountError, OSError) as error:
            log.error("cannot unmount %s: %s", shown(self.mountpoint), error)
            outcome = Outcome.REFUSED
        if outcome is not Outcome.GONE:
            self.why = ""
        return outcome

    def _attempt(self, want: Want, *, lazily: bool) -> Outcome:
        """Raises: MountError, OSError: the system refuses."""
        mount = self._own_mount()
        if mount is None:
            return Outcome.GONE
        if self._hook is not None and not want.prepared:
            if not lazily and find_users(mount.device):
                return self._busy(want, mount)
            problem = self.prepare(want.reason)
            if problem and want.reason == IDLE:
                log.warning(
                    "%s stays mounted, because of --before-unmount: %s", shown(self.mountpoint), problem
                )
                return Outcome.REFUSED
            want.prepared = True
        self.why = _WHY[want.reason]  # before: afterwards this process ends
        try:
            take_away(mount, lazy=False)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            if not lazily:
                return self._busy(want, mount)
            detach_with_sync(mount)
            log.info("detached %s: %s", shown(self.mountpoint), self.why)
        return Outcome.GONE

    def _busy(self, want: Want, mount: Mount) -> Outcome:
        if want.tries == 0 and want.reason != IDLE:
            who = describe_holders(find_users(mount.device), commands=False)
            log.warning(
                "%s, but %s is in use%s. It stays mounted until no program uses it",
                _WHY[want.reason],
                shown(self.mountpoint),
                who,
            )
        return Outcome.BUSY

    def _prepare_for_umount(self, lazily: bool) -> str:
        """For `cryptfs umount`, which itself says who keeps the mount busy."""
        return self.prepare(UMOUNT) if lazily or not find_users(self.device) else ""

    def prepare(self, reason: str) -> str:
        """Run the user's command before an unmount; returns what went wrong, or ''."""
        if self._hook is None:
            return ""
        problem = self._hook.run(reason, HOOK_SECONDS if reason in (IDLE, UMOUNT) else HOOK_MOMENT)
        if problem and reason not in (IDLE, UMOUNT):
            log.warning("--before-unmount: %s; unmounting anyway", problem)
        return problem

    # ---- signals

    def _own_mount(self) -> Mount | None:
        mount = mount_at(self.mountpoint)
        if mount is None or not mount.is_cryptfs or (self.device and mount.device != self.device):
            return None
        return mount

    def stop(self) -> None:
        """Unmount; files still open after GRACE seconds lose their connection."""
        mount = self._own_mount()
        if mount is None:
            return
        self.prepare(SIGNAL)
        try:
            detach_with_sync(mount)
        except (MountError, OSError) as error:
            log.error("cannot unmount %s: %s", shown(self.mountpoint), error)
        if self._ended.wait(GRACE):
            return
        log.warning("files on %s are still open; closing them by force", shown(self.mountpoint))
        if not _abort_connection(mount):
            log.warning(
                "the kernel offers no way to do that here; waiting until programs close them "
                "(a second signal ends cryptfs at once)"
            )


def detach_with_sync(mount: Mount) -> None:
    """Take a mount away, lazily if programs use it; then the kernel's cache is written before."""
    try:
        take_away(mount, lazy=False)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        users = describe_holders(find_holders(mount.mountpoint), commands=False)
        log.warning("%s is still in use%s", shown(mount.mountpoint), users)
        _sync_mount(mount.mountpoint)
        take_away(mount, lazy=True)


def _sync_mount(mountpoint: str) -> None:
    """Have the kernel write back its cache of one mount."""
    with contextlib.suppress(OSError):
        descriptor = os.open(mountpoint, os.O_RDONLY | os.O_DIRECTORY)
        try:
            syncfs(descriptor)
        finally:
            os.close(descriptor)


def _abort_connection(mount: Mount) -> bool:
    """End a FUSE connection, even with files open on it; False if fusectl is not mounted."""
    minor = mount.device.partition(":")[2]
    try:
        (_FUSE_CONNECTIONS / minor / "abort").write_text("1\n")
    except OSError:
        return False
    return True
