"""Changes of a vault's recovery record: words and shares come and go, and an interrupted change ends.

The order of writing: the record that is to follow, the config with the ids of its secrets, then the rename.
So at every moment one of the two files fits to the config. Source: docs/FORMAT.md, section 9.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cryptfs.core.keys import KEY_SIZE, Subkeys
from cryptfs.core.slots.checks import NEXT_RECOVERY_NAME, RECOVERY_NAME
from cryptfs.core.slots.config import (
    MAX_RECOVERY_SECRETS,
    RECOVERY_ID_SIZE,
    VaultConfig,
    authenticate,
    decode_config,
    replace_fields,
    verify_config,
)
from cryptfs.core.slots.recovery import (
    RecoveryBody,
    RecoveryKind,
    RecoveryRecord,
    RecoverySecret,
    nonces_size,
    seal_record,
)
from cryptfs.errors import RecoveryRecordError, UnsupportedFormatError, VaultError
from cryptfs.storage.hosts import own_state
from cryptfs.storage.libc import wipe
from cryptfs.storage.recovery import (
    follow,
    is_abandoned,
    read_record_file,
    remove_record,
    write_next_record,
    write_record,
)
from cryptfs.storage.vaultdir import (
    changing_config,
    open_vault_dir,
    read_config_file,
    remove_unfinished_keys,
    write_config_file,
)
from cryptfs.unlock.offer import Offer
from cryptfs.unlock.table import records_for
from cryptfs.unlock.unlocking import Unlocked, memory_limit, open_vault


@dataclass(frozen=True, slots=True)
class HeldSecret:
    """A recovery secret, and what the record says of it. secret: 32 bytes."""

    about: RecoverySecret
    secret: bytes = field(repr=False)


def draw_secret(kind: RecoveryKind, needed: int = 0, shares: int = 0) -> HeldSecret:
    """A fresh recovery secret. Raises: ValueError: impossible numbers of shares."""
    about = RecoverySecret(os.urandom(RECOVERY_ID_SIZE), kind, needed, shares)
    return HeldSecret(about, os.urandom(KEY_SIZE))


def some_words() -> RecoverySecret:
    """What a record says of words, for who does not know which ones there were."""
    return RecoverySecret(bytes(RECOVERY_ID_SIZE), RecoveryKind.WORDS)


def sealed_record(config: VaultConfig, secrets: Sequence[HeldSecret], masterkey: bytes) -> bytes:
    """A record for a vault with this config."""
    body = RecoveryBody(
        masterkey,
        None,
        config.suite.cipher_id,
        config.chunk_size.bit_length() - 1,
        config.version,
        tuple(config.features),
        config.generation,
    )
    return seal_record(
        bytes.fromhex(config.vault_id),
        [(held.about, held.secret) for held in secrets],
        body,
        os.urandom(KEY_SIZE),
        os.urandom(nonces_size(len(secrets))),
    )


def fitting(raw: bytes | None, config: VaultConfig, masterkey: bytes) -> list[HeldSecret] | None:
    """The secrets of a record, for wiping after use; None if it does not fit.

    Args: config: authentic.
    """
    if raw is None:
        return None
    try:
        record = RecoveryRecord.unpack(raw)
        if record.vault_id != bytes.fromhex(config.vault_id):
            return None
        if config.version != 1 and record.ids != config.recovery:
            return None
        return [HeldSecret(about, secret) for about, secret in record.opened_by(masterkey)[0]]
    except (RecoveryRecordError, UnsupportedFormatError):
        return None


def tend(vault_fd: int, vault_dir: Path, config: VaultConfig, masterkey: bytes, *, write: bool) -> list[str]:
    """Look after the record when a vault was unlocked; returns warnings for the person.

    With `write` it ends a change that was interrupted. It leaves files that do not fit for a day: a sync
    client may bring those of one change one by one.

    Args: config: authentic.   write: whether the vault may be changed.
    """
    try:
        found = _Found.of(vault_fd, config, masterkey)
        if write and found.has_work:
            with contextlib.suppress(BlockingIOError), changing_config(vault_fd, wait=False):
                config = decode_config(read_config_file(vault_fd, vault_dir))
                verify_config(config, Subkeys.from_masterkey(masterkey))
                found = _Found.of(vault_fd, config, masterkey)
                found.work(vault_fd)
        return found.warnings()
    except OSError as error:
        return [f"{RECOVERY_NAME} cannot be checked now: {error.strerror}"]


@dataclass(frozen=True, slots=True)
class _Found:
    """Whether record and next record fit to the config; None where there is none."""

    config: VaultConfig
    fits: bool | None
    next_fits: bool | None

    @classmethod
    def of(cls, vault_fd: int, config: VaultConfig, masterkey: bytes) -> _Found:
        names = (RECOVERY_NAME, NEXT_RECOVERY_NAME)
        return cls(config, *(_fits(vault_fd, name, config, masterkey) for name in names))

    @property
    def is_interrupted(self) -> bool:
        return not self.fits and self.next_fits is True and self.config.version != 1

    @property
    def has_work(self) -> bool:
        has_surplus = self.fits is not None and self.config.version != 1 and not self.config.recovery
        return self.next_fits is not None or has_surplus

    def work(self, vault_fd: int) -> None:
        owner = own_state(vault_fd, self.config)
        if self.is_interrupted:
            follow(vault_fd, owner)
            return
        unlisted = self.config.version != 1 and not self.config.recovery
        surplus = [NEXT_RECOVERY_NAME] if self.fits or not self.config.recovery else []
        for name in (*surplus, *([RECOVERY_NAME] if unlisted else [])):
            if is_abandoned(vault_fd, name):
                remove_record(vault_fd, name, owner)

    def warnings(self) -> list[str]:
        unlisted = not self.config.recovery and (self.config.version != 1 or self.fits is None)
        if self.fits or self.is_interrupted or unlisted:
            return []
        what = "is missing" if self.fits is None else "is damaged, or not the one that the config names"
        return [
            f"{RECOVERY_NAME} {what}: recovery words and shares open nothing. Put a copy of it back, or make "
            "new words: cryptfs recovery words VAULT"
        ]


def _fits(vault_fd: int, name: str, config: VaultConfig, masterkey: bytes) -> bool | None:
    """Whether a record fits to the config; None if there is none."""
    raw = read_record_file(vault_fd, name)
    found = fitting(raw, config, masterkey)
    _wipe(found or [])
    return None if raw is None else found is not None


def seal_again(
    vault_fd: int, old: VaultConfig, new: VaultConfig, masterkey: bytes
) -> list[RecoverySecret] | None:
    """Replace the record by one for another config, before that config is written.

    Args:    old: authentic, the config that the record fits to.
    Returns: its secrets, which `recovery` of the new config lists; None if no record fits.
    Raises:  OSError: the old record is still there.
    """
    for name in (RECOVERY_NAME, NEXT_RECOVERY_NAME):
        secrets = fitting(read_record_file(vault_fd, name), old, masterkey)
        if secrets is not None:
            write_record(vault_fd, sealed_record(new, secrets, masterkey), own_state(vault_fd, old))
            _wipe(secrets)
            return [held.about for held in secrets]
    return None


def _wipe(secrets: Sequence[HeldSecret]) -> None:
    for held in secrets:
        wipe(held.secret)


class RecoveryTable:
    """The recovery secrets of a vault that somebody has opened. Nothing is on disk before `save`.

    lost: whether the config lists secrets, and no record has them: then they open nothing.
    """

    def __init__(self, vault_fd: int, vault_dir: Path, config: VaultConfig, opened: Unlocked) -> None:
        self.config = config
        self.opened = opened
        self._vault_fd = vault_fd
        self._vault_dir = vault_dir
        found = [
            fitting(read_record_file(vault_fd, name), config, opened.masterkey)
            for name in (RECOVERY_NAME, NEXT_RECOVERY_NAME)
        ]
        held = next((each for each in found if each is not None), None)
        self._held = list(held or [])
        self._listed = list(config.recovery)
        self.lost = held is None and bool(config.recovery)

    @property
    def secrets(self) -> tuple[RecoverySecret, ...]:
        """What the record says of its secrets, in their order."""
        return tuple(held.about for held in self._held)

    def add(self, held: HeldSecret) -> None:
        """One more secret; those that are lost end. Raises: VaultError: there are as many as can be."""
        if len(self._held) >= MAX_RECOVERY_SECRETS:
            raise VaultError(
                f"the vault has {MAX_RECOVERY_SECRETS} sets of recovery words and shares, and can have no "
                "more; remove one first: cryptfs recovery remove VAULT ID"
            )
        self._held.append(held)

    def remove(self, beginning: str) -> str:
        """One secret less; returns its name. Also one that is lost.

        Args:   beginning: of its id in hex.
        Raises: VaultError: no id begins so, or several do.
        """
        ids = [held.about.recovery_id.hex() for held in self._held] if not self.lost else self._listed
        found = [each for each in ids if beginning and each.startswith(beginning.lower())]
        if len(found) != 1:
            which = "no recovery words or shares" if not found else "several recovery words or shares"
            raise VaultError(f"the vault has {which} {beginning}. To list them: cryptfs recovery list VAULT")
        if self.lost:
            self._listed.remove(found[0])
            return f"recovery words or shares {found[0][:8]}"
        gone = next(held for held in self._held if held.about.recovery_id.hex() == found[0])
        self._held.remove(gone)
        wipe(gone.secret)
        return gone.about.name

    def save(self) -> None:
        """Write record and config; a kill in between leaves the old secrets or the new ones.

        Raises: VaultError: somebody has changed the config meanwhile; nothing was written.
                OSError: the same, or the next unlock ends the change.
        """
        with changing_config(self._vault_fd):
            now = decode_config(read_config_file(self._vault_fd, self._vault_dir))
            if now != self.config:
                raise VaultError(f"{self._vault_dir}: somebody changed its config meanwhile; try again")
            if self.config.version == 1:
                self._save_without_ids()
            else:
                self._save()
            remove_unfinished_keys(self._vault_fd)

    def _save(self) -> None:
        ids = [held.about.recovery_id.hex() for held in self._held]
        if self.lost and not self._held:
            ids = self._listed
        changed = replace_fields(self.config, generation=self.config.generation + 1, recovery=ids)
        changed = authenticate(changed, Subkeys.from_masterkey(self.opened.masterkey))
        decode_config(changed.encode())  # never write what no reader takes
        owner = own_state(self._vault_fd, changed)
        _Found.of(self._vault_fd, self.config, self.opened.masterkey).work(
            self._vault_fd
        )  # the next one may fit
        if self._held:
            write_next_record(
                self._vault_fd, sealed_record(changed, self._held, self.opened.masterkey), owner
            )
        write_config_file(self._vault_fd, changed.encode(), owner)
        self.config = changed
        if self._held:
            follow(self._vault_fd, owner)
        elif not ids:
            self._remove_files()

    def _save_without_ids(self) -> None:
        owner = own_state(self._vault_fd, self.config)
        if self._held:
            write_record(self._vault_fd, sealed_record(self.config, self._held, self.opened.masterkey), owner)
        else:
            self._remove_files()

    def _remove_files(self) -> None:
        for name in (RECOVERY_NAME, NEXT_RECOVERY_NAME):
            remove_record(self._vault_fd, name, own_state(self._vault_fd, self.config))

    def wipe(self) -> None:
        """Overwrite all secrets; the masterkey is the caller's."""
        _wipe(self._held)


@contextlib.contextmanager
def opened_recovery(vault_dir: Path, secret: bytes | Offer) -> Iterator[RecoveryTable]:
    """The recovery secrets of a vault, for as long as a person looks at new words. Wipes them.

    Raises: NotAVaultError, UnsupportedFormatError, VaultConfigError, WrongPassphraseError, OSError.
    """
    vault_fd = open_vault_dir(vault_dir)
    try:
        config = decode_config(read_config_file(vault_fd, vault_dir))
        records = records_for(vault_fd, secret)
        opened = open_vault(config, secret, memory_limit(), records, vault_dir=vault_dir)
        try:
            table = RecoveryTable(vault_fd, vault_dir, config, opened)
            try:
                yield table
            finally:
                table.wipe()
        finally:
            wipe(opened.masterkey)
    finally:
        os.close(vault_fd)


@contextlib.contextmanager
def first_record(vault_fd: int, config: VaultConfig, held: HeldSecret, masterkey: bytes) -> Iterator[None]:
    """Around the writing of a new vault's config, which lists the secret: the same order as a change."""
    owner = own_state(vault_fd, config)
    write_next_record(vault_fd, sealed_record(config, [held], masterkey), owner)
    try:
        yield
    except Exception:  # after an interrupt the config may be there
        with contextlib.suppress(OSError):
            remove_record(vault_fd, NEXT_RECOVERY_NAME, owner)
        raise
    follow(vault_fd, owner)
