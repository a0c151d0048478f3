"""Checks of a vault that several commands make before they ask for its passphrase."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cryptfs.cli.exit_codes import CommandError, ConfigUnreadableError, ConfigUnwritableError
from cryptfs.cli.output import note
from cryptfs.core.printable import shell_word, shown
from cryptfs.errors import NotAVaultError, UnsupportedFormatError, VaultConfigError, VaultError

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
    except NotAVaultError as error:
        _refuse_mountpoint(vault_dir)
        raise _if_exchanged(error, vault_dir) from None
    except (VaultConfigError, UnsupportedFormatError) as error:
        raise type(error)(f"{shown(vault_dir)}: {error}{_by_words(vault_dir, error)}") from None
    except OSError as error:
        _refuse_mountpoint(vault_dir)
        raise ConfigUnreadableError(
            f"{error.filename or vault_dir}: cannot read the vault config: {error.strerror}"
        ) from None


def _refuse_mountpoint(path: Path) -> None:
    """Suggest the vault to a person who gives its mountpoint instead, or a directory there.

    Raises: NotAVaultError: a vault is mounted on `path`, or around it.
    """
    from cryptfs.mount.closing import closing_of
    from cryptfs.mount.mounts import absolute, mount_around

    mount = mount_around(path)
    if mount is None or not mount.is_cryptfs:
        return
    vault = closing_of(mount).vault_dir or mount.source
    where = "" if mount.mountpoint == str(absolute(path)) else "inside "
    raise NotAVaultError(
        f"{shown(path)} is {where}the mountpoint of the vault {shown(vault)}. "
        f"You probably mean: {_command_with(Path(vault), path)}"
    ) from None


def _arguments() -> Iterator[tuple[str, Path | str | int]]:
    """The arguments of this command that a person gave, by their names."""
    ctx = click.get_current_context(silent=True)
    for each in [] if ctx is None else ctx.command.params:
        value = None if ctx is None else ctx.params.get(each.name or "")
        if isinstance(each, click.Argument) and isinstance(value, Path | str | int):
            yield each.name or "", value


def _command_with(vault: Path, given: Path) -> str:
    """This command with another vault, for pasting; what was given as the vault takes the other's place."""
    ctx = click.get_current_context(silent=True)
    words = ["cryptfs" if ctx is None else ctx.command_path]
    for name, value in _arguments():
        words.append(shell_word(vault if name == "vault" else given if value == vault else str(value)))
    return " ".join(words)


def _if_exchanged(error: NotAVaultError, vault_dir: Path) -> NotAVaultError:
    """The same error, or a better one if another argument is a vault: people mix up the order."""
    from cryptfs.core.slots.checks import CONFIG_NAME

    for name, value in _arguments():
        if name != "vault" and isinstance(value, Path) and os.path.lexists(value / CONFIG_NAME):
            return NotAVaultError(
                f"{shown(vault_dir)} is not a vault, and {shown(value)} is one. The vault comes first: "
                f"{_command_with(value, vault_dir)}"
            )
    return error


def _by_words(vault_dir: Path, error: VaultError) -> str:
    """The other way to get a damaged config back, if the vault has a recovery record."""
    from cryptfs.core.slots.checks import RECOVERY_NAME

    if isinstance(error, UnsupportedFormatError) or not os.path.lexists(vault_dir / RECOVERY_NAME):
        return ""
    return f". With recovery words or shares: cryptfs recovery restore-config {shell_word(vault_dir)}"


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


def refuse_locked(vault_dir: Path) -> None:
    """Say that the vault is in use before somebody types a passphrase for nothing.

    A vault that is just being closed is waited for. The decision is Vault.unlock's, which takes the lock.

    Raises: VaultLockedError: it is open for writing.
    """
    from cryptfs.mount.closing import locked, wait_while_closing

    holder = wait_while_closing(vault_dir, note)
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
