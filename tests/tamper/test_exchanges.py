"""Values posing as values of another kind, or as those of another place; and names spelled in another way."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cryptfs.core.aead import SMALL_OVERHEAD
from cryptfs.core.names.names import decode_text
from cryptfs.errors import NameError_
from cryptfs.vfs.tree.symlinks import LINKS_DIRECTORY
from tests.support import BareVault, assert_detected
from tests.tamper.test_files import flipped
from tests.tamper.test_names import backing_attributes, listing_without, replant

LONG_TARGET = b"/" + b"long/" * 700  # 3501 bytes: stands in a file of its own
OTHER_TARGET = b"/" + b"other" * 700


@pytest.fixture
def vault(tmp_path: Path) -> Iterator[BareVault]:
    vault = BareVault(tmp_path / "vault")
    vault.put(b"bystander", b"fine")
    yield vault
    assert vault.get(b"bystander") == b"fine"
    vault.close()


# ---- kinds


def test_link_as_xattr_value(vault: BareVault, caplog: pytest.LogCaptureFixture) -> None:
    """The other way round than gocryptfs' hole: what a link points to does not show as an attribute."""
    vault.put(b"x", b"1")
    vault.tree.make_symlink(vault.root, b"link", b"/secret")
    vault.tree.xattrs.set(vault.root, b"x", b"user.a", b"value", 0)
    path = vault.backing(b"x")
    ((name, _),) = backing_attributes(path).items()
    sealed = decode_text(str(vault.backing(b"link").readlink()))
    assert sealed is not None
    os.setxattr(path, name, sealed)
    assert_detected(lambda: vault.tree.xattrs.get(vault.root, b"x", b"user.a"), caplog, vault.entry(b"x"))


def test_header_state_as_xattr_value(vault: BareVault, caplog: pytest.LogCaptureFixture) -> None:
    """All small values are sealed with one cipher; kind and key keep them apart."""
    vault.put(b"x", b"1")
    vault.tree.xattrs.set(vault.root, b"x", b"user.a", b"value", 0)
    path = vault.backing(b"x")
    ((name, _),) = backing_attributes(path).items()
    os.setxattr(path, name, path.read_bytes()[48:224])
    assert_detected(lambda: vault.tree.xattrs.get(vault.root, b"x", b"user.a"), caplog, vault.entry(b"x"))


def test_directory_record_as_file_and_file_as_directory_record(
    vault: BareVault, caplog: pytest.LogCaptureFixture
) -> None:
    record = vault.vault_dir / vault.make_directory(b"d").cipher_path / "cryptfs.dir"
    original = record.read_bytes()
    victim = vault.backing(b"bystander")
    content = victim.read_bytes()
    record.write_bytes(content)
    assert_detected(lambda: vault.tree.directory(vault.root, b"d"), caplog, vault.entry(b"d"))
    record.write_bytes(original)
    victim.write_bytes(original)
    assert_detected(lambda: vault.get(b"bystander"), caplog, vault.entry(b"bystander"))
    victim.write_bytes(content)


# ---- long targets of symlinks


def target_file(vault: BareVault, name: bytes) -> Path:
    link_id = str(vault.backing(name).readlink()).removeprefix("cryptfs.link.").partition(".")[0]
    return vault.vault_dir / LINKS_DIRECTORY / link_id


def assert_link_lost(vault: BareVault, caplog: pytest.LogCaptureFixture, name: bytes = b"link") -> None:
    error = assert_detected(lambda: vault.tree.symlinks.read(vault.root, name), caplog, vault.entry(name))
    assert type(error) is NameError_


def test_long_target_flipped_cut_lengthened_and_lost(
    vault: BareVault, caplog: pytest.LogCaptureFixture
) -> None:
    vault.tree.make_symlink(vault.root, b"link", LONG_TARGET)
    path = target_file(vault, b"link")
    content = path.read_bytes()
    assert len(content) == len(LONG_TARGET) + SMALL_OVERHEAD
    for place in range(0, len(content), 50):
        path.write_bytes(flipped(content, place))
        assert_link_lost(vault, caplog)
    for changed in (b"", content[:-1], content + b"\0", content[:SMALL_OVERHEAD]):
        path.write_bytes(changed)
        assert_link_lost(vault, caplog)
    path.unlink()
    assert_link_lost(vault, caplog)
    vault.tree.unlink(vault.root, b"link")
    assert vault.names() == [b"bystander"]


def test_long_targets_exchanged(vault: BareVault, caplog: pytest.LogCaptureFixture) -> None:
    vault.tree.make_symlink(vault.root, b"link", LONG_TARGET)
    vault.tree.make_symlink(vault.root, b"other", OTHER_TARGET)
    one, two = target_file(vault, b"link"), target_file(vault, b"other")
    text, other_text = (str(vault.backing(name).readlink()) for name in (b"link", b"other"))
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)
    assert_link_lost(vault, caplog)
    assert_link_lost(vault, caplog, b"other")
    one.write_bytes(first)
    two.write_bytes(second)
    replant(vault.backing(b"link"), other_text)
    assert_link_lost(vault, caplog)
    replant(vault.backing(b"link"), text)
    assert vault.tree.symlinks.read(vault.root, b"link") == LONG_TARGET


@pytest.mark.parametrize(
    "text",
    ["cryptfs.link..5", "cryptfs.link.../../cryptfs.json.5", "cryptfs.link.cryptfs.dir.5", "cryptfs.link."],
)
def test_planted_ids_of_long_targets(vault: BareVault, caplog: pytest.LogCaptureFixture, text: str) -> None:
    """An id that is none opens nothing, wherever it would lead."""
    vault.tree.make_symlink(vault.root, b"make the directory", LONG_TARGET)
    vault.backing(b"link").symlink_to(text)
    assert_link_lost(vault, caplog)
    vault.tree.unlink(vault.root, b"link")
    assert vault.names() == [b"bystander", b"make the directory"]


@pytest.mark.timeout(30)
def test_fifo_and_link_in_place_of_a_long_target(vault: BareVault, caplog: pytest.LogCaptureFixture) -> None:
    vault.tree.make_symlink(vault.root, b"link", LONG_TARGET)
    path = target_file(vault, b"link")
    path.unlink()
    os.mkfifo(path)
    assert_link_lost(vault, caplog)
    path.unlink()
    path.symlink_to("/etc/passwd")
    assert_link_lost(vault, caplog)


# ---- names


def test_every_other_spelling_of_the_last_character(
    vault: BareVault, caplog: pytest.LogCaptureFixture
) -> None:
    """43 characters hold 32 bytes and two bits: four spellings decode alike, one of them is the name."""
    entry = vault.entry(b"x")
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    group = alphabet.index(entry[-1]) & ~3
    others = [entry[:-1] + letter for letter in alphabet[group : group + 4] if letter != entry[-1]]
    assert len(others) == 3
    for planted in others:
        (vault.vault_dir / planted).write_bytes(b"")
    assert listing_without(vault, caplog, *others) == [b"bystander"]


def test_entry_renamed_to_a_name_that_is_free_or_taken(
    vault: BareVault, caplog: pytest.LogCaptureFixture
) -> None:
    """Without the keys no name can be made; a name that was seen can be given again: to another file, too."""
    vault.put(b"x", b"1")
    seen = vault.entry(b"x")
    vault.tree.unlink(vault.root, b"x")
    vault.put(b"y", b"2")
    vault.backing(b"y").rename(vault.vault_dir / ("A" * 43))
    assert listing_without(vault, caplog, "A" * 43) == [b"bystander"]
    (vault.vault_dir / ("A" * 43)).rename(vault.vault_dir / seen)
    # Not promised: x is back, with what y held.
    assert vault.names() == [b"bystander", b"x"]
    assert vault.get(b"x") == b"2"


def test_directory_inside_itself_by_record(vault: BareVault, caplog: pytest.LogCaptureFixture) -> None:
    """A directory whose record is a copy of its parent's has its parent's names, and none of its own."""
    parent = vault.make_directory(b"d")
    child = vault.make_directory(b"e", parent)
    vault.put(b"inside", b"1", child)
    record = vault.vault_dir / child.cipher_path / "cryptfs.dir"
    record.write_bytes((vault.vault_dir / parent.cipher_path / "cryptfs.dir").read_bytes())
    again = vault.tree.directory(parent, b"e")
    assert again.dir_id == parent.dir_id
    assert vault.names(again) == []
    assert len(caplog.records) == 1
