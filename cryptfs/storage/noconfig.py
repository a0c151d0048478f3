"""What a directory without a config is: a message for a person who took it for a vault."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from cryptfs.core.names.dirrecord import RECORD_NAME
from cryptfs.core.names.host import state_of_name
from cryptfs.core.names.names import could_be_cipher_name
from cryptfs.core.printable import shell_word, shown
from cryptfs.core.slots.checks import CONFIG_NAME, RECOVERY_NAME


def looks_like_vault(names: Iterable[str]) -> bool:
    """Whether a directory with these names holds ciphertext, or state. A guess, for messages."""
    return any(could_be_cipher_name(name) or state_of_name(name) is not None for name in names)


def mistaken(vault_dir: Path, names: Iterable[str]) -> str | None:
    """A message about a part of a vault, or a vault without its config; None for any other directory.

    Args: names: all that it holds, without a config.
    """
    found = set(names)
    if RECORD_NAME in found and (around := vault_around(vault_dir)) is not None:
        return f"{shown(vault_dir)} is a directory inside the vault {shown(around)}. Give the vault itself"
    if RECOVERY_NAME in found:
        return (
            f"{shown(vault_dir)} is a vault without its {CONFIG_NAME}. Restore that file from a backup, or "
            "make it again from recovery words or shares: "
            f"cryptfs recovery restore-config {shell_word(vault_dir)}. Do not run init here"
        )
    if looks_like_vault(found):
        return (
            f"{shown(vault_dir)} looks like a vault, but its {CONFIG_NAME} is missing. Restore that file "
            "from a backup, or make it again from recovery words and a copy of the recovery record: "
            f"cryptfs recovery restore-config {shell_word(vault_dir)} --record FILE. Otherwise nobody can "
            "open the vault. Do not run init here"
        )
    return None


def without_config(vault_dir: Path) -> str:
    """About a directory that has no config: what it is, and what to do next."""
    place = shown(vault_dir)
    try:
        names = os.listdir(vault_dir)
    except OSError:
        return f"{place} is not a vault: it has no {CONFIG_NAME}"
    if not names:
        return (
            f"{place} is not a vault: it is empty. If it should hold one, mount its disk first. "
            f"To make a new vault here: cryptfs init {shell_word(vault_dir)}"
        )
    return mistaken(vault_dir, names) or (
        f"{place} is not a vault (it has no {CONFIG_NAME}). "
        "A new vault needs an empty directory: cryptfs init NEW_DIRECTORY"
    )


def vault_around(path: Path) -> Path | None:
    """The vault that a path is inside of, if there is one."""
    parents = Path(os.path.realpath(path)).parents
    return next((parent for parent in parents if os.path.lexists(parent / CONFIG_NAME)), None)
