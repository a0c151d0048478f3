"""The vault directory itself: the config file and the lock of its one writer."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cryptfs.core.config import CONFIG_NAME, MAX_CONFIG_SIZE, decode_config
from cryptfs.core.host import SHARED_STATE, StateNames
from cryptfs.errors import CryptfsError, IntegrityError, NotAVaultError, VaultConfigError, VaultLockedError
from cryptfs.storage.backing import OPEN_FLAGS, create_small, open_backing, read_small
from cryptfs.storage.dirs import temp_name
from cryptfs.storage.hosts import own_state

LOCK_NAME = SHARED_STATE.lock  # common to all machines
_MAX_LOCK_SIZE = 8192


@dataclass(frozen=True, slots=True)
class LockHolder:
    """Who has a vault open. pid 0 where that is not known (another machine, another namespace)."""

    pid: int
    mountpoint: str

    def describe(self) -> str:
        """For an error message."""
        who = f"process {self.pid}" if self.pid else "another process"
        return f"{who}, at {self.shown_mountpoint}" if self.mountpoint else who

    @property
    def shown_mountpoint(self) -> str:
        """Fit for a terminal: the lock file may say anything."""
        if self.mountpoint.isprintable():
            return self.mountpoint
        return self.mountpoint.encode("unicode_escape").decode("ascii")


def open_vault_dir(vault_dir: Path) -> int:
    """A readable descriptor of the vault directory.

    Raises: NotAVaultError: it is missing or no directory.
    """
    try:
        return os.open(vault_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NotAVaultError(f"{vault_dir} does not exist") from None
    except NotADirectoryError:
        raise NotAVaultError(f"{vault_dir} is not a directory") from None
    except PermissionError:
        raise NotAVaultError(f"{vault_dir} cannot be opened: permission denied") from None


def read_config_file(vault_fd: int, vault_dir: Path) -> bytes:
    """The bytes of the config.

    Raises: NotAVaultError: there is none.   VaultConfigError: it cannot be read.
    """
    try:
        return read_small(vault_fd, CONFIG_NAME, MAX_CONFIG_SIZE)
    except FileNotFoundError:
        raise NotAVaultError(
            f"{vault_dir} is not a vault: it has no {CONFIG_NAME}. To make one: cryptfs init {vault_dir}"
        ) from None
    except (IntegrityError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise VaultConfigError(f"{vault_dir / CONFIG_NAME} cannot be read: {reason}") from None


def write_config_file(vault_fd: int, content: bytes, owner: StateNames = SHARED_STATE) -> None:
    """Replace the config atomically."""
    replace_file(vault_fd, CONFIG_NAME, content, owner)


def replace_file(vault_fd: int, name: str, content: bytes, owner: StateNames) -> None:
    """Replace a file in the vault directory atomically: write, fsync, rename, fsync the directory.

    A directory in its place is put aside.

    Args:   owner: this machine's names.
    Raises: OSError: what was there is still there.
    """
    temporary = temp_name(owner)
    fd = create_small(vault_fd, temporary, content, 0o600)
    try:
        os.fsync(fd)
        try:
            os.rename(temporary, name, src_dir_fd=vault_fd, dst_dir_fd=vault_fd)
        except IsADirectoryError:
            put_aside(vault_fd, name, owner)
            os.rename(temporary, name, src_dir_fd=vault_fd, dst_dir_fd=vault_fd)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(temporary, dir_fd=vault_fd)
        raise
    finally:
        os.close(fd)
    os.fsync(vault_fd)


def put_aside(vault_fd: int, name: str, owner: StateNames) -> None:
    """Give what somebody planted under an internal name one that may be removed. Raises: OSError."""
    os.rename(name, temp_name(owner), src_dir_fd=vault_fd, dst_dir_fd=vault_fd)


@contextlib.contextmanager
def changing_config(vault_fd: int) -> Iterator[None]:
    """One change of the config at a time, from reading it to replacing it; waits for another's."""
    fcntl.flock(vault_fd, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(vault_fd, fcntl.LOCK_UN)


class _FileLock:
    """flock(2) on one file in the vault directory; survives a fork.

    Args:   shared: with others who only read; then there is none where the medium cannot be written to.
    Raises: VaultLockedError: somebody else has it.   NotAVaultError: no permission to write there.
    """

    def __init__(self, vault_fd: int, vault_dir: Path, name: str, *, shared: bool) -> None:
        self.fd: int | None = None
        flags = (os.O_RDONLY if shared else os.O_RDWR) | os.O_CREAT
        try:
            fd, _ = open_backing(vault_fd, name, flags, 0o600)
        except IntegrityError as error:
            raise NotAVaultError(
                f"{vault_dir} cannot be locked: {name} in it is {error.reason}; remove it"
            ) from None
        except OSError as error:
            if shared and error.errno in (errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EDQUOT):
                return
            raise NotAVaultError(
                f"{vault_dir} cannot be opened for writing: {error.strerror}; try a read-only mount"
            ) from None
        try:
            fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except OSError:
            holder = _read_holder(fd)
            os.close(fd)
            raise VaultLockedError(
                f"{vault_dir} is in use by {holder.describe()}; unmount it there first, with: cryptfs umount"
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

    A read-only mount shares the lock with other read-only ones, and needs none on a read-only medium. Where
    each machine has files of its own, this machine's lock file is locked, too, and says who holds it: a sync
    client may replace the common one, which stays empty, under a mount.
    """

    def __init__(
        self, vault_fd: int, vault_dir: Path, *, shared: bool, owner: StateNames = SHARED_STATE
    ) -> None:
        """Take the lock.

        Args:   owner: this machine's names.
        Raises: VaultLockedError: somebody else has it.   NotAVaultError: no permission to write there.
        """
        self._shared = shared
        self._told: dict[str, object] = {"pid": 0, "mountpoint": ""}
        self._locks: list[_FileLock] = []
        try:
            for name in dict.fromkeys((owner.lock, LOCK_NAME)):
                self._locks.append(_FileLock(vault_fd, vault_dir, name, shared=shared))
        except BaseException:
            self.hand_over()
            raise

    @property
    def _fd(self) -> int | None:
        """Of the file that says who holds the vault."""
        return self._locks[0].fd if self._locks else None

    def announce(self, mountpoint: str) -> None:
        """Say in the lock file that the current process has the vault mounted there."""
        self._tell(pid=os.getpid(), mountpoint=mountpoint)

    def note_session(self, number: int, journal_id: bytes) -> None:
        """Say in the lock file which session has begun: after a crash it tells that a journal is missing."""
        pid = self._told["pid"] or os.getpid()
        self._tell(pid=pid, session=number, journal_id=journal_id.hex())

    def _tell(self, **fields: object) -> None:
        if self._fd is None or self._shared:
            return
        self._told |= fields
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, json.dumps(self._told).encode(), 0)

    def last_session(self) -> tuple[int, bytes] | None:
        """Number and journal_id of the session that somebody noted who did not let go in order."""
        found = _read_json(self._fd) if self._fd is not None else {}
        number, text = found.get("session"), found.get("journal_id")
        if not isinstance(number, int) or not isinstance(text, str):
            return None
        try:
            return number, bytes.fromhex(text)
        except ValueError:
            return None

    def forget_session(self) -> None:
        """What the lock file says of a session before has been dealt with."""
        if self._fd is not None and not self._shared:
            os.ftruncate(self._fd, 0)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """For a moment the only one, where the lock is shared.

        Raises: OSError: there are others.   VaultLockedError: one of them is a writer, and has it for good.
        """
        if any(lock.fd is None for lock in self._locks):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        asked: list[_FileLock] = []
        try:
            for lock in self._locks:
                assert lock.fd is not None
                asked.append(lock)
                fcntl.flock(lock.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        finally:
            if self._shared:  # also where it was not granted: asking lets go of the old lock first
                for lock in asked:
                    lock.share_again()

    def hand_over(self) -> None:
        """After a fork: close this process's descriptors and leave the lock to the other process.

        flock(2) belongs to the open file description, which both share: it stays locked until the other
        one lets go. What the lock file says is the other's, too.
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
    """In place of a VaultLock, for one who only looks and does not mind who writes meanwhile."""

    def note_session(self, number: int, journal_id: bytes) -> None:
        """Nothing is said."""

    def announce(self, mountpoint: str) -> None:
        """Nothing is said."""

    def hand_over(self) -> None:
        """There is nothing to hand over."""

    def release(self) -> None:
        """There is nothing to let go of."""


def lock_holder(vault_dir: Path) -> LockHolder | None:
    """Who has the vault open now, or None where nobody has (or nobody can tell)."""
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
    """The file that says who holds the vault here, going by a config that nobody has authenticated."""
    try:
        return own_state(vault_fd, decode_config(read_small(vault_fd, CONFIG_NAME, MAX_CONFIG_SIZE))).lock
    except (OSError, CryptfsError):
        return LOCK_NAME


def holder_of(vault_fd: int, name: str) -> LockHolder | None:
    """Who has the lock on one file of a vault directory."""
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
    """What a lock file says; nothing where it is no object."""
    try:
        found = json.loads(os.pread(fd, _MAX_LOCK_SIZE, 0))
    except (ValueError, OSError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
