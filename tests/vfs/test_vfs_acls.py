"""ACLs of a vault: sealed, in step with modes, inherited."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cryptfs.core.acl import AclEntry, pack_acl, unpack_acl
from cryptfs.vfs.tree.acls import Acls
from cryptfs.vfs.tree.attributes import change_mode
from cryptfs.vfs.tree.directory import RECORD_SECONDS, SELF, Unnamed
from cryptfs.vfs.tree.xattrs import ACL_ACCESS, ACL_DEFAULT
from tests.support import BareVault
from tests.unit.test_acl import acl


@pytest.fixture
def vault(tmp_path: Path) -> Iterator[BareVault]:
    made = BareVault(tmp_path / "vault")
    made.tree.xattrs.supports_acls = True
    yield made
    made.close()


@pytest.fixture
def acls(vault: BareVault) -> Acls:
    vault.put(b"file", b"content")
    vault.tree.make_directory(vault.root, b"directory", 0o755)
    vault.tree.make_node(vault.root, b"fifo", stat.S_IFIFO | 0o644, 0)
    return Acls(vault.tree)


def mode_of(vault: BareVault, name: bytes) -> int:
    return stat.S_IMODE(vault.tree.stat(vault.root, name).st.st_mode)


def value_of(vault: BareVault, name: bytes, attribute: bytes = ACL_ACCESS) -> bytes | None:
    try:
        return vault.tree.xattrs.get(vault.root, name, attribute)
    except OSError as error:
        assert error.errno == errno.ENODATA
        return None


def give(vault: BareVault, acls: Acls, name: bytes, text: str, attribute: bytes = ACL_ACCESS) -> bytes:
    value = pack_acl(acl(text))
    acls.set(vault.root, name, attribute, value, 0)
    return value


def test_an_acl_sets_the_mode_and_is_kept(vault: BareVault, acls: Acls) -> None:
    value = give(vault, acls, b"file", "u:6 u5:7 g:1 m:4 o:2")
    assert value_of(vault, b"file") == value
    assert mode_of(vault, b"file") == 0o642


def test_nothing_of_it_is_readable_in_the_vault(vault: BareVault, acls: Acls) -> None:
    value = give(vault, acls, b"file", "u:6 u305419896:7 g:1 m:4 o:2")
    path = vault.backing(b"file")
    assert [name for name in os.listxattr(path) if "acl" in name] == []
    stored = b"".join(os.getxattr(path, name) for name in os.listxattr(path))
    assert stored
    assert value[4:12] not in stored
    assert (305419896).to_bytes(4, "little") not in stored


def test_a_minimal_one_is_a_chmod(vault: BareVault, acls: Acls) -> None:
    give(vault, acls, b"file", "u:6 u5:7 g:1 m:4 o:2")
    give(vault, acls, b"file", "u:7 g:5 o:1")
    assert value_of(vault, b"file") is None
    assert mode_of(vault, b"file") == 0o751


def test_special_bits_of_the_mode_stay(vault: BareVault, acls: Acls) -> None:
    change_mode(vault.root, b"directory", 0o3755)
    give(vault, acls, b"directory", "u:7 u5:7 g:1 m:4 o:2")
    assert mode_of(vault, b"directory") == 0o3742


def test_chmod_changes_the_mask(vault: BareVault, acls: Acls) -> None:
    give(vault, acls, b"file", "u:6 u5:7 g:1 m:4 o:2")
    change_mode(vault.root, b"file", 0o751)
    acls.mode_changed(vault.root, b"file", 0o751)
    assert value_of(vault, b"file") == pack_acl(acl("u:7 u5:7 g:1 m:5 o:1"))
    acls.mode_changed(vault.root, b"directory", 0o700)  # has none
    assert value_of(vault, b"directory") is None


def test_a_default_acl_changes_no_mode_and_is_for_directories(vault: BareVault, acls: Acls) -> None:
    value = give(vault, acls, b"directory", "u:7 g:0 o:0", ACL_DEFAULT)
    assert value_of(vault, b"directory", ACL_DEFAULT) == value
    assert mode_of(vault, b"directory") == 0o755
    for name in (b"file", b"fifo"):
        with pytest.raises(OSError) as raised:
            give(vault, acls, name, "u:7 g:0 o:0", ACL_DEFAULT)
        assert raised.value.errno == errno.EACCES


@pytest.mark.parametrize("value", [b"", b"\x02\0\0\0", b"\x01\0\0\0", b"x" * 28])
def test_what_is_no_acl_is_einval(vault: BareVault, acls: Acls, value: bytes) -> None:
    for attribute in (ACL_ACCESS, ACL_DEFAULT):
        with pytest.raises(OSError) as raised:
            acls.set(vault.root, b"directory", attribute, value, 0)
        assert raised.value.errno == errno.EINVAL
    assert mode_of(vault, b"directory") == 0o755


def test_removing_one_that_is_not_there_is_fine(vault: BareVault, acls: Acls) -> None:
    give(vault, acls, b"file", "u:6 u5:7 g:1 m:4 o:2")
    for _ in range(2):
        acls.remove(vault.root, b"file", ACL_ACCESS)
        assert value_of(vault, b"file") is None
    assert mode_of(vault, b"file") == 0o642  # as Linux has it
    acls.remove(vault.root, b"fifo", ACL_ACCESS)


def test_inheritance(vault: BareVault, acls: Acls) -> None:
    text = "u:7 u5:6 g:5 m:7 o:0"
    default = give(vault, acls, b"directory", text, ACL_DEFAULT)
    directory = vault.tree.directory(vault.root, b"directory")
    for name, asked, mode in ((b"f", stat.S_IFREG | 0o666, 0o660), (b"d", stat.S_IFDIR | 0o755, 0o750)):
        inherited = acls.inherited(directory, asked)
        assert inherited is not None
        assert stat.S_IMODE(inherited.mode) == mode
        if name == b"d":
            vault.tree.make_directory(directory, name, inherited.mode)
        else:
            vault.put(name, b"", directory)
        acls.give(directory, name, inherited)
        got = unpack_acl(vault.tree.xattrs.get(directory, name, ACL_ACCESS))
        assert AclEntry(2, 6, 5) in got
    assert vault.tree.xattrs.get(directory, b"d", ACL_DEFAULT) == default
    with pytest.raises(OSError, match="No data"):
        vault.tree.xattrs.get(directory, b"f", ACL_DEFAULT)


def test_without_a_default_acl_nothing_is_inherited(vault: BareVault, acls: Acls) -> None:
    give(vault, acls, b"directory", "u:6 u5:7 g:1 m:4 o:2")  # an access ACL is none
    assert acls.inherited(vault.tree.directory(vault.root, b"directory"), stat.S_IFREG | 0o666) is None


def test_a_fifo_gets_a_mode_that_gives_nobody_more(vault: BareVault, acls: Acls) -> None:
    give(vault, acls, b"directory", "u:7 u5:7 g:5 m:7 o:0", ACL_DEFAULT)
    directory = vault.tree.directory(vault.root, b"directory")
    inherited = acls.inherited(directory, stat.S_IFIFO | 0o676)
    assert inherited is not None
    assert inherited.mode == stat.S_IFIFO | 0o650
    vault.tree.make_node(directory, b"fifo", inherited.mode, 0)
    acls.give(directory, b"fifo", inherited)  # has nothing to give, and does not fail


def test_files_without_a_name(vault: BareVault, acls: Acls) -> None:
    fd = os.open(vault.backing(b"file"), os.O_PATH)
    try:
        vault.tree.unlink(vault.root, b"file")
        value = pack_acl(acl("u:6 u5:7 g:1 m:4 o:2"))
        acls.set(Unnamed(fd), SELF, ACL_ACCESS, value, 0)
        assert vault.tree.xattrs.get(Unnamed(fd), SELF, ACL_ACCESS) == value
        assert stat.S_IMODE(os.fstat(fd).st_mode) == 0o642
    finally:
        os.close(fd)


def test_without_support_the_names_are_unknown(vault: BareVault, acls: Acls) -> None:
    give(vault, acls, b"file", "u:6 u5:7 g:1 m:4 o:2")
    vault.tree.xattrs.supports_acls = False
    assert vault.tree.xattrs.list(vault.root, b"file") == []
    with pytest.raises(OSError) as raised:
        vault.tree.xattrs.get(vault.root, b"file", ACL_ACCESS)
    assert raised.value.errno == errno.EOPNOTSUPP


def test_a_default_acl_counts_at_once_where_there_was_none(vault: BareVault, acls: Acls) -> None:
    directory = vault.tree.directory(vault.root, b"directory")
    assert acls.inherited(directory, stat.S_IFREG | 0o666) is None
    give(vault, acls, b"directory", "u:6 u5:7 g:1 m:4 o:2", ACL_DEFAULT)
    assert acls.inherited(directory, stat.S_IFREG | 0o666) is not None
    acls.remove(vault.root, b"directory", ACL_DEFAULT)
    assert acls.inherited(directory, stat.S_IFREG | 0o666) is None


def test_a_default_acl_from_behind_the_mount_counts_a_little_later(
    vault: BareVault, acls: Acls, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = vault.tree.directory(vault.root, b"directory")
    assert acls.inherited(directory, stat.S_IFREG | 0o666) is None
    give(vault, Acls(vault.tree), b"directory", "u:6 u5:7 g:1 m:4 o:2", ACL_DEFAULT)  # as another machine
    later = time.monotonic() + RECORD_SECONDS
    monkeypatch.setattr("cryptfs.vfs.tree.acls.time.monotonic", lambda: later)
    assert acls.inherited(directory, stat.S_IFREG | 0o666) is not None


@pytest.mark.parametrize(("chmod", "kept"), [(None, 0o040), (0o600, 0o600)])
def test_a_mode_lifted_for_a_moment_overrides_no_chmod(
    vault: BareVault, acls: Acls, monkeypatch: pytest.MonkeyPatch, chmod: int | None, kept: int
) -> None:
    """Root needs no such right, so the first look is made to fail."""
    value = give(vault, acls, b"file", "u:0 u5:7 g:1 m:4 o:0")
    real, seen = vault.tree.xattrs.get, []

    def refused_at_first(*args: Any) -> bytes:
        seen.append(mode_of(vault, b"file"))
        if len(seen) == 1:
            raise PermissionError(errno.EACCES, "")
        if chmod is not None:
            change_mode(vault.root, b"file", chmod)
        return real(*args)

    monkeypatch.setattr(vault.tree.xattrs, "get", refused_at_first)
    assert acls.get(vault.root, b"file", ACL_ACCESS) == value
    assert (seen, mode_of(vault, b"file")) == ([0o040, 0o740], kept)
