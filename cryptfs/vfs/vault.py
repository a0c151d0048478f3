"""A vault: make one, unlock one, and what holds its parts together."""

from __future__ import annotations

import ctypes
import logging
import os
from pathlib import Path

from cryptfs.core.aead import AEGIS_256, FORMAT_VERSION, SMALL_NONCE_SIZE, XCHACHA20_POLY1305
from cryptfs.core.config import (
    CONFIG_NAME,
    DEFAULT_KDF_MEMORY,
    DEFAULT_KDF_PASSES,
    NewSlot,
    VaultConfig,
    authenticate,
    decode_config,
    make_slot,
    replace_fields,
    unlock,
)
from cryptfs.core.host import MACHINE_STATE
from cryptfs.core.journal import Sessions
from cryptfs.core.keys import ARGON2_SALT_SIZE, KEY_SIZE, Subkeys
from cryptfs.errors import NotAVaultError, VaultConfigError
from cryptfs.storage.hosts import own_state
from cryptfs.storage.vaultdir import (
    LockHolder,
    NoLock,
    VaultLock,
    changing_config,
    lock_holder,
    open_vault_dir,
    read_config_file,
    write_config_file,
)
from cryptfs.vfs.context import FileContext
from cryptfs.vfs.journals import MissingJournals, notices, refuse_older_config
from cryptfs.vfs.redo import DEFAULT_DURABILITY, Durability, RedoLog
from cryptfs.vfs.replay import has_journal, read_sessions, replay
from cryptfs.vfs.tree import VaultTree

log = logging.getLogger(__name__)

DEFAULT_CHUNK_SIZE = 16 * 1024
NEW_FEATURES = (MACHINE_STATE,)  # of a new vault
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
        self._vault_fd = vault_fd
        self._lock = lock
        self._closed = False
        self._notices: list[str] = []
        self._unlocked_by = os.getpid()

    @property
    def read_only(self) -> bool:
        """Whether changes are refused."""
        return self.context.read_only

    @classmethod
    def create(
        cls,
        vault_dir: Path,
        passphrase: bytes,
        *,
        cipher: str | None = None,
        chunk_size: int = DEFAULT_CHUNK_SIZE,
        label: str = "",
        kdf_memory: int = DEFAULT_KDF_MEMORY,
        kdf_passes: int = DEFAULT_KDF_PASSES,
    ) -> VaultConfig:
        """Make a new vault in a directory that is empty or does not exist.

        Args:   cipher: name of a suite; None takes the faster one on this processor.
                chunk_size: bytes, a power of two from 4 KiB to 1 MiB.
                kdf_memory, kdf_passes: cost of a guess at the passphrase; memory in bytes.
        Raises: NotAVaultError: the directory is not empty or cannot be made.
                ValueError: a parameter is out of bounds.
        """
        masterkey = os.urandom(KEY_SIZE)
        config = VaultConfig(
            chunk_size=chunk_size,
            cipher=default_cipher() if cipher is None else cipher,
            features=list(NEW_FEATURES),
            format="cryptfs",
            generation=1,
            mac="",
            slots=[],
            vault_id=os.urandom(_VAULT_ID_SIZE).hex(),
            version=FORMAT_VERSION,
        )
        slot = make_slot(config, 0, _new_slot(passphrase, label, kdf_memory, kdf_passes), masterkey)
        config = authenticate(replace_fields(config, slots=[slot]), Subkeys.from_masterkey(masterkey))
        try:
            decode_config(config.encode())
        except VaultConfigError as error:
            raise ValueError(str(error)) from None
        vault_fd = _prepare_directory(vault_dir)
        try:
            write_config_file(vault_fd, config.encode(), own_state(vault_fd, config))
        finally:
            os.close(vault_fd)
        return config

    @classmethod
    def unlock(
        cls,
        vault_dir: Path,
        passphrase: bytes,
        *,
        read_only: bool = False,
        lock: bool = True,
        durability: Durability = DEFAULT_DURABILITY,
    ) -> Vault:
        """Unlock a vault and take its lock. After a crash its journal is replayed.

        Args:   durability: what a crash of what may not damage.
                lock: False takes no lock, replays no journal and writes nothing at all, for a look at a vault
                      that somebody may have mounted; only with read_only.
        Raises: NotAVaultError, UnsupportedFormatError, VaultConfigError.
                VaultLockedError: somebody else has it; the message says who.
                WrongPassphraseError.
                OSError: the journal cannot be replayed.
        """
        if not (lock or read_only):
            raise ValueError("a vault is only written to with its lock")
        vault_dir = Path(os.path.realpath(vault_dir))
        vault_fd = open_vault_dir(vault_dir)
        try:
            config = decode_config(read_config_file(vault_fd, vault_dir))
            owner = own_state(vault_fd, config)
            held = VaultLock(vault_fd, vault_dir, shared=read_only, owner=owner) if lock else NoLock()
            try:
                masterkey, _ = unlock(config, passphrase, _kdf_memory_limit())
                context = FileContext(Subkeys.from_masterkey(masterkey), config, read_only, owner=owner)
                wipe(masterkey)
                refuse_older_config(context, vault_fd, vault_dir)
                sessions = _recover(context, vault_fd, held)
                context.crashed = frozenset(sessions.crashed)
                context.note_unclean = MissingJournals(context, vault_fd).note
                said = _say_notices(context, vault_fd, held, sessions)
                if not read_only and durability is not Durability.OFF:
                    context.redo = _redo_log(context, vault_fd, held, sessions, durability)
                opened = cls(vault_dir, vault_fd, held, config, context)
                opened._notices = said
                return opened
            except BaseException:
                held.release()
                raise
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
        """After daemonising: start threads, measure what the pool of them is worth here."""
        if os.getpid() != self._unlocked_by:
            for line in self._notices:  # said on a terminal already; now for the log of the daemon
                log.warning("%s", line)
        self.context.cipher.measure()
        self.tree.start()

    def close(self) -> None:
        """Settle open files, end threads, wipe keys, release the lock. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self.tree.close()
        self._forget()
        self._lock.release()

    def hand_over(self) -> None:
        """After a fork: forget the vault here, and leave it with its lock to the other process.

        Nothing is settled or written: open files are the other's, and no file may have been opened before
        the fork. This process's copy of the keys is wiped; the other has its own.
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

    def __enter__(self) -> Vault:
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


def change_passphrase(
    vault_dir: Path,
    old: bytes,
    new: bytes,
    *,
    kdf_memory: int = DEFAULT_KDF_MEMORY,
    kdf_passes: int = DEFAULT_KDF_PASSES,
) -> int:
    """Replace the slot that `old` opens by one for `new`; returns its id. Works while mounted, too.

    Raises: NotAVaultError, UnsupportedFormatError, VaultConfigError, WrongPassphraseError, OSError.
    """
    vault_fd = open_vault_dir(vault_dir)
    try:
        with changing_config(vault_fd):
            config = decode_config(read_config_file(vault_fd, vault_dir))
            masterkey, slot = unlock(config, old, _kdf_memory_limit())
            fresh = make_slot(config, slot.id, _new_slot(new, slot.label, kdf_memory, kdf_passes), masterkey)
            slots = [fresh if each.id == slot.id else each for each in config.slots]
            changed = replace_fields(config, slots=slots, generation=config.generation + 1)
            fresh_config = authenticate(changed, Subkeys.from_masterkey(masterkey))
            write_config_file(vault_fd, fresh_config.encode(), own_state(vault_fd, config))
            wipe(masterkey)
        return slot.id
    finally:
        os.close(vault_fd)


def _recover(context: FileContext, vault_fd: int, lock: VaultLock | NoLock) -> Sessions:
    """Replay what a crash left. A read-only mount does so, too, where it can write and is alone."""
    if not context.read_only:
        return replay(context, vault_fd)
    if isinstance(lock, NoLock) or not has_journal(vault_fd, context.owner):
        return read_sessions(context, vault_fd)
    try:
        with lock.alone():
            return replay(context, vault_fd)
    except OSError as error:
        log.warning(
            "the journal of a crashed session cannot be replayed now: %s; files that were being written may "
            "give errors until the vault was mounted for writing once", error.strerror,
        )  # fmt: skip
        return read_sessions(context, vault_fd)


def _say_notices(
    context: FileContext, vault_fd: int, lock: VaultLock | NoLock, sessions: Sessions
) -> list[str]:
    if isinstance(lock, NoLock):
        return []
    said = notices(context, vault_fd, lock, sessions)
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
        if context.owner.host:  # the lock file of a vault of 0.1 says what it said then
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


def _new_slot(passphrase: bytes, label: str, memory: int, passes: int) -> NewSlot:
    salt, nonce = os.urandom(ARGON2_SALT_SIZE), os.urandom(SMALL_NONCE_SIZE)
    return NewSlot(passphrase, salt, nonce, label=label, memory=memory, passes=passes)


def _prepare_directory(vault_dir: Path) -> int:
    try:
        vault_dir.mkdir(mode=0o700, exist_ok=True)
        found = sorted(os.listdir(vault_dir))
    except OSError as error:
        raise NotAVaultError(f"{vault_dir} cannot be made a vault: {error.strerror}") from None
    if CONFIG_NAME in found:
        raise NotAVaultError(f"{vault_dir} is a vault already")
    if found:
        raise NotAVaultError(f"{vault_dir} is not empty; a new vault needs an empty directory")
    return open_vault_dir(vault_dir)


def _kdf_memory_limit() -> int:
    """Bytes that deriving a key may take: half of what is available now."""
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
        available = next(line for line in text.splitlines() if line.startswith("MemAvailable:"))
        return int(available.split()[1]) * 1024 // 2
    except (OSError, StopIteration, ValueError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def has_aes_instructions() -> bool:
    """Whether the processor runs AEGIS at full speed; True where that cannot be told."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return True
    return "aes" in text.split()


def default_cipher() -> str:
    """AEGIS-256 where the processor has AES instructions, else XChaCha20-Poly1305."""
    return (AEGIS_256 if has_aes_instructions() else XCHACHA20_POLY1305).name


def wipe(secret: bytes) -> None:
    """Overwrite a bytes object in place. Copies that Python made elsewhere are out of reach.

    One of a single byte stays: Python has only one of each, which everybody shares.
    """
    if len(secret) > 1:
        ctypes.memset(id(secret) + bytes.__basicsize__ - 1, 0, len(secret))


__all__ = ["LockHolder", "Vault", "change_passphrase", "lock_holder", "read_config"]
