"""What somebody sees who can only read the vault, once or often: the hidden, and the not hidden."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cryptfs.core.geometry import HEADER_SIZE
from tests.support import KIB, BareVault, everything_below, pattern
from tests.tamper.test_names import backing_attributes

CHUNK = 4 * KIB
WORD = b"Zauberwort"


@pytest.fixture
def vault(tmp_path: Path) -> Iterator[BareVault]:
    vault = BareVault(tmp_path / "vault")
    yield vault
    vault.close()


def everything(vault: BareVault) -> bytes:
    """All that a reader has: names, contents, link texts, attributes."""
    pieces = []
    for path in sorted(everything_below(vault.vault_dir)):
        pieces.append(os.fsencode(path.name))
        if path.is_symlink():
            pieces.append(os.fsencode(path.readlink()))
            continue
        for name in os.listxattr(path):
            pieces += [name.encode(), os.getxattr(path, name)]
        if path.is_file():
            pieces.append(path.read_bytes())
    return b"\n".join(pieces)


# ---- once


def test_no_plaintext_stands_in_the_vault(vault: BareVault) -> None:
    directory = vault.make_directory(WORD + b" directory")
    vault.put(WORD + b" file", WORD * 2000, directory)
    vault.put(WORD * 20, WORD)
    vault.tree.make_symlink(vault.root, WORD + b" link", b"/" + WORD)
    vault.tree.make_symlink(vault.root, WORD + b" long link", WORD * 400)
    vault.tree.xattrs.set(vault.root, WORD * 20, b"user." + WORD, WORD * 5, 0)
    seen = everything(vault)
    assert len(seen) > 20_000
    assert WORD not in seen
    assert WORD[:6] not in seen


def test_the_same_content_never_looks_the_same(vault: BareVault) -> None:
    """Neither two files, nor two chunks, nor one chunk written twice with the same bytes."""
    content = bytes(3 * CHUNK)
    vault.put(b"one", content)
    vault.put(b"two", content)
    files = [vault.backing(name).read_bytes() for name in (b"one", b"two")]
    with vault.opened(b"one") as file:
        file.write(0, content)
    files.append(vault.backing(b"one").read_bytes())
    suite, geometry = vault.config.suite, vault.geometry
    bodies = [
        raw[geometry.record_offset(index) + suite.nonce_size :][:1000] for raw in files for index in range(3)
    ]
    nonces = [raw[geometry.record_offset(index) :][: suite.nonce_size] for raw in files for index in range(3)]
    assert len(set(bodies)) == len(set(nonces)) == 9


def test_names_show_their_length_in_steps_of_16(vault: BareVault) -> None:
    lengths = {size: len(vault.entry(b"n" * size)) for size in range(1, 65)}
    for size in range(1, 65):
        assert lengths[size] == lengths[(size + 15) // 16 * 16]
    assert len(set(lengths.values())) == 4


def test_one_name_is_one_cipher_name_in_its_directory_and_another_elsewhere(vault: BareVault) -> None:
    directory = vault.make_directory(b"d")
    vault.put(b"name", b"1")
    first = vault.entry(b"name")
    vault.tree.unlink(vault.root, b"name")
    vault.put(b"name", b"2")
    assert vault.entry(b"name") == first
    vault.put(b"name", b"3", directory)
    assert vault.entry(b"name", directory).rpartition("/")[2] != first


def test_sizes_and_lengths_of_targets_and_values_are_exact(vault: BareVault) -> None:
    for size in (1, CHUNK - 1, CHUNK, CHUNK + 1, 10 * CHUNK + 77):
        vault.put(b"x", bytes(size))
        assert vault.plain_size(b"x") == size
        vault.tree.xattrs.set(vault.root, b"x", b"user.a", bytes(size % 1000), 0)
        ((_, stored),) = backing_attributes(vault.backing(b"x")).items()
        assert len(stored) - 40 == size % 1000
        vault.tree.unlink(vault.root, b"x")
    vault.tree.make_symlink(vault.root, b"link", b"t" * 77)
    assert len(str(vault.backing(b"link").readlink())) * 3 // 4 - 40 == 77


def test_attribute_names_look_alike_everywhere(vault: BareVault) -> None:
    """A decision (0004): which files share an attribute name shows."""
    names = set()
    for name in (b"one", b"two"):
        vault.put(name, name)
        vault.tree.xattrs.set(vault.root, name, b"user.a", name, 0)
        names |= set(backing_attributes(vault.backing(name)))
    assert len(names) == 1


def test_modes_times_and_shape_are_in_clear(vault: BareVault) -> None:
    directory = vault.make_directory(b"d")
    vault.put(b"x", b"1", directory)
    path = vault.backing(b"x", directory)
    path.chmod(0o604)
    os.utime(path, ns=(10**18, 10**18))
    found = vault.tree.stat(directory, b"x").st
    assert (found.st_mode & 0o777, found.st_mtime_ns) == (0o604, 10**18)
    assert path.parent.parent == vault.vault_dir


def test_holes_show_where_they_are(vault: BareVault) -> None:
    vault.put(b"x", b"start")
    with vault.opened(b"x") as file:
        file.truncate(64 * CHUNK)
        file.write(32 * CHUNK, b"middle")
    raw = vault.backing(b"x").read_bytes()
    empty = [index for index in range(64) if not any(raw[vault.geometry.record_offset(index) :][:100])]
    assert empty == [index for index in range(64) if index not in (0, 32)]


# ---- often


def test_changed_chunks_show_and_unchanged_ones_do_not(vault: BareVault) -> None:
    vault.put(b"x", pattern(8 * CHUNK))
    before = vault.backing(b"x").read_bytes()
    with vault.opened(b"x") as file:
        file.write(5 * CHUNK + 100, b"one byte more")
    after = vault.backing(b"x").read_bytes()
    geometry = vault.geometry
    changed = [
        index
        for index in range(8)
        if before[geometry.record_offset(index) :][:100] != after[geometry.record_offset(index) :][:100]
    ]
    assert changed == [5]
    assert before[:HEADER_SIZE] != after[:HEADER_SIZE]


def test_renames_and_truncations_can_be_followed(vault: BareVault) -> None:
    vault.put(b"x", b"content")
    inode, raw = vault.backing(b"x").stat().st_ino, vault.backing(b"x").read_bytes()
    vault.tree.rename(vault.root, b"x", vault.root, b"y")
    assert vault.backing(b"y").stat().st_ino == inode
    with vault.opened(b"y") as file:
        file.truncate(0)
        file.write(0, b"other")
    renewed = vault.backing(b"y").read_bytes()
    assert renewed[16:48] == raw[16:48]  # the file_id
    assert int.from_bytes(renewed[12:16], "little") == int.from_bytes(raw[12:16], "little") + 1
