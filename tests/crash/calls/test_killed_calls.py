"""The process dies at each call to the disk: what is left is what was, or what was to be."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from cryptfs.core.names.dirrecord import RECORD_NAME, DirectoryRecord, open_directory_record
from cryptfs.core.names.host import StateNames
from cryptfs.errors import DirectoryRecordError
from cryptfs.storage.libc import RENAME_EXCHANGE, RENAME_NOREPLACE, RENAME_WHITEOUT
from cryptfs.vfs.content.redo import Durability
from cryptfs.vfs.tree.directory import Directory
from tests.crash import expectations
from tests.crash.history import FileHistory
from tests.crash.invault import chunks_in_vault
from tests.crash.operations import CHUNK, OPERATIONS, Operation, assert_old_or_new
from tests.crash.striking import TEARS, ProcessDeath, Strike, each_strike
from tests.crash.treeoperations import (
    DIRECTORY_OPERATIONS,
    TreeOperation,
    allowed,
    new_vault,
    prepare,
    tree_of,
)
from tests.crash.treeoperations import OPERATIONS as TREE_OPERATIONS
from tests.e2e.mounting import scratch_directory
from tests.support import CIPHERS, OWNERS, BareVault, everything_below, owner_name

NAME = b"file"


@pytest.fixture
def scratch() -> Iterator[Path]:
    directory = scratch_directory(tmpfs=True)
    yield directory
    shutil.rmtree(directory)


def restore(vault_dir: Path, saved: Path) -> None:
    shutil.rmtree(vault_dir)
    shutil.copytree(saved, vault_dir, symlinks=True)


def empty(vault: BareVault, where: Directory | None = None) -> None:
    """Remove everything; whatever an interrupted operation left must not be in the way."""
    where = where or vault.root
    for name in vault.names(where):
        try:
            vault.tree.unlink(where, name)
        except IsADirectoryError:
            with contextlib.suppress(DirectoryRecordError):
                empty(vault, vault.tree.directory(where, name))
            vault.tree.remove_directory(where, name)
    assert vault.names(where) == []


@pytest.mark.parametrize("operation", TREE_OPERATIONS, ids=lambda operation: operation.name)
def test_death_at_each_call_of_an_operation_on_names(operation: TreeOperation, scratch: Path) -> None:
    vault = BareVault(scratch / "vault", durability=Durability.POWER)
    prepare(vault)
    before = tree_of(vault)
    vault.close()
    saved = scratch / "saved"
    shutil.copytree(vault.vault_dir, saved, symlinks=True)
    vault = BareVault(scratch / "vault")
    strikes = list(each_strike(lambda: operation.run(vault)))
    after = tree_of(vault)
    assert after != before
    assert strikes
    vault.close()
    for at in strikes:
        for torn in TEARS:
            restore(vault.vault_dir, saved)
            vault = BareVault(scratch / "vault")
            strike = Strike(at=at, torn=torn)
            assert strike.during(lambda: operation.run(vault)) is not None  # noqa: B023 - called at once
            vault.die_and_reopen()
            found = tree_of(vault)
            assert found in allowed(operation, before, after), f"call {at}, {strike.struck}: {strike.calls}"
            vault.reopen()
            assert tree_of(vault) == found
            empty(vault)
            vault.close()


@pytest.mark.parametrize("operation", DIRECTORY_OPERATIONS, ids=lambda operation: operation.name)
def test_death_at_each_call_of_an_operation_on_bound_directories(
    operation: TreeOperation, scratch: Path
) -> None:
    """Every directory can be reached, and the next mount finishes the records."""
    vault = new_vault(scratch / "vault", bound=True)
    prepare(vault)
    before = tree_of(vault)
    vault.close()
    saved = scratch / "saved"
    shutil.copytree(vault.vault_dir, saved, symlinks=True)
    vault = new_vault(scratch / "vault", bound=True)
    strikes = list(each_strike(lambda: operation.run(vault)))
    after = tree_of(vault)
    assert after != before
    vault.close()
    seen = set()
    for at in strikes:
        restore(vault.vault_dir, saved)
        vault = new_vault(scratch / "vault", bound=True)
        strike = Strike(at=at)
        assert strike.during(lambda: operation.run(vault)) is not None  # noqa: B023 - called at once
        vault.die()
        seen |= {record.is_moving for record in records_in(vault)}
        vault._start(read_only=False)
        found = tree_of(vault)
        assert found in allowed(operation, before, after), f"call {at}, {strike.struck}: {strike.calls}"
        assert not any(record.is_moving for record in records_in(vault)), f"call {at}, {strike.struck}"
        vault.reopen()
        assert tree_of(vault) == found
        vault.close()
    assert seen == ({False, True} if operation.moves else {False})


def records_in(vault: BareVault) -> list[DirectoryRecord]:
    """All directory records under names of the plaintext tree."""
    paths = (
        path
        for path in everything_below(vault.vault_dir)
        if path.name == RECORD_NAME and ".tmp." not in str(path)
    )
    return [open_directory_record(path.read_bytes(), vault.keys) for path in paths]


@pytest.mark.parametrize("flags", [RENAME_EXCHANGE | RENAME_WHITEOUT, RENAME_EXCHANGE | RENAME_NOREPLACE])
def test_flags_that_exclude_each_other_are_refused_before_the_first_call(flags: int, scratch: Path) -> None:
    vault = new_vault(scratch / "vault", bound=True)
    prepare(vault)
    strike = Strike()
    error = strike.during(lambda: vault.tree.rename(vault.root, b"full", vault.root, b"new", flags))
    assert isinstance(error, OSError)
    assert error.errno == errno.EINVAL
    assert strike.calls == []
    vault.close()


def work_on(vault: BareVault, operation: Operation, *, synced: bool = True) -> None:
    """Open, do it, sync or not, close; and close the vault."""
    file = vault.tree.open(vault.root, NAME, os.O_RDWR)
    operation.run(file)
    if synced:
        vault.tree.sync_file(file, data_only=True)
    vault.tree.release(file)
    vault.workers.stop()
    vault.tree.close()


def assert_swept_well(vault: BareVault, found: list[bytes | None]) -> None:
    """A sweep settles the file and changes nothing of what it holds."""
    if vault.workers.unsettled is None:
        return
    vault.workers.unsettled.sweep()
    assert not vault.backing(NAME).stat().st_size or vault.header(NAME).is_clean
    assert chunks_in_vault(vault, NAME) == found


@pytest.mark.parametrize("owner", OWNERS, ids=owner_name)
@pytest.mark.parametrize("synced", [True, False], ids=["synced", "not synced"])
@pytest.mark.parametrize("durability", Durability)
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_death_at_each_call_of_an_operation_on_content(
    operation: Operation, durability: Durability, synced: bool, owner: StateNames, scratch: Path
) -> None:
    """With the redo log each chunk is what it was or what it should become.

    Without it, a chunk overwritten in place, or a partial last chunk that grows, can be lost: then it is an
    IntegrityError for that chunk; no chunk that the operation did not touch is lost.
    """
    cipher = CIPHERS[(len(operation.name) + OWNERS.index(owner)) % len(CIPHERS)]
    vault = BareVault(scratch / "vault", cipher=cipher, durability=durability, owner=owner)
    vault.put(NAME, operation.old)
    vault.close()
    saved = scratch / "saved"
    shutil.copytree(vault.vault_dir, saved, symlinks=True)
    vault = BareVault(scratch / "vault", cipher=cipher, durability=durability, owner=owner)
    strikes = list(each_strike(lambda: work_on(vault, operation, synced=synced)))
    history = FileHistory([operation.old], [False])
    history.change(operation.result, cut=len(operation.result) < len(operation.old))
    rules = expectations.after_a_kill(CHUNK, durability, writeback=False)
    for at in strikes:
        for torn in TEARS:
            restore(vault.vault_dir, saved)
            vault = BareVault(scratch / "vault", cipher=cipher, durability=durability, owner=owner)
            strike = Strike(at=at, torn=torn)
            strike.during(lambda: work_on(vault, operation, synced=synced))  # noqa: B023 - called at once
            assert strike.struck
            vault.die_and_reopen()
            found = chunks_in_vault(vault, NAME)
            wrong = history.findings(found, rules)
            assert not wrong, f"call {at}, {strike.struck}, torn {torn}: {wrong}; {strike.calls}"
            assert_old_or_new(found, operation, durability)
            vault.reopen()
            assert chunks_in_vault(vault, NAME) == found
            assert_swept_well(vault, found)
            vault.close()


@pytest.mark.parametrize("at_rest", [True, False], ids=["old file", "new file"])
@pytest.mark.parametrize("durability", Durability)
def test_death_while_a_dead_writers_file_is_settled(
    durability: Durability, at_rest: bool, scratch: Path
) -> None:
    """Replay and recovery are interrupted at each of their calls, and the next ones do it.

    at_rest: whether the file is of an earlier session than the one that died; then there are deltas.
    """
    for operation in OPERATIONS:
        vault = BareVault(scratch / "vault", durability=durability, deltas=at_rest)
        vault.put(NAME, operation.old)
        if at_rest:
            vault.reopen()
        file = vault.tree.open(vault.root, NAME, os.O_RDWR)
        operation.run(file)
        shutil.copytree(vault.vault_dir, scratch / "saved", symlinks=True)
        vault.close()
        expected = operation.result

        def settle() -> None:
            reopened = BareVault(scratch / "vault", durability=durability, deltas=at_rest)
            with reopened.opened(NAME, os.O_RDONLY) as found:
                found.read(0, 1)
            reopened.close()

        restore(scratch / "vault", scratch / "saved")
        strikes = list(each_strike(settle))
        for at in strikes:
            for torn in TEARS:
                restore(scratch / "vault", scratch / "saved")
                strike = Strike(at=at, torn=torn)
                strike.during(settle)
                assert strike.struck
                survivor = BareVault(scratch / "vault", durability=durability, deltas=at_rest)
                assert survivor.get(NAME) == expected, f"{operation.name}: call {at}, {strike.struck}"
                survivor.close()
        shutil.rmtree(scratch / "vault")
        shutil.rmtree(scratch / "saved")


def test_death_at_the_first_call_changes_nothing(scratch: Path) -> None:
    """A strike does strike where it says."""
    vault = BareVault(scratch / "vault")
    vault.put(NAME, OPERATIONS[0].old)
    before = vault.backing(NAME).read_bytes()
    strike = Strike(at=0)
    assert isinstance(strike.during(lambda: work_on(vault, OPERATIONS[0])), ProcessDeath)
    assert vault.backing(NAME).read_bytes() == before
    vault.die_and_reopen()
    vault.close()
