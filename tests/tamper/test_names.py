"""Entries, sidecars, directory records, symlinks and xattrs: changed, moved, exchanged, lost."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cryptfs.core.names.dirrecord import RECORD_NAME
from cryptfs.core.names.names import SIDECAR_SUFFIX, encode_text, long_entry_name
from cryptfs.errors import DirectoryRecordError, NameError_
from cryptfs.vfs.tree.directory import SELF, Directory
from tests.support import BareVault, assert_detected
from tests.tamper.test_files import flipped

LONG = b"l" * 200
OTHER_LONG = b"m" * 200


@pytest.fixture
def vault(tmp_path: Path) -> Iterator[BareVault]:
    """A vault with a file in its root that must stay listed and readable."""
    vault = BareVault(tmp_path / "vault")
    vault.put(b"bystander", b"fine")
    yield vault
    assert b"bystander" in vault.names()
    assert vault.get(b"bystander") == b"fine"
    vault.close()


def listing_without(vault: BareVault, caplog: pytest.LogCaptureFixture, *left_out: str) -> list[bytes]:
    """The root's names; each entry that was left out has one warning that says which."""
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        names = vault.names()
    lines = sorted(record.getMessage().split(":")[0] for record in caplog.records)
    assert lines == sorted(left_out)
    return names


# ---- entries


def test_flipped_cipher_name(vault: BareVault, caplog: pytest.LogCaptureFixture) -> None:
    vault.put(b"x", b"1")
    entry = vault.entry(b"x")
    for place in range(len(entry)):
        for letter in "A-_b":
            changed = entry[:place] + letter + entry[place + 1 :]
            if changed == entry:
                continue
            (vault.vault_dir / entry).rename(vault.vault_dir / changed)
            assert listing_without(vault, caplog, changed) == [b"bystander"]
            (vault.vault_dir / changed).rename(vault.vault_dir / entry)
    assert vault.get(b"x") == b"1"


@pytest.mark.parametrize("spoil", ["{}=", "{}A", "{} ", "A", "-", "{}.x", "\udcff{}", "not base64!"])
def test_names_that_are_no_cipher_names(
    vault: BareVault, caplog: pytest.LogCaptureFixture, spoil: str
) -> None:
    planted = spoil.format(vault.entry(b"x"))
    (vault.vault_dir / planted).write_bytes(b"")
    assert len(listing_without(vault, caplog, vault.root.path_of(planted))) == 1


def test_log_lines_cannot_be_forged(vault: BareVault, caplog: pytest.LogCaptureFixture) -> None:
    """Whoever names a planted file has no say over lines or terminals that show the log."""
    (vault.vault_dir / "x\nERROR all is lost\x1b[2J").write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        vault.names()
    (record,) = caplog.records
    assert record.getMessage().isprintable()


@pytest.mark.parametrize("name", [b"..", b".", b"a/b", b"/", b"..\0x", b"a\0b"])
def test_sealed_names_that_no_entry_can_have(
    vault: BareVault, caplog: pytest.LogCaptureFixture, name: bytes
) -> None:
    """Made with the keys: a vault written by a program that does not check."""
    names = vault.tree.opener.name_cipher.in_directory(vault.keys.root_dir_id)
    padded = name + bytes(-len(name) % 16)
    siv = names._siv(name)
    planted = encode_text(siv + vault.tree.opener.name_cipher.apply_stream(siv, padded))
    (vault.vault_dir / planted).mkdir()
    assert listing_without(vault, caplog, planted) == [b"bystander"]


def test_entry_moved_or_copied_to_another_directory(
    vault: BareVault, caplog: pytest.LogCaptureFixture
) -> None:
    directory = vault.make_directory(b"d")
    vault.put(b"inside", b"1", directory)
    vault.put(LONG, b"2", directory)
    moved, long_moved = vault.backing(b"inside", directory), vault.backing(LONG, directory)
    sidecar = Path(f"{long_moved}{SIDECAR_SUFFIX}")
    for path in (moved, long_moved, sidecar):
        os.link(path, vault.vault_dir / path.name)
    assert listing_without(vault, caplog, moved.name, long_moved.name) == [b"bystander", b"d"]
    assert vault.names(directory) == sorted([b"inside", LONG])
    with pytest.raises(FileNotFoundError):
        vault.get(b"inside")


# ---- sidecars


@pytest.fixture
def sidecar(vault: BareVault) -> Path:
    """The sidecar of a long name in the root."""
    vault.put(LONG, b"long")
    return Path(f"{vault.backing(LONG)}{SIDECAR_SUFFIX}")


def assert_left_out_but_usable(vault: BareVault, caplog: pytest.LogCaptureFixture) -> None:
    """It is not listed; under its name, which the caller knows, it opens and goes."""
    assert listing_without(vault, caplog, vault.entry(LONG)) == [b"bystander"]
    assert vault.get(LONG) == b"long"
    vault.tree.unlink(vault.root, LONG)
    assert vault.internal_names() == []


def test_every_byte_of_a_sidecar_matters(
    vault: BareVault, sidecar: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = sidecar.read_bytes()
    for place in range(len(content)):
        sidecar.write_bytes(flipped(content, place, 1 << place % 8))
        assert listing_without(vault, caplog, vault.entry(LONG)) == [b"bystander"]
    assert_left_out_but_usable(vault, caplog)


@pytest.mark.parametrize("content", [b"", b"A", b"A" * 363, b"A" * 364, b"\xff" * 363])
def test_replaced_sidecars(
    vault: BareVault, sidecar: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    sidecar.write_bytes(content)
    assert_left_out_but_usable(vault, caplog)


def test_missing_sidecar(vault: BareVault, sidecar: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Who knows the name finds the file; and then the listing knows it, too."""
    sidecar.unlink()
    entry_name = vault.entry(LONG)
    vault.root.forget_names()
    assert listing_without(vault, caplog, entry_name) == [b"bystander"]
    assert vault.get(LONG) == b"long"
    assert vault.names() == sorted([b"bystander", LONG])
    vault.tree.unlink(vault.root, LONG)
    assert vault.internal_names() == []


def test_cut_and_lengthened_sidecar(
    vault: BareVault, sidecar: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = sidecar.read_bytes()
    for changed in (content[:-1], content + b"\n", content + content):
        sidecar.write_bytes(changed)
        assert listing_without(vault, caplog, vault.entry(LONG)) == [b"bystander"]
    assert_left_out_but_usable(vault, caplog)


def test_exchanged_sidecars(vault: BareVault, sidecar: Path, caplog: pytest.LogCaptureFixture) -> None:
    vault.put(OTHER_LONG, b"other")
    other = Path(f"{vault.backing(OTHER_LONG)}{SIDECAR_SUFFIX}")
    mine, others = sidecar.read_bytes(), other.read_bytes()
    sidecar.write_bytes(others)
    other.write_bytes(mine)
    assert listing_without(vault, caplog, vault.entry(LONG), vault.entry(OTHER_LONG)) == [b"bystander"]
    assert vault.get(OTHER_LONG) == b"other"


def test_short_name_posing_as_a_long_one(vault: BareVault, caplog: pytest.LogCaptureFixture) -> None:
    """One spelling a name: else a second file could stand under a name that is there already."""
    entry = long_entry_name(vault.entry(b"bystander"))
    (vault.vault_dir / entry).write_bytes(b"")
    (vault.vault_dir / f"{entry}{SIDECAR_SUFFIX}").write_text(vault.entry(b"bystander"))
    assert listing_without(vault, caplog, entry) == [b"bystander"]


def test_sidecar_without_its_entry_does_not_show(vault: BareVault, caplog: pytest.LogCaptureFixture) -> None:
    directory = vault.make_directory(b"d")
    vault.put(LONG, b"", directory)
    vault.backing(LONG, directory).unlink()
    assert vault.names(directory) == []
    vault.tree.remove_directory(vault.root, b"d")
    assert listing_without(vault, caplog) == [b"bystander"]


# ---- directory records


def test_every_byte_of_a_directory_record_matters(vault: BareVault, caplog: pytest.LogCaptureFixture) -> None:
    record = vault.vault_dir / vault.make_directory(b"d").cipher_path / RECORD_NAME
    content = record.read_bytes()
    entry = vault.entry(b"d")
    spoiled = [flipped(content, place, 1 << place % 8) for place in range(len(content))]
    for changed in (*spoiled, b"", content[:-1], content + b"\0", bytes(64)):
        record.write_bytes(changed)
        error = assert_detected(lambda: vault.tree.directory(vault.root, b"d"), caplog, entry)
        assert type(error) is DirectoryRecordError
    record.unlink()
    assert_detected(lambda: vault.tree.directory(vault.root, b"d"), caplog, entry)
    vault.tree.remove_directory(vault.root, b"d")
    assert vault.names() == [b"bystander"]


def test_exchanged_directory_records(vault: BareVault, caplog: pytest.LogCaptureFixture) -> None:
    """The names then belong to the other directory: none verifies, none is shown under a wrong place."""
    records = []
    for name in (b"d", b"e"):
        directory = vault.make_directory(name)
        vault.put(b"inside " + name, b"", directory)
        records.append(vault.vault_dir / directory.cipher_path / RECORD_NAME)
    first, second = (record.read_bytes() for record in records)
    records[0].write_bytes(second)
    records[1].write_bytes(first)
    with caplog.at_level(logging.WARNING):
        assert vault.names(vault.tree.directory(vault.root, b"d")) == []
        assert vault.names(vault.tree.directory(vault.root, b"e")) == []
    assert len(caplog.records) == 2


# ---- symlinks


def replant(path: Path, text: str) -> None:
    path.unlink()
    path.symlink_to(text)


def test_every_character_of_a_symlink_matters(vault: BareVault, caplog: pytest.LogCaptureFixture) -> None:
    vault.tree.make_symlink(vault.root, b"link", b"/a/target")
    path, entry = vault.backing(b"link"), vault.entry(b"link")
    text = str(path.readlink())
    spoiled = [
        text[:place] + ("B" if text[place] == "A" else "A") + text[place + 1 :] for place in range(len(text))
    ]
    for changed in (*spoiled, text[:-1], text + "A", "A", "../../..", "/etc/passwd", "\udcff"):
        replant(path, changed)
        error = assert_detected(lambda: vault.tree.symlinks.read(vault.root, b"link"), caplog, entry)
        assert type(error) is NameError_
    vault.tree.unlink(vault.root, b"link")
    assert vault.names() == [b"bystander"]


def test_exchanged_and_moved_symlinks(vault: BareVault, caplog: pytest.LogCaptureFixture) -> None:
    directory = vault.make_directory(b"d")
    vault.tree.make_symlink(vault.root, b"one", b"/1")
    vault.tree.make_symlink(vault.root, b"two", b"/2")
    one, two = str(vault.backing(b"one").readlink()), str(vault.backing(b"two").readlink())
    replant(vault.backing(b"one"), two)
    replant(vault.backing(b"two"), one)
    # The same name in another directory is another place, too.
    vault.backing(b"one", directory).symlink_to(one)
    places: tuple[tuple[Directory, bytes], ...] = (
        (vault.root, b"one"),
        (vault.root, b"two"),
        (directory, b"one"),
    )
    for where, name in places:
        entry = vault.entry(name, where)
        assert_detected(
            lambda where=where, name=name: vault.tree.symlinks.read(where, name),  # type: ignore[misc]
            caplog,
            entry,
        )
        vault.tree.unlink(where, name)


def test_symlink_with_several_names_opens_in_any_place(vault: BareVault) -> None:
    """Not promised to be bound: it is sealed without its place once it has two names."""
    vault.tree.make_symlink(vault.root, b"one", b"/1")
    vault.tree.link(vault.root, b"one", vault.root, b"two")
    vault.backing(b"three").symlink_to(vault.backing(b"one").readlink())
    assert vault.tree.symlinks.read(vault.root, b"three") == b"/1"


# ---- xattrs


def backing_attributes(path: Path) -> dict[str, bytes]:
    return {name: os.getxattr(path, name) for name in os.listxattr(path) if name.startswith("user.cryptfs.")}


@pytest.mark.parametrize("attribute", [b"user.a", b"user." + b"l" * 230], ids=["short", "long"])
@pytest.mark.parametrize("kind", ["file", "directory"])
def test_every_byte_of_an_xattr_matters(
    vault: BareVault, caplog: pytest.LogCaptureFixture, attribute: bytes, kind: str
) -> None:
    if kind == "file":
        vault.put(b"x", b"")
    else:
        vault.make_directory(b"x")
    xattrs = vault.tree.xattrs
    xattrs.set(vault.root, b"x", attribute, b"value", 0)
    path, entry = vault.backing(b"x"), vault.entry(b"x")
    ((backing_name, stored),) = backing_attributes(path).items()
    for changed in (
        *(flipped(stored, place) for place in range(len(stored))),
        b"",
        stored[:-1],
        stored + b"\0",
    ):
        os.setxattr(path, backing_name, changed)
        error = assert_detected(lambda: xattrs.get(vault.root, b"x", attribute), caplog, entry)
        assert backing_name in error.reason
    os.setxattr(path, backing_name, stored)
    assert xattrs.get(vault.root, b"x", attribute) == b"value"
    xattrs.remove(vault.root, b"x", attribute)
    assert xattrs.list(vault.root, b"x") == []


def test_changed_xattr_names_are_left_out(vault: BareVault, caplog: pytest.LogCaptureFixture) -> None:
    vault.put(b"x", b"1")
    vault.tree.xattrs.set(vault.root, b"x", b"user.kept", b"1", 0)
    path = vault.backing(b"x")
    ((name, stored),) = backing_attributes(path).items()
    planted = [
        name[:-1] + ("A" if name[-1] != "A" else "B"),
        name + "A",
        "user.cryptfs.",
        "user.cryptfs.long." + "A" * 43,
        "user." + long_entry_name(name.removeprefix("user.cryptfs.")),  # the long spelling of a short name
    ]
    for other in planted:
        os.setxattr(path, other, len(name[13:]).to_bytes(2, "little") + name[13:].encode() + stored)
    planted.append("user.cryptfs.\nline")
    os.setxattr(path, planted[-1], b"")
    os.setxattr(path, "user.foreign", b"not ours")
    with caplog.at_level(logging.WARNING):
        assert vault.tree.xattrs.list(vault.root, b"x") == [b"user.kept"]
    (line,) = (record.getMessage() for record in caplog.records)
    assert f": {len(planted)} xattrs do not verify and are left out of the list of xattrs; " in line
    assert all(record.getMessage().isprintable() for record in caplog.records)
    assert all(record.getMessage().startswith(vault.entry(b"x")) for record in caplog.records)


def test_xattrs_exchanged_between_names_files_and_kinds(
    vault: BareVault, caplog: pytest.LogCaptureFixture
) -> None:
    xattrs = vault.tree.xattrs
    vault.put(b"one", b"1")
    vault.put(b"two", b"2")
    vault.make_directory(b"d")
    for name in (b"one", b"two", b"d", SELF):
        xattrs.set(vault.root, name, b"user.a", b"a of " + name, 0)
        xattrs.set(vault.root, name, b"user.b", b"b of " + name, 0)
    before = {name: backing_attributes(vault.backing(name)) for name in (b"one", b"two", b"d")}
    a, b = (vault.tree.xattrs._backing_name(name)[0] for name in (b"user.a", b"user.b"))
    swaps = ((b"one", b, a), (b"two", a, a), (b"d", a, a))  # from where, of which name, posing as which
    for source, taken, posing in swaps:
        os.setxattr(vault.backing(b"one"), posing, before[source][taken])
        assert_detected(lambda: xattrs.get(vault.root, b"one", b"user.a"), caplog, vault.entry(b"one"))
    os.setxattr(vault.vault_dir, a, before[b"d"][a])
    assert_detected(lambda: xattrs.get(vault.root, SELF, b"user.a"), caplog, ".")
    assert xattrs.get(vault.root, b"one", b"user.b") == b"b of one"
    assert xattrs.get(vault.root, b"d", b"user.a") == b"a of d"


def test_symlink_text_as_xattr_value(vault: BareVault, caplog: pytest.LogCaptureFixture) -> None:
    """gocryptfs seals both alike; here the keys differ."""
    vault.put(b"x", b"1")
    vault.tree.xattrs.set(vault.root, b"x", b"user.a", b"secret", 0)
    ((_, stored),) = backing_attributes(vault.backing(b"x")).items()
    vault.backing(b"link").symlink_to(encode_text(stored))
    assert_detected(lambda: vault.tree.symlinks.read(vault.root, b"link"), caplog, vault.entry(b"link"))


def test_xattrs_of_a_file_that_lost_its_header(vault: BareVault, caplog: pytest.LogCaptureFixture) -> None:
    vault.put(b"x", b"1")
    vault.tree.xattrs.set(vault.root, b"x", b"user.a", b"value", 0)
    os.truncate(vault.backing(b"x"), 0)
    assert_detected(lambda: vault.tree.xattrs.get(vault.root, b"x", b"user.a"), caplog, vault.entry(b"x"))
    vault.tree.xattrs.set(vault.root, b"x", b"user.a", b"again", 0)
    assert vault.tree.xattrs.get(vault.root, b"x", b"user.a") == b"again"


def test_unreadable_sidecar_hides_nothing_else(
    vault: BareVault, sidecar: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even for a process that has no right to read it."""
    usual = os.open

    def refuse(path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if path == sidecar.name:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return usual(path, flags, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", refuse)
    assert listing_without(vault, caplog, vault.entry(LONG)) == [b"bystander"]


def test_entry_that_goes_during_a_listing_is_no_damage(
    vault: BareVault, sidecar: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = vault.tree.sidecars.read

    def read_too_late(dir_fd: int, entry_name: str) -> str:
        vault.tree.unlink(vault.root, LONG)
        return read(dir_fd, entry_name)

    monkeypatch.setattr(vault.tree.sidecars, "read", read_too_late)
    assert listing_without(vault, caplog) == [b"bystander"]
    assert not sidecar.exists()
