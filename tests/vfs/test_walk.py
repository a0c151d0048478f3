"""The tolerant walk: sees everything, holds little, stops at nothing."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cryptfs.core.names.dirrecord import RECORD_NAME
from cryptfs.core.names.names import SIDECAR_SUFFIX
from cryptfs.vfs.scan import walk as walk_module
from cryptfs.vfs.scan.roles import Role, role_of
from cryptfs.vfs.scan.walk import WalkedEntry, Walker
from cryptfs.vfs.tree.directory import Directory
from tests.support import BareVault, open_descriptors

LONG = b"l" * 200


@pytest.fixture
def vault(tmp_path: Path) -> Iterator[BareVault]:
    gc.collect()
    before = open_descriptors()
    vault = BareVault(tmp_path / "vault")
    yield vault
    vault.close()
    del vault.tree
    assert open_descriptors() == before  # and not only once the collector came by


def walker_of(vault: BareVault) -> Walker:
    return Walker(vault.context, vault._vault_fd)


def seen(vault: BareVault) -> dict[str, WalkedEntry]:
    walker = walker_of(vault)
    found: dict[str, WalkedEntry] = {}
    for directory in walker.directories():
        for entry in walker.entries(directory):
            assert entry.cipher_path not in found
            found[entry.cipher_path] = entry
    assert walker.skipped == []
    return found


def plain_paths(vault: BareVault) -> list[bytes]:
    return sorted(entry.plain_path or b"?" for entry in seen(vault).values() if entry.verified)


def nested(vault: BareVault, depth: int) -> list[Directory]:
    made = [vault.root]
    for _ in range(depth):
        made.append(vault.make_directory(b"d", made[-1]))
    return made


def test_it_sees_what_the_tree_has(vault: BareVault) -> None:
    directory = vault.make_directory(b"d")
    deeper = vault.make_directory(LONG, directory)
    for where in (vault.root, directory, deeper):
        vault.put(b"file", b"1", where)
        vault.put(LONG[:-1], b"2", where)
    vault.tree.make_symlink(deeper, b"link", b"/")
    below = [b"d/" + name for name in (b"file", LONG[:-1], LONG)]
    deepest = [b"d/" + LONG + b"/" + name for name in (b"file", LONG[:-1], b"link")]
    assert plain_paths(vault) == sorted([b"d", b"file", LONG[:-1], *below, *deepest])
    roles = [entry.role for entry in seen(vault).values()]
    assert roles.count(Role.SIDECAR) == 4
    assert RECORD_NAME not in {path.rpartition("/")[2] for path in seen(vault)}


def test_depth_costs_no_descriptors(vault: BareVault, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond some levels the way back is found by '..'."""
    monkeypatch.setattr(walk_module, "OPEN_LEVELS", 4)
    made = nested(vault, 20)
    for level, where in enumerate(made):
        vault.put(b"f%d" % level, b"1", where)
        vault.make_directory(b"side", where)
    made.clear()
    before = open_descriptors()
    walker = walker_of(vault)
    peak, paths = 0, []
    for directory in walker.directories():
        peak = max(peak, open_descriptors())
        paths += [entry.plain_path for entry in walker.entries(directory) if entry.verified]
    assert peak - before <= 8
    expected = [b"d/" * level + name for level in range(21) for name in (b"f%d" % level, b"side")]
    expected += [b"/".join([b"d"] * level) for level in range(1, 21)]
    assert sorted(path or b"" for path in paths) == sorted(expected)
    assert walker.skipped == []
    del directory
    assert open_descriptors() == before


def test_a_directory_that_is_moved_away_is_no_way_out(
    vault: BareVault, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its '..' leads out of the vault then, and nobody goes there."""
    monkeypatch.setattr(walk_module, "OPEN_LEVELS", 1)
    made = nested(vault, 4)
    outside = tmp_path / "outside"
    (outside / "secret").mkdir(parents=True)
    walker = walker_of(vault)
    paths = []
    for directory in walker.directories():
        paths.append(directory.plain_path)
        if directory.plain_path == b"d/d/d/d":
            (vault.vault_dir / made[4].cipher_path).rename(outside / "moved")
    assert paths == [b"", b"d", b"d/d", b"d/d/d", b"d/d/d/d"]
    assert walker.skipped == []  # the directories above were found again from the root


def test_a_way_that_is_lost_is_told(vault: BareVault, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walk_module, "OPEN_LEVELS", 1)
    made = nested(vault, 4)
    walker = walker_of(vault)
    for directory in walker.directories():
        if directory.plain_path == b"d/d/d/d":
            top, other = vault.vault_dir / made[1].cipher_path, vault.vault_dir / made[4].cipher_path
            other.rename(vault.vault_dir / vault.root.entry_name(b"apart"))
            top.rename(vault.vault_dir / vault.root.entry_name(b"elsewhere"))
    lost = [made[level].cipher_path for level in (3, 2, 1)]
    assert walker.skipped == [(path, "moved away during the walk") for path in lost]


def test_names_of_a_directory_without_its_record(vault: BareVault) -> None:
    directory = vault.make_directory(b"d")
    vault.put(b"file", b"1", directory)
    vault.put(LONG, b"1", vault.make_directory(b"e", directory))
    (vault.vault_dir / directory.cipher_path / RECORD_NAME).unlink()
    found = {entry.plain_path: entry for entry in seen(vault).values() if entry.role is Role.ENTRY}
    assert set(found) == {b"d", b"d/file", b"d/e", b"d/e/" + LONG}
    assert [path for path, entry in found.items() if entry.verified] == [b"d"]
    assert found[b"d/e/" + LONG].damage is None  # in its own directory it does verify


def test_moved_and_foreign_entries(vault: BareVault) -> None:
    directory = vault.make_directory(b"d")
    vault.put(b"file", b"1", directory)
    vault.put(LONG, b"1")
    moved = vault.backing(b"file", directory)
    os.link(moved, vault.vault_dir / moved.name)
    Path(f"{vault.backing(LONG)}{SIDECAR_SUFFIX}").unlink()
    (vault.vault_dir / ".stfolder").mkdir()
    (vault.vault_dir / ".stfolder" / "below").touch()
    (vault.vault_dir / "cryptfs.tmp.x").mkdir()
    found = seen(vault)
    assert found[moved.name].name == b"file"
    assert found[moved.name].damage is not None
    assert found[vault.entry(LONG)].name is None
    assert found[".stfolder"].role is Role.FOREIGN
    assert found["cryptfs.tmp.x"].role is Role.TEMPORARY
    assert not any("below" in path for path in found)


def test_a_caller_says_where_to_go(vault: BareVault) -> None:
    vault.put(b"x", b"1", vault.make_directory(b"one"))
    vault.put(b"y", b"1", vault.make_directory(b"two"))
    new_name = vault.root.entry_name(b"three")
    walker = walker_of(vault)
    paths = []
    for directory in walker.directories():
        for entry in walker.entries(directory):
            paths.append(entry.plain_path)
            if entry.name == b"one":
                entry.descend = False
            if entry.name == b"two":
                (vault.vault_dir / entry.entry_name).rename(vault.vault_dir / new_name)
                entry.entry_name = new_name
    assert sorted(path or b"" for path in paths if path != b"three") == [b"one", b"three/y", b"two"]


def test_many_subdirectories_go_to_a_file(vault: BareVault, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walk_module, "_SPOOL_SIZE", 100)
    for number in range(30):
        vault.put(b"x", b"1", vault.make_directory(b"%d" % number))
    assert plain_paths(vault) == sorted(
        [path for number in range(30) for path in (b"%d" % number, b"%d/x" % number)]
    )


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("VWnNU1hl993Y5u3I3o_fSacef1lQsawl960g-f6DtuU", Role.ENTRY),
        ("VWnNU1hl993Y5u3I3o_fSacef1lQsawl960g-f6DtuV", Role.FOREIGN),  # no canonical base64url
        ("test", Role.FOREIGN),
        ("VWnNU1hl (conflicted copy)", Role.FOREIGN),
        ("cryptfs.dir", Role.RECORD),
        ("cryptfs.tmp.abc", Role.TEMPORARY),
        ("cryptfs.long." + "A" * 43, Role.ENTRY),
        ("cryptfs.long." + "A" * 43 + ".name", Role.SIDECAR),
        ("cryptfs.long.", Role.INTERNAL),
        ("cryptfs.long.x.name", Role.INTERNAL),
        ("cryptfs.json", Role.INTERNAL),
        ("cryptfs.journal", Role.INTERNAL),
    ],
)
def test_roles(name: str, role: Role) -> None:
    assert role_of(name) is role
