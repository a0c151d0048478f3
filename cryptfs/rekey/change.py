"""A change of the masterkey from its new config to its end. A second run goes on where the first one stopped.

    the recovery record, and all lists of sessions and marks go: they are under the old masterkey
    passes over the tree, until one finds nothing of the old masterkey
    long targets without a symlink go, and what was remembered; everything is synced
    the config without `rekeying`

Source: docs/FORMAT.md, section 14.7.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from cryptfs.core.keys import Subkeys
from cryptfs.core.names.host import state_of_name
from cryptfs.core.names.names import NameCipher
from cryptfs.core.slots.config import VaultConfig, authenticate, decode_config, replace_fields
from cryptfs.core.slots.identity import Mark, identity_of
from cryptfs.core.slots.rekeying import REKEYING, Rekey, open_old_masterkey
from cryptfs.errors import VaultError
from cryptfs.rekey.aside import Aside
from cryptfs.rekey.begin import refuse_other_journals
from cryptfs.rekey.both import BothKeys
from cryptfs.rekey.changes import Changes
from cryptfs.rekey.memory import LinkMemory, open_memory
from cryptfs.rekey.pipeline import Pipeline
from cryptfs.rekey.recovery import drop_record
from cryptfs.rekey.report import Report
from cryptfs.rekey.survey import require_owners, survey
from cryptfs.rekey.tree import TreePass
from cryptfs.storage.dirs import list_names
from cryptfs.storage.durability import PendingSync
from cryptfs.storage.hosts import machine_state, own_state
from cryptfs.storage.libc import keeping_mtime, syncfs, wipe
from cryptfs.storage.vaultdir import (
    VaultLock,
    changing_config,
    open_vault_dir,
    read_config_file,
    write_config_file,
)
from cryptfs.unlock.offer import Offer
from cryptfs.unlock.unlocking import memory_limit, open_vault
from cryptfs.vfs.ciphers import require_cipher
from cryptfs.vfs.content.cipherpool import usable_cores
from cryptfs.vfs.content.context import FileContext
from cryptfs.vfs.tree.symlinks import Symlinks, open_links_directory

_PASSES = 8


def go_on(
    vault_dir: Path, offer: Offer, report: Report, *, take_over: bool = False, workers: int | None = None
) -> VaultConfig:
    """Bring a change of the masterkey that has begun to its end; returns the final config.

    Args:   offer: opens one of the new slots.   report: counts, and takes what does not authenticate.
            take_over: another machine began it, and will not go on.   workers: threads; None: one a core.
    Raises: VaultError: no change has begun; another machine's; entries that cannot be read.
            VaultLockedError: the vault is in use.   The errors of open_vault.
            OSError: the disk is full, and the like. A second run goes on.
    """
    vault_dir = Path(os.path.realpath(vault_dir))
    vault_fd = open_vault_dir(vault_dir)
    try:
        config = decode_config(read_config_file(vault_fd, vault_dir))
        if not isinstance(config.rekey, Rekey):
            raise VaultError("no change of the masterkey is under way")
        require_cipher(config)
        lock = VaultLock(vault_fd, vault_dir, shared=False, owner=own_state(vault_fd, config))
        try:
            with _masterkeys(config, offer) as (old, new, identity):
                run = _Run(vault_fd, vault_dir, config, report, old, new)
                pin = offer.pin
                if pin is not None:  # before the end: a kill right after it leaves the right pin
                    pin.keep(vault_dir, Mark(config.vault_id, identity, config.generation))
                done = run.to_the_end(take_over=take_over, workers=workers)
                if pin is not None:
                    pin.keep(vault_dir, Mark(config.vault_id, identity, done.generation))
                return done
        finally:
            lock.release()
    finally:
        os.close(vault_fd)


@contextlib.contextmanager
def _masterkeys(config: VaultConfig, offer: Offer) -> Iterator[tuple[Subkeys, Subkeys, str]]:
    """The subkeys of the old and the new masterkey, wiped at the end, and the new identity."""
    assert isinstance(config.rekey, Rekey)
    unpinned = dataclasses.replace(offer, pin=None)  # the identity is a new one
    new = open_vault(config, unpinned, memory_limit(), for_rekey=True).masterkey
    try:
        old = open_old_masterkey(config.rekey, new, bytes.fromhex(config.vault_id))
        found = Subkeys.from_masterkey(old), Subkeys.from_masterkey(new)
        identity = identity_of(new)
        wipe(old)
    finally:
        wipe(new)
    try:
        yield *found, identity
    finally:
        for keys in found:
            for name in keys.__dataclass_fields__:
                wipe(getattr(keys, name))


class _Run:
    """One run of the command."""

    def __init__(
        self,
        vault_fd: int,
        vault_dir: Path,
        config: VaultConfig,
        report: Report,
        old: Subkeys,
        new: Subkeys,
    ) -> None:
        self._vault_fd = vault_fd
        self._vault_dir = vault_dir
        self._config = config
        self._report = report
        self._keys = new
        owner = own_state(vault_fd, config)
        self._old = FileContext(old, config, read_only=True, owner=owner)
        self._new = FileContext(new, config, read_only=False, owner=owner)
        self._aside = Aside(vault_fd)

    def to_the_end(self, *, take_over: bool, workers: int | None) -> VaultConfig:
        self._own_it(take_over=take_over)
        refuse_other_journals(self._vault_fd, self._config)
        self._drop_lists()
        found = survey(self._old, self._vault_fd)
        require_owners(found)
        self._report.total_files, self._report.total_size = found.files, found.size
        try:
            with ThreadPoolExecutor(workers or usable_cores(), thread_name_prefix="cryptfs-rekey") as pool:
                self._passes(Pipeline(lambda: syncfs(self._vault_fd), found.budget), pool)
        finally:
            self._aside.close()
            self._old.cipher.close()
            self._new.cipher.close()
        features = [name for name in self._config.features if name != REKEYING]
        return self._replace_config(features=features, rekey=None)

    def _own_it(self, *, take_over: bool) -> None:
        """Only the machine that began goes on, unless a person says that it will not."""
        rekey = self._config.rekey
        assert isinstance(rekey, Rekey)
        host = machine_state(self._vault_fd, bytes.fromhex(self._config.vault_id)).host
        if rekey.host == host:
            return
        if not take_over:
            raise VaultError(
                f"another machine ({rekey.host}), or another copy of this vault, began to change the "
                "masterkey. Continue there. If that is impossible: cryptfs rekey --take-over VAULT"
            )
        fd = open_memory(self._vault_fd)
        try:
            LinkMemory(fd).clear(self._vault_fd)  # inode numbers of another machine
        finally:
            os.close(fd)
        self._config = self._replace_config(rekey=Rekey(host, rekey.old))

    def _drop_lists(self) -> None:
        """Remove lists of sessions, marks and the recovery record. All files are settled: none needs them."""
        for name in os.listdir(self._vault_fd):
            state = state_of_name(name)
            if state is not None and name in (state.sessions, state.unsettled):
                with contextlib.suppress(FileNotFoundError), keeping_mtime(self._vault_fd):
                    os.unlink(name, dir_fd=self._vault_fd)
        drop_record(self._vault_fd, machine_state(self._vault_fd, bytes.fromhex(self._config.vault_id)))

    def _passes(self, pipeline: Pipeline, pool: ThreadPoolExecutor) -> None:
        rekey_fd = open_memory(self._vault_fd)
        pending = PendingSync(self._vault_fd)
        links = Symlinks(self._keys, self._vault_fd, pending, self._new.owner)
        links_fd = open_links_directory(self._vault_fd)
        try:
            memory = LinkMemory(rekey_fd)
            both = BothKeys(
                *(self._old, self._new, self._vault_fd, rekey_fd),
                *(NameCipher(self._old.keys), NameCipher(self._new.keys)),
            )
            changes = Changes(both, memory, self._report, pool, links, links_fd)
            for _ in range(_PASSES):
                one = TreePass(both, memory, pipeline, changes, self._aside, self._report)
                try:
                    one.run()
                except BaseException:
                    pipeline.abandon()
                    raise
                self._refuse_unreadable()
                if not self._report.changed:
                    break
            else:
                raise VaultError("something keeps changing the vault; stop sync clients, and run this again")
            if links_fd is not None:
                _remove_orphans(links_fd, one.long_targets)
            self._aside.tidy()
            syncfs(self._vault_fd)
            memory.clear(self._vault_fd)
        finally:
            links.close()
            pending.close()
            if links_fd is not None:
                os.close(links_fd)
            os.close(rekey_fd)
        syncfs(self._vault_fd)

    def _refuse_unreadable(self) -> None:
        unreadable = self._report.unreadable
        if unreadable:
            some = "; ".join(f"{path}: {reason}" for path, reason in unreadable[:3])
            more = f" and {len(unreadable) - 3} more" if len(unreadable) > 3 else ""
            raise VaultError(
                f"these cannot be read or written: {some}{more}. Everything else has the new masterkey. Run "
                "this again as a user who may read and write them, such as root"
            )

    def _replace_config(self, *, rekey: Rekey | None, features: list[str] | None = None) -> VaultConfig:
        """Write and return the next config."""
        before = self._config
        following = replace_fields(
            before,
            features=before.features if features is None else features,
            generation=before.generation + 1,
            rekey=msgspec.UNSET if rekey is None else rekey,
        )
        following = authenticate(following, self._keys)
        decode_config(following.encode())
        with changing_config(self._vault_fd):
            if decode_config(read_config_file(self._vault_fd, self._vault_dir)) != before:
                raise VaultError("somebody changed the vault's config meanwhile; run this again")
            write_config_file(self._vault_fd, following.encode(), self._new.owner)
        return following


def _remove_orphans(links_fd: int, named: set[str]) -> None:
    """Remove the long targets that no symlink names."""
    for name in list_names(links_fd):
        if name not in named:
            with contextlib.suppress(IsADirectoryError, PermissionError):
                os.unlink(name, dir_fd=links_fd)
