"""Symlink targets that do not fit into a backing symlink: kept in cryptfs.links."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cryptfs.errors import NameError_, NameTooLongError
from cryptfs.vfs.tree.attributes import Attributes
from cryptfs.vfs.tree.directory import Directory
from cryptfs.vfs.tree.symlinks import LINKS_DIRECTORY
from cryptfs.vfs.tree.tree import VaultTree
from tests.support import BareVault

SIZES = (1, 3030, 3031, 3032, 4094, 4095)


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[VaultTree]:
    """A tree over an empty vault directory."""
    vault = BareVault(tmp_path)
    yield vault.tree
    vault.close()


def stored(tmp_path: Path) -> list[str]:
    """Files of long targets."""
    return sorted(os.listdir(tmp_path / LINKS_DIRECTORY))


def target_of(size: int) -> bytes:
    return bytes(97 + index % 26 for index in range(size))


def entry_of(root: Directory, tmp_path: Path, name: bytes) -> Path:
    return tmp_path / root.entry_name(name)


@pytest.mark.parametrize("size", SIZES)
def test_targets_of_every_length(tree: VaultTree, tmp_path: Path, size: int) -> None:
    tree.make_symlink(tree.root, b"link", target_of(size))
    found: Attributes = tree.stat(tree.root, b"link")
    assert tree.symlinks.read(tree.root, b"link") == target_of(size)
    assert found.size == size
    assert (tmp_path / LINKS_DIRECTORY).exists() == (size > 3031)
    tree.unlink(tree.root, b"link")
    if size > 3031:
        assert stored(tmp_path) == []


def test_one_byte_too_many(tree: VaultTree) -> None:
    with pytest.raises(NameTooLongError):
        tree.make_symlink(tree.root, b"link", b"t" * 4096)


def test_a_name_that_is_taken_leaves_no_file(tree: VaultTree, tmp_path: Path) -> None:
    tree.make_symlink(tree.root, b"link", target_of(4000))
    with pytest.raises(FileExistsError):
        tree.make_symlink(tree.root, b"link", target_of(4001))
    assert len(stored(tmp_path)) == 1
    assert tree.symlinks.read(tree.root, b"link") == target_of(4000)


def test_moves_and_replacements_keep_one_file_a_link(tree: VaultTree, tmp_path: Path) -> None:
    tree.make_directory(tree.root, b"d", 0o755)
    below = tree.directory(tree.root, b"d")
    tree.make_symlink(tree.root, b"a", target_of(4000))
    tree.make_symlink(tree.root, b"b", target_of(3500))
    tree.rename(tree.root, b"a", below, b"c")
    assert tree.symlinks.read(below, b"c") == target_of(4000)
    assert len(stored(tmp_path)) == 2
    tree.rename(tree.root, b"b", below, b"c")
    assert tree.symlinks.read(below, b"c") == target_of(3500)
    assert len(stored(tmp_path)) == 1
    tree.make_symlink(tree.root, b"short", b"s")
    tree.rename(tree.root, b"short", below, b"c")
    assert stored(tmp_path) == []


def test_several_names_share_the_file_until_the_last(tree: VaultTree, tmp_path: Path) -> None:
    tree.make_directory(tree.root, b"d", 0o755)
    below = tree.directory(tree.root, b"d")
    tree.make_symlink(tree.root, b"a", target_of(4095))
    tree.link(tree.root, b"a", below, b"b")
    assert len(stored(tmp_path)) == 1
    tree.unlink(tree.root, b"a")
    assert tree.symlinks.read(below, b"b") == target_of(4095)
    tree.unlink(below, b"b")
    assert stored(tmp_path) == []


def test_a_rename_onto_another_name_of_the_same_link_changes_nothing(tree: VaultTree, tmp_path: Path) -> None:
    tree.make_symlink(tree.root, b"a", target_of(4095))
    tree.link(tree.root, b"a", tree.root, b"b")
    tree.rename(tree.root, b"a", tree.root, b"b")
    assert tree.symlinks.read(tree.root, b"a") == tree.symlinks.read(tree.root, b"b") == target_of(4095)


@pytest.mark.parametrize("harm", ("flip", "cut", "missing", "exchange", "link"))
def test_harm_to_the_file_is_noticed(tree: VaultTree, tmp_path: Path, harm: str) -> None:
    tree.make_symlink(tree.root, b"a", target_of(4000))
    tree.make_symlink(tree.root, b"b", target_of(4000)[::-1])
    links = tmp_path / LINKS_DIRECTORY
    ours = os.readlink(entry_of(tree.root, tmp_path, b"a")).split(".")[2]
    (other,) = set(stored(tmp_path)) - {ours}
    file = links / ours
    if harm == "flip":
        raw = bytearray(file.read_bytes())
        raw[2000] ^= 1
        file.write_bytes(raw)
    elif harm == "cut":
        os.truncate(file, 100)
    elif harm == "missing":
        file.unlink()
    elif harm == "exchange":
        os.replace(links / other, file)
    else:
        file.unlink()
        file.symlink_to("/etc/passwd")
    with pytest.raises(NameError_):
        tree.symlinks.read(tree.root, b"a")
    tree.unlink(tree.root, b"a")


@pytest.mark.parametrize(
    "text", ("cryptfs.link.", "cryptfs.link.x.9", "cryptfs.link.../../etc/passwd.5", "cryptfs.link")
)
def test_planted_texts(tree: VaultTree, tmp_path: Path, text: str) -> None:
    tree.make_symlink(tree.root, b"long", target_of(4000))
    os.symlink(text, entry_of(tree.root, tmp_path, b"planted"))
    with pytest.raises(NameError_):
        tree.symlinks.read(tree.root, b"planted")
    assert tree.stat(tree.root, b"planted").size in (0, 5, 9)
    tree.unlink(tree.root, b"planted")
    assert len(stored(tmp_path)) == 1
