"""What is said of journals that are not this session's: missing ones, and those of other machines."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Iterable
from pathlib import Path

from cryptfs.core.config import CONFIG_NAME
from cryptfs.core.header import FileHeader
from cryptfs.core.host import HOST_PREFIX, SHARED_STATE, StateNames, state_of_name
from cryptfs.core.journal import Sessions
from cryptfs.errors import IntegrityError, VaultConfigError, VaultLockedError
from cryptfs.storage.hosts import journals_of_others
from cryptfs.storage.libc import syncfs
from cryptfs.storage.sessions import read_sessions_file
from cryptfs.storage.vaultdir import VaultLock, holder_of
from cryptfs.vfs.context import FileContext
from cryptfs.vfs.recovery import names_missing_journal
from cryptfs.vfs.replay import newest_head, replay, waiting_journals

log = logging.getLogger(__name__)


class MissingJournals:
    """Says once for each journal that a file names it and that it is not here.

    Args: vault_fd: the vault directory.
    """

    def __init__(self, context: FileContext, vault_fd: int) -> None:
        self._context = context
        self._vault_fd = vault_fd
        self._lock = threading.Lock()
        self._known: set[bytes] = set()

    def note(self, header: FileHeader, cipher_path: str) -> None:
        """A file that is not CLEAN has been opened, and nobody here is writing to it."""
        with self._lock:
            if header.journal_id in self._known:
                return
            self._known.add(header.journal_id)
        try:
            waiting = waiting_journals(self._context, self._vault_fd)
        except OSError:
            return
        here = header.journal_id in waiting.own | waiting.others
        if not here and names_missing_journal(self._context, header):
            log.warning(
                "%s: left by a session whose journal is not here: another machine is writing to it, or the "
                "journal was removed, and then what was synced by overwriting it may be lost", cipher_path,
            )  # fmt: skip


def refuse_older_config(context: FileContext, vault_fd: int, vault_dir: Path) -> None:
    """An older config, put back, is authentic; but a machine's own journal or list shows that it is older.

    Raises: VaultConfigError: there is one that opens, and the config does not have the feature.   OSError.
    """
    if context.config.has_machine_state:
        return
    for name in os.listdir(vault_fd):
        state = state_of_name(name)
        if state is not None and state.host and _opens(context, vault_fd, name, state):
            raise VaultConfigError(
                f"{vault_dir / CONFIG_NAME} is older than the vault, which was upgraded since: restore the "
                "newer one from another copy or a backup; where the whole vault is an older one, remove "
                f"what begins with {HOST_PREFIX} in it"
            )


def _opens(context: FileContext, vault_fd: int, name: str, owner: StateNames) -> bool:
    try:
        if name == owner.sessions:
            raw = read_sessions_file(vault_fd, owner)
            return raw is not None and Sessions.unpack(raw, context.keys, owner) is not None
        return name in owner.journals and newest_head(context, vault_fd, owner) is not None
    except (OSError, IntegrityError):
        return False


def replay_others(context: FileContext, vault_fd: int) -> list[StateNames]:
    """Replay the journals of other machines, for somebody who knows that they will not go on.

    Their files are found by path and file_id, since the vault may have come here as a copy. What they left
    short or not CLEAN is then settled as after a crash of this machine's.

    Returns: which machines they are; to be forgotten when all files are settled.
    Raises:  VaultLockedError: one of them is running, on this machine.   OSError.
    """
    others = journals_of_others(vault_fd, context.owner)
    for other in others:
        holder = holder_of(vault_fd, other.lock) if other.host else None
        if holder is not None:
            raise VaultLockedError(f"the vault is in use by {holder.describe()}; unmount it there first")
    for other in others:
        context.crashed |= frozenset(replay(context, vault_fd, other).crashed)
    return others


def forget_others(vault_fd: int, others: Iterable[StateNames]) -> None:
    """Remove what machines had here whose journals were replayed, and whose files are settled."""
    syncfs(vault_fd)
    for other in others:
        for name in (other.unsettled, other.lock, other.sessions):
            if name != SHARED_STATE.lock:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=vault_fd)
    os.fsync(vault_fd)


def notices(context: FileContext, vault_fd: int, lock: VaultLock, sessions: Sessions) -> list[str]:
    """What a person should know who mounts the vault now. Raises: OSError.

    Args: lock: just taken, with what it said before.   sessions: after a replay.
    """
    found = []
    last = lock.last_session()
    if context.owner.host and last is not None:
        number, journal_id = last
        if number > sessions.last and journal_id not in sessions.crashed:
            found.append(
                "the last session here did not end by an unmount, and its journal is gone: what was synced "
                "by overwriting files may be lost; to see in which: cryptfs fsck"
            )
    for other in journals_of_others(vault_fd, context.owner):
        whose = f"of another machine ({other.host})" if other.host else "of version 0.1 of cryptfs"
        found.append(
            f"an unfinished session {whose} is here: the vault is mounted there, or was not unmounted; "
            "if nobody will go on there, save what it had synced: cryptfs fsck --repair --other-machines"
        )
    return found
