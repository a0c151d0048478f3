"""Extended attributes of symlinks: kept by each way that seals the target again, and bound to it."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cryptfs.errors import NameError_
from cryptfs.storage.libc import RENAME_EXCHANGE, RENAME_WHITEOUT
from cryptfs.vfs.tree.directory import SELF, Place, Unnamed
from cryptfs.vfs.tree.xattrs import LINK_PREFIX
from tests.support import OWNERS, BareVault, may_mark_links

pytestmark = pytest.mark.skipif(not may_mark_links(), reason="only root has attributes on symlinks")

NOTE, LABEL, LONG_NAME = b"trusted.note", b"security.label", b"trusted." + b"n" * 240
VALUES = {NOTE: b"of this link", LABEL: b"", LONG_NAME: b"\0" * 900}
LONG = b"l" * 200
TARGETS = (b"target", b"t" * 3500)


@pytest.fixture
def vault(tmp_path: Path) -> Iterator[BareVault]:
    vault = BareVault(tmp_path / "vault", owner=OWNERS[True], bound=True)
    yield vault
    vault.close()


def make(vault: BareVault, name: bytes = b"link", target: bytes = b"target") -> None:
    vault.tree.make_symlink(vault.root, name, target)
    for attribute, value in VALUES.items():
        vault.tree.xattrs.set(vault.root, name, attribute, value, 0)


def attributes(vault: BareVault, name: bytes = b"link") -> dict[bytes, bytes]:
    xattrs = vault.tree.xattrs
    return {each: xattrs.get(vault.root, name, each) for each in xattrs.list(vault.root, name)}


def backing(vault: BareVault, name: bytes = b"link") -> dict[str, bytes]:
    path = vault.backing(name)
    return {
        each: os.getxattr(path, each, follow_symlinks=False)
        for each in os.listxattr(path, follow_symlinks=False)
    }


def put(vault: BareVault, found: dict[str, bytes], name: bytes = b"link") -> None:
    for each, value in found.items():
        os.setxattr(vault.backing(name), each, value, follow_symlinks=False)


@pytest.mark.parametrize("target", TARGETS, ids=["short", "long"])
def test_they_are_there_after_a_reopen_and_sealed(vault: BareVault, target: bytes) -> None:
    make(vault, target=target)
    vault.reopen()
    assert attributes(vault) == VALUES
    assert vault.tree.symlinks.read(vault.root, b"link") == target
    found = backing(vault)
    assert len(found) == len(VALUES) and all(name.startswith(LINK_PREFIX) for name in found)
    assert not any(b"of this link" in value for value in found.values())
    vault.tree.xattrs.remove(vault.root, b"link", NOTE)
    assert set(attributes(vault)) == {LABEL, LONG_NAME}


def test_flags_and_errors_are_those_of_the_disk(vault: BareVault) -> None:
    make(vault)
    xattrs = vault.tree.xattrs
    for action, code in (
        (lambda: xattrs.set(vault.root, b"link", NOTE, b"", os.XATTR_CREATE), errno.EEXIST),
        (lambda: xattrs.set(vault.root, b"link", b"trusted.no", b"", os.XATTR_REPLACE), errno.ENODATA),
        (lambda: xattrs.get(vault.root, b"link", b"trusted.no"), errno.ENODATA),
        (lambda: xattrs.remove(vault.root, b"link", b"trusted.no"), errno.ENODATA),
        (lambda: xattrs.set(vault.root, b"link", b"user.no", b"", 0), errno.EPERM),
        (lambda: xattrs.set(vault.root, b"link", NOTE, bytes(70_000), 0), errno.E2BIG),
    ):
        with pytest.raises(OSError) as raised:
            action()
        assert raised.value.errno == code
    assert attributes(vault) == VALUES


def test_a_change_keeps_target_and_times(vault: BareVault) -> None:
    vault.tree.make_symlink(vault.root, b"link", b"target")
    os.utime(vault.backing(b"link"), ns=(10**18, 10**18 + 1), follow_symlinks=False)
    vault.tree.xattrs.set(vault.root, b"link", NOTE, b"1", 0)
    st = vault.backing(b"link").lstat()
    assert (st.st_atime_ns, st.st_mtime_ns) == (10**18, 10**18 + 1)


WAYS: dict[str, Callable[[BareVault], bytes]] = {}


def way(function: Callable[[BareVault], bytes]) -> Callable[[BareVault], bytes]:
    WAYS[function.__name__] = function
    return function


def _rename(vault: BareVault, new: bytes, flags: int = 0) -> bytes:
    vault.tree.rename(vault.root, b"link", vault.root, new, flags)
    return new


@way
def rename(vault: BareVault) -> bytes:
    return _rename(vault, b"new")


@way
def rename_to_a_long_name(vault: BareVault) -> bytes:
    return _rename(vault, LONG)


@way
def rename_over_another_link(vault: BareVault) -> bytes:
    vault.tree.make_symlink(vault.root, b"other", b"elsewhere")
    vault.tree.xattrs.set(vault.root, b"other", b"trusted.other", b"goes", 0)
    return _rename(vault, b"other")


@way
def rename_with_a_whiteout(vault: BareVault) -> bytes:
    return _rename(vault, b"new", RENAME_WHITEOUT)


@way
def exchange(vault: BareVault) -> bytes:
    vault.tree.make_symlink(vault.root, b"other", b"elsewhere")
    vault.tree.xattrs.set(vault.root, b"other", b"trusted.other", b"comes", 0)
    new = _rename(vault, b"other", RENAME_EXCHANGE)
    assert attributes(vault) == {b"trusted.other": b"comes"}
    return new


@way
def link(vault: BareVault) -> bytes:
    vault.tree.link(vault.root, b"link", vault.root, b"second")
    assert attributes(vault) == VALUES
    return b"second"


@way
def rename_of_one_of_two_names(vault: BareVault) -> bytes:
    vault.tree.link(vault.root, b"link", vault.root, b"second")
    vault.tree.xattrs.set(vault.root, b"second", NOTE, b"changed", 0)
    assert attributes(vault)[NOTE] == b"changed"
    vault.tree.xattrs.set(vault.root, b"link", NOTE, VALUES[NOTE], 0)
    return _rename(vault, b"new")


@way
def rename_of_a_conflict_copy(vault: BareVault) -> bytes:
    path, copy = vault.backing(b"link"), f"{vault.backing(b'link')}.sync-conflict-20261130-120000-ABCDEFG"
    shutil.copy2(path, copy, follow_symlinks=False)
    (shown,) = set(vault.names()) - {b"link"}
    assert attributes(vault, shown) == VALUES
    vault.tree.rename(vault.root, shown, vault.root, b"mine")
    return b"mine"


@way
def rename_twice(vault: BareVault) -> bytes:
    _rename(vault, b"new")
    vault.tree.rename(vault.root, b"new", vault.root, b"link")
    return b"link"


@pytest.mark.parametrize("target", TARGETS, ids=["short", "long"])
@pytest.mark.parametrize("how", WAYS)
def test_they_come_along(vault: BareVault, how: str, target: bytes) -> None:
    make(vault, target=target)
    name = WAYS[how](vault)
    vault.reopen()
    assert attributes(vault, name) == VALUES
    assert vault.tree.symlinks.read(vault.root, name) == target


def test_they_come_along_into_another_directory(vault: BareVault) -> None:
    make(vault)
    below = vault.make_directory(b"below")
    vault.tree.rename(vault.root, b"link", below, b"link")
    xattrs = vault.tree.xattrs
    assert {each: xattrs.get(below, b"link", each) for each in xattrs.list(below, b"link")} == VALUES


def test_a_disk_without_room_for_them_changes_nothing(
    vault: BareVault, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(vault)
    before, setxattr = backing(vault), os.setxattr
    calls = 0

    def full(*args: object, **options: object) -> None:
        nonlocal calls
        calls += 1
        if calls == len(VALUES):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        setxattr(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "setxattr", full)
    with pytest.raises(OSError, match="No space"):
        vault.tree.rename(vault.root, b"link", vault.root, b"new")
    monkeypatch.undo()
    assert vault.names() == [b"link"] and backing(vault) == before
    assert not [name for name in os.listdir(vault.vault_dir) if ".tmp." in name]


def test_no_change_is_lost_while_another_thread_renames(vault: BareVault) -> None:
    make(vault)
    names, stop = (b"link", b"other"), threading.Event()

    def rename_on_and_on() -> None:
        while not stop.is_set():
            for old, new in (names, names[::-1]):
                vault.tree.rename(vault.root, old, vault.root, new)

    thread = threading.Thread(target=rename_on_and_on)
    thread.start()
    kept = b""
    try:
        for number in range(300):
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    vault.tree.xattrs.set(vault.root, name, NOTE, b"%d" % number, 0)
                    kept = b"%d" % number
    finally:
        stop.set()
        thread.join()
    assert kept
    assert attributes(vault) == VALUES | {NOTE: kept}


# ---- tampering


def refuses(vault: BareVault, name: bytes = b"link", attribute: bytes = NOTE) -> None:
    with pytest.raises(NameError_):
        vault.tree.xattrs.get(vault.root, name, attribute)


def test_a_value_on_another_link(vault: BareVault) -> None:
    """Also if that has the same target, or had the same name."""
    make(vault)
    vault.tree.make_symlink(vault.root, b"other", b"target")
    put(vault, backing(vault), b"other")
    refuses(vault, b"other")
    old = backing(vault)
    vault.tree.unlink(vault.root, b"link")
    vault.tree.make_symlink(vault.root, b"link", b"target")
    put(vault, old)
    refuses(vault)


def test_an_old_value_after_a_rename_there_and_back(vault: BareVault) -> None:
    make(vault)
    old = backing(vault)
    rename_twice(vault)
    put(vault, old)
    refuses(vault)
    vault.tree.xattrs.set(vault.root, b"link", NOTE, b"new", 0)
    assert vault.tree.xattrs.get(vault.root, b"link", NOTE) == b"new"


def test_a_link_with_all_its_values_under_another_name(vault: BareVault) -> None:
    make(vault)
    path = vault.backing(b"link")
    vault.tree.make_symlink(vault.root, b"other", b"elsewhere")
    os.rename(path, vault.backing(b"other"))
    refuses(vault, b"other")
    with pytest.raises(NameError_):
        vault.tree.xattrs.set(vault.root, b"other", NOTE, b"new", 0)


def test_a_target_under_values_of_another_one(vault: BareVault) -> None:
    """Of the same link: the older version of the target, the newer values."""
    make(vault)
    older = os.readlink(vault.backing(b"link"))
    rename_twice(vault)
    newer, path = backing(vault), vault.backing(b"link")
    path.unlink()
    path.symlink_to(older)
    put(vault, newer)
    assert vault.tree.symlinks.read(vault.root, b"link") == b"target"
    refuses(vault)


def test_a_value_under_another_attribute_or_changed(vault: BareVault) -> None:
    make(vault)
    vault.tree.xattrs.set(vault.root, b"link", b"trusted.two", b"two", 0)
    found = backing(vault)
    (note,) = (name for name, value in found.items() if len(value) == 40 + len(VALUES[NOTE]))
    (two,) = (name for name, value in found.items() if len(value) == 43)
    put(vault, {note: found[two]})
    refuses(vault)
    put(vault, {note: found[note][:-1] + bytes((found[note][-1] ^ 1,))})
    refuses(vault)
    put(vault, {note: found[note]})
    assert attributes(vault)[NOTE] == VALUES[NOTE]


def test_values_between_files_and_links(vault: BareVault) -> None:
    make(vault)
    vault.put(b"file", b"content")
    vault.tree.xattrs.set(vault.root, b"file", NOTE, b"of a file", 0)
    path = vault.backing(b"file")
    (of_file,) = (name for name in os.listxattr(path) if name.startswith("user.cryptfs."))
    name = LINK_PREFIX + of_file.removeprefix("user.cryptfs.")
    put(vault, {name: os.getxattr(path, of_file)})
    refuses(vault)
    os.setxattr(path, name, b"planted")
    assert vault.tree.xattrs.get(vault.root, b"file", NOTE) == b"of a file"
    assert vault.tree.xattrs.list(vault.root, b"file") == [NOTE]
    os.removexattr(path, of_file)
    os.setxattr(vault.vault_dir, name, b"planted")
    fd = os.open(path, os.O_PATH)
    places: list[Place] = [(vault.root, b"file"), (vault.root, SELF), (Unnamed(fd), SELF)]
    for where, each in places:
        with pytest.raises(OSError) as raised:
            vault.tree.xattrs.get(where, each, NOTE)
        assert raised.value.errno == errno.ENODATA
    os.close(fd)


def test_a_damaged_value_goes_along_as_it_is(vault: BareVault) -> None:
    make(vault)
    found = backing(vault)
    damaged = {name: value[:-1] + b"?" for name, value in found.items() if len(value) == 40}
    put(vault, damaged)
    vault.tree.rename(vault.root, b"link", vault.root, b"new")
    refuses(vault, b"new", LABEL)
    assert vault.tree.xattrs.get(vault.root, b"new", NOTE) == VALUES[NOTE]


def test_a_link_without_its_target_gives_no_value(vault: BareVault) -> None:
    make(vault, target=TARGETS[1])
    (file,) = (vault.vault_dir / "cryptfs.links").iterdir()
    file.unlink()
    refuses(vault)


def test_a_link_by_a_descriptor_alone_must_open_anywhere(vault: BareVault) -> None:
    make(vault)
    flags = os.O_PATH | os.O_NOFOLLOW
    fd = os.open(vault.backing(b"link"), flags)
    with pytest.raises(NameError_):
        vault.tree.xattrs.get(Unnamed(fd), SELF, NOTE)
    os.close(fd)
    link(vault)
    fd = os.open(vault.backing(b"link"), flags)
    assert vault.tree.xattrs.get(Unnamed(fd), SELF, NOTE) == VALUES[NOTE]
    os.close(fd)


def test_a_removed_value_is_not_noticed(vault: BareVault) -> None:
    """As of a file: the threat model says so."""
    make(vault)
    for name in backing(vault):
        os.removexattr(vault.backing(b"link"), name, follow_symlinks=False)
    assert attributes(vault) == {}


# ---- other vaults, other disks


def test_a_vault_without_bound_directories_keeps_none(tmp_path: Path) -> None:
    vault = BareVault(tmp_path / "old")
    vault.tree.make_symlink(vault.root, b"link", b"target")
    with pytest.raises(OSError) as raised:
        vault.tree.xattrs.set(vault.root, b"link", NOTE, b"", 0)
    assert raised.value.errno == errno.EPERM
    os.setxattr(vault.backing(b"link"), "trusted.cryptfs.A", b"", follow_symlinks=False)
    assert vault.tree.xattrs.list(vault.root, b"link") == []
    for action in (vault.tree.xattrs.get, vault.tree.xattrs.remove):
        with pytest.raises(OSError) as raised:
            action(vault.root, b"link", NOTE)
        assert raised.value.errno == errno.ENODATA
    vault.close()


def test_a_disk_that_keeps_none_refuses_as_for_an_ordinary_user(
    vault: BareVault, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some disks have no trusted attributes. overlayfs must not conclude that there are none at all."""
    vault.tree.make_symlink(vault.root, b"link", b"target")

    def refuse(path: str, name: str, *_: object, **__: object) -> bytes:
        raise OSError(errno.EOPNOTSUPP if name.startswith("trusted.") else errno.ENODATA, "refused")

    for call in ("getxattr", "setxattr"):
        monkeypatch.setattr(os, call, refuse)
    with pytest.raises(OSError) as raised:
        vault.tree.xattrs.set(vault.root, b"link", NOTE, b"", 0)
    assert raised.value.errno == errno.EPERM
    with pytest.raises(OSError) as raised:
        vault.tree.xattrs.get(vault.root, b"link", NOTE)
    assert raised.value.errno == errno.ENODATA
