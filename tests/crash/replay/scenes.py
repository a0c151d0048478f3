"""What the tests of the redo log share: vaults in the middle of a session, disks that refuse a sync."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from cryptfs.storage.journal import JOURNAL_NAMES, Journal
from cryptfs.vfs.content.filestate import FileState
from cryptfs.vfs.content.openfile import OpenFile
from cryptfs.vfs.content.redo import Durability, RedoLog
from cryptfs.vfs.vault import Vault
from tests.support import KIB, BareVault, pattern

CHUNK = 4 * KIB
NAME, OTHER = b"file", b"other"
OLD = pattern(4 * CHUNK + 1000, 1)
NEW, NEWER = pattern(CHUNK, 2), pattern(CHUNK, 3)
POWER, PROCESS = Durability.POWER, Durability.PROCESS
LOGGED = (POWER, PROCESS)


def vault_with(
    vault_dir: Path, content: bytes = OLD, durability: Durability = POWER, name: bytes = NAME
) -> BareVault:
    """A vault with one file that an earlier session closed."""
    vault = BareVault(vault_dir, durability=durability)
    vault.put(name, content)
    vault.reopen()
    return vault


def writer(vault: BareVault, name: bytes = NAME) -> OpenFile:
    """A handle that stays open."""
    return vault.tree.open(vault.root, name, os.O_RDWR)


def redo_of(vault: BareVault) -> RedoLog:
    assert vault.context.redo is not None
    return vault.context.redo


def journal_of(vault: BareVault) -> Journal:
    journal = redo_of(vault).journal
    assert journal is not None
    return journal


def state_of(vault: BareVault, name: bytes = NAME) -> FileState:
    state = vault.tree.files.find(vault.backing(name).stat())
    assert state is not None
    return state


def replaced(content: bytes, offset: int, data: bytes) -> bytes:
    """What content is after a write."""
    changed = bytearray(content.ljust(offset, b"\0"))
    changed[offset : offset + len(data)] = data
    return bytes(changed)


def journal_files(vault_dir: Path) -> dict[str, bytes]:
    """The content of the journal's files, those that are there."""
    return {name: (vault_dir / name).read_bytes() for name in JOURNAL_NAMES if (vault_dir / name).is_file()}


def put_back(vault_dir: Path, files: dict[str, bytes]) -> None:
    """Write files into the vault directory."""
    for name, content in files.items():
        (vault_dir / name).write_bytes(content)


def copy_of(vault_dir: Path, target: Path) -> Path:
    """The vault as it is on disk now, elsewhere: a crash while its owner goes on."""
    shutil.copytree(vault_dir, target, symlinks=True)
    return target


@contextlib.contextmanager
def journal_sync_fails(vault: BareVault, code: int) -> Iterator[list[int]]:
    """fdatasync of the journal's files fails once a descriptor, as the kernel has it; counts the failures."""
    fdatasync = os.fdatasync
    failed: list[int] = []

    def sync(fd: int) -> None:
        if fd in journal_of(vault)._fds and not failed:
            failed.append(fd)
            raise OSError(code, os.strerror(code))
        fdatasync(fd)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fdatasync", sync)
        yield failed


class SyncCalls:
    """Which files were synced, in order, by what stands behind the descriptor."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []

    @contextlib.contextmanager
    def recorded(self) -> Iterator[SyncCalls]:
        fdatasync, fsync = os.fdatasync, os.fsync

        def note(how: str, fd: int) -> None:
            self.calls.append((how, os.path.basename(os.readlink(f"/proc/self/fd/{fd}"))))

        def data_sync(fd: int) -> None:
            note("fdatasync", fd)
            fdatasync(fd)

        def sync(fd: int) -> None:
            note("fsync", fd)
            fsync(fd)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "fdatasync", data_sync)
            patch.setattr(os, "fsync", sync)
            yield self

    def take(self) -> list[tuple[str, str]]:
        """Those since the last time."""
        taken, self.calls = self.calls, []
        return taken


def content(vault: Vault) -> bytes:
    """What the file of a vault with a passphrase says; longer than it should be is seen, too."""
    file = vault.tree.open(vault.tree.root, NAME, os.O_RDONLY)
    try:
        return file.read(0, len(OLD) + 1)
    finally:
        vault.tree.release(file)


def pending_vault(vault_dir: Path) -> BareVault:
    """Two files with two records each that are in the journal only."""
    vault = vault_with(vault_dir)
    vault.put(OTHER, OLD)
    vault.reopen()
    for name in (NAME, OTHER):
        file = writer(vault, name)
        file.write(0, NEW)
        file.write(2 * CHUNK, NEWER)
    return vault


PENDING = replaced(replaced(OLD, 0, NEW), 2 * CHUNK, NEWER)
