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

from cryptfs.core.config import CONFIG_NAME, MAX_CONFIG_SIZE
from cryptfs.errors import IntegrityError, NotAVaultError, VaultConfigError, VaultLockedError
from cryptfs.storage.backing import OPEN_FLAGS, create_small, open_backing, read_small
from cryptfs.storage.dirs import temp_name

LOCK_NAME = "cryptfs.lock"
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


def write_config_file(vault_fd: int, content: bytes) -> None:
    """Replace the config atomically."""
    replace_file(vault_fd, CONFIG_NAME, content)


def replace_file(vault_fd: int, name: str, content: bytes) -> None:
    """Replace a file in the vault directory atomically: write, fsync, rename, fsync the directory.

    A directory in its place is put aside.

    Raises: OSError: what was there is still there.
    """
    temporary = temp_name()
    fd = create_small(vault_fd, temporary, content, 0o600)
    try:
        os.fsync(fd)
        try:
            os.rename(temporary, name, src_dir_fd=vault_fd, dst_dir_fd=vault_fd)
        except IsADirectoryError:
            put_aside(vault_fd, name)
            os.rename(temporary, name, src_dir_fd=vault_fd, dst_dir_fd=vault_fd)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(temporary, dir_fd=vault_fd)
        raise
    finally:
        os.close(fd)
    os.fsync(vault_fd)


def put_aside(vault_fd: int, name: str) -> None:
    """Give what somebody planted under an internal name one that may be removed. Raises: OSError."""
    os.rename(name, temp_name(), src_dir_fd=vault_fd, dst_dir_fd=vault_fd)


@contextlib.contextmanager
def changing_config(vault_fd: int) -> Iterator[None]:
    """One change of the config at a time, from reading it to replacing it; waits for another's."""
    fcntl.flock(vault_fd, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(vault_fd, fcntl.LOCK_UN)


class VaultLock:
    """The lock that a mount holds on its vault: flock(2) on `cryptfs.lock`, which survives fork.

    A read-only mount shares the lock with other read-only ones, and needs none on a read-only medium.
    """

    def __init__(self, vault_fd: int, vault_dir: Path, *, shared: bool) -> None:
        """Take the lock.

        Raises: VaultLockedError: somebody else has it.   NotAVaultError: no permission to write there.
        """
        self._fd: int | None = None
        flags = (os.O_RDONLY if shared else os.O_RDWR) | os.O_CREAT
        try:
            fd, _ = open_backing(vault_fd, LOCK_NAME, flags, 0o600)
        except IntegrityError as error:
            raise NotAVaultError(
                f"{vault_dir} cannot be locked: {LOCK_NAME} in it is {error.reason}; remove it"
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
        self._fd = fd
        self._shared = shared

    def announce(self, mountpoint: str) -> None:
        """Say in the lock file that the current process has the vault mounted there."""
        if self._fd is None or self._shared:
            return
        text = json.dumps({"pid": os.getpid(), "mountpoint": mountpoint}).encode()
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, text, 0)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """For a moment the only one, where the lock is shared.

        Raises: OSError: there are others.   VaultLockedError: one of them is a writer, and has it for good.
        """
        if self._fd is None:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        finally:
            if self._shared:  # also where it was not granted: asking lets go of the old lock first
                self._share_again(self._fd)

    def _share_again(self, fd: int) -> None:
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            raise VaultLockedError(
                f"the vault is in use by {_read_holder(fd).describe()}; unmount it there first"
            ) from None

    def hand_over(self) -> None:
        """After a fork: close this process's descriptor and leave the lock to the other process.

        flock(2) belongs to the open file description, which both share: it stays locked until the other
        one lets go. What the lock file says is the other's, too.
        """
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def release(self) -> None:
        """Let go; idempotent."""
        if self._fd is None:
            return
        if not self._shared:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, 0)
        os.close(self._fd)
        self._fd = None


class NoLock:
    """In place of a VaultLock, for one who only looks and does not mind who writes meanwhile."""

    def announce(self, mountpoint: str) -> None:
        """Nothing is said."""

    def hand_over(self) -> None:
        """There is nothing to hand over."""

    def release(self) -> None:
        """There is nothing to let go of."""


def lock_holder(vault_dir: Path) -> LockHolder | None:
    """Who has the vault open now, or None where nobody has (or nobody can tell)."""
    try:
        fd = os.open(vault_dir / LOCK_NAME, os.O_RDONLY | OPEN_FLAGS)
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
    try:
        found = json.loads(os.pread(fd, _MAX_LOCK_SIZE, 0))
        pid, mountpoint = found["pid"], found["mountpoint"]
        if isinstance(pid, int) and isinstance(mountpoint, str):
            return LockHolder(pid, mountpoint)
    except (ValueError, KeyError, TypeError, OSError, RecursionError):
        pass
    return LockHolder(0, "")
