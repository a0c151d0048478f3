"""Every kind of damage: found as what it is, repaired, and what can survive survives."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from cryptfs.core.format.header import NO_FLAGS
from cryptfs.fsck.findings import DESCRIPTIONS, FindingKind, Severity, State
from cryptfs.vfs.content.context import FileContext
from cryptfs.vfs.content.redo import Durability
from tests.crash.striking import Strike
from tests.fsck.cases import (
    CASES,
    DEEP,
    DOCS,
    GONE,
    UNREPAIRED,
    Case,
    rewrite_header,
    spoil_chunks,
    spoil_xattr,
)
from tests.fsck.scene import (
    CHUNK,
    CONTENT,
    LONG,
    Tree,
    bad,
    check,
    content,
    directory_of,
    flip,
    kinds,
    path_of,
    record_of,
    repair,
    snapshot,
)
from tests.support import BareVault, may_mark_links, pattern


def without_lost_found(tree: Tree, keep: dict[bytes, object]) -> Tree:
    return {path: value for path, value in tree.items() if path in keep or not path.startswith(b"lost+found")}


def expected_after(before: Tree, case: Case) -> Tree:
    """A directory that goes takes what is below it along."""
    changed = {**before, **case.changed}
    return {path: value for path, value in changed.items() if value is not GONE}


@pytest.mark.parametrize("vault", [True, False], ids=["bound", "0.1"], indirect=True)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_damage(vault: BareVault, case: Case) -> None:
    case.prepare(vault)
    before = content(vault)
    case.damage(vault)
    vault.reopen()
    state = snapshot(vault.vault_dir)
    assert kinds(bad(check(vault, deep=case.deep))) == sorted(case.found)
    assert snapshot(vault.vault_dir) == state
    repaired = bad(repair(vault, deep=case.deep))
    assert {finding.state for finding in repaired if finding.kind not in UNREPAIRED} <= {State.REPAIRED}
    again = bad(check(vault))
    assert [finding for finding in again if finding.kind not in UNREPAIRED] == []
    if case.name == "stray directory":
        after = content(vault)
        moved = {
            path.replace(b"docs", b"lost+found/docs (copy)", 1): each
            for path, each in before.items()
            if path.startswith(b"docs")
        }
        assert moved.items() <= after.items()
        return
    after = without_lost_found(content(vault), case.changed)
    assert after == expected_after(before, case)


@pytest.mark.skipif(not may_mark_links(), reason="only root has attributes on symlinks")
@pytest.mark.parametrize("link", [(DOCS, b"link"), (DOCS, DEEP, b"far")], ids=["short", "long"])
def test_an_xattr_of_a_symlink(vault: BareVault, link: tuple[bytes, ...]) -> None:
    where, name = directory_of(vault, *link[:-1]), link[-1]
    for attribute in (b"trusted.kept", b"trusted.lost"):
        vault.tree.xattrs.set(where, name, attribute, attribute, 0)
    before = content(vault)
    assert bad(check(vault)) == []
    path = vault.backing(name, where)
    os.setxattr(path, "trusted.cryptfs.A", b"", follow_symlinks=False)
    backing = vault.tree.xattrs._backing_name(b"trusted.lost")[0].replace("user.", "trusted.")
    os.setxattr(path, backing, bytes(60), follow_symlinks=False)
    assert kinds(bad(check(vault))) == [FindingKind.XATTR, FindingKind.XATTR]
    assert {finding.state for finding in bad(repair(vault))} == {State.REPAIRED}
    assert bad(check(vault)) == []
    del before[b"/".join(link) + b" trusted.lost"]
    assert without_lost_found(content(vault), {}) == before


def test_a_sound_vault_has_no_findings(vault: BareVault) -> None:
    assert check(vault) == []
    assert repair(vault) == []
    assert b"lost+found" not in vault.names()


def test_a_check_makes_no_call_that_changes_the_disk(vault: BareVault) -> None:
    """It works on a read-only medium."""
    spoil_chunks(vault, 1)
    record_of(vault, DOCS).unlink()
    with Strike(at=0).without_syncs() as strike:
        assert len(check(vault)) == 2
    assert strike.calls == []


def test_every_kind_is_described() -> None:
    assert set(DESCRIPTIONS) == set(FindingKind)
    for severity, meaning, remedy in DESCRIPTIONS.values():
        assert meaning.endswith(".")
        assert not remedy or remedy.endswith(".")
        assert severity in Severity


def test_every_kind_has_a_case() -> None:
    told = {kind for case in CASES for kind in case.found}
    elsewhere = {
        *(
            FindingKind.FOREIGN,
            FindingKind.UNKNOWN_INTERNAL,
            FindingKind.OUTSIDE_LINK,
            FindingKind.UNFINISHED_JOURNAL,
        ),
        *(
            FindingKind.UNREADABLE,
            FindingKind.SET_ASIDE,
            FindingKind.STRAY_RECORD,
            FindingKind.CONFLICT_COPY,
            FindingKind.OTHER_SESSION,
            FindingKind.OTHER_UNFINISHED,
        ),
        *(FindingKind.MISPLACED, FindingKind.UNFINISHED_MOVE, FindingKind.RECOVERY_RECORD),
    }
    assert told | elsewhere == set(FindingKind)


def test_damaged_pieces_are_kept_where_they_were(vault: BareVault) -> None:
    """So that they can be put back, byte for byte."""
    spoil_chunks(vault, 1, 5)
    damaged = path_of(vault, b"file").read_bytes()
    repair(vault)
    kept = vault.get(b"file.damaged", directory_of(vault, b"lost+found"))
    for index in (1, 5):
        start = vault.geometry.record_offset(index)
        end = min(start + vault.geometry.record_size, len(damaged))
        assert kept[start:end] == damaged[start:end]


def test_a_repair_moves_no_times(vault: BareVault) -> None:
    """So that a backup by times and sizes does not put the zeros over its good copy."""
    path = path_of(vault, b"file")
    spoil_chunks(vault, 1)
    os.utime(path, ns=(10**18, 10**18))
    before = path.stat()
    repair(vault)
    after = path.stat()
    assert (after.st_mtime_ns, after.st_size, after.st_ino) == (10**18, before.st_size, before.st_ino)


def test_what_a_repair_settles_has_another_time(vault: BareVault) -> None:
    """So that a sync client, which knows length and time, carries the new header to other machines."""
    path = path_of(vault, b"file")
    rewrite_header(vault, flags=NO_FLAGS, size=100, size_min=100)
    os.utime(path, ns=(10**18, 10**18))
    before = path.stat()
    repair(vault)
    after = path.stat()
    assert after.st_size == before.st_size
    assert after.st_mtime_ns // 10**9 > before.st_mtime_ns // 10**9


def test_the_report_says_what_was_lost(vault: BareVault) -> None:
    spoil_chunks(vault, 1)
    spoil_xattr(vault, DOCS)
    repair(vault)
    (name,) = (
        name for name in vault.names(directory_of(vault, b"lost+found")) if name.startswith(b"fsck-report")
    )
    report = vault.get(name, directory_of(vault, b"lost+found")).decode()
    assert "file: " in report
    assert "bytes 4096 to 8191" in report
    assert bytes(60).hex() in report


def test_things_from_one_place_stay_together(vault: BareVault) -> None:
    """lost+found shows the tree that they come from, and numbers names that are taken."""
    for _ in range(2):
        path = path_of(vault, DOCS, DEEP, b"below")
        flip(path, 10, 200)
        repair(vault)
        vault.put(b"below", b"again", directory_of(vault, DOCS, DEEP))
    where = directory_of(vault, b"lost+found", DOCS, DEEP)
    assert vault.names(where) == [b"below", b"below (2)"]
    assert kinds(check(vault)) == [FindingKind.SET_ASIDE, FindingKind.SET_ASIDE]


def test_what_cryptfs_did_not_make_is_left_alone(vault: BareVault) -> None:
    (vault.vault_dir / ".stfolder").mkdir()
    (vault.vault_dir / ".stfolder" / "x").write_bytes(b"1")
    (vault.vault_dir / "README.txt").write_bytes(b"hello")
    (vault.vault_dir / "cryptfs.future").write_bytes(b"")
    (vault.vault_dir / "cryptfs.dir").write_bytes(b"of another directory")
    os.link(path_of(vault, b"file"), vault.vault_dir.parent / "outside")
    expected = [
        FindingKind.FOREIGN,
        FindingKind.FOREIGN,
        FindingKind.OUTSIDE_LINK,
        FindingKind.STRAY_RECORD,
        FindingKind.UNKNOWN_INTERNAL,
    ]
    assert kinds(check(vault)) == sorted(expected)
    state = snapshot(vault.vault_dir)
    assert kinds(repair(vault)) == sorted(expected)
    assert snapshot(vault.vault_dir) == state


def test_a_directory_in_place_of_a_long_target_is_left_alone(vault: BareVault) -> None:
    """It may hold what somebody wants to keep; a repair that tried to remove it would fail each time."""
    target, *_ = sorted((vault.vault_dir / "cryptfs.links").iterdir())
    vault.close()
    planted = target.with_name("AAAA" + target.name[4:])
    (planted / "inner").mkdir(parents=True)
    vault._start(read_only=False)
    for look in (check, repair, check):
        (finding,) = bad(look(vault))
        assert (finding.kind, finding.state) == (FindingKind.SPECIAL_FILE, State.FOUND)
    assert (planted / "inner").is_dir()


def copy_aside(vault: BareVault, suffix: str, *names: bytes) -> Path:
    """As a sync client keeps another version: under the cipher name with a suffix."""
    path = path_of(vault, *names)
    copy = path.with_name(path.name + suffix)
    subprocess.run(["cp", "-a", path, copy], check=True)
    return copy


def test_conflict_copies_are_told_and_looked_at(vault: BareVault) -> None:
    """Files, a link, a long name, and a directory with all that is in it."""
    suffix = ".sync-conflict-20261129-131011-ABCDEFG"
    copies = [(b"file",), (DOCS, LONG), (DOCS, b"link"), (DOCS, DEEP)]
    for names in copies:
        copy_aside(vault, suffix, *names)
    found = check(vault)
    assert kinds(found) == [FindingKind.CONFLICT_COPY] * len(copies)
    shown = {b"/".join(names) + suffix.encode() for names in copies}
    assert {finding.plain_path for finding in found} == shown
    before = snapshot(vault.vault_dir)
    assert kinds(repair(vault)) == [FindingKind.CONFLICT_COPY] * len(copies)
    assert snapshot(vault.vault_dir) == before


def test_a_damaged_conflict_copy(vault: BareVault) -> None:
    copy = copy_aside(vault, "-LAPTOP", b"file")
    flip(copy, 10)
    assert kinds(check(vault)) == [FindingKind.CONFLICT_COPY, FindingKind.HEADER]


def test_the_sidecar_of_a_conflict_copy_is_no_orphan(vault: BareVault) -> None:
    copy = copy_aside(vault, " (1)", DOCS, LONG)
    path_of(vault, DOCS, LONG).unlink()
    assert kinds(repair(vault)) == [FindingKind.CONFLICT_COPY]
    copy.unlink()
    assert kinds(check(vault)) == [FindingKind.ORPHANED_SIDECAR]


def test_an_unfinished_journal_is_replayed_before_a_repair(vault: BareVault) -> None:
    (vault.vault_dir / vault.owner.journals[0]).write_bytes(b"no record")
    assert kinds(check(vault)) == [FindingKind.UNFINISHED_JOURNAL]
    repair(vault)
    assert not (vault.vault_dir / vault.owner.journals[0]).exists()
    assert kinds(check(vault)) == []


def test_names_are_kept_even_where_two_are_alike(vault: BareVault) -> None:
    """A name that was damaged in its hidden part decrypts to the same as the one beside it."""
    where = vault.make_directory(b"twins")
    vault.put(b"name", b"1", where)
    vault.put(b"other", b"2", where)
    record_of(vault, b"twins").unlink()
    stranger = vault.make_directory(b"stranger")
    vault.put(b"name", b"3", stranger)
    path = path_of(vault, b"stranger", b"name")
    path.rename(vault.vault_dir / where.cipher_path / path.name)
    repair(vault)
    twins = directory_of(vault, b"twins")
    assert vault.names(twins) == [b"name", b"name (2)", b"other"]
    assert {vault.get(b"name", twins), vault.get(b"name (2)", twins)} == {b"1", b"3"}


def test_a_file_with_many_shares(vault: BareVault, monkeypatch: pytest.MonkeyPatch) -> None:
    """Larger than what is read ahead: every chunk is looked at once, damage told in order."""
    monkeypatch.setattr("cryptfs.fsck.files.SHARE_SIZE", 8 * CHUNK)
    monkeypatch.setattr("cryptfs.fsck.files.RUN_SIZE", 3 * CHUNK)
    vault.put(b"large", pattern(400 * CHUNK + 5, 3))
    vault.reopen()
    path = path_of(vault, b"large")
    for index in (0, 7, 8, 100, 101, 102, 399, 400):
        flip(path, vault.geometry.record_offset(index) + 40)
    (finding,) = check(vault)
    assert finding.kind is FindingKind.CHUNKS
    assert finding.detail == (
        "8 chunks of 401: bytes 0 to 4095, 28672 to 36863, 409600 to 421887, 1634304 to 1638404"
    )


def test_holes_are_not_read(vault: BareVault) -> None:
    """A sparse file of a terabyte is checked at once."""
    with vault.opened(b"sparse", os.O_RDWR | os.O_CREAT) as file:
        file.write(0, b"start")
        file.truncate(1 << 40)
        file.write(1 << 39, b"middle")
    vault.reopen()
    assert check(vault) == []


def test_unreadable_directories_are_told(vault: BareVault, monkeypatch: pytest.MonkeyPatch) -> None:
    """What could not be looked at is an error that no repair mends."""
    path = path_of(vault, DOCS)
    inode = path.stat().st_ino
    scandir = os.scandir

    def refuse(fd: int) -> object:
        if os.fstat(fd).st_ino == inode:
            raise PermissionError(13, "Permission denied")
        return scandir(fd)

    monkeypatch.setattr(os, "scandir", refuse)
    found = check(vault)
    assert FindingKind.UNREADABLE in kinds(found)
    assert FindingKind.ORPHANED_TARGET not in kinds(found)  # a link in there may name it
    assert any(finding.remains for finding in found)


@pytest.mark.parametrize("deltas", [False, True], ids=["whole records", "deltas"])
def test_a_journal_that_waits_for_its_replay(deltas: bool, tmp_path: Path) -> None:
    """Nothing is said of files that it may still change; once it is replayed, all is well."""
    vault = BareVault(tmp_path / "vault", durability=Durability.POWER, deltas=deltas)
    vault.put(b"file", CONTENT)
    vault.put(b"rest", CONTENT)
    vault.reopen()
    with vault.opened(b"file") as file:
        file.write(10, b"overwritten")
        file.write(12, b"again")
        assert bool(file.state.overlay.patched) is deltas
        vault.tree.sync_file(file, data_only=False)
        file.write(len(CONTENT), pattern(3 * CHUNK, 5))
        subprocess.run(["cp", "-a", vault.vault_dir, tmp_path / "crashed"], check=True)
    entry = vault.entry(b"file")
    vault.close()
    crashed = BareVault.__new__(BareVault)
    crashed.context = FileContext(vault.keys, vault.config, read_only=True)
    crashed._vault_fd = os.open(tmp_path / "crashed", os.O_RDONLY | os.O_DIRECTORY)
    state = snapshot(tmp_path / "crashed")
    found = check(crashed)
    assert snapshot(tmp_path / "crashed") == state
    os.close(crashed._vault_fd)
    crashed.context.cipher.close()
    assert FindingKind.UNFINISHED_JOURNAL in kinds(found)
    assert [finding.kind for finding in bad(found)] == [FindingKind.NOT_SETTLED]
    assert bad(found)[0].cipher_path == entry
    replayed = BareVault(tmp_path / "crashed", deltas=deltas)
    repair(replayed)
    assert bad(check(replayed)) == []
    assert replayed.get(b"file")[:30] == CONTENT[:10] + b"ovagaintten" + CONTENT[21:30]
    replayed.close()
