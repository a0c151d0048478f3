"""Warnings about journals: missing ones, and those of other machines."""

from __future__ import annotations

import contextlib
import logging
import os
import stat
import threading
from collections.abc import Iterable
from pathlib import Path

from cryptfs.core.format.header import FileHeader
from cryptfs.core.format.journal import Sessions
from cryptfs.core.names.dirrecord import open_directory_record
from cryptfs.core.names.host import HOST_PREFIX, SHARED_STATE, StateNames, state_of_name
from cryptfs.core.names.names import REKEY_NAME, DirectoryNames, NameCipher, could_be_cipher_name
from cryptfs.core.printable import shown
from cryptfs.core.slots.checks import CONFIG_NAME
from cryptfs.errors import (
    DirectoryRecordError,
    IntegrityError,
    NameError_,
    VaultConfigError,
    VaultLockedError,
)
from cryptfs.storage.backing import open_backing
from cryptfs.storage.dirs import holds_plaintext, is_directory, is_long, open_directory, read_sidecar
from cryptfs.storage.hosts import journals_of_others
from cryptfs.storage.libc import syncfs
from cryptfs.storage.records import read_record
from cryptfs.storage.sessions import read_sessions_file
from cryptfs.storage.vaultdir import VaultLock, holder_of
from cryptfs.vfs.content.context import FileContext
from cryptfs.vfs.content.foundlength import names_missing_journal
from cryptfs.vfs.recovery.replay import newest_head, replay, waiting_journals

log = logging.getLogger(__name__)

MAX_RECORDS_LOOKED_AT = 64  # of directories in the root


class MissingJournals:
    """Warns once for each journal that a file names and that is missing.

    Args: vault_fd: the vault directory.
    """

    def __init__(self, context: FileContext, vault_fd: int) -> None:
        self._context = context
        self._vault_fd = vault_fd
        self._lock = threading.Lock()
        self._known: set[bytes] = set()

    def note(self, header: FileHeader, cipher_path: str) -> None:
        """Called when a file without the flag CLEAN is opened and has no writer here."""
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
                "%s: the journal of its last changes is missing. Either another machine is writing to the "
                "file now, or somebody removed the journal; then synced changes to the file may be lost",
                cipher_path,
            )  # fmt: skip


def refuse_older_config(context: FileContext, vault_fd: int, vault_dir: Path) -> None:
    """Detect an older config that somebody restored: a machine's own journal or list, or a record, proves it.

    It looks at some directories only. The others are safe as well: their records do not open by that config.

    Raises: VaultConfigError: one of them opens, and the config does not have the feature.   OSError.
    """
    if not context.deltas and has_delta_journal(context, vault_fd):
        raise _older_config(vault_dir, f"everything in it that begins with {HOST_PREFIX}")
    if context.config.record_rules.bound:
        return
    looks = MAX_RECORDS_LOOKED_AT
    for name in os.listdir(vault_fd):
        state, proof = state_of_name(name), ""
        if state is not None:
            if (
                state.host
                and not context.config.has_machine_state
                and opens_as_state(context, vault_fd, name, state)
            ):
                proof = f"everything in it that begins with {HOST_PREFIX}"
        elif looks and holds_plaintext(name):
            bound = _is_bound(context, vault_fd, name)
            looks -= bound is not None
            proof = "the newer directories" if bound else ""
        if proof:
            raise _older_config(vault_dir, proof)


def _older_config(vault_dir: Path, proof: str) -> VaultConfigError:
    return VaultConfigError(
        f"{shown(vault_dir / CONFIG_NAME)} is older than the vault: it is from before an upgrade. "
        "Restore the newer file from another copy or a backup. If the whole vault is an older copy, "
        f"remove {proof}"
    )


def has_delta_journal(context: FileContext, vault_fd: int) -> bool:
    """Whether a machine's journal is here that only a vault with the feature delta-journal has."""
    for name in os.listdir(vault_fd):
        state = state_of_name(name)
        if (
            state is not None
            and name in state.journals
            and newest_head(context, vault_fd, state) is None
            and newest_head(context, vault_fd, state, deltas=True) is not None
        ):
            return True
    return False


def refuse_other_masterkey(context: FileContext, vault_fd: int, vault_dir: Path) -> None:
    """Detect a config from before a change of the masterkey, which somebody restored.

    It looks at some entries of the root. One that verifies under this masterkey, by its name, its header or
    its record, is enough; a single one that does not proves nothing.

    Raises: VaultConfigError.   OSError.
    """
    names = os.listdir(vault_fd)
    newer = (
        "Restore the newer file from another copy or a backup. If the whole vault is an older copy, remove "
        f"{REKEY_NAME} in it"
    )
    if REKEY_NAME in names and is_directory(vault_fd, REKEY_NAME):
        raise VaultConfigError(
            f"{shown(vault_dir / CONFIG_NAME)} is from before a change of the masterkey, which was "
            f"interrupted. {newer}"
        )
    entries = [name for name in names if holds_plaintext(name)]
    known = NameCipher(context.keys).in_directory(context.keys.root_dir_id)
    if any(_verifies(known, vault_fd, name) for name in entries):
        return
    looked = [
        name
        for name in entries[:MAX_RECORDS_LOOKED_AT]
        if (is_long(name) or could_be_cipher_name(name)) and _has_content(vault_fd, name)
    ]
    if len(looked) > 1 and not any(_is_sealed_with(context, vault_fd, name) for name in looked):
        raise VaultConfigError(
            f"{shown(vault_dir / CONFIG_NAME)} does not belong to this vault: nothing in the vault opens "
            "with its masterkey. Either cryptfs rekey has changed the masterkey since, or this is the config "
            "of another vault. Restore the right file from another copy or a backup"
        )


def _verifies(known: DirectoryNames, vault_fd: int, entry_name: str) -> bool:
    try:
        known.open(read_sidecar(vault_fd, entry_name) if is_long(entry_name) else entry_name)
    except NameError_:
        return False
    return True


def _has_content(vault_fd: int, entry_name: str) -> bool:
    """Whether an entry has a header or a record."""
    try:
        st = os.stat(entry_name, dir_fd=vault_fd, follow_symlinks=False)
    except OSError:
        return False
    return stat.S_ISDIR(st.st_mode) or (stat.S_ISREG(st.st_mode) and st.st_size > 0)


def _is_sealed_with(context: FileContext, vault_fd: int, entry_name: str) -> bool:
    """Whether a file has a header, or a directory a record, of this masterkey; True if nobody may look."""
    try:
        if is_directory(vault_fd, entry_name):
            fd = open_directory(vault_fd, entry_name)
        else:
            fd = open_backing(vault_fd, entry_name, os.O_RDONLY)[0]
    except (OSError, IntegrityError):
        return True
    try:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            open_directory_record(read_record(fd), context.keys)
            return True
        return context.header_of(fd) is not None
    except IntegrityError:
        return False
    except OSError:
        return True
    finally:
        os.close(fd)


def _is_bound(context: FileContext, vault_fd: int, entry_name: str) -> bool | None:
    """Whether a directory's record is authentic and of version 2; None for anything else."""
    try:
        fd = open_directory(vault_fd, entry_name)
    except OSError:
        return None
    try:
        return bool(open_directory_record(read_record(fd), context.keys).places)
    except (DirectoryRecordError, OSError):
        return False
    finally:
        os.close(fd)


def opens_as_state(context: FileContext, vault_fd: int, name: str, owner: StateNames) -> bool:
    """Whether a file is an authentic list of sessions, or journal, of one machine."""
    try:
        if name == owner.sessions:
            raw = read_sessions_file(vault_fd, owner)
            return raw is not None and Sessions.unpack(raw, context.keys, owner) is not None
        return name in owner.journals and newest_head(context, vault_fd, owner, deltas=True) is not None
    except (OSError, IntegrityError):
        return False


def replay_others(context: FileContext, vault_fd: int) -> list[StateNames]:
    """Replay the journals of other machines. The caller must know that those machines will not come back.

    This finds their files by path and file_id, since the vault may have come here as a copy. Files that they
    left short or without CLEAN are then settled as after a crash of this machine.

    Returns: those machines; pass them to forget_others when all files are settled.
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
    """Remove the state of machines whose journals were replayed, once their files are settled."""
    syncfs(vault_fd)
    for other in others:
        for name in (other.unsettled, other.lock, other.sessions):
            if name != SHARED_STATE.lock:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=vault_fd)
    os.fsync(vault_fd)


def notices(context: FileContext, vault_fd: int, lock: VaultLock, sessions: Sessions) -> list[str]:
    """Warnings for the person who mounts the vault now. Raises: OSError.

    Args: lock: just taken, with its former text.   sessions: after a replay.
    """
    found = []
    if context.config.is_upgrading:
        found.append(
            "an upgrade of the vault was interrupted. Until you finish it, cryptfs does not notice if "
            "somebody moves a directory. To finish it: cryptfs upgrade VAULT"
        )
    last = lock.last_session()
    if context.owner.host and last is not None:
        number, journal_id = last
        if number > sessions.last and journal_id not in sessions.crashed:
            found.append(
                "the last session on this machine did not end with an unmount, and its journal is gone: "
                "synced changes may be lost. To list the files: cryptfs fsck VAULT"
            )
    for other in journals_of_others(vault_fd, context.owner):
        whose = f"of another machine ({other.host})" if other.host else "of version 0.1 of cryptfs"
        found.append(
            f"the vault has an unfinished session {whose}: it is mounted there, or was not unmounted. If "
            "that session will not continue, save its synced data: "
            "cryptfs fsck --repair --other-machines VAULT"
        )
    return found
