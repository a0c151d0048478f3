"""An interrupt just after a system call: what that did stays, and is not cleaned up as if it had failed."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import cryptfs
from cryptfs.transfer.copying import TreeCopy
from cryptfs.transfer.entrycopy import Copied
from cryptfs.transfer.plainside import PlainDirectory, PlainSide
from cryptfs.transfer.sides import is_part
from cryptfs.transfer.vaultside import VaultSide
from cryptfs.vfs.tree import entries
from cryptfs.vfs.tree.entries import EntryOperations
from tests.commands import Run
from tests.support import everything_below
from tests.transfer.conftest import PASSPHRASE

TARGETS = ["short", "long" * 1000]


def interrupt_after(monkeypatch: pytest.MonkeyPatch, where: object, name: str) -> None:
    """The next call of a function is done, and then somebody presses Ctrl-C."""
    function = getattr(where, name)

    def interrupted(*args: Any, **options: Any) -> None:
        monkeypatch.setattr(where, name, function)
        function(*args, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(where, name, interrupted)


@pytest.fixture
def in_order(vault_dir: Path, run: Run) -> Callable[[], None]:
    """Says whether fsck finds everything in order; once the vault is closed."""

    def check() -> None:
        found = run("fsck", "--deep", vault_dir)
        assert found.code == 0, found.out
        assert "damage" not in found.out

    return check


@pytest.mark.parametrize("replace", [True, False])
def test_a_directory_has_its_new_name(
    replace: bool, vault_dir: Path, in_order: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    with cryptfs.Vault.unlock(vault_dir, PASSPHRASE) as vault:
        vault.makedirs("a/below")
        vault.mkdir("b")
        with vault.open("a/file", "wb") as file:
            file.write(b"content")
        name = "renameat2" if replace else "rename_exclusive"
        interrupt_after(monkeypatch, entries, name)
        with pytest.raises(KeyboardInterrupt):
            vault.rename("a", "b/c", replace=replace)
    in_order()
    for _ in range(2):
        with cryptfs.Vault.unlock(vault_dir, PASSPHRASE) as vault:
            assert sorted(vault.listdir("b/c")) == ["below", "file"]
            assert vault.open("b/c/file").read() == "content"
            assert vault.listdir("") == ["b"]


@pytest.mark.parametrize("target", TARGETS, ids=["short", "long"])
def test_a_new_symlink_has_its_target(
    target: str, vault_dir: Path, in_order: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    with cryptfs.Vault.unlock(vault_dir, PASSPHRASE) as vault:
        interrupt_after(monkeypatch, os, "symlink")
        with pytest.raises(KeyboardInterrupt):
            vault.symlink(target, "link")
        assert vault.readlink("link") == target
    in_order()


@pytest.mark.parametrize("target", TARGETS, ids=["short", "long"])
def test_a_symlink_has_its_target_under_its_new_name(
    target: str, vault_dir: Path, in_order: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    with cryptfs.Vault.unlock(vault_dir, PASSPHRASE) as vault:
        vault.mkdir("b")
        vault.symlink(target, "link")
        interrupt_after(monkeypatch, os, "rename")
        with pytest.raises(KeyboardInterrupt):
            vault.rename("link", "b/moved")
        assert vault.readlink("b/moved") == target
    in_order()


class LosesInterrupts:
    """A function that is interrupted, and then cannot clean up."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, *_: object, **__: object) -> None:
        self.calls += 1
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory")  # noqa: B904 - its context counts


@pytest.mark.parametrize("direction", ["import", "export"])
def test_a_copy_does_not_take_it_for_a_problem_of_an_entry(
    direction: str, opened: cryptfs.Vault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: bytes, error: Exception) -> None:
        raise AssertionError(path) from error

    (tmp_path / "tree").mkdir()
    for number in range(3):
        (tmp_path / "tree" / f"link {number}").symlink_to("target")
    plain, root = PlainDirectory.at(str(tmp_path)), opened.tree.root
    outside, inside = PlainSide(plain), VaultSide(opened, fail)
    copy: TreeCopy[Any, Any] = TreeCopy(outside, inside, fail, Copied())
    lost = LosesInterrupts()
    if direction == "export":
        copy.run(plain, b"tree", root, b"tree", b"")
        copy = TreeCopy(inside, outside, fail, Copied())
    monkeypatch.setattr(inside if direction == "import" else outside, "finish", lost)
    with pytest.raises(KeyboardInterrupt):
        if direction == "import":
            copy.run(plain, b"tree", root, b"tree", b"")
        else:
            copy.run(root, b"tree", plain, b"out", b"")
    assert lost.calls == 1
    names = [name for _, _, files in opened.walk() for name in files]
    names += [each.name for each in everything_below(tmp_path)]
    assert not [name for name in names if is_part(os.fsencode(name))]


def test_rm_ends(vault_dir: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with cryptfs.Vault.unlock(vault_dir, PASSPHRASE) as vault:
        for name in ("one", "two"):
            vault.open(name, "wb").close()
    lost = LosesInterrupts()
    monkeypatch.setattr(EntryOperations, "_unlink", lost)
    told = run("rm", vault_dir, "one", "two")
    assert (told.code, told.err.strip()) == (130, "cryptfs: interrupted")
    assert lost.calls == 1


def test_a_lock_of_python_that_is_interrupted(
    vault_dir: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wait(*_: object, **__: object) -> None:
        try:
            raise KeyboardInterrupt
        finally:
            raise RuntimeError("cannot release un-acquired lock")

    monkeypatch.setattr(cryptfs.Vault, "rename", wait)
    with cryptfs.Vault.unlock(vault_dir, PASSPHRASE) as vault:
        vault.open("one", "wb").close()
    told = run("mv", vault_dir, "one", "two")
    assert (told.code, told.err.strip()) == (130, "cryptfs: interrupted")
