"""Directories that are not where their records say: what a check says of them, and what a repair does."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from cryptfs.core.names.dirrecord import (
    RECORD_NAME,
    DirectoryRecord,
    open_directory_record,
    pack_bound_record,
    pack_directory_record,
)
from cryptfs.errors import DirectoryRecordError
from cryptfs.fsck.check import VaultCheck
from cryptfs.fsck.findings import Finding, FindingKind, State
from cryptfs.fsck.repair import Repairer
from tests.fsck.cases import make_pair
from tests.fsck.scene import bad, check, content, directory_of, path_of, record_of, repair
from tests.support import BareVault

HOST = bytes(range(1, 13))


def exchange(vault: BareVault, one: Path, two: Path) -> None:
    aside = vault.vault_dir.parent / "aside"
    for source, target in ((one, aside), (two, one), (aside, two)):
        source.rename(target)


def exchange_siblings(vault: BareVault) -> list[bytes]:
    exchange(vault, path_of(vault, b"pair a"), path_of(vault, b"pair b"))
    return [b"pair a", b"pair b"]


def exchange_with_another_level(vault: BareVault) -> list[bytes]:
    exchange(vault, path_of(vault, b"pair a"), path_of(vault, b"docs", b"deep"))
    return [b"docs/deep", b"pair a"]


def put_in_a_files_place(vault: BareVault) -> list[bytes]:
    target = path_of(vault, b"docs", b"other")
    target.unlink()
    path_of(vault, b"pair b").rename(target)
    return [b"docs/other"]


def put_an_old_record_in(vault: BareVault) -> list[bytes]:
    """From before a rename, and from before an upgrade."""
    for name in (b"pair a", b"pair b"):
        record = record_of(vault, name)
        opened = open_directory_record(record.read_bytes(), vault.keys)
        older = pack_bound_record(DirectoryRecord(opened.dir_id, (b"p" * 32,)), vault.keys)
        record.write_bytes(older if name == b"pair a" else pack_directory_record(opened.dir_id, vault.keys))
    return [b"pair a", b"pair b"]


@pytest.mark.parametrize(
    "act", [exchange_siblings, exchange_with_another_level, put_in_a_files_place, put_an_old_record_in]
)
def test_a_misplaced_directory_is_told_and_accepted_by_a_repair(
    vault: BareVault, act: Callable[[BareVault], list[bytes]]
) -> None:
    make_pair(vault)
    expected = act(vault)
    vault.reopen()
    reachable = content(vault)
    found = check(vault)
    assert {each.plain_path: each.kind for each in bad(found)} == dict.fromkeys(
        expected, FindingKind.MISPLACED
    )
    inside = [path for path in reachable if path.rpartition(b"/")[0] in expected]
    assert inside == []
    repaired = bad(repair(vault))
    assert [each.state for each in repaired] == [State.REPAIRED] * len(expected)
    assert bad(check(vault)) == []
    for path in expected:
        assert vault.names(directory_of(vault, *path.split(b"/")))
    after = content(vault)
    assert {path: value for path, value in after.items() if path in reachable} == reachable
    (report,) = (value for path, value in after.items() if b"fsck-report" in path)
    assert all(path + b": " in report for path in expected)  # type: ignore[operator]


def misplaced(vault: BareVault) -> dict[bytes | None, str]:
    found = check(vault)
    return {each.plain_path: each.detail for each in found if each.kind is FindingKind.MISPLACED}


def test_the_finding_says_where_it_belongs(vault: BareVault) -> None:
    make_pair(vault)
    a, b = path_of(vault, b"pair a"), path_of(vault, b"pair b")
    vault.make_directory(b"free")
    c = path_of(vault, b"free")
    exchange(vault, a, b)
    details = misplaced(vault)
    assert details == {
        b"pair a": f"it belongs to the place of {b.name}",
        b"pair b": f"it belongs to the place of {a.name}",
    }
    exchange(vault, a, b)
    deep = path_of(vault, b"docs", b"deep")
    deep.rename(vault.vault_dir.parent / "aside")
    c.rename(deep)
    details = misplaced(vault)
    assert details == {b"docs/deep": "it belongs in another directory"}
    record_of(vault, b"pair a").unlink()
    b.rename(c)
    details = misplaced(vault)
    assert details[b"free"] == "it belongs to another name in the same directory"


def moving(vault: BareVault, name: bytes, host: bytes) -> None:
    record = record_of(vault, name)
    dir_id, places, _ = open_directory_record(record.read_bytes(), vault.keys)
    record.write_bytes(pack_bound_record(DirectoryRecord(dir_id, (b"p" * 32, *places), host), vault.keys))


def run(vault: BareVault, *, with_others: bool) -> list[Finding]:
    repairer = Repairer(vault.tree, vault._vault_fd)
    checking = VaultCheck(
        vault.context, vault._vault_fd, repairer=repairer, workers=1, with_others=with_others
    )
    return bad(list(checking.run()))


def test_an_interrupted_rename_is_finished(vault: BareVault) -> None:
    moving(vault, b"docs", vault.owner.digest)
    before = record_of(vault, b"docs").parent.stat()
    (found,) = bad(check(vault))
    assert found.kind is FindingKind.UNFINISHED_MOVE
    assert [each.state for each in bad(repair(vault))] == [State.REPAIRED]
    record = open_directory_record(record_of(vault, b"docs").read_bytes(), vault.keys)
    assert record.places == (vault.root.place_of(b"docs"),)
    assert record_of(vault, b"docs").parent.stat().st_mtime_ns == before.st_mtime_ns
    assert bad(check(vault)) == []


def test_another_machines_rename_is_finished_only_on_demand(vault: BareVault) -> None:
    moving(vault, b"docs", HOST)
    raw = record_of(vault, b"docs").read_bytes()
    (found,) = run(vault, with_others=False)
    assert (found.kind, found.state) == (FindingKind.UNFINISHED_MOVE, State.FOUND)
    assert vault.names(directory_of(vault, b"docs"))
    vault.reopen()
    assert record_of(vault, b"docs").read_bytes() == raw
    (found,) = run(vault, with_others=True)
    assert found.state is State.REPAIRED
    vault.reopen()
    assert bad(check(vault)) == []


def test_a_directory_in_lost_and_found_can_be_reached(vault: BareVault) -> None:
    """It has moved there from a place that its record does not name, with a long name too."""
    make_pair(vault)
    inside = vault.make_directory(b"i" * 200, directory_of(vault, b"pair a"))
    vault.put(b"kept", b"kept", inside)
    moved = path_of(vault, b"pair a", b"i" * 200)
    Path(f"{moved}.name").unlink()
    vault.reopen()
    assert [each.kind for each in bad(check(vault))] == [FindingKind.SIDECAR]
    assert {each.state for each in bad(repair(vault))} == {State.REPAIRED}
    assert bad(check(vault)) == []
    found = content(vault)
    assert b"kept" in found.values()
    assert all(value is not DirectoryRecordError for value in found.values())


def test_remains_of_a_rename_do_not_become_another_directorys_record(vault: BareVault) -> None:
    """The directory's own record under a temporary name, beside a directory that has lost its record."""
    docs = record_of(vault, b"docs")
    vault.make_directory(b"bare inside", directory_of(vault, b"docs"))
    leftover = docs.with_name(f"{vault.owner.temp_prefix}x")
    leftover.write_bytes(docs.read_bytes())
    record_of(vault, b"docs", b"bare inside").unlink()
    vault.reopen()
    assert {each.state for each in bad(repair(vault))} == {State.REPAIRED}
    assert bad(check(vault)) == []
    assert not leftover.exists()
    inner = open_directory_record(record_of(vault, b"docs", b"bare inside").read_bytes(), vault.keys)
    outer = open_directory_record(docs.read_bytes(), vault.keys)
    assert inner.dir_id != outer.dir_id
    assert stat.S_ISREG(os.stat(docs.parent / RECORD_NAME).st_mode)
