"""A disk that refuses a call, each in turn, with each errno: the caller is told, nothing else is lost."""

from __future__ import annotations

import errno
import gc
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cryptfs.errors import IntegrityError
from cryptfs.mount.errno_map import errno_of
from cryptfs.vfs.content.redo import Durability
from tests.crash.backing_calls import CHANGES, READS
from tests.crash.calls.test_killed_calls import NAME, empty, restore
from tests.crash.history import FileHistory, Rules
from tests.crash.invault import chunks_in_vault
from tests.crash.operations import CHUNK, OPERATIONS, Operation
from tests.crash.striking import TEARS, Strike, each_strike
from tests.crash.treeoperations import (
    BOTH_FORMATS,
    DAMAGED,
    TreeOperation,
    allowed,
    new_vault,
    operation_id,
    prepare,
    tree_of,
)
from tests.e2e.mounting import scratch_directory
from tests.support import BareVault, open_descriptors

Error = int | BaseException
ERRORS: list[Error] = [errno.ENOSPC, MemoryError(), errno.EIO, errno.EINTR, errno.EDQUOT]
"""Each call fails with one of them, the next call with the next; at the next turn with another."""
TURNS = range(len(ERRORS) if "CRYPTFS_CRASH_ALL_ERRORS" in os.environ else 1)


@pytest.fixture
def scratch() -> Iterator[Path]:
    directory = scratch_directory(tmpfs=True)
    yield directory
    shutil.rmtree(directory)


def held_descriptors() -> int:
    """Descriptors that somebody still has a use for."""
    gc.collect()
    return open_descriptors()


def assert_told(raised: BaseException | None, error: Error, where: str) -> None:
    """The caller gets this very error, or what the kernel is told is the same."""
    assert isinstance(raised, Exception), f"{where}: nobody was told"
    wanted = error if isinstance(error, int) else errno.ENOMEM
    assert errno_of(raised) == wanted, f"{where}: {raised!r}"


def run_on_names(
    operation: TreeOperation,
    scratch: Path,
    turn: int,
    calls_of: frozenset[str] = CHANGES,
    *,
    bound: bool,
) -> Iterator[tuple[str, BareVault, Error, BaseException | None, list[dict[bytes, object]]]]:
    """Each failing call: where, the vault afterwards, how it failed, what was raised, what may be found."""
    vault = new_vault(scratch / "vault", bound=bound)
    prepare(vault)
    before = tree_of(vault)
    vault.close()
    shutil.copytree(vault.vault_dir, scratch / "saved", symlinks=True)
    vault = new_vault(scratch / "vault", bound=bound)
    strikes = list(each_strike(lambda: operation.run(vault), calls_of=calls_of))
    after = tree_of(vault)
    vault.close()
    for at in strikes:
        restore(vault.vault_dir, scratch / "saved")
        vault = new_vault(scratch / "vault", bound=bound)
        error = ERRORS[(at + turn) % len(ERRORS)] if calls_of is CHANGES else errno.EIO
        strike = Strike(at=at, error=error, calls_of=calls_of)
        raised = strike.during(lambda: operation.run(vault))  # noqa: B023 - called at once
        yield (
            f"call {at}, {strike.struck}, {error!r}",
            vault,
            error,
            raised,
            allowed(operation, before, after),
        )
        vault.close()


def assert_names_well(operation: TreeOperation, scratch: Path, turn: int, *, bound: bool) -> None:
    usual: set[str] = set()
    for where, vault, error, raised, trees in run_on_names(operation, scratch, turn, bound=bound):
        usual = usual or set(os.listdir(scratch / "saved"))
        found = tree_of(vault)
        assert found in trees, where
        if found != trees[1]:
            assert_told(raised, error, where)
        vault.reopen()
        assert tree_of(vault) == found, where
        if found == trees[0]:
            assert set(vault.internal_names()) <= usual, f"{where}: left behind"
        empty(vault)


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize(("bound", "operation"), BOTH_FORMATS, ids=operation_id)
def test_operations_on_names(operation: TreeOperation, bound: bool, turn: int, scratch: Path) -> None:
    before = held_descriptors()
    assert_names_well(operation, scratch, turn, bound=bound)
    assert held_descriptors() == before


def assert_names_read_well(operation: TreeOperation, scratch: Path, *, bound: bool) -> None:
    for where, vault, _, raised, trees in run_on_names(operation, scratch, 0, READS, bound=bound):
        found = tree_of(vault)
        assert found in trees, f"{where}: {raised!r}"
        assert DAMAGED not in found.values()
        assert found == trees[1] or isinstance(raised, OSError | IntegrityError), where


@pytest.mark.parametrize(("bound", "operation"), BOTH_FORMATS, ids=operation_id)
def test_reading_for_operations_on_names(operation: TreeOperation, bound: bool, scratch: Path) -> None:
    """As above, where looking fails."""
    before = held_descriptors()
    assert_names_read_well(operation, scratch, bound=bound)
    assert held_descriptors() == before


def end(vault: BareVault) -> None:
    """As an unmount: the tree stays open where the threads could not end in order."""
    vault.workers.stop()
    vault.tree.close()


def run_on_content(
    operation: Operation,
    scratch: Path,
    strike_with: Callable[[int], Strike],
    durability: Durability,
    calls_of: frozenset[str] = CHANGES,
    *,
    deltas: bool,
) -> Iterator[tuple[str, BareVault, list[BaseException]]]:
    """Each failing call from open to close: where, the vault afterwards, and what was raised on the way."""
    vault = BareVault(scratch / "vault", durability=durability, deltas=deltas)
    vault.put(NAME, operation.old)
    vault.close()
    shutil.copytree(vault.vault_dir, scratch / "saved", symlinks=True)

    def end(vault: BareVault) -> None:
        """As Vault.close, where a failure of the first leaves the second undone."""
        vault.workers.stop()
        vault.tree.close()

    def work(vault: BareVault, raised: list[BaseException]) -> None:
        try:
            file = vault.tree.open(vault.root, NAME, os.O_RDWR)
        except (OSError, MemoryError, IntegrityError) as error:
            raised.append(error)
            return
        steps: list[Callable[[], object]] = [
            lambda: operation.run(file),
            lambda: vault.tree.sync_file(file, data_only=True),
            lambda: vault.tree.release(file),
            lambda: end(vault),
        ]
        for step in steps:
            try:
                step()
            except (OSError, MemoryError, IntegrityError) as error:
                raised.append(error)

    vault = BareVault(scratch / "vault", durability=durability, deltas=deltas)
    failed: list[BaseException] = []
    strikes = list(each_strike(lambda: work(vault, failed), calls_of=calls_of))
    assert failed == []
    vault.close()
    for at in strikes:
        restore(scratch / "vault", scratch / "saved")
        vault = BareVault(scratch / "vault", durability=durability, deltas=deltas)
        raised: list[BaseException] = []
        strike = strike_with(at)
        ended = strike.during(lambda: work(vault, raised))  # noqa: B023 - called at once
        assert ended is None, repr(ended)
        yield f"call {at}, {strike.struck} of {strike.calls}", vault, raised
        vault.close()


@pytest.mark.parametrize("durability", Durability)
@pytest.mark.parametrize("torn", [False, True], ids=["whole", "torn"])
@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_operations_on_content(
    operation: Operation, turn: int, torn: bool, durability: Durability, scratch: Path
) -> None:
    """One call fails, from open to close: somebody is told; the file is old or new, and well."""
    history = FileHistory([operation.old], [False])
    history.change(operation.result, cut=len(operation.result) < len(operation.old))

    def error_at(at: int) -> Error:
        return ERRORS[(at + turn) % len(ERRORS)]

    steps = run_on_content(
        operation,
        scratch,
        lambda at: Strike(at=at, error=error_at(at), torn=TEARS[2 * torn]),
        durability,
        deltas=not torn,
    )
    for at, (where, vault, raised) in enumerate(steps):
        error = error_at(at)
        gap = durability is Durability.OFF and (torn or isinstance(error, MemoryError))
        rules = Rules(CHUNK, in_place_tears=gap)
        found = chunks_in_vault(vault, NAME)
        wrong = history.findings(found, rules)
        assert not wrong, f"{where}: {wrong}"
        if b"".join(chunk or b"" for chunk in found) != operation.result:
            assert raised, f"{where}: nobody was told"
        for one in raised:
            assert_told(one, error, where)
        vault.reopen()
        assert chunks_in_vault(vault, NAME) == found, where


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_reading_for_operations_on_content(operation: Operation, scratch: Path) -> None:
    history = FileHistory([operation.old], [False])
    history.change(operation.result)
    steps = run_on_content(
        operation,
        scratch,
        lambda at: Strike(at=at, error=errno.EIO, calls_of=READS),
        Durability.POWER,
        READS,
        deltas=True,
    )
    for where, vault, raised in steps:
        found = chunks_in_vault(vault, NAME)
        wrong = history.findings(found, Rules(CHUNK))
        assert not wrong, f"{where}: {wrong}"
        if b"".join(chunk or b"" for chunk in found) != operation.result:
            assert raised, f"{where}: nobody was told"


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("call", ["fsync", "fdatasync"])
def test_errors_of_fsync_are_reported_once(code: int, call: str, scratch: Path) -> None:
    vault = BareVault(scratch / "vault")
    vault.put(NAME, b"old")
    directory = vault.make_directory(b"directory")  # its record is pending, and is synced first
    vault.tree.sync_all()
    with vault.opened(NAME) as file:
        file.write(0, b"new")
        strike = Strike(at=0, error=code, calls_of=frozenset({call}))
        raised = strike.during(lambda: vault.tree.sync_file(file, data_only=call == "fdatasync"))
        assert_told(raised, code, call)
        vault.tree.sync_file(file, data_only=True)
        assert file.read(0, 9) == b"new"
    strike = Strike(at=0, error=code, calls_of=frozenset({"fsync"}))
    assert_told(strike.during(lambda: vault.tree.sync_directory(directory)), code, "of a directory")
    vault.tree.sync_directory(directory)
    vault.close()


def test_what_is_pending_stays_so_after_an_error(scratch: Path) -> None:
    """A record that could not be synced is synced by the next fsync of anything."""
    vault = BareVault(scratch / "vault")
    vault.put(NAME, b"content")
    vault.make_directory(b"directory")
    with vault.opened(NAME) as file:
        strike = Strike(at=0, error=errno.EIO, calls_of=frozenset({"fdatasync"}))
        raised = strike.during(lambda: vault.tree.sync_file(file, data_only=True))
        assert_told(raised, errno.EIO, "the record's sync")
        counting = Strike(calls_of=frozenset({"fdatasync"}))
        assert counting.during(lambda: vault.tree.sync_file(file, data_only=True)) is None
        assert len(counting.calls) == 2
    vault.close()
