"""Mounting from Python: `cryptfs.mount_vault`, and the handle that it returns."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from cryptfs.mount.closing import closing_of, wait_closed, wait_while_closing
from cryptfs.mount.daemon import LogTarget
from cryptfs.mount.ending import current_umask, hook_of
from cryptfs.mount.life import check_mountpoint, load_engine, made_mountpoint, mount_background
from cryptfs.mount.mounts import absolute, cryptfs_mount_at, mount_at, unmount
from cryptfs.mount.options import MountOptions
from cryptfs.mount.resources import open_standard_streams
from cryptfs.unlock.offer import Offer
from cryptfs.vfs.content.redo import Durability
from cryptfs.vfs.vault import Vault

log = logging.getLogger("cryptfs.mount")


class MountedVault:
    """A vault that a daemon serves at `mountpoint`; unmount it, or use it in a with statement.

    The mount outlives this object and this process: only `unmount`, here or by command, takes it away.
    """

    def __init__(self, vault_dir: Path, mountpoint: Path, pid: int) -> None:
        self.vault_dir = vault_dir
        self.mountpoint = mountpoint
        self.pid = pid

    def is_mounted(self) -> bool:
        """Whether a cryptfs mount is there now."""
        mount = mount_at(self.mountpoint)
        return mount is not None and mount.is_cryptfs

    def unmount(self, *, lazy: bool = False) -> None:
        """Unmount, and return when everything is written and the vault can be mounted again.

        Args:   lazy: take the mount away even if programs use it, and return at once; the vault closes
                when they let go.
        Raises: MountError: programs still use it (the text names them), or it is no longer mounted.
        """
        closing = closing_of(cryptfs_mount_at(self.mountpoint), self.vault_dir)
        unmount(self.mountpoint, lazy=lazy)
        if not lazy:
            wait_closed(closing)

    def __enter__(self) -> MountedVault:
        return self

    def __exit__(self, *_: object) -> None:
        if self.is_mounted():
            self.unmount()

    def __repr__(self) -> str:
        return f"MountedVault({str(self.vault_dir)!r} at {str(self.mountpoint)!r}, daemon {self.pid})"


def mount_vault(
    vault_dir: str | os.PathLike[str],
    mountpoint: str | os.PathLike[str],
    passphrase: bytes | Offer,
    options: MountOptions | None = None,
    *,
    log_file: str | os.PathLike[str] | None = None,
) -> MountedVault:
    """Mount a vault in the background; returns when its files are there.

        with cryptfs.mount_vault("vault", "private", b"...") as mounted:
            (mounted.mountpoint / "diary").write_text("...")

    Waits for a daemon that still closes the vault after an unmount, for up to 20 seconds.

    The daemon is a fork of this process. So call this before you start threads. The daemon keeps all
    inheritable descriptors of this process.

    Args:   mountpoint: an empty directory; one that is missing is made.
            passphrase: bytes, without a line break; encode text as UTF-8. Or an Offer of other keys.
            options: how to mount; None means as `cryptfs mount` without options. An after_mount that fails is
                     a warning of the log.
            log_file: the daemon appends its log lines there; None is syslog.
    Raises: MountError: the mountpoint cannot be used, or FUSE is missing or refuses.
            VaultError: not a vault, the wrong passphrase, in use by somebody else ...   OSError.
    """
    open_standard_streams()
    options = MountOptions() if options is None else options
    vault_path = absolute(Path(vault_dir))
    place = check_mountpoint(vault_path, Path(mountpoint), nonempty=options.nonempty)
    engine = load_engine(options.engine)
    target = LogTarget(None if log_file is None else Path(log_file).absolute())
    durability = Durability(options.durability)
    umask = current_umask()
    wait_while_closing(vault_path)
    with target.findings.listening():
        vault = Vault.unlock(vault_path, passphrase, read_only=options.read_only, durability=durability)
        try:
            with made_mountpoint(place):
                pid = mount_background(vault, place, options, engine, target)
        except BaseException:
            vault.close()
            raise
    hook = hook_of(options.after_mount, vault_path, place, umask)
    if hook is not None and (problem := hook.run("mount", None)):
        log.warning("the vault is mounted, but there was a problem with after_mount: %s", problem)
    return MountedVault(vault_path, place, pid)
