"""No plaintext name, target, attribute or content in an exception's text, a repr or a log line of the vfs."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cryptfs.core.names.names import SIDECAR_SUFFIX
from cryptfs.mount.errno_map import errno_of
from cryptfs.storage.libc import RENAME_NOREPLACE
from cryptfs.vfs.tree.directory import Directory
from tests.support import BareVault

WORD = b"Zauberwort"
NAME = WORD + b" file"
OTHER = WORD + b" other"
LONG = WORD + b"l" * 200
TOO_LONG = WORD + b"x" * 300
DIRECTORY = WORD + b" directory"
LINK = WORD + b" link"
ATTRIBUTE = b"user." + WORD


@pytest.fixture
def vault(tmp_path: Path) -> Iterator[BareVault]:
    made = BareVault(tmp_path / "vault")
    made.put(NAME, WORD + b" content")
    made.put(LONG, WORD)
    directory = made.make_directory(DIRECTORY)
    made.put(NAME, WORD, directory)
    made.tree.make_symlink(made.root, LINK, b"/" + WORD)
    made.tree.xattrs.set(made.root, NAME, ATTRIBUTE, WORD, 0)
    yield made
    made.close()


def failing(vault: BareVault) -> list[Callable[[], object]]:
    """Operations that fail, each in its own way, on names that must not show."""
    tree, root = vault.tree, vault.root
    return [
        lambda: tree.open(root, WORD, os.O_RDONLY),
        lambda: tree.create(root, NAME, os.O_RDWR | os.O_EXCL, 0o600),
        lambda: tree.create(root, TOO_LONG, os.O_RDWR, 0o600),
        lambda: tree.create(root, WORD + b"/" + WORD, os.O_RDWR, 0o600),
        lambda: tree.create(root, WORD + b"\0", os.O_RDWR, 0o600),
        lambda: tree.directory(root, NAME),
        lambda: tree.directory(root, WORD),
        lambda: tree.make_directory(root, DIRECTORY, 0o700),
        lambda: tree.make_directory(root, NAME, 0o700),
        lambda: tree.remove_directory(root, DIRECTORY),
        lambda: tree.remove_directory(root, NAME),
        lambda: tree.unlink(root, WORD),
        lambda: tree.unlink(root, DIRECTORY),
        lambda: tree.rename(root, NAME, root, DIRECTORY),
        lambda: tree.rename(root, NAME, root, LONG, RENAME_NOREPLACE),
        lambda: tree.rename(root, WORD, root, OTHER),
        lambda: tree.rename(root, NAME, root, OTHER, 77),
        lambda: tree.rename(root, DIRECTORY, tree.directory(root, DIRECTORY), OTHER),
        lambda: tree.link(root, DIRECTORY, root, OTHER),
        lambda: tree.link(root, NAME, root, LONG),
        lambda: tree.make_symlink(root, LINK, WORD),
        lambda: tree.make_symlink(root, OTHER, WORD * 1000),
        lambda: tree.symlinks.read(root, NAME),
        lambda: tree.symlinks.read(root, WORD),
        lambda: tree.xattrs.get(root, NAME, b"user.no " + WORD),
        lambda: tree.xattrs.get(root, NAME, b"strange." + WORD),
        lambda: tree.xattrs.get(root, NAME, b"user." + WORD * 100),
        lambda: tree.xattrs.get(root, WORD, ATTRIBUTE),
        lambda: tree.xattrs.set(root, NAME, ATTRIBUTE, WORD, os.XATTR_CREATE),
        lambda: tree.xattrs.set(root, NAME, ATTRIBUTE, WORD * 100_000, 0),
        lambda: tree.xattrs.remove(root, NAME, b"user.no " + WORD),
        lambda: tree.truncate(root, WORD, 0),
        lambda: tree.truncate(root, NAME, -1),
        lambda: tree.stat(root, WORD),
    ]


def damage(vault: BareVault) -> Iterator[Callable[[], object]]:
    """Every kind of damage, and what meets it."""
    tree, root = vault.tree, vault.root
    file, link = vault.backing(NAME), vault.backing(LINK)
    original = file.read_bytes()
    file.write_bytes(original[:-1] + bytes((original[-1] ^ 1,)))
    yield lambda: vault.get(NAME)
    file.write_bytes(original[:-5])
    yield lambda: vault.get(NAME)
    file.write_bytes(bytes(256) + original[256:])
    yield lambda: vault.get(NAME)
    yield lambda: tree.xattrs.get(root, NAME, ATTRIBUTE)
    file.write_bytes(original)
    for name in os.listxattr(file):
        os.setxattr(file, name, bytes(60))
    yield lambda: tree.xattrs.get(root, NAME, ATTRIBUTE)
    link.unlink()
    link.symlink_to(b"/" + WORD)
    yield lambda: tree.symlinks.read(root, LINK)
    Path(f"{vault.backing(LONG)}{SIDECAR_SUFFIX}").write_bytes(b"nothing")
    yield lambda: list(tree.list(root))
    record = vault.vault_dir / vault.entry(DIRECTORY) / "cryptfs.dir"
    record.write_bytes(bytes(64))
    yield lambda: tree.directory(root, DIRECTORY)
    file.unlink()
    os.mkfifo(file)
    yield lambda: vault.get(NAME)


def texts_of(error: BaseException) -> list[str]:
    """All that may be shown of an exception, and of those behind it."""
    texts = [*traceback.format_exception(error), str(error), repr(error)]
    if isinstance(error, OSError):
        texts += [repr(error.filename), repr(error.filename2)]
    return texts


def shows(text: str) -> bool:
    word = WORD.decode()
    return any(form in text for form in (word, word.encode().hex(), word[::-1]))


def test_the_check_sees_what_it_looks_for() -> None:
    assert shows(repr(NAME))
    assert any(shows(text) for text in texts_of(FileNotFoundError(2, "no", NAME)))


def test_exceptions_and_the_log(vault: BareVault, caplog: pytest.LogCaptureFixture) -> None:
    for number, action in enumerate(failing(vault)):
        with pytest.raises(Exception) as raised:
            action()
        assert not [text for text in texts_of(raised.value) if shows(text)], number
        errno_of(raised.value)
    found = 0
    with caplog.at_level(logging.DEBUG):
        for action in damage(vault):
            try:
                action()
            except Exception as error:  # noqa: BLE001 - each has its own
                found += 1
                assert not [text for text in texts_of(error) if shows(text)]
                errno_of(error)
    assert found >= 7
    assert len(caplog.records) > found
    assert not [record for record in caplog.records if shows(record.getMessage())]
    with contextlib.suppress(FileNotFoundError):
        vault.backing(NAME).unlink()


def test_reprs_of_whatever_is_alive(vault: BareVault) -> None:
    """Everything of cryptfs that the collector knows, while files and directories are open."""
    directory = vault.tree.directory(vault.root, DIRECTORY)
    entries = list(vault.tree.list(vault.root))
    attributes = [vault.tree.stat(vault.root, entry.name) for entry in entries]
    with vault.opened(NAME) as file, vault.opened(NAME, directory=directory) as other:
        file.write(0, WORD)
        seen = set()
        # Tuples of plain values are not the collector's.
        for each in (*gc.get_objects(), file, other, directory, *entries, *attributes):
            kind = type(each)
            if str(kind.__module__).startswith("cryptfs."):
                seen.add(kind.__name__)
                assert not shows(repr(each)), kind
    assert {"Directory", "OpenFile", "FileState", "Entry", "Subkeys", "FileContext", "VaultTree"} <= seen
    assert isinstance(directory, Directory)
