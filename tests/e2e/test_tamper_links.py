"""Symlinks under names that are not theirs: hard links made in the vault, at rest and under a mount.

The seal knows a symlink by its place. The kernel knows it by its inode, and keeps its target. So what is
verified for one name of a backing inode must not show under another one, whatever is looked at first.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cryptfs.vfs.tree.symlinks import LINKS_DIRECTORY
from soaklib.sealed import Sealer
from tests.e2e.conftest import require_fuse
from tests.e2e.mounting import PASSPHRASE, Mounted, MountSpec, mounted
from tests.outside.stage import until
from tests.support import may_mark_links

SPECS = [MountSpec("fusepy"), MountSpec("native"), MountSpec("native", options="exclusive")]
TARGETS = {"short": "/of/{}", "long": "/" + "long/" * 700 + "of/{}"}  # a long one stands in a file of its own
NAMES = ("one", "two", "three")
ORDERS = {"its own name first": ("one", "two"), "the other name first": ("two", "one")}
DAMAGE = r"ERROR .*: the (symlink target|xattr \S+) does not authenticate"
ATTRIBUTES = "attributes"


class Case:
    """Three symlinks in a directory of their own, each to what says its name."""

    def __init__(self, mount: Mounted, sealer: Sealer, name: str, target: str) -> None:
        self.mount = mount
        self.shown = mount.mountpoint / name
        self.target = target
        self._sealer = sealer
        self.shown.mkdir()
        for each in NAMES:
            (self.shown / each).symlink_to(self.of(each))

    def of(self, name: str) -> str:
        """The target that a name was given."""
        return self.target.format(name)

    def cipher(self, name: str) -> Path:
        """The backing entry of a name."""
        return self._sealer.entry_in(self._sealer.entry(self.shown.name), name)

    def found(self, name: str) -> str | int:
        """The target that a program gets now, or the errno."""
        try:
            return os.readlink(self.shown / name)
        except OSError as error:
            return error.errno or 0

    def hard_link_over(self) -> None:
        """In the vault: the name `two` is now a further name of the symlink `one`."""
        self.cipher("two").unlink()
        os.link(self.cipher("one"), self.cipher("two"), follow_symlinks=False)

    def shows(self, name: str, wanted: str | int, before: str) -> bool:
        """Whether a name shows this in time; with --exclusive the kernel may keep the target of before."""
        if "exclusive" in self.mount.spec.options:
            return self.found(name) in (wanted, before)
        return until(lambda: self.found(name) == wanted)

    def assert_apart(self) -> None:
        """`one` is readable, `two` is damaged, in any order and however often they are looked at."""
        for name in ("one", "two", "two", "one", "two"):
            wanted: str | int = self.of("one") if name == "one" else errno.EIO
            assert self.found(name) == wanted, name
        listed = {entry.name: entry.stat(follow_symlinks=False).st_nlink for entry in os.scandir(self.shown)}
        assert (listed["one"], listed["two"]) == (2, 2)
        assert [self.found(name) for name in NAMES] == [self.of("one"), errno.EIO, self.of("three")]


@pytest.fixture(scope="module", params=SPECS, ids=str)
def scene(request: pytest.FixtureRequest) -> Iterator[dict[str, Case]]:
    """All cases; those that say so were changed before the mount."""
    require_fuse(request.param)
    with mounted(request.param) as mount:
        sealer = Sealer(mount.vault_dir, PASSPHRASE.encode())
        cases = {}
        for kind, target in TARGETS.items():
            for name in (*COLD, *WARM, ATTRIBUTES):
                cases[f"{name}, {kind}"] = Case(mount, sealer, f"{name} {kind}", target)
        mount.unmount()
        for name, case in cases.items():
            if name.partition(",")[0] in COLD:
                case.hard_link_over()
        mount.start()
        mount.allow_log(DAMAGE)
        yield cases
        sealer.close()


# ---- at rest


def looked_at(order: tuple[str, ...]) -> Callable[[Case], None]:
    def check(case: Case) -> None:
        for name in order:
            assert case.found(name) == (case.of("one") if name == "one" else errno.EIO)
        case.assert_apart()
        (case.shown / "two").unlink()
        assert case.found("one") == case.of("one")
        (case.shown / "one").unlink()
        assert os.listdir(case.shown) == ["three"]

    return check


def renamed(case: Case) -> None:
    """The rename seals the link for its new name; the name that was planted gets nothing by it."""
    assert case.found("two") == errno.EIO
    assert case.found("one") == case.of("one")
    (case.shown / "one").rename(case.shown / "new")
    for _ in range(2):
        assert case.found("new") == case.of("one")
        assert case.found("two") == errno.EIO
    assert case.found("one") == errno.ENOENT


def renamed_by_the_false_name(case: Case) -> None:
    assert case.found("one") == case.of("one")
    with pytest.raises(OSError, match="Input/output error"):
        (case.shown / "two").rename(case.shown / "new")
    case.assert_apart()


def renamed_over_the_false_name(case: Case) -> None:
    """For rename(2) these are two names of one file. Nothing happens, or it fails."""
    assert case.found("two") == errno.EIO
    try:
        (case.shown / "one").rename(case.shown / "two")
    except OSError as error:
        assert error.errno in (errno.EIO, errno.ESTALE)
    case.assert_apart()


def linked(case: Case) -> None:
    """A further name takes the binding away, for the true name only."""
    assert case.found("two") == errno.EIO
    os.link(case.shown / "one", case.shown / "more", follow_symlinks=False)
    for _ in range(2):
        assert [case.found(name) for name in ("one", "two", "more")] == [
            case.of("one"),
            errno.EIO,
            case.of("one"),
        ]
    with pytest.raises(OSError, match="Input/output error"):
        os.link(case.shown / "two", case.shown / "again", follow_symlinks=False)


COLD: dict[str, Callable[[Case], None]] = {
    **{name: looked_at(order) for name, order in ORDERS.items()},
    "renamed": renamed,
    "renamed by the false name": renamed_by_the_false_name,
    "renamed over the false name": renamed_over_the_false_name,
    "linked": linked,
}


# ---- under the mount


def changed_after_a_look(order: tuple[str, ...]) -> Callable[[Case], None]:
    """What the kernel knows of both names is true; then one becomes a name of the other's symlink."""

    def check(case: Case) -> None:
        for name in order:
            assert case.found(name) == case.of(name)
        case.hard_link_over()
        assert case.shows("two", errno.EIO, before=case.of("two"))
        assert case.found("one") == case.of("one")
        assert case.found("two") in (errno.EIO, case.of("two"))
        if "exclusive" not in case.mount.spec.options:
            case.assert_apart()

    return check


def a_name_that_others_took(case: Case) -> None:
    """The mount knows a link by the last of its names, and others put an older link there."""
    old = os.readlink(case.cipher("two"))
    stored = case.mount.vault_dir / LINKS_DIRECTORY
    kept = case.mount.scratch / f"targets of {case.shown.name}"
    shutil.copytree(stored, kept)
    (case.shown / "two").unlink()
    os.link(case.shown / "one", case.shown / "two", follow_symlinks=False)
    shutil.copytree(kept, stored, dirs_exist_ok=True)
    case.cipher("two").unlink()
    case.cipher("two").symlink_to(old)
    assert case.found("one") == case.of("one")
    assert case.shows("two", case.of("two"), before=case.of("one"))
    assert case.found("one") == case.of("one")


def vault_copied_by_hard_links(case: Case) -> None:
    """`cp -al`: each symlink has a name outside of the vault, and must come with its own all the same."""
    copy = case.mount.scratch / f"copy of {case.shown.name}"
    copy.mkdir()
    for name in NAMES:
        os.link(case.cipher(name), copy / name, follow_symlinks=False)
    (case.shown / "one").rename(case.shown / "new")
    os.link(case.shown / "two", case.shown / "more", follow_symlinks=False)
    other = case.shown / "directory"
    other.mkdir()
    shutil.move(case.shown / "three", other / "three")
    wanted = {"new": "one", "two": "two", "more": "two", "directory/three": "three"}
    assert {name: case.found(name) for name in wanted} == {name: case.of(old) for name, old in wanted.items()}
    fresh = case.shown.with_name(f"{case.shown.name} moved")
    case.shown.rename(fresh)  # the kernel keeps no target of a path that it has not seen
    assert {name: os.readlink(fresh / name) for name in wanted} == {
        name: case.of(old) for name, old in wanted.items()
    }


WARM: dict[str, Callable[[Case], None]] = {
    **{f"changed, {name}": changed_after_a_look(order) for name, order in ORDERS.items()},
    "a name that others took": a_name_that_others_took,
    "vault copied by hard links": vault_copied_by_hard_links,
}


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("name", COLD)
def test_a_symlink_hard_linked_over_another_at_rest(scene: dict[str, Case], name: str, kind: str) -> None:
    COLD[name](scene[f"{name}, {kind}"])


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("name", WARM)
def test_a_symlink_hard_linked_while_it_is_mounted(scene: dict[str, Case], name: str, kind: str) -> None:
    WARM[name](scene[f"{name}, {kind}"])


# ---- attributes


def values_of(path: Path) -> dict[str, bytes]:
    return {
        name: os.getxattr(path, name, follow_symlinks=False)
        for name in os.listxattr(path, follow_symlinks=False)
    }


def put_values(path: Path, values: dict[str, bytes]) -> None:
    for name, value in values.items():
        os.setxattr(path, name, value, follow_symlinks=False)


@pytest.mark.skipif(not may_mark_links(), reason="only root has attributes on symlinks")
@pytest.mark.parametrize("kind", TARGETS)
def test_attributes_of_symlinks(scene: dict[str, Case], kind: str) -> None:
    """A value goes to another symlink, to a newer seal of its own, and with its symlink to another name."""
    case = scene[f"{ATTRIBUTES}, {kind}"]

    def found(name: str) -> bytes | int:
        try:
            return os.getxattr(case.shown / name, "trusted.note", follow_symlinks=False)
        except OSError as error:
            return error.errno or 0

    for name in NAMES:
        os.setxattr(case.shown / name, "trusted.note", name.encode(), follow_symlinks=False)
    assert [found(name) for name in NAMES] == [b"one", b"two", b"three"]
    old, own = values_of(case.cipher("one")), values_of(case.cipher("two"))
    put_values(case.cipher("two"), old)
    assert [found(name) for name in NAMES] == [b"one", errno.EIO, b"three"]
    put_values(case.cipher("two"), own)
    (case.shown / "one").rename(case.shown / "new")
    (case.shown / "new").rename(case.shown / "one")
    assert [found(name) for name in NAMES] == [b"one", b"two", b"three"]
    put_values(case.cipher("one"), old)
    assert [found(name) for name in NAMES] == [errno.EIO, b"two", b"three"]
    case.cipher("three").rename(case.cipher("two"))
    assert until(lambda: found("two") == errno.EIO)
