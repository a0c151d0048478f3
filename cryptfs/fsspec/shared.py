"""The vaults that this process has open for filesystems: each once, for all filesystems that use it.

fsspec makes a filesystem for each thread, and only one process at a time may have a vault for writing.
"""

from __future__ import annotations

import functools
import hashlib
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from cryptfs.core.slots.config import VaultConfig
from cryptfs.errors import NoKeyError, VaultLockedError
from cryptfs.signals import Undisturbed
from cryptfs.transfer.pathvault import PathVault
from cryptfs.unlock.offer import Offer
from cryptfs.vfs.vault import read_config, which_opens


@dataclass(eq=False, slots=True)
class SharedVault:
    """A vault that is open. users: how many filesystems have it.   pid: of the process that opened it."""

    place: Path
    vault: PathVault
    pid: int
    users: int = 0
    accepted: set[bytes] = field(default_factory=set, repr=False)  # digests of what opens it

    @property
    def is_of_this_process(self) -> bool:
        """False after a fork: the lock and the journal belong to the parent."""
        return self.pid == os.getpid()


class SharedVaults:
    """All of them. Safe from many threads."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._open: dict[Path, SharedVault] = {}
        self._key = os.urandom(32)

    def take(
        self, vault_dir: Path, offered: Callable[[VaultConfig], Offer | None], *, read_only: bool
    ) -> SharedVault:
        """Open a vault, or take the one that is open, to be given back with `release`.

        Args:   offered: what opens it; None takes only a vault that is open.
        Raises: NoKeyError: nothing is offered.   As PathVault.unlock, also for one that is open: a wrong
                passphrase does not get it.
        """
        place = Path(os.path.realpath(vault_dir))
        with self._lock:
            config = read_config(place)
            offer = offered(config)
            try:
                found = self._usable(place, config, read_only=read_only)
                if found is None:
                    found = self._unlock(place, offer, read_only=read_only)
                elif offer is not None and (mark := self._mark(offer)) not in found.accepted:
                    which_opens(place, offer)
                    found.accepted.add(mark)
            finally:
                if offer is not None:
                    offer.wipe()
            found.users += 1
            return found

    def release(self, shared: SharedVault) -> None:
        """Give a vault back; the last one closes it. Raises: OSError: a file could not be written."""
        with Undisturbed(), self._lock:
            shared.users -= 1
            if shared.users or not shared.is_of_this_process:
                return
            if self._open.get(shared.place) is shared:
                del self._open[shared.place]
            shared.vault.close()

    def _usable(self, place: Path, config: VaultConfig, *, read_only: bool) -> SharedVault | None:
        found = self._open.get(place)
        if found is None or not found.is_of_this_process:
            return None
        if found.vault.config.vault_id != config.vault_id or (found.vault.read_only and not read_only):
            return None
        return found

    def _unlock(self, place: Path, offer: Offer | None, *, read_only: bool) -> SharedVault:
        if offer is None:
            raise NoKeyError(
                "nothing opens this vault here. Give a storage option (passfile, passcommand, keyfile, "
                "identity, passphrase), or name a file in CRYPTFS_PASSFILE or CRYPTFS_KEYFILE. The option "
                "passphrase does not go to other processes"
            )
        mark = self._mark(offer)
        try:
            with Undisturbed(returns=True):  # else it is open, and nobody has it
                vault = PathVault.unlock(place, offer, read_only=read_only)
                found = self._open[place] = SharedVault(place, vault, os.getpid(), accepted={mark})
        except VaultLockedError as error:
            raise VaultLockedError(
                f"{error}. Processes that all have the option read_only=True share a vault"
            ) from None
        return found

    def _mark(self, offer: Offer) -> bytes:
        """Stands for an offer, in this process alone."""
        whole = hashlib.blake2b(key=self._key, digest_size=16)
        expected = "" if offer.pin is None else offer.pin.expected
        said = f"{offer.slot_id} {expected}".encode()
        for part in (offer.passphrase, offer.key_file, *offer.identities, said):
            whole.update(b"-" if part is None else b"%d:" % len(part))
            whole.update(part or b"")
        return whole.digest()


@functools.cache
def shared_vaults() -> SharedVaults:
    """Those of this process."""
    return SharedVaults()
