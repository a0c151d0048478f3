"""What several commands ask about a vault before they need its passphrase."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from cryptfs.cli.exit_codes import ConfigUnreadableError

if TYPE_CHECKING:
    from cryptfs.core.config import VaultConfig


def config_of(vault_dir: Path) -> VaultConfig:
    """The vault's config, not yet authenticated.

    Raises: NotAVaultError, VaultConfigError, UnsupportedFormatError; ConfigUnreadableError.
    """
    from cryptfs.core.config import CONFIG_NAME
    from cryptfs.vfs.vault import read_config

    try:
        # Only to tell what the system refuses from what is not there, which read_config says better.
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            os.close(os.open(vault_dir / CONFIG_NAME, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
        return read_config(vault_dir)
    except OSError as error:
        raise ConfigUnreadableError(
            f"{error.filename or vault_dir}: cannot read the vault config: {error.strerror}"
        ) from None


def refuse_locked(vault_dir: Path, *, read_only: bool) -> None:
    """Say that the vault is in use before somebody types a passphrase for nothing.

    Vault.unlock takes the lock and is the one that decides.

    Raises: VaultLockedError.
    """
    from cryptfs.mount.closing import locked
    from cryptfs.vfs.vault import lock_holder

    holder = None if read_only else lock_holder(vault_dir)
    if holder is not None:
        raise locked(vault_dir, holder)
