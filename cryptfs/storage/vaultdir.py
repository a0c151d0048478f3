"""The vault directory itself: the config file and the lock of its one writer."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cryptfs.core.names.host import SHARED_STATE, StateNames
from cryptfs.core.names.litter import OF_THE_DISK, is_litter
from cryptfs.core.names.names import TEMP_PREFIX
from cryptfs.core.printable import shell_word, shown
from cryptfs.core.slots.checks import CONFIG_NAME, NEXT_RECOVERY_NAME
from cryptfs.core.slots.config import MAX_CONFIG_SIZE, decode_config
from cryptfs.core.slots.recovery import RECOVERY_MAGIC
from cryptfs.errors import CryptfsError, IntegrityError, NotAVaultError, VaultConfigError, VaultLockedError
from cryptfs.storage.backing import OPEN_FLAGS, give_to_owner, open_backing, read_small
from cryptfs.storage.dirs import put_small, temp_name
from cryptfs.storage.hosts import own_state
from cryptfs.storage.libc import NO_ROOM, keeping_mtime, os_error
from cryptfs.storage.noconfig import without_config

LOCK_NAME = SHARED_STATE.lock  # common to all machines
_MAX_LOCK_SIZE = 8192
LOOK_SECONDS = 0.2


class NotDurableError(OSError):
    """A file is replaced, but the disk could not say that the directory is stored: the old one may return."""


@dataclass(frozen=True, slots=True)
class LockHolder:
    """The process that has a vault open. pid 0 if unknown (another machine, another namespace)."""

    pid: int
    mountpoint: str

    def describe(self) -> str:
        """For an error message."""
        who = f"process {self.pid}" if self.pid else "another process"
        return f"{who}, at {self.shown_mountpoint}" if self.mountpoint else who

    @property
    def shown_mountpoint(self) -> str:
        """Fit for a terminal: the lock file may hold any text."""
        return shown(self.mountpoint)


def no_room(vault_dir: Path, instead: str = "") -> str:
    """A message about NO_ROOM, with the way out. instead: what else a person can do."""
    other = f", or {instead}" if instead else ""
    return f"{shown(vault_dir)}: the disk that holds this vault is full; free some space there{other}"


def open_vault_dir(vault_dir: Path) -> int:
    """A readable descriptor of the vault directory.

    Raises: NotAVaultError: it is missing or not a directory.
    """
    try:
        return os.open(vault_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NotAVaultError(f"{shown(vault_dir)} does not exist") from None
    except NotADirectoryError:
        raise NotAVaultError(f"{shown(vault_dir)} is not a directory") from None
    except PermissionError:
        raise NotAVaultError(f"{shown(vault_dir)} cannot be opened: permission denied") from None


def in_the_way(vault_dir: Path) -> list[str]:
    """What keeps a directory from becoming a vault, sorted.

    Not in the way are litter of desktops, the lost+found of a disk, and what a killed `init` left.

    Raises: OSError: it cannot be read.
    """
    with os.scandir(vault_dir) as found:
        return sorted(entry.name for entry in found if not _is_harmless(entry))


def _is_harmless(entry: os.DirEntry[str]) -> bool:
    if entry.name == OF_THE_DISK:
        return entry.is_dir(follow_symlinks=False)
    of_init = entry.name.startswith(TEMP_PREFIX) or entry.name == NEXT_RECOVERY_NAME
    harmless = is_litter(entry.name) or of_init
    return harmless and entry.is_file(follow_symlinks=False)


def clear_killed_init(vault_fd: int) -> None:
    """In a new vault: remove what a killed `init` left. Raises: OSError."""
    for name in os.listdir(vault_fd):
        if name.startswith(TEMP_PREFIX) or name == NEXT_RECOVERY_NAME:
            os.unlink(name, dir_fd=vault_fd)


def read_config_file(vault_fd: int, vault_dir: Path) -> bytes:
    """The bytes of the config.

    Raises: NotAVaultError: there is none.   VaultConfigError: it cannot be read.
    """
    try:
        return read_small(vault_fd, CONFIG_NAME, MAX_CONFIG_SIZE)
    except FileNotFoundError:
        raise NotAVaultError(without_config(vault_dir)) from None
    except (IntegrityError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise VaultConfigError(f"{shown(vault_dir / CONFIG_NAME)} cannot be read: {reason}") from None


def write_config_file(vault_fd: int, content: bytes, owner: StateNames = SHARED_STATE) -> None:
    """Replace the config atomically."""
    replace_file(vault_fd, CONFIG_NAME, content, owner)


def replace_file(vault_fd: int, name: str, content: bytes, owner: StateNames) -> None:
    """Replace a file in the vault directory atomically: write, fsync, rename, fsync the directory.

    Sets aside a directory in its place.

    Args:   owner: this machine's names.
    Raises: NotDurableError: the new file is there.   OSError: the old file is still there.
    """
    try:
        fd = put_small(vault_fd, name, content, owner, sync=True)
    except IsADirectoryError:
        put_aside(vault_fd, name, owner)
        fd = put_small(vault_fd, name, content, owner, sync=True)
    os.close(fd)
    try:
        os.fsync(vault_fd)
    except OSError as error:
        raise NotDurableError(error.errno, error.strerror) from None


def remove_unfinished_keys(vault_fd: int) -> None:
    """Remove configs and recovery records that a killed writer left: they hold older slots and secrets.

    Only while changing_config keeps other writers away.
    """
    with contextlib.suppress(OSError):
        for name in os.listdir(vault_fd):
            if not name.startswith(TEMP_PREFIX):
                continue
            with contextlib.suppress(OSError, IntegrityError):
                content = read_small(vault_fd, name, MAX_CONFIG_SIZE)
                # Either may be torn behind its beginning.
                is_config = content.startswith(b"{") and b'"chunk_size"' in content
                if is_config or content.startswith(RECOVERY_MAGIC):
                    os.unlink(name, dir_fd=vault_fd)
        os.fsync(vault_fd)


def put_aside(vault_fd: int, name: str, owner: StateNames) -> None:
    """Rename an entry planted under an internal name, so that it may be removed. Raises: OSError."""
    os.rename(name, temp_name(owner), src_dir_fd=vault_fd, dst_dir_fd=vault_fd)


@contextlib.contextmanager
def changing_config(vault_fd: int, *, wait: bool = True) -> Iterator[None]:
    """One change of the config at a time, from reading it to replacing it; waits for another change.

    Raises: BlockingIOError: without `wait`, there is another one.
    """
    fcntl.flock(vault_fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    try:
        yield
    finally:
        fcntl.flock(vault_fd, fcntl.LOCK_UN)


def _lock_soon(fd: int, operation: int) -> None:
    """flock(2); another process may have the lock for LOOK_SECONDS only, as holder_of has when it looks.

    Raises: OSError: it has it for longer.
    """
    deadline = time.monotonic() + LOOK_SECONDS
    while True:
        try:
            fcntl.flock(fd, operation | fcntl.LOCK_NB)
            return
        except OSError:
            if time.monotonic() >= deadline:
                raise
        time.sleep(0.005)


class _FileLock:
    """flock(2) on one file in the vault directory; survives a fork.

    Args:   shared: with other readers; then a read-only medium needs no lock.
    Raises: VaultLockedError: another process has it.   NotAVaultError: no permission to write there.
    """

    def __init__(self, vault_fd: int, vault_dir: Path, name: str, *, shared: bool) -> None:
        self.fd: int | None = None
        flags = (os.O_RDONLY if shared else os.O_RDWR) | os.O_CREAT
        try:
            fd, _ = open_backing(vault_fd, name, flags, 0o600)
            give_to_owner(fd, vault_fd)
        except IntegrityError as error:
            raise NotAVaultError(
                f"{shown(vault_dir)} cannot be locked: its {name} is {error.reason}; remove it"
            ) from None
        except OSError as error:
            if shared and error.errno in (errno.EACCES, errno.EROFS, *NO_ROOM):
                return
            if error.errno in NO_ROOM:
                raise NotAVaultError(no_room(vault_dir, "mount with --read-only")) from None
            raise NotAVaultError(
                f"{shown(vault_dir)} cannot be opened for writing: {error.strerror}. To read it: "
                f"cryptfs mount --read-only {shell_word(vault_dir)} MOUNTPOINT. "
                f"To check it: cryptfs fsck {shell_word(vault_dir)}"
            ) from None
        try:
            _lock_soon(fd, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        except OSError:
            holder = _read_holder(fd)
            os.close(fd)
            how = f", with: cryptfs umount {shell_word(holder.mountpoint)}" if holder.mountpoint else ""
            raise VaultLockedError(
                f"{shown(vault_dir)} is in use by {holder.describe()}; unmount it there first{how}"
            ) from None
        self.fd = fd

    def share_again(self) -> None:
        """Raises: VaultLockedError: a writer has it."""
        assert self.fd is not None
        try:
            fcntl.flock(self.fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            raise VaultLockedError(
                f"the vault is in use by {_read_holder(self.fd).describe()}; unmount it there first"
            ) from None

    def close(self) -> None:
        """Close this process's descriptor; idempotent."""
        if self.fd is not None:
            os.close(self.fd)
            self.fd = None


class VaultLock:
    """The lock that a mount holds on its vault: flock(2) on `cryptfs.lock`, which survives fork.

    A read-only mount shares the lock with other read-only ones, and needs none on a read-only medium. With
    machine-state, it also locks this machine's lock file, which names the holder: a sync client may replace
    the common one, which stays empty, under a mount.
    """

    def __init__(
        self, vault_fd: int, vault_dir: Path, *, shared: bool, owner: StateNames = SHARED_STATE
    ) -> None:
        """Take the lock.

        Args:   owner: this machine's names.
        Raises: VaultLockedError: another process has it.   NotAVaultError: no permission to write there.
        """
        self._shared = shared
        self._told: dict[str, object] = {"pid": 0, "mountpoint": ""}
        self._locks: list[_FileLock] = []
        try:
            for name in dict.fromkeys((owner.lock, LOCK_NAME)):
                with keeping_mtime(vault_fd):
                    self._locks.append(_FileLock(vault_fd, vault_dir, name, shared=shared))
        except BaseException:
            self.hand_over()
            raise

    @property
    def _fd(self) -> int | None:
        """The descriptor of the file that names the holder."""
        return self._locks[0].fd if self._locks else None

    def announce(self, mountpoint: str) -> None:
        """Say in the lock file that the current process has the vault mounted there."""
        self._tell(pid=os.getpid(), mountpoint=mountpoint)

    def note_session(self, number: int, journal_id: bytes) -> None:
        """Write the new session into the lock file: after a crash it shows that a journal is missing."""
        pid = self._told["pid"] or os.getpid()
        self._tell(pid=pid, session=number, journal_id=journal_id.hex())

    def _tell(self, **fields: object) -> None:
        if self._fd is None or self._shared:
            return
        self._told |= fields
        # This text helps messages only, and a full disk must not keep people from deleting files.
        with contextlib.suppress(OSError):
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, json.dumps(self._told).encode(), 0)

    def last_session(self) -> tuple[int, bytes] | None:
        """Number and journal_id of the last session, if it ended without releasing the lock."""
        found = _read_json(self._fd) if self._fd is not None else {}
        number, text = found.get("session"), found.get("journal_id")
        if not isinstance(number, int) or not isinstance(text, str):
            return None
        try:
            return number, bytes.fromhex(text)
        except ValueError:
            return None

    def forget_session(self) -> None:
        """Remove a former session from the lock file, once it is dealt with."""
        if self._fd is not None and not self._shared:
            os.ftruncate(self._fd, 0)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Hold a shared lock exclusively for a moment.

        Raises: OSError: others hold it.   VaultLockedError: a writer has taken it meanwhile.
        """
        if any(lock.fd is None for lock in self._locks):
            raise os_error(errno.EROFS)
        asked: list[_FileLock] = []
        try:
            for lock in self._locks:
                assert lock.fd is not None
                asked.append(lock)
                fcntl.flock(lock.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        finally:
            if self._shared:  # also if it was not granted: the request first releases the old lock
                for lock in asked:
                    lock.share_again()

    def hand_over(self) -> None:
        """After a fork: close this process's descriptors and leave the lock to the other process.

        flock(2) belongs to the open file description, which both share: it stays locked until the other
        process releases it. The text of the lock file also belongs to the other process.
        """
        for lock in self._locks:
            lock.close()

    def release(self) -> None:
        """Let go; idempotent."""
        if self._fd is not None and not self._shared:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, 0)
        self.hand_over()


class NoLock:
    """In place of a VaultLock, for a reader that accepts changes by others."""

    def note_session(self, number: int, journal_id: bytes) -> None:
        """Nothing is said."""

    def announce(self, mountpoint: str) -> None:
        """Nothing is said."""

    def hand_over(self) -> None:
        """There is nothing to hand over."""

    def release(self) -> None:
        """There is nothing to let go of."""


def lock_holder(vault_dir: Path) -> LockHolder | None:
    """The process that has the vault open now; None if there is none, or it is unknown."""
    try:
        vault_fd = os.open(vault_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        for name in dict.fromkeys((_lock_name(vault_fd), LOCK_NAME)):
            holder = holder_of(vault_fd, name)
            if holder is not None:
                return holder
        return None
    finally:
        os.close(vault_fd)


def _lock_name(vault_fd: int) -> str:
    """The file that names the holder of the vault here, by a config that is not authenticated."""
    try:
        return own_state(vault_fd, decode_config(read_small(vault_fd, CONFIG_NAME, MAX_CONFIG_SIZE))).lock
    except (OSError, CryptfsError):
        return LOCK_NAME


def holder_of(vault_fd: int, name: str) -> LockHolder | None:
    """The holder of the lock on one file of a vault directory."""
    try:
        fd = os.open(name, os.O_RDONLY | OPEN_FLAGS, dir_fd=vault_fd)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return _read_holder(fd)
    finally:
        os.close(fd)
    return None


def _read_holder(fd: int) -> LockHolder:
    found = _read_json(fd)
    pid, mountpoint = found.get("pid"), found.get("mountpoint")
    if isinstance(pid, int) and isinstance(mountpoint, str):
        return LockHolder(pid, mountpoint)
    return LockHolder(0, "")


def _read_json(fd: int) -> dict[str, object]:
    """The JSON object in a lock file; empty if there is none."""
    try:
        found = json.loads(os.pread(fd, _MAX_LOCK_SIZE, 0))
    except (ValueError, OSError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
