"""Vaults for tests of the vfs: fixed keys instead of a passphrase, and a way to die without closing."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import logging
import os
import re
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import cryptfs
from cryptfs.core.aead import AEGIS_256, FORMAT_VERSION, SUITES, XCHACHA20_POLY1305
from cryptfs.core.format.header import FileHeader
from cryptfs.core.geometry import ChunkGeometry
from cryptfs.core.keys import Subkeys
from cryptfs.core.names.dirrecord import BOUND_DIRS
from cryptfs.core.names.host import MACHINE_STATE, SHARED_STATE, StateNames
from cryptfs.core.slots.config import DELTA_JOURNAL, VaultConfig
from cryptfs.errors import IntegrityError
from cryptfs.mount.errno_map import errno_of
from cryptfs.vfs import vault as vault_module
from cryptfs.vfs.content.context import FileContext
from cryptfs.vfs.content.openfile import OpenFile
from cryptfs.vfs.content.redo import Durability, RedoLog
from cryptfs.vfs.recovery.replay import replay
from cryptfs.vfs.tree.directory import Directory
from cryptfs.vfs.tree.tree import VaultTree
from cryptfs.vfs.workers import Workers

CIPHERS = tuple(SUITES)
KIB = 1024
MIB = 1024 * KIB
GAP = 4 * MIB  # from this gap past the end on, DESIGN has a hole instead of sealed zeros

_MASTERKEY = hashlib.sha256(b"the masterkey of every vault in these tests").digest()

__all__ = ["AEGIS_256", "CIPHERS", "GAP", "KIB", "MIB", "XCHACHA20_POLY1305", "BareVault"]


def bare_config(cipher: str, chunk_size: int, features: Sequence[str] = ()) -> VaultConfig:
    """A config without slots: enough for a FileContext, not for unlocking."""
    return VaultConfig(
        chunk_size=chunk_size,
        cipher=cipher,
        features=list(features),
        format="cryptfs",
        generation=1,
        mac="",
        recovery=[],
        slots=[],
        vault_id="00" * 16,
        version=FORMAT_VERSION,
    )


def make_old_vault(vault_dir: Path, passphrase: bytes, **options: Any) -> None:
    """A vault as version 0.1 made them: without features."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vault_module, "NEW_FEATURES", ())
        vault_module.Vault.create(vault_dir, passphrase, **options)


def state_files(vault_dir: Path, kind: str) -> list[str]:
    """Sorted names of some machine's journal, sessions, unsettled or lock in a vault directory."""
    pattern = rf"cryptfs\.(host\.[\w-]{{16}}\.)?{kind}(\.[ab])?"
    return sorted(name for name in os.listdir(vault_dir) if re.fullmatch(pattern, name))


def everything_below(directory: Path) -> Iterator[Path]:
    """As rglob("*"), which on some versions reads links: that moves their times, and fails with long ones."""
    with os.scandir(directory) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    for entry in entries:
        yield directory / entry.name
        if entry.is_dir(follow_symlinks=False):
            yield from everything_below(directory / entry.name)


def may_mark_links() -> bool:
    """Whether this process can set trusted attributes on symlinks: as root, outside of user namespaces."""
    with tempfile.TemporaryDirectory() as directory:
        link = os.path.join(directory, "link")
        os.symlink("nowhere", link)
        try:
            os.setxattr(link, "trusted.note", b"", follow_symlinks=False)
        except OSError:
            return False
    return True


has_company = False
"""Whether the test that runs has the mark `waits`: others with it may run beside it."""


def needs_no_company(what: str) -> None:
    """Fail where any test may run beside this one: `scripts/test` runs those with a mark by themselves."""
    alone = has_company or "PYTEST_XDIST_WORKER" not in os.environ
    assert alone, f"a test that {what} needs the mark `serial` or `waits`"


def crash_in(work: Callable[[], object]) -> None:
    """Do something in a process that is gone afterwards without closing anything, as if it were killed."""
    needs_no_company("forks")
    child = os.fork()
    if not child:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0


_open_vaults: list[BareVault] = []


@contextlib.contextmanager
def no_vault_left_open() -> Iterator[None]:
    """Vaults that are opened meanwhile die at the end: tests that kill or fail leave some."""
    before = len(_open_vaults)
    try:
        yield
    finally:
        for vault in _open_vaults[before:]:
            with contextlib.suppress(OSError):
                vault.die()


class BareVault:
    """A VaultTree in a plain directory, and what a test wants to do with it."""

    def __init__(
        self,
        vault_dir: Path,
        *,
        cipher: str = AEGIS_256.name,
        chunk_size: int = 4 * KIB,
        read_only: bool = False,
        masterkey: bytes = _MASTERKEY,
        durability: Durability = Durability.OFF,
        owner: StateNames = SHARED_STATE,
        bound: bool = False,
        deltas: bool | None = None,
    ) -> None:
        """owner: the machine that has a journal of its own, wherever the vault is copied to; else as 0.1.

        bound: whether directories are bound to their places.
        deltas: whether the journal may have deltas; None: as machine-state, so that each is tested with one.
        """
        vault_dir.mkdir(exist_ok=True)
        self.owner = owner
        self.vault_dir = vault_dir
        deltas = bool(owner.host) if deltas is None else deltas
        features = [BOUND_DIRS] * bound + [DELTA_JOURNAL] * deltas + [MACHINE_STATE] * bool(owner.host)
        self.config = bare_config(cipher, chunk_size, features)
        self._masterkey = masterkey
        self.durability = durability
        self._start(read_only=read_only)

    def _start(self, *, read_only: bool) -> None:
        self.keys = Subkeys.from_masterkey(self._masterkey)
        self.context = FileContext(self.keys, self.config, read_only, owner=self.owner)
        self._vault_fd = os.open(self.vault_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            sessions = replay(self.context, self._vault_fd)
        except BaseException:
            os.close(self._vault_fd)
            raise
        self.context.crashed = frozenset(sessions.crashed)
        if self.durability is not Durability.OFF and not read_only:
            durable = self.durability is Durability.POWER
            self.context.redo = RedoLog(
                self.keys, self.config, self._vault_fd, sessions, durable=durable, owner=self.owner
            )
        self.tree = VaultTree(self.context, self._vault_fd)
        self.workers = Workers(self.context, self.tree, self._vault_fd)
        _open_vaults.append(self)

    def checkpoint(self) -> None:
        """Bring everything home that the redo log holds."""
        if self.workers.checkpointer is not None:
            self.workers.checkpointer.checkpoint()

    def close(self) -> None:
        """An orderly end."""
        self.workers.stop()
        self.tree.close()
        self.context.cipher.close()
        os.close(self._vault_fd)
        _open_vaults.remove(self)

    def reopen(self, *, read_only: bool = False) -> None:
        """Close in order, and start anew on what is on disk."""
        self.close()
        self._start(read_only=read_only)

    def die(self) -> None:
        """Lose everything in memory, as a killed process does."""
        if self not in _open_vaults:
            return  # it died while it started
        _open_vaults.remove(self)
        for state in self.tree.files._states.values():
            state.close_descriptors()
        self.tree.files._states.clear()
        redo = self.context.redo
        if redo is not None and redo.journal is not None:
            redo.journal.close()
        self.tree.pending._close_all()
        self.context.cipher.close()
        os.close(self._vault_fd)

    def die_and_reopen(self, *, read_only: bool = False) -> None:
        """As a killed process, and start anew on what is on disk."""
        self.die()
        self._start(read_only=read_only)

    # ---- shorthands

    @property
    def root(self) -> Directory:
        return self.tree.root

    @property
    def geometry(self) -> ChunkGeometry:
        return self.config.geometry

    def entry(self, name: bytes, directory: Directory | None = None) -> str:
        """Cipher path of an entry, relative to the vault."""
        where = directory or self.root
        return where.path_of(where.entry_name(name))

    def backing(self, name: bytes, directory: Directory | None = None) -> Path:
        """The backing file of an entry."""
        return self.vault_dir / self.entry(name, directory)

    def header(self, name: bytes) -> FileHeader:
        """The header that is on disk now."""
        return self.context.unpack_header(self.backing(name).read_bytes()[:256])

    def plain_size(self, name: bytes) -> int:
        """The size that follows from the backing file's length alone."""
        return self.geometry.plain_size(self.backing(name).stat().st_size)

    def put(self, name: bytes, content: bytes, directory: Directory | None = None) -> None:
        """Make or replace a file."""
        with self.opened(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC, directory) as file:
            file.write(0, content)

    def get(self, name: bytes, directory: Directory | None = None) -> bytes:
        """All of a file."""
        with self.opened(name, os.O_RDONLY, directory) as file:
            # The length of a backing file that nobody has settled may be anything.
            return file.read(0, min(self.tree.stat_open(file).size, 64 * MIB) + 1)

    @contextlib.contextmanager
    def opened(
        self, name: bytes, flags: int = os.O_RDWR, directory: Directory | None = None
    ) -> Iterator[OpenFile]:
        """A handle for a while."""
        where = directory or self.root
        if flags & os.O_CREAT:
            file = self.tree.create(where, name, flags, 0o600)
            if flags & os.O_TRUNC:
                file.truncate(0)
        else:
            file = self.tree.open(where, name, flags)
        try:
            yield file
        finally:
            self.tree.release(file)

    def make_directory(self, name: bytes, parent: Directory | None = None) -> Directory:
        """A new subdirectory, opened."""
        where = parent or self.root
        self.tree.make_directory(where, name, 0o755)
        return self.tree.directory(where, name)

    def names(self, directory: Directory | None = None) -> list[bytes]:
        """The sorted names of a directory."""
        return sorted(entry.name for entry in self.tree.list(directory or self.root))

    def internal_names(self, directory: Directory | None = None) -> list[str]:
        """Sorted names of the backing directory's files that are not entries."""
        path = self.vault_dir / (directory or self.root).cipher_path
        return sorted(
            name for name in os.listdir(path) if name.startswith("cryptfs.") and name != "cryptfs.dir"
        )


def assert_detected(
    action: Callable[[], object],
    caplog: pytest.LogCaptureFixture,
    cipher_path: str,
    chunk_index: int | None = None,
) -> IntegrityError:
    """The action meets damage: IntegrityError, and one log line that says where."""
    with pytest.raises(IntegrityError) as raised:
        action()
    error = raised.value
    caplog.clear()
    with caplog.at_level(logging.ERROR):
        assert errno_of(error) == 5
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 1
    assert error.cipher_path == cipher_path
    assert error.chunk_index == chunk_index
    place = cipher_path if chunk_index is None else f"{cipher_path}, chunk {chunk_index}"
    assert lines[0] == f"{place}: {error.reason}"
    return error


def open_descriptors() -> int:
    """How many descriptors this process has, without those of objects that nobody refers to any more."""
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


OWNERS = (SHARED_STATE, StateNames("A" * 16))
"""Whose journal it is: everybody's, as in 0.1; one machine's."""


def owner_name(owner: StateNames) -> str:
    """For the id of a test."""
    return "machine-state" if owner.host else "0.1"


def is_regular(path: Path) -> bool:
    """Whether a regular file stands there."""
    return stat.S_ISREG(path.lstat().st_mode)


def pattern(size: int, seed: int = 0) -> bytes:
    """Bytes without a period that a chunk could share."""
    return hashlib.shake_128(seed.to_bytes(8, "little")).digest(size)


def child_environment() -> dict[str, str]:
    """For child processes that import cryptfs, wherever they run."""
    return {**os.environ, "PYTHONPATH": str(Path(cryptfs.__file__).parents[1])}
