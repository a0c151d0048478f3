"""Extended attributes: any name that Linux allows, on files and directories, alike after a reopen."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cryptfs.core.keys import Subkeys
from cryptfs.core.names.names import NameCipher
from cryptfs.vfs.tree.directory import SELF
from tests.support import BareVault

XATTR_NAMES = NameCipher(Subkeys.from_masterkey(bytes(32))).of_xattrs()
ODD_NAMES = (
    b"user.a/b",
    b"user./",
    b"user...",
    b"user.\xff\xfe",
    b"user. \n",
    b"user." + b"n" * 250,  # the longest
    b"user." + b"n" * 155,  # 160 bytes: the last that needs no long form
    b"user." + b"n" * 156,
)


@pytest.fixture
def vault(tmp_path: Path) -> Iterator[BareVault]:
    vault = BareVault(tmp_path / "vault")
    yield vault
    vault.close()


@given(name=st.binary(min_size=1, max_size=255).filter(lambda name: b"\0" not in name))
@settings(max_examples=200, deadline=None)
def test_any_name_without_nul(name: bytes) -> None:
    assert XATTR_NAMES.open(XATTR_NAMES.seal(name)) == name


@pytest.mark.parametrize("name", [b".", b"..", b"/", b"a/b"])
def test_what_no_entry_is_called_an_attribute_may_be(name: bytes) -> None:
    assert XATTR_NAMES.open(XATTR_NAMES.seal(name)) == name
    entries = NameCipher(Subkeys.from_masterkey(bytes(32))).in_directory(bytes(16))
    with pytest.raises(ValueError, match="name"):
        entries.seal(name)


@pytest.mark.parametrize("name", [b"", b"a\0b", b"\0"])
def test_names_that_nothing_has(name: bytes) -> None:
    with pytest.raises(ValueError, match="name"):
        XATTR_NAMES.seal(name)


@pytest.mark.parametrize("owner", [b"file", b"directory", SELF])
def test_odd_names_on_files_and_directories(vault: BareVault, owner: bytes) -> None:
    vault.put(b"file", b"")
    vault.make_directory(b"directory")
    for number, name in enumerate(ODD_NAMES):
        vault.tree.xattrs.set(vault.root, owner, name, bytes((number,)) * number, 0)
    vault.reopen()
    assert sorted(vault.tree.xattrs.list(vault.root, owner)) == sorted(ODD_NAMES)
    for number, name in enumerate(ODD_NAMES):
        assert vault.tree.xattrs.get(vault.root, owner, name) == bytes((number,)) * number
        vault.tree.xattrs.remove(vault.root, owner, name)
    assert vault.tree.xattrs.list(vault.root, owner) == []


@pytest.mark.parametrize(
    ("name", "code"),
    [
        (b"user." + b"n" * 251, errno.ERANGE),
        (b"", errno.ERANGE),
        (b"system.posix_acl_access", errno.EOPNOTSUPP),
    ],
)
def test_refused_names(vault: BareVault, name: bytes, code: int) -> None:
    vault.put(b"f", b"")
    for action in (
        lambda: vault.tree.xattrs.set(vault.root, b"f", name, b"1", 0),
        lambda: vault.tree.xattrs.get(vault.root, b"f", name),
        lambda: vault.tree.xattrs.remove(vault.root, b"f", name),
    ):
        with pytest.raises(OSError) as raised:
            action()
        assert raised.value.errno == code


def test_first_attribute_gives_an_empty_file_its_header(vault: BareVault) -> None:
    vault.put(b"f", b"")
    assert vault.backing(b"f").stat().st_size == 0
    vault.tree.xattrs.set(vault.root, b"f", b"user.a", b"1", 0)
    assert vault.header(b"f").is_clean
    assert vault.get(b"f") == b""
    with vault.opened(b"f") as file:
        file.write(0, b"content")
        vault.tree.xattrs.set(vault.root, b"f", b"user.b", b"2", 0)
        file.truncate(0)
        file.write(0, b"again")
    assert vault.tree.xattrs.get(vault.root, b"f", b"user.a") == b"1"
    assert vault.tree.xattrs.get(vault.root, b"f", b"user.b") == b"2"
    vault.tree.rename(vault.root, b"f", vault.root, b"g")
    assert vault.tree.xattrs.get(vault.root, b"g", b"user.b") == b"2"
    assert vault.get(b"g") == b"again"


def test_attributes_while_a_first_write_failed(vault: BareVault, monkeypatch: pytest.MonkeyPatch) -> None:
    """The header that the write had planned is not on disk; the attribute must not be bound to it."""

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with vault.opened(b"f", os.O_RDWR | os.O_CREAT) as file:
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwritev", full)
            with pytest.raises(OSError):
                file.write(0, b"does not fit")
        vault.tree.xattrs.set(vault.root, b"f", b"user.a", b"1", 0)
        file.write(0, b"fits")
    vault.reopen()
    assert vault.tree.xattrs.get(vault.root, b"f", b"user.a") == b"1"
    assert vault.get(b"f") == b"fits"


def test_values_up_to_what_the_backing_filesystem_holds(vault: BareVault) -> None:
    vault.put(b"f", b"1")
    with pytest.raises(OSError) as raised:
        vault.tree.xattrs.set(vault.root, b"f", b"user.a", bytes(70_000), 0)
    assert raised.value.errno in (errno.E2BIG, errno.ENOSPC)
    vault.tree.xattrs.set(vault.root, b"f", b"user.a", bytes(1000), 0)
    assert vault.tree.xattrs.get(vault.root, b"f", b"user.a") == bytes(1000)
    assert vault.get(b"f") == b"1"
