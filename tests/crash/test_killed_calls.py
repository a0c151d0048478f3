"""The process dies at each call to the disk: what is left is what was, or what was to be."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from cryptfs.core.host import StateNames
from cryptfs.errors import DirectoryRecordError
from cryptfs.vfs.redo import Durability
from tests.crash import expectations
from tests.crash.history import FileHistory
from tests.crash.invault import chunks_in_vault
from tests.crash.striking import Strike, each_strike
from tests.crash.treeoperations import OPERATIONS as TREE_OPERATIONS
from tests.crash.treeoperations import TreeOperation, allowed, prepare, tree_of
from tests.e2e.mounting import scratch_directory
from tests.recovery.operations import CHUNK, OPERATIONS, Operation
from tests.support import CIPHERS, OWNERS, BareVault, owner_name

NAME = b"file"


@pytest.fixture
def scratch() -> Iterator[Path]:
    directory = scratch_directory(tmpfs=True)
    yield directory
    shutil.rmtree(directory)


def restore(vault_dir: Path, saved: Path) -> None:
    shutil.rmtree(vault_dir)
    shutil.copytree(saved, vault_dir, symlinks=True)


def empty(vault: BareVault) -> None:
    """Remove everything; whatever an interrupted operation left must not be in the way."""
    for name in vault.names():
        try:
            vault.tree.unlink(vault.root, name)
        except IsADirectoryError:
            with contextlib.suppress(DirectoryRecordError):
                below = vault.tree.directory(vault.root, name)
                for inner in vault.names(below):
                    vault.tree.unlink(below, inner)
            vault.tree.remove_directory(vault.root, name)
    assert vault.names() == []


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
        for torn in (False, True):
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


def work_on(vault: BareVault, operation: Operation) -> None:
    """Open, do it, sync, close; and close the vault."""
    file = vault.tree.open(vault.root, NAME, os.O_RDWR)
    operation.run(file)
    vault.tree.sync_file(file, data_only=True)
    vault.tree.release(file)
    vault.tree.close()


@pytest.mark.parametrize("owner", OWNERS, ids=owner_name)
@pytest.mark.parametrize("durability", Durability)
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_death_at_each_call_of_an_operation_on_content(
    operation: Operation, durability: Durability, owner: StateNames, scratch: Path
) -> None:
    """Also at those that sync: whatever a file needs beside its own calls is interrupted, too."""
    cipher = CIPHERS[len(operation.name) % len(CIPHERS)]
    vault = BareVault(scratch / "vault", cipher=cipher, durability=durability, owner=owner)
    vault.put(NAME, operation.old)
    vault.close()
    saved = scratch / "saved"
    shutil.copytree(vault.vault_dir, saved, symlinks=True)
    vault = BareVault(scratch / "vault", cipher=cipher, durability=durability, owner=owner)
    strikes = list(each_strike(lambda: work_on(vault, operation)))
    history = FileHistory([operation.old], [False])
    history.change(operation.result, cut=len(operation.result) < len(operation.old))
    rules = expectations.after_a_kill(CHUNK, durability, writeback=False)
    for at in strikes:
        for torn in (False, True):
            restore(vault.vault_dir, saved)
            vault = BareVault(scratch / "vault", cipher=cipher, durability=durability, owner=owner)
            strike = Strike(at=at, torn=torn)
            strike.during(lambda: work_on(vault, operation))  # noqa: B023 - called at once
            assert strike.struck
            vault.die_and_reopen()
            found = chunks_in_vault(vault, NAME)
            wrong = history.findings(found, rules)
            assert not wrong, f"call {at}, {strike.struck}, torn {torn}: {wrong}; {strike.calls}"
            vault.reopen()
            assert chunks_in_vault(vault, NAME) == found
            vault.close()


@pytest.mark.parametrize("durability", Durability)
def test_death_while_a_dead_writers_file_is_settled(durability: Durability, scratch: Path) -> None:
    """Replay and recovery are interrupted at each of their calls, and the next ones do it."""
    for operation in OPERATIONS:
        vault = BareVault(scratch / "vault", durability=durability)
        vault.put(NAME, operation.old)
        file = vault.tree.open(vault.root, NAME, os.O_RDWR)
        operation.run(file)
        shutil.copytree(vault.vault_dir, scratch / "saved", symlinks=True)
        vault.close()
        expected = operation.result

        def settle() -> None:
            reopened = BareVault(scratch / "vault", durability=durability)
            with reopened.opened(NAME, os.O_RDONLY) as found:
                found.read(0, 1)
            reopened.close()

        restore(scratch / "vault", scratch / "saved")
        strikes = list(each_strike(settle))
        for at in strikes:
            for torn in (False, True):
                restore(scratch / "vault", scratch / "saved")
                strike = Strike(at=at, torn=torn)
                strike.during(settle)
                assert strike.struck
                survivor = BareVault(scratch / "vault", durability=durability)
                assert survivor.get(NAME) == expected, f"{operation.name}: call {at}, {strike.struck}"
                survivor.close()
        shutil.rmtree(scratch / "vault")
        shutil.rmtree(scratch / "saved")
