"""The tree against a plain directory: the same operations, the same results, errnos and listings."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from cryptfs.core.names.dirrecord import RECORD_NAME
from cryptfs.core.names.names import SIDECAR_SUFFIX, TEMP_PREFIX
from cryptfs.mount.errno_map import errno_of
from cryptfs.storage.libc import AT_FDCWD, RENAME_EXCHANGE, RENAME_NOREPLACE, renameat2
from cryptfs.vfs.tree.directory import Directory
from tests.support import BareVault

LONGEST = b"\xff\x01" * 127 + b"e"
KNOWN_NAMES = (
    b"a",
    b"b",
    b"c",
    b"cryptfs.dir",
    b"\xfe not utf-8\n",
    b"n" * 160,  # the longest whose cipher name fits
    b"n" * 161,  # the shortest long name
    LONGEST,
)
NAMES = st.one_of(
    st.sampled_from(KNOWN_NAMES),
    st.binary(min_size=1, max_size=255).filter(
        lambda name: b"/" not in name and b"\0" not in name and name not in (b".", b"..")
    ),
)
TOO_LONG = b"x" * 256
ATTRIBUTES = st.sampled_from((b"user.a", b"user.with/slash", b"user." + b"l" * 240))


class Place(NamedTuple):
    """A name in a directory, both as the vault sees it and as the plain directory does."""

    directory: Directory
    name: bytes
    plain: bytes


def outcome(action: Callable[[], object]) -> object:
    """What came back, or the errno that a mount would answer."""
    try:
        return action()
    except Exception as error:  # noqa: BLE001 - the comparison is about which one
        return -errno_of(error)


class TreeModel(RuleBasedStateMachine):
    """A vault and a plain directory, side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.base = Path(tempfile.mkdtemp(prefix="vfs-tests-"))
        self.vault = BareVault(self.base / "vault")
        self.plain = os.fsencode(self.base / "plain")
        os.mkdir(self.plain)

    # ---- choosing

    def place(self, data: st.DataObject, names: st.SearchStrategy[bytes] = NAMES) -> Place:
        """Somewhere in a directory that exists; mostly a name that is there already."""
        parents = sorted(path for path, _, _ in os.walk(self.plain))
        plain_parent = data.draw(st.sampled_from(parents))
        existing = sorted(os.listdir(plain_parent))
        name = data.draw(st.one_of(st.sampled_from(existing), names) if existing else names)
        return Place(self.directory(plain_parent), name, plain_parent + b"/" + name)

    def directory(self, plain: bytes) -> Directory:
        directory = self.vault.root
        for name in plain[len(self.plain) :].split(b"/")[1:]:
            directory = self.vault.tree.directory(directory, name)
        return directory

    def same(self, mine: Callable[[], object], plain: Callable[[], object]) -> None:
        assert outcome(mine) == outcome(plain)

    # ---- making and removing

    @rule(data=st.data(), exclusive=st.booleans(), content=st.binary(min_size=1, max_size=50))
    def create(self, data: st.DataObject, exclusive: bool, content: bytes) -> None:
        where = self.place(data, st.one_of(NAMES, st.just(TOO_LONG)))
        if os.path.islink(where.plain):
            return  # the kernel follows it before a filesystem is asked
        flags = os.O_RDWR | os.O_CREAT | (os.O_EXCL if exclusive else 0)

        def mine() -> None:
            file = self.vault.tree.create(where.directory, where.name, flags, 0o640)
            file.write(0, content)
            self.vault.tree.release(file)

        def plain() -> None:
            fd = os.open(where.plain, flags, 0o640)
            os.write(fd, content)
            os.close(fd)

        self.same(mine, plain)

    @rule(data=st.data())
    def mkdir(self, data: st.DataObject) -> None:
        where = self.place(data, st.one_of(NAMES, st.just(TOO_LONG)))
        tree = self.vault.tree
        self.same(
            lambda: tree.make_directory(where.directory, where.name, 0o755),
            lambda: os.mkdir(where.plain, 0o755),
        )

    @rule(data=st.data())
    def rmdir(self, data: st.DataObject) -> None:
        where = self.place(data)
        tree = self.vault.tree
        self.same(lambda: tree.remove_directory(where.directory, where.name), lambda: os.rmdir(where.plain))

    @rule(data=st.data())
    def unlink(self, data: st.DataObject) -> None:
        where = self.place(data)
        tree = self.vault.tree
        self.same(lambda: tree.unlink(where.directory, where.name), lambda: os.unlink(where.plain))

    @rule(data=st.data(), text=st.binary(min_size=1, max_size=300).filter(lambda text: b"\0" not in text))
    def symlink(self, data: st.DataObject, text: bytes) -> None:
        where = self.place(data, st.one_of(NAMES, st.just(TOO_LONG)))
        tree = self.vault.tree
        self.same(
            lambda: tree.make_symlink(where.directory, where.name, text),
            lambda: os.symlink(text, where.plain),
        )

    @rule(data=st.data())
    def link(self, data: st.DataObject) -> None:
        source, target = self.place(data), self.place(data)
        tree = self.vault.tree
        self.same(
            lambda: tree.link(source.directory, source.name, target.directory, target.name),
            lambda: os.link(source.plain, target.plain, follow_symlinks=False),
        )

    @rule(data=st.data(), flags=st.sampled_from((0, 0, RENAME_NOREPLACE, RENAME_EXCHANGE)))
    def rename(self, data: st.DataObject, flags: int) -> None:
        source, target = self.place(data), self.place(data)
        if source.plain.startswith(target.plain + b"/"):
            return  # the kernel refuses that before a filesystem is asked
        tree = self.vault.tree
        old, new = os.fsdecode(source.plain), os.fsdecode(target.plain)
        self.same(
            lambda: tree.rename(source.directory, source.name, target.directory, target.name, flags),
            lambda: renameat2(AT_FDCWD, old, AT_FDCWD, new, flags),
        )

    @rule()
    def reopen(self) -> None:
        self.vault.reopen()

    # ---- attributes

    @rule(
        data=st.data(),
        attribute=ATTRIBUTES,
        value=st.binary(max_size=40),
        flags=st.sampled_from((0, 0, os.XATTR_CREATE, os.XATTR_REPLACE)),
    )
    def set_attribute(self, data: st.DataObject, attribute: bytes, value: bytes, flags: int) -> None:
        where = self.place(data)
        self.same(
            lambda: self.vault.tree.xattrs.set(where.directory, where.name, attribute, value, flags),
            lambda: os.setxattr(where.plain, attribute, value, flags, follow_symlinks=False),
        )

    @rule(data=st.data(), attribute=ATTRIBUTES)
    def remove_attribute(self, data: st.DataObject, attribute: bytes) -> None:
        where = self.place(data)
        self.same(
            lambda: self.vault.tree.xattrs.remove(where.directory, where.name, attribute),
            lambda: os.removexattr(where.plain, attribute, follow_symlinks=False),
        )

    @rule(data=st.data(), attribute=ATTRIBUTES)
    def get_attribute(self, data: st.DataObject, attribute: bytes) -> None:
        where = self.place(data)
        self.same(
            lambda: self.vault.tree.xattrs.get(where.directory, where.name, attribute),
            lambda: os.getxattr(where.plain, attribute, follow_symlinks=False),
        )

    # ---- what always holds

    @invariant()
    def both_trees_are_the_same(self) -> None:
        self._compare(self.vault.root, self.plain)

    def _compare(self, directory: Directory, plain: bytes) -> None:
        tree = self.vault.tree
        entries = list(tree.list(directory))
        assert sorted(entry.name for entry in entries) == sorted(os.listdir(plain))
        for name, _, kind in entries:
            path = plain + b"/" + name
            mine, expected = tree.stat(directory, name), os.lstat(path)
            assert mine.st.st_mode == expected.st_mode
            assert mine.st.st_nlink == expected.st_nlink
            assert stat.S_IFMT(expected.st_mode) == kind
            attributes = sorted(tree.xattrs.list(directory, name))
            assert attributes == sorted(map(os.fsencode, os.listxattr(path, follow_symlinks=False)))
            for attribute in attributes:
                value = os.getxattr(path, attribute, follow_symlinks=False)
                assert tree.xattrs.get(directory, name, attribute) == value
            if stat.S_ISDIR(kind):
                self._compare(tree.directory(directory, name), path)
                continue
            assert mine.size == expected.st_size
            if stat.S_ISLNK(kind):
                assert tree.symlinks.read(directory, name) == os.readlink(path)
            else:
                assert self.vault.get(name, directory) == Path(os.fsdecode(path)).read_bytes()

    @invariant()
    def nothing_is_left_over(self) -> None:
        """Each long entry has its sidecar, each sidecar its entry; each directory has its record."""
        for path, directories, files in os.walk(self.vault.vault_dir):
            present = {*directories, *files}
            sidecars = {name for name in present if name.endswith(SIDECAR_SUFFIX)}
            long_entries = {name for name in present - sidecars if name.startswith("cryptfs.long.")}
            assert {name.removesuffix(SIDECAR_SUFFIX) for name in sidecars} == long_entries
            assert not [name for name in present if name.startswith(TEMP_PREFIX)]
            assert (RECORD_NAME in present) == (Path(path) != self.vault.vault_dir)

    def teardown(self) -> None:
        try:
            self.vault.close()
        finally:
            shutil.rmtree(self.base)


def test_tree_against_a_plain_directory() -> None:
    run_state_machine_as_test(
        TreeModel,
        settings=settings(
            max_examples=200,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        ),
    )


def test_outcomes_can_differ() -> None:
    """The comparison above tells a missing entry from one in the way."""
    with tempfile.TemporaryDirectory(prefix="vfs-tests-") as base:
        assert outcome(lambda: Path(base, "missing").stat()) == -errno.ENOENT
        assert outcome(lambda: Path(base).mkdir()) == -errno.EEXIST
