"""Pins: which vault was at a path when this user opened it on this machine, and how new its config was.

A pin only refuses: one that is missing, damaged, hostile or cannot be written is as if the vault was never
seen. It is kept for a path, so two copies of a vault have two pins, and a vault that moves has none yet.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

from cryptfs.core.names.host import StateNames, state_of_name
from cryptfs.core.printable import shown
from cryptfs.core.slots.checks import CONFIG_NAME
from cryptfs.core.slots.identity import Mark, Mismatch, is_identity, mismatch
from cryptfs.errors import UnexpectedVaultError
from cryptfs.storage.hosts import machine_id
from cryptfs.storage.userstate import read_fields, write_fields

_DIRECTORY = "pins"
_HEX = frozenset("0123456789abcdef")
_MAX_NUMBER = 2**64


@dataclass(frozen=True, slots=True)
class SeenSessions:
    """The last session that a list had. owner: whose list, as this machine was named in the vault then."""

    owner: StateNames
    last: int


class Pin:
    """Decides whether a vault may be used, by the one that this machine has seen and by a person's words.

    Args: accept: take the vault at the path for the right one, and pin it.
          is_off: look at no pin and write none.
          expected: the code of the identity that the vault must have; '' is any.
    """

    def __init__(self, *, accept: bool = False, is_off: bool = False, expected: str = "") -> None:
        self._accept = accept
        self._is_off = is_off
        self._expected = expected
        self.met: Mark | None = None  # the vault that was checked last

    @property
    def expected(self) -> str:
        """The code of the identity that the vault must have; '' is any."""
        return self._expected

    def check(self, vault_dir: Path, now: Mark) -> None:
        """Refuse another vault than the right one; pin the right one.

        Raises: UnexpectedVaultError.
        """
        self.met = now
        if self._expected and not now.has_code(self._expected):
            raise UnexpectedVaultError(
                f"{shown(vault_dir)} has the identity {now.code}, and not the expected one. It is another "
                "vault, or somebody changed its masterkey"
            )
        if self._is_off:
            return
        seen = pinned(vault_dir)
        found = None if seen is None or self._accept else mismatch(seen, now)
        if found is not None and seen is not None:
            is_confirmed = self._expected and found is not Mismatch.OLDER_CONFIG
            if not is_confirmed:
                raise UnexpectedVaultError(_explained(found, vault_dir, seen, now))
        self.keep(vault_dir, now)

    def keep(self, vault_dir: Path, now: Mark) -> None:
        """Pin what this process itself has made of the vault."""
        self.met = now
        if self._is_off:
            return
        path = os.path.realpath(vault_dir)
        fields: dict[str, object] = {
            "path": path,
            "vault_id": now.vault_id,
            "identity": now.identity,
            "generation": now.generation,
        }
        seen = pinned(vault_dir)
        if seen is None or seen.vault_id != now.vault_id:
            fields["sessions"] = None  # of another vault
        write_fields(_name(path), fields)

    def seen_sessions(self, vault_dir: Path) -> SeenSessions | None:
        """The last session that this machine saw the end of; None if it saw none."""
        if self._is_off:
            return None
        path = os.path.realpath(vault_dir)
        sessions = read_fields(_name(path)).get("sessions")
        if pinned(vault_dir) is None or not isinstance(sessions, dict):
            return None
        host, last = sessions.get("host"), sessions.get("last")
        owner = StateNames(host) if isinstance(host, str) else None
        if owner is None or not _is_number(last) or not _is_host(owner):
            return None
        return SeenSessions(owner, last)

    def keep_sessions(self, vault_dir: Path, seen: SeenSessions) -> None:
        """Remember it for the vault at this path."""
        if not self._is_off and pinned(vault_dir) is not None:
            path = os.path.realpath(vault_dir)
            sessions = {"host": seen.owner.host, "last": seen.last}
            write_fields(_name(path), {"sessions": sessions})


def pinned(vault_dir: Path) -> Mark | None:
    """The vault that this machine has seen at a path, as it was; None if it remembers none."""
    path = os.path.realpath(vault_dir)
    found = read_fields(_name(path))
    vault_id, identity, generation = (found.get(name) for name in ("vault_id", "identity", "generation"))
    if found.get("path") != path or not isinstance(vault_id, str) or not isinstance(identity, str):
        return None
    if not set(vault_id) <= _HEX or not is_identity(identity) or not _is_number(generation):
        return None
    return Mark(vault_id, identity, generation)


def _name(path: str) -> str:
    """Machines that share a home may have different vaults at one path."""
    digest = hashlib.blake2b(machine_id() + os.fsencode(path), digest_size=16, person=b"cryptfs:pin")
    return f"{_DIRECTORY}/{digest.hexdigest()}.json"


def _is_number(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MAX_NUMBER


def _is_host(owner: StateNames) -> bool:
    """Whether it can be the name of a machine: it becomes part of a file name."""
    return not owner.host or state_of_name(owner.sessions) == owner


def _explained(found: Mismatch, vault_dir: Path, seen: Mark, now: Mark) -> str:
    if found is Mismatch.OLDER_CONFIG:
        return (
            f"{shown(vault_dir / CONFIG_NAME)} is older than the one that this machine has seen (generation "
            f"{now.generation} instead of {seen.generation}). If somebody put it back, passphrases and keys "
            "that you have changed or removed since then open the vault again. Restore the newer file, or, "
            "if you restored an older copy yourself, continue with --accept"
        )
    if found is Mismatch.ANOTHER_VAULT:
        what = "is not the vault that this machine opened there before"
        honest = "If you put another vault there yourself"
    else:
        what = "has a different masterkey than when this machine opened it before"
        honest = "If you changed the masterkey on another machine"
    return (
        f"{shown(vault_dir)} {what}. Somebody may have exchanged it, to read everything that you write into "
        f"it from now on. Its identity is {now.code}; it was {seen.code} before. {honest}, compare the code "
        "with the one that `cryptfs key test` shows there, and if it is the same, continue with --accept"
    )
