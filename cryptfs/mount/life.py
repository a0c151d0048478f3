"""One mount from beginning to end: checks, the engine, readiness, signals, and closing the vault.

    check_mountpoint -> (start_daemon) -> serve: announce, start, engine.run, close

The process with the terminal unlocks the vault before that; threads start in `serve`.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import signal
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, cast

from cryptfs.core.printable import shell_word, shown
from cryptfs.errors import MountError
from cryptfs.mount.daemon import LogTarget, Ready, configure_logging, harden_process, start_daemon
from cryptfs.mount.ending import GRACE, Ending, current_umask
from cryptfs.mount.leaving import ownmountpoint
from cryptfs.mount.mounts import Mount, absolute, is_stale, mount_at, remount, require_fuse_device
from cryptfs.mount.options import MountOptions
from cryptfs.mount.recent import RecentFindings
from cryptfs.mount.resources import claim_resources
from cryptfs.mount.service.notify import notify_ready, notify_stopping
from cryptfs.mount.statistics import Statistics, StatusServer

log = logging.getLogger("cryptfs.mount")

STOP_SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP})
READ_AHEAD_KB = 1024
_BDI = Path("/sys/class/bdi")


class MountableVault(Protocol):
    """The part of vfs.vault.Vault that a life needs."""

    @property
    def vault_dir(self) -> Path: ...

    def announce(self, mountpoint: str) -> None: ...

    def start(self) -> None: ...

    def close(self) -> None: ...

    def hand_over(self) -> None: ...


class EngineReady(Protocol):
    """An engine calls this once it answers requests, with the numbers that it will count up."""

    def __call__(self, statistics: Statistics | None = None, /) -> None: ...


Engine = Callable[[MountableVault, Path, MountOptions, EngineReady], None]


def load_engine(name: str) -> Engine:
    """The `run` of an engine. Loads FUSE libraries, but starts no thread.

    Raises: MountError: the engine's libraries are not installed, or this user cannot open the device of FUSE.
    """
    if sys.platform == "linux":
        require_fuse_device()
    module = importlib.import_module(f"cryptfs.mount.{name}.engine")
    return cast(Engine, module.run)


def check_mountpoint(vault_dir: Path, mountpoint: Path, *, nonempty: bool = False) -> Path:
    """The absolute path of a mountpoint, if a vault can be mounted there. It may be missing.

    Raises: MountError: nothing can be made there, or it is a file, not empty, entangled with the vault, or
            the dead remains of a mount.
    """
    mount = mount_at(mountpoint)
    if mount is not None and mount.is_cryptfs:
        what = "a mount whose daemon died is" if is_stale(mountpoint) else f"{shown(mount.source)} is mounted"
        raise MountError(
            f"{shown(mountpoint)}: {what} there already; "
            f"unmount it with: cryptfs umount {shell_word(mountpoint)}"
        )
    place, vault = absolute(mountpoint), absolute(vault_dir)
    _check_apart(place, vault)
    try:
        mode = mountpoint.stat().st_mode
    except FileNotFoundError:
        if mountpoint.parent.is_dir() and not mountpoint.is_symlink():
            if os.access(mountpoint.parent, os.W_OK | os.X_OK):
                return place
            raise MountError(
                f"{shown(mountpoint)} does not exist, and you cannot make it: you may not write to "
                f"{shown(mountpoint.parent)}. Choose another directory"
            ) from None
        raise MountError(
            f"{shown(mountpoint)}: no such directory; create it with: mkdir -p {shell_word(mountpoint)}"
        ) from None
    except OSError as error:
        raise MountError(f"{shown(mountpoint)}: {error.strerror}") from None
    if not stat.S_ISDIR(mode):
        raise MountError(f"{shown(mountpoint)}: not a directory")
    if not nonempty:
        _check_empty(mountpoint)
    return place


def _check_apart(place: Path, vault: Path) -> None:
    here, there = shown(place), shown(vault)
    if place == vault:
        raise MountError(f"{here}: a vault cannot be mounted over itself; choose another directory")
    if place.is_relative_to(vault):
        raise MountError(f"{here}: this directory is inside the vault {there}; choose one outside of it")
    if vault.is_relative_to(place):
        raise MountError(
            f"{here}: the vault {there} is inside this directory, and a mount would hide it; choose another"
        )


def _check_empty(mountpoint: Path) -> None:
    try:
        with os.scandir(mountpoint) as entries:
            empty = next(entries, None) is None
    except OSError as error:
        raise MountError(f"{shown(mountpoint)}: cannot be read: {error.strerror}") from None
    if not empty:
        raise MountError(
            f"{shown(mountpoint)} is not empty. If programs wrote files here while the vault was not "
            "mounted, they are NOT encrypted: move them away, mount, and move them in. Or choose an empty "
            "directory, or give --nonempty to hide them"
        )


@dataclass(frozen=True, slots=True)
class Made:
    """The work of made_mountpoint. is_new: it made a directory.   is_protected: nobody can write to that."""

    is_new: bool = False
    is_protected: bool = False


@contextlib.contextmanager
def made_mountpoint(place: Path) -> Iterator[Made]:
    """Make a mountpoint that is missing; after an error it goes again.

    Raises: MountError: it cannot be made.
    """
    if place.exists():
        yield Made()
        return
    try:
        made = Made(True, ownmountpoint.make(place))
    except OSError as error:
        raise MountError(f"{shown(place)}: cannot be made: {error.strerror}") from None
    try:
        yield made
    except BaseException:
        ownmountpoint.discard(place)
        raise


def mount_background(
    vault: MountableVault, mountpoint: Path, options: MountOptions, engine: Engine, target: LogTarget
) -> int:
    """Serve the vault from a daemon; returns its pid when the mount is usable.

    From then on the daemon owns the vault and its lock, and the caller's copy is gone. After an error the
    caller still owns the vault and must close it.

    Raises: MountError, or the daemon's own error at its start.
    """
    umask = current_umask()
    target = _with_fields(target, vault, mountpoint)
    pid = start_daemon(
        lambda ready: serve(vault, mountpoint, options, engine, ready, target.findings, umask=umask), target
    )
    vault.hand_over()
    return pid


def mount_foreground(
    vault: MountableVault,
    mountpoint: Path,
    options: MountOptions,
    engine: Engine,
    target: LogTarget,
    ready: Ready,
) -> None:
    """Serve the vault from this process until an unmount or a stop signal.

    Raises: MountError: FUSE refuses.
    """
    harden_process()
    claim_resources()
    configure_logging(_with_fields(target, vault, mountpoint), daemon=False)

    def tell_all() -> None:
        ready()
        notify_ready(f"{shown(vault.vault_dir)} is mounted on {shown(mountpoint)}")

    old_umask = os.umask(0)
    try:
        serve(vault, mountpoint, options, engine, tell_all, target.findings, umask=old_umask)
    finally:
        os.umask(old_umask)


def _with_fields(target: LogTarget, vault: MountableVault, mountpoint: Path) -> LogTarget:
    """The same target with the fields of each line in the journal."""
    fields = {"CRYPTFS_VAULT": shown(vault.vault_dir), "CRYPTFS_MOUNTPOINT": shown(mountpoint)}
    return replace(target, fields=fields)


def serve(
    vault: MountableVault,
    mountpoint: Path,
    options: MountOptions,
    engine: Engine,
    ready: Ready,
    findings: RecentFindings | None = None,
    *,
    umask: int = 0o077,
) -> None:
    """Run the engine until the mount is gone, then close the vault.

    Args:   ready: called once, from another thread, when the mount answers.
            findings: for `cryptfs status`.   umask: for the user's commands.
    Raises: MountError: the mount failed or never answered.
    """
    life = _Life(mountpoint, ready, vault.vault_dir, findings, options, umask)
    try:
        with life.watching_signals():
            vault.announce(str(mountpoint))
            vault.start()
            life.ending.connect()
            with ownmountpoint.unlocked(mountpoint) as life.lock_mountpoint:
                engine(vault, mountpoint, options, life.on_ready)
            life.ended.set()
    finally:
        life.ended.set()
        life.end_status()
        vault.close()
        life.ending.close()
    life.finish()
    why = f": {life.ending.why}" if life.ending.why else ""
    log.info("unmounted %s and closed the vault%s", shown(mountpoint), why)


class _Life:
    """State shared by the engine's thread, the readiness thread and the signal thread.

    `ended` is set when the engine has returned; `failure` says why the mount never became usable.
    """

    def __init__(
        self,
        mountpoint: Path,
        ready: Ready,
        vault_dir: Path,
        findings: RecentFindings | None,
        options: MountOptions,
        umask: int,
    ) -> None:
        self.mountpoint = mountpoint
        self._options = options
        self._vault_dir = str(vault_dir)
        self._findings = findings
        self.ended = threading.Event()
        self.ending = Ending(mountpoint, vault_dir, options, self.ended, umask)
        self.lock_mountpoint: Callable[[], None] = lambda: None
        self._ready = ready
        self._readying: threading.Thread | None = None
        self._failure: MountError | None = None
        self._statistics: Statistics | None = None
        self._status: StatusServer | None = None

    def on_ready(self, statistics: Statistics | None = None, /) -> None:
        """Called by the engine from INIT: the kernel answers nothing until this has returned."""
        self._statistics = statistics
        self._readying = threading.Thread(target=self._become_ready, name="cryptfs-ready", daemon=True)
        self._readying.start()

    def _become_ready(self) -> None:
        try:
            self.mountpoint.stat()
        except OSError as error:
            self._failure = MountError(
                f"{shown(self.mountpoint)}: the mount does not answer: {error.strerror}"
            )
            self.ending.stop()
            return
        self.lock_mountpoint()
        mount = mount_at(self.mountpoint)
        if mount is not None and mount.is_cryptfs:
            self.ending.device = mount.device
            if self._options.follows_no_symlinks and not self._refuse_symlinks(mount):
                return
            raise_read_ahead(mount)
            self._offer_status(mount)
            self.ending.begin(mount.device, self._statistics)
        self._ready()

    def _refuse_symlinks(self, mount: Mount) -> bool:
        """Set nosymfollow, which libfuse does not know; False, and the mount ends, if that is impossible."""
        if "nosymfollow" in mount.options:
            return True
        try:
            remount(self.mountpoint, "bind,nosymfollow")
        except MountError as error:
            self._failure = error
            self.ending.stop()
            return False
        return True

    def _offer_status(self, mount: Mount) -> None:
        if self._statistics is None or self.ended.is_set():
            return
        try:
            self._status = StatusServer(
                mount, self._statistics, self._findings, self._vault_dir, self.ending.describe
            )
        except OSError as error:
            log.info("%s: `cryptfs status` will not work: %s", shown(self.mountpoint), error.strerror)

    def end_status(self) -> None:
        """After the engine: stop answering `cryptfs status`."""
        if self._status is not None:
            self._status.close()

    def finish(self) -> None:
        """After the engine: raise its failure.

        Raises: MountError: the mount never became usable.
        """
        if self._readying is None:
            raise MountError(f"{shown(self.mountpoint)}: FUSE ended before the mount was usable")
        self._readying.join(GRACE)
        if self._failure is not None:
            raise self._failure

    @contextlib.contextmanager
    def watching_signals(self) -> Iterator[None]:
        """Turn stop signals into an unmount.

        The engine's main thread sits in C, where Python's handlers never run: the signals are blocked
        everywhere, and a thread waits for them.
        """
        old_mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        watcher = threading.Thread(target=self._watch, name="cryptfs-signals", daemon=True)
        watcher.start()
        try:
            yield
        finally:
            self.ended.set()
            if watcher.is_alive() and watcher.ident is not None:
                with contextlib.suppress(ProcessLookupError):
                    signal.pthread_kill(watcher.ident, signal.SIGTERM)
            watcher.join(GRACE)
            signal.pthread_sigmask(signal.SIG_SETMASK, old_mask)

    def _watch(self) -> None:
        asked = False
        while not self.ended.is_set():
            number = signal.sigwait(STOP_SIGNALS)
            if self.ended.is_set():
                return
            if asked:
                # As safe as any kill: synced data is on disk, and headers say that a writer died.
                log.error("%s again: ending at once", signal.Signals(number).name)
                logging.shutdown()
                os._exit(1)
            asked = True
            log.info("%s: unmounting %s", signal.Signals(number).name, shown(self.mountpoint))
            notify_stopping()
            self.ending.stop()


def raise_read_ahead(mount: Mount) -> None:
    """Let the kernel read 1 MiB ahead instead of 128 KiB. Only root can; other users do without."""
    knob = _BDI / mount.device / "read_ahead_kb"
    with contextlib.suppress(OSError, ValueError):
        if int(knob.read_text()) < READ_AHEAD_KB:
            knob.write_text(f"{READ_AHEAD_KB}\n")
