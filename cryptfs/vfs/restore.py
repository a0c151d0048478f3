"""`cryptfs recovery restore-config`: a lost config is made again from the recovery record.

Nothing comes from the config that the vault may still have: all fields are those of the record, and the slot
is a new one. The record may be older than the vault: so the names in the root have to verify under its
masterkey, and features that structures of the vault prove are added. Source: docs/FORMAT.md, section 9.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cryptfs.core.aead import SUITES
from cryptfs.core.format.header import needs_machine_state
from cryptfs.core.geometry import HEADER_SIZE, chunk_size_of
from cryptfs.core.keys import Subkeys
from cryptfs.core.names.dirrecord import BOUND_DIRS, UPGRADING
from cryptfs.core.names.host import MACHINE_STATE, state_of_name
from cryptfs.core.printable import shell_word, shown
from cryptfs.core.slots.checks import CONFIG_NAME, NEXT_RECOVERY_NAME
from cryptfs.core.slots.config import (
    DELTA_JOURNAL,
    KNOWN_FEATURES,
    VaultConfig,
    authenticate,
    config_mac,
    decode_config,
    replace_fields,
)
from cryptfs.core.slots.kdf import DEFAULT_KDF_MEMORY, DEFAULT_KDF_PASSES
from cryptfs.core.slots.recovery import RecoveryBody, RecoveryRecord, RecoverySecret
from cryptfs.errors import (
    IntegrityError,
    NotAVaultError,
    RecoveryRecordError,
    UnsupportedFormatError,
    VaultConfigError,
    VaultError,
)
from cryptfs.storage.backing import open_backing, read_header
from cryptfs.storage.hosts import own_state
from cryptfs.storage.libc import wipe
from cryptfs.storage.recovery import read_records, remove_record, write_record
from cryptfs.storage.vaultdir import (
    VaultLock,
    changing_config,
    open_vault_dir,
    read_config_file,
    remove_unfinished_keys,
    write_config_file,
)
from cryptfs.unlock.offer import Offer
from cryptfs.unlock.passphrase import new_passphrase
from cryptfs.unlock.recovering import HeldSecret, sealed_record
from cryptfs.unlock.recoverykey import OpenedRecord, opened_record
from cryptfs.unlock.table import sealed
from cryptfs.vfs.content.context import FileContext
from cryptfs.vfs.recovery.journals import has_delta_journal, opens_as_state
from cryptfs.vfs.scan.roles import Role
from cryptfs.vfs.scan.walk import WalkedEntry, Walker

GENERATIONS_AHEAD = 2**20  # of the record's: above any that a machine has seen
_MAX_GENERATION = 2**53


@dataclass(frozen=True, slots=True)
class Restorable:
    """A config that can be restored, before anything is written.

    config:   without slots and mac.
    by:       the secret that opened the record.   secrets: those that the restored vault has.
    verified, unverified: how many names in the root are authentic under the masterkey, and how many not.
    added:    features that the record does not name, and structures of the vault prove.
    """

    config: VaultConfig
    masterkey: bytes = field(repr=False)
    by: RecoverySecret
    secrets: tuple[HeldSecret, ...]
    verified: int
    unverified: int
    added: tuple[str, ...]
    _vault_fd: int
    _look_again: Callable[[], None] = field(repr=False)

    @property
    def is_mixed(self) -> bool:
        """Whether something in the root is of another masterkey, or damaged: a person has to decide."""
        return self.unverified > 0

    def write(
        self,
        passphrase: bytes,
        *,
        label: str = "",
        kdf_memory: int = DEFAULT_KDF_MEMORY,
        kdf_passes: int = DEFAULT_KDF_PASSES,
    ) -> VaultConfig:
        """Write record and config, with one slot for a new passphrase.

        Args:   kdf_memory, kdf_passes: cost of a guess; memory in bytes.
        Raises: ValueError: label or cost is out of bounds.   OSError: another try is possible.
                VaultError: somebody has put a config back meanwhile.
        """
        new = new_passphrase(passphrase, kdf_memory, kdf_passes)
        slot = sealed(self.config, 0, label, new, self.masterkey)
        keys = Subkeys.from_masterkey(self.masterkey)
        config = authenticate(replace_fields(self.config, slots=[slot]), keys)
        decode_config(config.encode())  # never write what no reader takes
        owner = own_state(self._vault_fd, config)
        with changing_config(self._vault_fd):
            self._look_again()
            write_record(self._vault_fd, sealed_record(config, self.secrets, self.masterkey), owner)
            write_config_file(self._vault_fd, config.encode(), owner)
            remove_record(self._vault_fd, NEXT_RECOVERY_NAME, owner)
            remove_unfinished_keys(self._vault_fd)
        return config


@contextlib.contextmanager
def restorable(
    vault_dir: Path, offer: Offer, *, copy: bytes | None = None, force: bool = False
) -> Iterator[Restorable]:
    """Look at record and vault, with the vault's lock held. Wipes the secrets.

    Args:   copy: a record that a person kept.
            force: also if the vault has a config that is right, or nothing in it tells.
    Raises: NoKeyError, WrongPassphraseError, MistypedWordsError, RecoveryRecordError: no record opens.
            VaultError: there is nothing to restore, or the record is of another masterkey.
            NotAVaultError, VaultLockedError, UnsupportedFormatError, OSError.
    """
    vault_dir = Path(os.path.realpath(vault_dir))
    vault_fd = open_vault_dir(vault_dir)
    try:
        # The one that is to follow first: if it has the offered secret, it is the newer one.
        own = read_records(vault_fd)[::-1]
        opened = opened_record(offer, own if copy is None else [*own, copy], None)
        body = opened.body
        try:
            secrets = _secrets_of(opened, own)
            config = _config_of(opened.record.vault_id, body, secrets)
            lock = VaultLock(vault_fd, vault_dir, shared=False, owner=own_state(vault_fd, config))
            try:
                yield _looked_at(vault_fd, vault_dir, config, opened, secrets, force=force)
            finally:
                lock.release()
                for held in secrets:
                    wipe(held.secret)
        finally:
            wipe(body.masterkey)
    finally:
        os.close(vault_fd)


def _secrets_of(opened: OpenedRecord, own: Sequence[bytes]) -> tuple[HeldSecret, ...]:
    """The secrets of the restored vault: of a copy only if the vault's own record has none.

    Raises: RecoveryRecordError: the record was changed.
    """
    masterkey = opened.body.masterkey
    if opened.raw not in own:
        for raw in own[::-1]:
            with contextlib.suppress(RecoveryRecordError, UnsupportedFormatError):
                record = RecoveryRecord.unpack(raw)
                if record.vault_id == opened.record.vault_id:
                    return _held(record, masterkey)
    return _held(opened.record, masterkey)


def _held(record: RecoveryRecord, masterkey: bytes) -> tuple[HeldSecret, ...]:
    return tuple(HeldSecret(about, secret) for about, secret in record.opened_by(masterkey)[0])


def _config_of(vault_id: bytes, body: RecoveryBody, secrets: Sequence[HeldSecret]) -> VaultConfig:
    """The config, without slots and mac. Raises: UnsupportedFormatError: of a later version of cryptfs."""
    suite = next((suite for suite in SUITES.values() if suite.cipher_id == body.cipher_id), None)
    try:
        chunk_size = chunk_size_of(body.log2_chunk_size)
    except ValueError:
        suite = None
    if suite is None:
        raise UnsupportedFormatError(
            "the recovery record belongs to a vault with a cipher or chunk size that this version does not "
            "know"
        )
    unknown = sorted(set(body.features) - KNOWN_FEATURES)
    if unknown:
        raise UnsupportedFormatError(
            f"the recovery record belongs to a vault with features that this version does not know: "
            f"{', '.join(unknown)}"
        )
    ids = [held.about.recovery_id.hex() for held in secrets]
    return VaultConfig(
        chunk_size=chunk_size,
        cipher=suite.name,
        features=list(body.features),
        format="cryptfs",
        generation=min(body.generation + GENERATIONS_AHEAD, _MAX_GENERATION),
        mac="",
        recovery=ids if body.config_version != 1 else [],
        slots=[],
        vault_id=vault_id.hex(),
        version=body.config_version,
    )


def _looked_at(
    vault_fd: int,
    vault_dir: Path,
    config: VaultConfig,
    opened: OpenedRecord,
    secrets: tuple[HeldSecret, ...],
    *,
    force: bool,
) -> Restorable:
    keys = Subkeys.from_masterkey(opened.body.masterkey)
    context = FileContext(keys, config, True, owner=own_state(vault_fd, config))
    try:
        verified, unverified = _names_in_root(Walker(context, vault_fd))
        if unverified and not verified:
            raise VaultError(
                f"{opened.secret.name} open the recovery record, but nothing in {shown(vault_dir)} is sealed "
                "with its masterkey: the record belongs to another vault, or is from before a change of the "
                "masterkey. Nothing was written"
            )

        def refuse_config() -> None:
            if not force:
                _refuse_config(vault_fd, vault_dir, keys, proven=verified > 0)

        refuse_config()
        added = _proven_features(context, vault_fd)
    finally:
        context.cipher.close()
    config = replace_fields(config, features=sorted({*config.features, *added}))
    return Restorable(
        config=config,
        masterkey=opened.body.masterkey,
        by=opened.secret,
        secrets=secrets,
        verified=verified,
        unverified=unverified,
        added=added,
        _vault_fd=vault_fd,
        _look_again=refuse_config,
    )


def _refuse_config(vault_fd: int, vault_dir: Path, keys: Subkeys, *, proven: bool) -> None:
    """Keep a config that is right. proven: whether names of the vault verify under the keys.

    Raises: VaultError.
    """
    try:
        config = decode_config(read_config_file(vault_fd, vault_dir))
    except (NotAVaultError, VaultConfigError):
        return
    except UnsupportedFormatError as error:
        raise VaultError(
            f"{shown(vault_dir / CONFIG_NAME)} is of a newer cryptfs ({error}). --force replaces it"
        ) from None
    if config_mac(config, keys).hex() == config.mac:
        raise VaultError(
            f"{shown(vault_dir / CONFIG_NAME)} is intact: there is nothing to restore. For a new "
            f"passphrase: cryptfs passwd {shell_word(vault_dir)} --words. --force replaces the config, "
            "and its key slots are then gone"
        )
    if not proven:
        raise VaultError(
            f"{shown(vault_dir / CONFIG_NAME)} has another masterkey, or somebody changed it, and "
            "nothing in the vault shows which. --force replaces it"
        )


def _names_in_root(walker: Walker) -> tuple[int, int]:
    """How many entries of the root have a name that verifies, and how many have one that does not."""
    counts = {True: 0, False: 0}
    with contextlib.closing(walker.directories()) as directories:
        root = next(directories)
        for entry in walker.entries(root):
            if entry.role in (Role.ENTRY, Role.CONFLICT):
                counts[entry.verified] += 1
    return counts[True], counts[False]


def _proven_features(context: FileContext, vault_fd: int) -> tuple[str, ...]:
    """The features that structures of the vault need, and the record does not name."""
    named = set(context.config.features)
    found: set[str] = set()
    if DELTA_JOURNAL not in named and has_delta_journal(context, vault_fd):
        found |= {DELTA_JOURNAL, MACHINE_STATE}
    if {BOUND_DIRS, MACHINE_STATE} <= named:
        return tuple(sorted(found - named))
    versions = set()
    if MACHINE_STATE not in named and _has_state(context, vault_fd):
        found.add(MACHINE_STATE)
    walker = Walker(context, vault_fd)
    for directory in walker.directories():
        if directory.record is not None:
            versions.add(bool(directory.record.places))
        if MACHINE_STATE not in named | found:
            for entry in walker.entries(directory):
                if _is_of_machine(context, entry):
                    found.add(MACHINE_STATE)
    if True in versions and BOUND_DIRS not in named:
        found |= {BOUND_DIRS, MACHINE_STATE} | ({UPGRADING} if False in versions else set())
    return tuple(sorted(found - named))


def _has_state(context: FileContext, vault_fd: int) -> bool:
    """Whether a list of sessions or a journal of one machine opens."""
    for name in os.listdir(vault_fd):
        state = state_of_name(name)
        if state is not None and state.host and opens_as_state(context, vault_fd, name, state):
            return True
    return False


def _is_of_machine(context: FileContext, entry: WalkedEntry) -> bool:
    """Whether an entry is a file whose header says that a journal of one machine may belong to it."""
    if not stat.S_ISREG(entry.st.st_mode) or entry.st.st_size < HEADER_SIZE or entry.role is not Role.ENTRY:
        return False
    try:
        fd, _ = open_backing(entry.directory.fd, entry.entry_name, os.O_RDONLY)
    except (OSError, IntegrityError):
        return False
    try:
        raw = read_header(fd)
    finally:
        os.close(fd)
    config = context.config
    return needs_machine_state(raw, context.keys, config.suite.cipher_id, context.log2_chunk_size)
