"""Checks of a vault that several commands make before they ask for its passphrase."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import rich_click as click

from cryptfs.cli.exit_codes import CommandError, ConfigUnreadableError, ConfigUnwritableError
from cryptfs.core.printable import shell_word, shown
from cryptfs.errors import NotAVaultError

if TYPE_CHECKING:
    from cryptfs.core.slots.config import VaultConfig


def config_of(vault_dir: Path, *, rekeying: bool = False) -> VaultConfig:
    """The vault's config, not yet authenticated.

    Args:   rekeying: also while the masterkey is being changed.
    Raises: NotAVaultError, VaultConfigError, UnsupportedFormatError; ConfigUnreadableError.
            VaultError: the masterkey is being changed.
    """
    from cryptfs.core.slots.checks import CONFIG_NAME
    from cryptfs.unlock.unlocking import refuse_rekeying
    from cryptfs.vfs.vault import read_config

    try:
        # Only to find what the system refuses; for a missing file read_config has the better message.
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            os.close(os.open(vault_dir / CONFIG_NAME, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
        config = read_config(vault_dir)
        if not rekeying:
            refuse_rekeying(config, vault_dir)
        return config
    except NotAVaultError:
        _refuse_mountpoint(vault_dir)
        raise
    except OSError as error:
        _refuse_mountpoint(vault_dir)
        raise ConfigUnreadableError(
            f"{error.filename or vault_dir}: cannot read the vault config: {error.strerror}"
        ) from None


def _refuse_mountpoint(path: Path) -> None:
    """Suggest the vault to a person who gives its mountpoint instead.

    Raises: NotAVaultError: a vault is mounted on `path`.
    """
    from cryptfs.mount.closing import closing_of
    from cryptfs.mount.mounts import mount_at

    mount = mount_at(path)
    if mount is None or not mount.is_cryptfs:
        return
    vault = closing_of(mount).vault_dir or mount.source
    ctx = click.get_current_context()
    assert ctx is not None
    more = " ..." if sum(isinstance(each, click.Argument) for each in ctx.command.params) > 1 else ""
    raise NotAVaultError(
        f"{shown(path)} is the mountpoint of the vault {shown(vault)}. "
        f"You probably mean: cryptfs {ctx.info_name} {shell_word(vault)}{more}"
    ) from None


@contextlib.contextmanager
def naming(vault_dir: Path, *, if_full: str = "") -> Iterator[None]:
    """Give errors of the disk the place that they lack: a call by descriptor knows no path, or half of one.

    Args:   if_full: what helps on a full disk, besides free space.
    Raises: CommandError: in place of an OSError without an absolute path.
    """
    from cryptfs.storage.libc import NO_ROOM
    from cryptfs.storage.vaultdir import no_room

    try:
        yield
    except OSError as error:
        name = error.filename if isinstance(error.filename, str) else ""
        if os.path.isabs(name) or error.strerror is None:
            raise
        if error.errno in NO_ROOM:
            raise CommandError(no_room(vault_dir, if_full)) from None
        raise CommandError(f"{shown(vault_dir / name)}: {error.strerror}") from None


def refuse_locked(vault_dir: Path, *, read_only: bool) -> None:
    """Say that the vault is in use before somebody types a passphrase for nothing.

    The decision is Vault.unlock's, which takes the lock.

    Raises: VaultLockedError.
    """
    from cryptfs.mount.closing import locked
    from cryptfs.vfs.vault import lock_holder

    holder = None if read_only else lock_holder(vault_dir)
    if holder is not None:
        raise locked(vault_dir, holder)


def require_writable(vault_dir: Path) -> None:
    """Say that the config cannot be written before somebody types a passphrase for nothing.

    Raises: ConfigUnwritableError.
    """
    if os.access(vault_dir, os.W_OK):
        return
    is_read_only = os.statvfs(vault_dir).f_flag & os.ST_RDONLY
    reason = os.strerror(errno.EROFS if is_read_only else errno.EACCES)
    raise ConfigUnwritableError(f"{shown(vault_dir)}: cannot write the vault config: {reason}")


def is_inside(vault_dir: Path, place: Path) -> bool:
    """Whether a place is in the vault, or in one of its mountpoints: it comes and goes with the vault."""
    from cryptfs.mount.mounts import absolute, mounts_of

    trees = (absolute(vault_dir), *(Path(mount.mountpoint) for mount in mounts_of(vault_dir)))
    return any(absolute(place).is_relative_to(tree) for tree in trees)
