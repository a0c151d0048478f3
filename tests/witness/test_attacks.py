"""What somebody does to a vault who has no key, and what verifying says of it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from cryptfs.core.format.header import NO_JOURNAL
from cryptfs.core.geometry import HEADER_SIZE
from cryptfs.core.names.names import SIDECAR_SUFFIX
from cryptfs.errors import HeaderError
from cryptfs.vfs.content.redo import Durability
from cryptfs.witness.verification import Change
from tests.support import KIB, BareVault, may_mark_links, pattern
from tests.witness.scene import Witnessed

CHUNK = 4 * KIB
SIZE = 3 * CHUNK + 100


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Witnessed]:
    """Two files in the root, two in a directory, a link, an attribute, a long name."""
    vault = BareVault(tmp_path / "vault")
    vault.put(b"a", pattern(SIZE, 1))
    vault.put(b"b", pattern(SIZE, 2))
    directory = vault.make_directory(b"d")
    vault.put(b"c", pattern(SIZE, 3), directory)
    vault.put(b"l" * 200, pattern(100, 4), directory)
    vault.tree.make_symlink(vault.root, b"link", b"target")
    vault.tree.xattrs.set(vault.root, b"a", b"user.x", b"value", 0)
    del directory
    yield Witnessed(vault)
    vault.close()


def alarms(scene: Witnessed) -> set[tuple[str, bytes | None]]:
    return {(each.change.value, each.path) for each in scene.run()[0] if each.change.alarms}


def test_nothing(scene: Witnessed) -> None:
    totals = scene.snapshot()
    assert (totals.entries, totals.unsettled, totals.skipped) == (6, 0, [])
    findings, counts, now = scene.run()
    assert (findings, counts, now.entries) == ([], {}, 6)


# ---- rolled back


def test_older_header_and_the_file_cut_to_its_length(scene: Witnessed) -> None:
    """Together they look like the version of then, whose first chunks are the same."""
    path = scene.vault.backing(b"a")
    scene.vault.tree.truncate(scene.vault.root, b"a", 2 * CHUNK)
    shorter = path.read_bytes()
    with scene.vault.opened(b"a") as file:
        file.append(pattern(CHUNK, 5))
    scene.snapshot()
    path.write_bytes(shorter[:HEADER_SIZE] + path.read_bytes()[HEADER_SIZE : len(shorter)])
    assert alarms(scene) == {("rolled-back", b"a")}


def test_older_version_of_a_file(scene: Witnessed) -> None:
    copy = scene.copy()
    scene.rewrite(b"a", b"newer")
    scene.snapshot()
    scene.restore(copy, scene.vault.entry(b"a"))
    assert scene.findings() == {("rolled-back", b"a"): "generation 1; the manifest knows 2"}


def test_older_version_from_before_a_truncate(scene: Witnessed) -> None:
    copy = scene.copy()
    scene.vault.put(b"a", b"anew")  # the next epoch
    scene.snapshot()
    scene.restore(copy, scene.vault.entry(b"a"))
    assert alarms(scene) == {("rolled-back", b"a")}


def test_older_version_though_the_file_has_been_changed_since(scene: Witnessed) -> None:
    """What counts is the manifest: an older one than that stands there."""
    copy = scene.copy()
    scene.rewrite(b"a", b"newer")
    scene.snapshot()
    scene.rewrite(b"a", b"newest")
    scene.restore(copy, scene.vault.entry(b"a"))
    assert alarms(scene) == {("rolled-back", b"a")}


def test_a_version_since_the_manifest_is_not_noticed(scene: Witnessed) -> None:
    """Not promised: the manifest knows no later version. A newer manifest would."""
    scene.snapshot()
    scene.rewrite(b"a", b"second")
    copy = scene.copy()
    scene.rewrite(b"a", b"third")
    scene.restore(copy, scene.vault.entry(b"a"))
    assert scene.run()[1] == {Change.CHANGED: 1}


def test_older_header_with_the_present_chunks(scene: Witnessed) -> None:
    old = scene.vault.backing(b"a").read_bytes()[:256]
    scene.rewrite(b"a", b"newer")
    scene.snapshot()
    path = scene.vault.backing(b"a")
    path.write_bytes(old + path.read_bytes()[256:])
    assert alarms(scene) == {("rolled-back", b"a")}


def test_header_from_within_the_same_session(scene: Witnessed) -> None:
    """Not CLEAN comes before CLEAN in one generation, never after."""
    with scene.vault.opened(b"a") as file:
        file.write(0, b"newer")
        middle = scene.vault.backing(b"a").read_bytes()
    scene.snapshot()
    scene.vault.backing(b"a").write_bytes(middle)
    assert scene.findings() == {
        ("rolled-back", b"a"): "generation 2 before it was closed; the manifest knows it closed"
    }


def test_older_version_of_one_chunk(scene: Witnessed) -> None:
    old = scene.vault.backing(b"a").read_bytes()
    with scene.vault.opened(b"a") as file:
        file.write(CHUNK, bytes(CHUNK))
    scene.snapshot()
    raw = bytearray(scene.vault.backing(b"a").read_bytes())
    place = slice(scene.vault.geometry.record_offset(1), scene.vault.geometry.record_offset(2))
    raw[place] = old[place]
    scene.vault.backing(b"a").write_bytes(raw)
    assert scene.vault.get(b"a") == pattern(SIZE, 1)  # the vault itself cannot know
    assert scene.findings() == {("replaced", b"a"): "generation 2, but with other content"}


def test_chunk_turned_into_a_hole(scene: Witnessed) -> None:
    with scene.vault.opened(b"a") as file:
        file.truncate(20 * CHUNK)  # sets SPARSE
    scene.snapshot()
    raw = bytearray(scene.vault.backing(b"a").read_bytes())
    place = slice(scene.vault.geometry.record_offset(1), scene.vault.geometry.record_offset(2))
    raw[place] = bytes(place.stop - place.start)
    scene.vault.backing(b"a").write_bytes(raw)
    assert scene.vault.get(b"a")[CHUNK : 2 * CHUNK] == bytes(CHUNK)
    assert alarms(scene) == {("replaced", b"a")}


def test_older_state_of_a_directory(scene: Witnessed) -> None:
    directory = scene.vault.tree.directory(scene.vault.root, b"d")
    copy = scene.copy()
    scene.vault.put(b"c", b"newer", directory)
    scene.vault.put(b"since", b"new", directory)
    scene.vault.tree.unlink(directory, b"l" * 200)
    scene.snapshot()
    scene.restore(copy, scene.vault.entry(b"d"))
    assert scene.changes() == {
        ("rolled-back", b"d/c"),
        ("deleted", b"d/since"),
        ("added", b"d/" + b"l" * 200),  # it looks like a new one: the manifest never heard of it
    }


def test_older_state_of_the_vault(scene: Witnessed) -> None:
    copy = scene.copy()
    for name in (b"a", b"b"):
        scene.rewrite(name, b"newer")
    scene.vault.put(b"since", b"new")
    scene.snapshot()
    scene.restore(copy)
    assert scene.changes() == {("rolled-back", b"a"), ("rolled-back", b"b"), ("deleted", b"since")}


def test_the_manifest_of_an_older_state_says_nothing_of_later_ones(scene: Witnessed) -> None:
    """Not promised: after a restore to the very state of the manifest, there is nothing to see."""
    scene.snapshot()
    copy = scene.copy()
    scene.rewrite(b"a", b"newer")
    scene.restore(copy)
    assert scene.run()[0] == []


# ---- exchanged, copied, deleted, added


def test_two_files_exchanged(scene: Witnessed) -> None:
    """Told, but no alarm: two renames on a mount leave the same behind."""
    scene.snapshot()
    one, two = scene.vault.backing(b"a"), scene.vault.backing(b"b")
    between = one.with_name("between")
    one.rename(between)
    two.rename(one)
    between.rename(two)
    findings = {(each.change.value, each.path, each.was) for each in scene.run()[0]}
    assert findings == {("moved", b"a", b"b"), ("moved", b"b", b"a")}


def test_two_directories_exchanged(scene: Witnessed) -> None:
    """Told, but no alarm. In a vault of version 0.1 no mount notices it."""
    vault = scene.vault
    vault.put(b"inside", b"1", vault.make_directory(b"e"))
    scene.snapshot()
    one, two = vault.backing(b"d"), vault.backing(b"e")
    between = one.with_name("between")
    one.rename(between)
    two.rename(one)
    between.rename(two)
    findings = {(each.change.value, each.path, each.was) for each in scene.run()[0]}
    assert findings == {("moved", b"d", b"e"), ("moved", b"e", b"d")}
    assert vault.get(b"inside", vault.tree.directory(vault.root, b"d")) == b"1"


def test_one_file_copied_over_another(scene: Witnessed) -> None:
    """An alarm: a copy made on a mount has a file_id of its own."""
    scene.snapshot()
    shutil.copy(scene.vault.backing(b"a"), scene.vault.backing(b"b"))
    assert scene.changes() == {("copied", b"b"), ("deleted", b"b")}


def test_older_copy_beside_the_present_one(scene: Witnessed) -> None:
    copy = scene.copy()
    scene.rewrite(b"a", b"newer")
    scene.snapshot()
    shutil.copy(copy / scene.vault.entry(b"a"), scene.vault.backing(b"b"))
    assert scene.changes() == {("rolled-back", b"b"), ("copied", b"b"), ("deleted", b"b")}


def test_directory_copied(scene: Witnessed) -> None:
    other = scene.vault.make_directory(b"e")
    scene.snapshot()
    shutil.rmtree(scene.vault.vault_dir / other.cipher_path)
    shutil.copytree(
        scene.vault.vault_dir / scene.vault.entry(b"d"), scene.vault.vault_dir / other.cipher_path
    )
    found = alarms(scene)
    assert ("copied", b"e") in found
    assert all(change == "copied" for change, _ in found)


def test_deleted_and_added(scene: Witnessed) -> None:
    scene.snapshot()
    scene.vault.backing(b"a").unlink()
    scene.vault.put(b"new", b"1")
    assert scene.changes() == {("deleted", b"a"), ("added", b"new")}


def test_emptied(scene: Witnessed) -> None:
    """An empty file without a header is another file. A truncate on a mount keeps the header."""
    scene.snapshot()
    os.truncate(scene.vault.backing(b"a"), 0)
    assert scene.findings() == {("renewed", b"a"): "it is an empty file now"}
    scene.snapshot()
    scene.vault.put(b"b", b"")
    assert scene.run()[1] == {Change.CHANGED: 1}


def test_a_fifo_in_place_of_a_file(scene: Witnessed) -> None:
    """Another object has its name."""
    scene.snapshot()
    scene.vault.backing(b"a").unlink()
    os.mkfifo(scene.vault.backing(b"a"))
    assert scene.changes() == {("renewed", b"a")}


def test_whole_directory_deleted(scene: Witnessed) -> None:
    scene.snapshot()
    shutil.rmtree(scene.vault.vault_dir / scene.vault.entry(b"d"))
    assert scene.changes() == {("deleted", b"d"), ("deleted", b"d/c"), ("deleted", b"d/" + b"l" * 200)}


def test_entry_moved_behind_the_vault_s_back(scene: Witnessed) -> None:
    """It does not verify at its new place, and so is no part of the tree; nor is it called deleted."""
    scene.snapshot()
    scene.vault.backing(b"a").rename(
        scene.vault.vault_dir / scene.vault.entry(b"d") / scene.vault.entry(b"a")
    )
    ((change, path), detail), *more = scene.findings().items()
    assert (change, path, more) == ("damaged", None, [])
    assert "does not belong to this directory" in detail


# ---- damaged


@pytest.mark.parametrize("place", [5, 60, 100])
def test_damaged_header(scene: Witnessed, place: int) -> None:
    scene.snapshot()
    raw = bytearray(scene.vault.backing(b"a").read_bytes())
    raw[place] ^= 1
    scene.vault.backing(b"a").write_bytes(raw)
    assert scene.changes() == {("damaged", b"a")}


def test_cut_file(scene: Witnessed) -> None:
    scene.snapshot()
    os.truncate(scene.vault.backing(b"a"), scene.vault.geometry.record_offset(2))
    found = "the file was cut: 8576 bytes instead of 12900"
    assert scene.findings() == {("damaged", b"a"): found}


def test_file_cut_after_a_session_that_did_not_sync_it(tmp_path: Path) -> None:
    """Its header names the journal of that session, which is over: nothing explains a file that is short."""
    vault = BareVault(tmp_path / "vault", durability=Durability.POWER)
    vault.put(b"a", pattern(SIZE, 1))
    vault.reopen()
    scene = Witnessed(vault)
    scene.snapshot()
    vault.put(b"a", pattern(2 * SIZE, 2))
    vault.reopen()
    assert vault.header(b"a").journal_id != NO_JOURNAL
    assert scene.changes() == set()
    os.truncate(vault.backing(b"a"), vault.geometry.cipher_size(SIZE))
    assert scene.changes() == {("damaged", b"a")}
    with pytest.raises(HeaderError):
        vault.get(b"a")
    vault.close()


def test_file_cut_below_what_a_writer_began_with(scene: Witnessed) -> None:
    """Also a file that was never closed has a length that it cannot lose."""
    scene.snapshot()
    scene.vault.tree.open(scene.vault.root, b"a", os.O_RDWR).write(SIZE, b"more")
    scene.vault.die_and_reopen()
    assert scene.changes() == set()
    os.truncate(scene.vault.backing(b"a"), scene.vault.geometry.cipher_size(SIZE - 1))
    assert scene.changes() == {("damaged", b"a")}


def test_empty_header_over_content_is_not_settled(scene: Witnessed) -> None:
    """Whoever mounts the vault sees the content, so an empty file is not what a snapshot may note."""
    scene.vault.tree.truncate(scene.vault.root, b"a", 0)
    header = scene.vault.backing(b"a").read_bytes()
    with scene.vault.opened(b"a") as file:
        file.write(0, b"content")
    scene.snapshot()
    path = scene.vault.backing(b"a")
    path.write_bytes(header + path.read_bytes()[len(header) :])
    assert scene.vault.get(b"a") == b"content"
    assert scene.changes() == {("rolled-back", b"a")}
    assert scene.snapshot().unsettled == 1


def test_damaged_directory_record(scene: Witnessed) -> None:
    scene.snapshot()
    (scene.vault.vault_dir / scene.vault.entry(b"d") / "cryptfs.dir").unlink()
    findings = scene.run()[0]
    assert {each.change for each in findings} == {Change.DAMAGED}
    assert sum(each.path == b"d" for each in findings) == 1
    assert len(findings) == 3  # and the two files in it, which have no place now


def test_lost_sidecar_and_lost_target(scene: Witnessed) -> None:
    directory = scene.vault.tree.directory(scene.vault.root, b"d")
    scene.vault.tree.make_symlink(scene.vault.root, b"long", b"t" * 3500)
    scene.snapshot()
    Path(f"{scene.vault.backing(b'l' * 200, directory)}{SIDECAR_SUFFIX}").unlink()
    shutil.rmtree(scene.vault.vault_dir / "cryptfs.links")
    findings = {each.path: (each.change, each.detail) for each in scene.run()[0]}
    assert findings == {
        None: (Change.DAMAGED, "the long name has lost its sidecar"),
        b"long": (Change.DAMAGED, "the symlink has lost its target"),
    }


@pytest.mark.timeout(30)
def test_fifo_in_place_of_a_file(scene: Witnessed) -> None:
    scene.snapshot()
    path = scene.vault.backing(b"a")
    path.unlink()
    os.mkfifo(path)
    assert scene.changes() == {("renewed", b"a")}


# ---- links, attributes, names


def test_link_put_back(scene: Witnessed) -> None:
    """Not promised: links have no generation. An older link counts as a change, like a newer one."""
    path = scene.vault.backing(b"link")
    old = path.readlink()
    scene.vault.tree.unlink(scene.vault.root, b"link")
    scene.vault.tree.make_symlink(scene.vault.root, b"link", b"elsewhere")
    scene.snapshot()
    path.unlink()
    path.symlink_to(old)
    assert scene.run()[1] == {Change.CHANGED: 1}


def test_attribute_changed(scene: Witnessed) -> None:
    """Told as changed: attributes have no generation either."""
    scene.snapshot()
    path = scene.vault.backing(b"a")
    (name,) = [each for each in os.listxattr(path) if each.startswith("user.cryptfs.")]
    os.setxattr(path, name, os.getxattr(path, name)[:-1])
    assert scene.run()[1] == {Change.CHANGED: 1}
    os.removexattr(path, name)
    assert scene.run()[1] == {Change.CHANGED: 1}


@pytest.mark.skipif(not may_mark_links(), reason="only root has attributes on symlinks")
def test_attribute_of_a_symlink_changed(scene: Witnessed) -> None:
    path = scene.vault.backing(b"link")
    os.setxattr(path, "trusted.cryptfs.A", b"sealed", follow_symlinks=False)
    scene.snapshot()
    assert scene.run()[1] == {}
    os.setxattr(path, "trusted.cryptfs.A", b"another", follow_symlinks=False)
    assert scene.run()[1] == {Change.CHANGED: 1}
    os.removexattr(path, "trusted.cryptfs.A", follow_symlinks=False)
    assert scene.run()[1] == {Change.CHANGED: 1}


def test_hard_link_added_and_removed(scene: Witnessed) -> None:
    scene.vault.tree.link(scene.vault.root, b"b", scene.vault.root, b"b2")
    scene.snapshot()
    scene.vault.tree.link(scene.vault.root, b"a", scene.vault.root, b"a2")
    scene.vault.tree.unlink(scene.vault.root, b"b2")
    assert scene.changes() == {("linked", b"a2"), ("unlinked", b"b2")}
