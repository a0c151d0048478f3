"""A vault: makes it, unlocks it, and connects its parts."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from cryptfs.core.aead import SUITES
from cryptfs.core.format.journal import Sessions
from cryptfs.core.keys import KEY_SIZE, Subkeys
from cryptfs.core.names.dirrecord import BOUND_DIRS
from cryptfs.core.names.host import MACHINE_STATE
from cryptfs.core.printable import for_vault, shell_word
from cryptfs.core.slots.checks import CONFIG_NAME
from cryptfs.core.slots.config import (
    DELTA_JOURNAL,
    SLOTS,
    VaultConfig,
    authenticate,
    decode_config,
    replace_fields,
)
from cryptfs.core.slots.identity import Mark, identity_of
from cryptfs.core.slots.kdf import DEFAULT_KDF_MEMORY, DEFAULT_KDF_PASSES
from cryptfs.core.slots.slot import KeySlot
from cryptfs.errors import NotAVaultError, VaultConfigError
from cryptfs.storage.hosts import own_state
from cryptfs.storage.libc import wipe
from cryptfs.storage.noconfig import mistaken
from cryptfs.storage.pins import Pin
from cryptfs.storage.vaultdir import (
    LockHolder,
    NoLock,
    VaultLock,
    clear_killed_init,
    in_the_way,
    lock_holder,
    open_vault_dir,
    read_config_file,
    write_config_file,
)
from cryptfs.unlock.offer import Offer
from cryptfs.unlock.passphrase import new_passphrase
from cryptfs.unlock.recovering import HeldSecret, first_record, tend
from cryptfs.unlock.table import changing_slots, records_for, sealed
from cryptfs.unlock.unlocking import Unlocked, memory_limit, open_vault
from cryptfs.vfs.ciphers import default_cipher, require_cipher
from cryptfs.vfs.content.context import FileContext
from cryptfs.vfs.content.redo import DEFAULT_DURABILITY, Durability, RedoLog
from cryptfs.vfs.recovery.journals import (
    MissingJournals,
    notices,
    refuse_older_config,
    refuse_other_masterkey,
)
from cryptfs.vfs.recovery.replay import has_journal, read_sessions, replay
from cryptfs.vfs.recovery.rolledback import CountOfSessions
from cryptfs.vfs.tree.tree import VaultTree
from cryptfs.vfs.workers import Workers

log = logging.getLogger(__name__)

DEFAULT_CHUNK_SIZE = 16 * 1024
NEW_FEATURES = (BOUND_DIRS, MACHINE_STATE, SLOTS)  # of a new vault
_VAULT_ID_SIZE = 16


class Vault:
    """An unlocked vault. `tree` is its plaintext; close it when done, or use it in a with statement."""

    def __init__(
        self,
        vault_dir: Path,
        vault_fd: int,
        lock: VaultLock | NoLock,
        config: VaultConfig,
        context: FileContext,
    ) -> None:
        self.vault_dir = vault_dir
        self.config = config
        self.context = context
        self.tree = VaultTree(context, vault_fd)
        self.workers = Workers(context, self.tree, vault_fd)
        self._vault_fd = vault_fd
        self._lock = lock
        self._closed = False
        self.spelling = ""  # of the passphrase that opened it, in words; "" if it was the one that was given
        self.words_are_lost = False  # whether recovery words and shares open nothing, though they should
        self.slot: KeySlot | None = None  # that opened it
        self._notices: list[str] = []
        self._count: CountOfSessions | None = None
        self._unlocked_by = os.getpid()

    @property
    def read_only(self) -> bool:
        """Whether changes are refused."""
        return self.context.read_only

    @classmethod
    def create(
        cls,
        vault_dir: Path | str,
        passphrase: bytes,
        *,
        cipher: str | None = None,
        chunk_size: int = DEFAULT_CHUNK_SIZE,
        label: str = "",
        kdf_memory: int = DEFAULT_KDF_MEMORY,
        kdf_passes: int = DEFAULT_KDF_PASSES,
        recovery: HeldSecret | None = None,
        pin: Pin | None = None,
        deltas: bool = False,
    ) -> VaultConfig:
        """Make a new vault in a directory that is empty or does not exist.

        Litter of desktops and a disk's lost+found may be there.

        Args:   cipher: name of a suite; None takes the faster one on this processor.
                chunk_size: bytes, a power of two from 4 KiB to 1 MiB.
                kdf_memory, kdf_passes: cost of a guess at the passphrase; memory in bytes.
                recovery: a secret that a person has as words or shares; the vault gets a recovery record.
                pin: remembers the vault for its path.
                deltas: whether the journal may have parts of chunks (the feature delta-journal).
        Raises: NotAVaultError: the directory is not empty or cannot be made.
                ValueError: a parameter is out of bounds.
        """
        vault_dir = Path(vault_dir)
        masterkey = os.urandom(KEY_SIZE)
        config = VaultConfig(
            chunk_size=chunk_size,
            cipher=default_cipher() if cipher is None else cipher,
            features=sorted({*NEW_FEATURES, *([DELTA_JOURNAL] if deltas else [])}),
            format="cryptfs",
            generation=1,
            mac="",
            recovery=[] if recovery is None else [recovery.about.recovery_id.hex()],
            slots=[],
            vault_id=os.urandom(_VAULT_ID_SIZE).hex(),
            version=2 if SLOTS in NEW_FEATURES else 1,
        )
        if config.cipher not in SUITES:
            raise ValueError(f"this version does not know the cipher '{config.cipher}'")
        if not config.suite.is_offered:
            raise ValueError(
                f"the libsodium of this machine does not have {config.cipher}; choose another cipher"
            )
        slot = sealed(config, 0, label, new_passphrase(passphrase, kdf_memory, kdf_passes), masterkey)
        config = authenticate(replace_fields(config, slots=[slot]), Subkeys.from_masterkey(masterkey))
        try:
            decode_config(config.encode())
        except VaultConfigError as error:
            raise ValueError(str(error)) from None
        with _new_directory(vault_dir) as vault_fd:
            clear_killed_init(vault_fd)
            with contextlib.ExitStack() as stack:
                if recovery is not None:
                    stack.enter_context(first_record(vault_fd, config, recovery, masterkey))
                write_config_file(vault_fd, config.encode(), own_state(vault_fd, config))
        if pin is not None:
            pin.keep(vault_dir, Mark(config.vault_id, identity_of(masterkey), config.generation))
        return config

    @classmethod
    def unlock(
        cls,
        vault_dir: Path | str,
        secret: bytes | Offer,
        *,
        read_only: bool = False,
        lock: bool = True,
        durability: Durability = DEFAULT_DURABILITY,
    ) -> Self:
        """Unlock a vault and take its lock. After a crash its journal is replayed.

        Args:   secret: a passphrase, or all that a person offers; its pin, if it has one, is checked first.
                durability: which crashes must leave data undamaged.
                lock: False takes no lock, replays no journal and writes nothing, to read a vault that may be
                      mounted; only with read_only.
        Raises: NotAVaultError, UnsupportedFormatError, VaultConfigError.
                VaultLockedError: it is in use; the message names the process.
                WrongPassphraseError.   UnexpectedVaultError: it is not the vault that the pin asks for.
                OSError: the journal cannot be replayed.
        """
        if not (lock or read_only):
            raise ValueError("a vault needs its lock for writing")
        vault_dir = Path(os.path.realpath(vault_dir))
        vault_fd = open_vault_dir(vault_dir)
        try:
            config = decode_config(read_config_file(vault_fd, vault_dir))
            require_cipher(config)
            owner = own_state(vault_fd, config)
            held = VaultLock(vault_fd, vault_dir, shared=read_only, owner=owner) if lock else NoLock()
            try:
                unlocked = open_vault(
                    config, secret, memory_limit(), records_for(vault_fd, secret), vault_dir=vault_dir
                )
                try:
                    keys = Subkeys.from_masterkey(unlocked.masterkey)
                    context = FileContext(keys, config, read_only, owner=owner)
                    refuse_older_config(context, vault_fd, vault_dir)
                    refuse_other_masterkey(context, vault_fd, vault_dir)
                    masterkey, write = unlocked.masterkey, lock and not read_only
                    of_recovery = tend(vault_fd, vault_dir, config, masterkey, write=write)
                finally:
                    wipe(unlocked.masterkey)
                sessions = _recover(context, vault_fd, held)
                context.crashed = frozenset(sessions.crashed)
                context.note_unclean = MissingJournals(context, vault_fd).note
                pin = Offer.of(secret).pin if lock else None
                count = None if pin is None else CountOfSessions(context, vault_fd, vault_dir, pin)
                said = _say_notices(context, vault_dir, vault_fd, held, sessions, of_recovery, count)
                if not read_only and durability is not Durability.OFF:
                    context.redo = _redo_log(context, vault_fd, held, sessions, durability)
                opened = cls(vault_dir, vault_fd, held, config, context)
                opened._notices, opened._count = said, count
                opened.words_are_lost = bool(of_recovery)
                opened.spelling = unlocked.spelling
                opened.slot = unlocked.slot
                return opened
            except BaseException:
                held.hand_over()  # what it says of a session that crashed stays for the next unlock
                raise
        except PermissionError as error:
            os.close(vault_fd)
            raise NotAVaultError(_not_ours(vault_dir, error)) from None
        except BaseException:
            os.close(vault_fd)
            raise

    @property
    def descriptor(self) -> int:
        """The vault directory, open for reading; stays the vault's."""
        return self._vault_fd

    @property
    def has_lock(self) -> bool:
        """Whether this vault was unlocked with its lock, so that nobody else writes to it."""
        return isinstance(self._lock, VaultLock)

    def announce(self, mountpoint: str) -> None:
        """Say in the vault's lock file that this process has it mounted there."""
        self._lock.announce(mountpoint)

    def start(self) -> None:
        """After daemonising: start threads; the first large run measures how much a split gains here."""
        if os.getpid() != self._unlocked_by:
            for line in self._notices:  # the terminal has them already; now for the daemon's log
                log.warning("%s", line)
        self.context.cipher.measure_when_used()
        self.workers.start()

    def close(self) -> None:
        """Settle open files, end threads, wipe keys, release the lock. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self.workers.stop()
        self.tree.close()
        if self._count is not None:
            self._count.end()
        self._forget()
        self._lock.release()

    def hand_over(self) -> None:
        """After a fork: forget the vault here, and leave it with its lock to the other process.

        This settles and writes nothing: open files belong to the other process, and this one must not have
        opened any before the fork. It wipes this process's copy of the keys; the other has its own.
        """
        if self._closed:
            return
        self._closed = True
        self._forget()
        self._lock.hand_over()

    def _forget(self) -> None:
        self.context.cipher.close()
        for name in self.context.keys.__dataclass_fields__:
            wipe(getattr(self.context.keys, name))
        os.close(self._vault_fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_config(vault_dir: Path) -> VaultConfig:
    """The config of a vault, not authenticated: that needs a passphrase.

    Raises: NotAVaultError, UnsupportedFormatError, VaultConfigError.
    """
    vault_fd = open_vault_dir(vault_dir)
    try:
        return decode_config(read_config_file(vault_fd, vault_dir))
    finally:
        os.close(vault_fd)


def which_opens(vault_dir: Path, secret: bytes | Offer) -> Unlocked:
    """Which slot an offer opens, and in which spelling. The masterkey in the result is wiped.

    Raises: NotAVaultError, UnsupportedFormatError, VaultConfigError, WrongPassphraseError, NoKeyError.
    """
    vault_fd = open_vault_dir(vault_dir)
    try:
        config = decode_config(read_config_file(vault_fd, vault_dir))
        unlocked = open_vault(
            config, secret, memory_limit(), records_for(vault_fd, secret), vault_dir=vault_dir
        )
    finally:
        os.close(vault_fd)
    wipe(unlocked.masterkey)
    return unlocked


def change_passphrase(
    vault_dir: Path,
    old: bytes | Offer,
    new: bytes,
    *,
    kdf_memory: int | None = None,
    kdf_passes: int | None = None,
    slot_id: int | None = None,
) -> int:
    """Replace a passphrase slot by one for `new`; returns its id. Also works while mounted.

    Args:   old: opens the vault: by a passphrase, whose slot is replaced, or by anything else.
            kdf_memory, kdf_passes: cost of a guess; None keeps the slot's present cost.
            slot_id: the slot; None takes the one that `old` opened or, if that has no passphrase, the only
                     passphrase of the vault.
    Raises: VaultError: it is not clear which slot is meant, it has no passphrase, or takes a file beside it.
            NotAVaultError, UnsupportedFormatError, VaultConfigError, WrongPassphraseError, OSError.
    """
    with changing_slots(vault_dir, old) as table:
        slot = table.change_passphrase(new, slot_id, kdf_memory, kdf_passes)
        table.save()
        return slot.id


def _recover(context: FileContext, vault_fd: int, lock: VaultLock | NoLock) -> Sessions:
    """Replay the journal of a crash. A read-only mount also does so, if it can write and is alone."""
    if not context.read_only:
        return replay(context, vault_fd)
    if isinstance(lock, NoLock) or not has_journal(vault_fd, context.owner):
        return read_sessions(context, vault_fd)
    try:
        with lock.alone():
            return replay(context, vault_fd)
    except OSError as error:
        log.warning(
            "the journal of a crashed session cannot be replayed now: %s; until you mount the vault for "
            "writing, reading files that were being written may fail", error.strerror,
        )  # fmt: skip
        return read_sessions(context, vault_fd)


def _say_notices(
    context: FileContext,
    vault_dir: Path,
    vault_fd: int,
    lock: VaultLock | NoLock,
    sessions: Sessions,
    of_recovery: list[str],
    count: CountOfSessions | None,
) -> list[str]:
    if isinstance(lock, NoLock):
        return []
    said = [*notices(context, vault_fd, lock, sessions), *of_recovery]
    said += [] if count is None else count.notices(sessions)
    said = [for_vault(line, vault_dir) for line in said]
    for line in said:
        log.warning("%s", line)
    if context.owner.host:
        lock.forget_session()
    return said


def _redo_log(
    context: FileContext,
    vault_fd: int,
    lock: VaultLock | NoLock,
    sessions: Sessions,
    durability: Durability,
) -> RedoLog:
    def noted(number: int, journal_id: bytes) -> None:
        if context.owner.host:  # the lock file of a vault of 0.1 keeps the form of then
            lock.note_session(number, journal_id)

    return RedoLog(
        context.keys,
        context.config,
        vault_fd,
        sessions,
        durable=durability is Durability.POWER,
        owner=context.owner,
        on_begin=noted,
    )


def _not_ours(vault_dir: Path, error: PermissionError) -> str:
    """A message for a file of the vault that belongs to somebody else, as root's mounts of old left some."""
    owner = os.stat(vault_dir).st_uid
    name = error.filename or "a file in it"
    return (
        f"{vault_dir} cannot be opened: {name}: {error.strerror}. If root mounted it before, give its files "
        f"back, as root: find {shell_word(vault_dir)} -name 'cryptfs.*' -exec chown {owner} {{}} +"
    )


@contextlib.contextmanager
def _new_directory(vault_dir: Path) -> Iterator[int]:
    """The directory of a new vault; if this made it and no vault comes of it, it goes again."""
    made = not vault_dir.exists()
    try:
        vault_dir.mkdir(mode=0o700, exist_ok=True)
        found = in_the_way(vault_dir)
    except OSError as error:
        raise NotAVaultError(f"{vault_dir} cannot be made a vault: {error.strerror}") from None
    if CONFIG_NAME in found:
        raise NotAVaultError(f"{vault_dir} is already a vault")
    if found:
        other = f"{vault_dir} is not empty; a new vault needs an empty directory"
        raise NotAVaultError(mistaken(vault_dir, found) or other)
    vault_fd = open_vault_dir(vault_dir)
    try:
        yield vault_fd
    except BaseException:
        if made:
            with contextlib.suppress(OSError):
                vault_dir.rmdir()
        raise
    finally:
        os.close(vault_fd)


__all__ = ["LockHolder", "Vault", "change_passphrase", "lock_holder", "read_config"]
