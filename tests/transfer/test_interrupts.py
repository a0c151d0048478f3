"""An interrupt may come between any two steps of a copy, also of its cleaning up: no part is left."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest

import cryptfs
from cryptfs.transfer import crew
from cryptfs.transfer.copying import TreeCopy
from cryptfs.transfer.entrycopy import LARGE, Copied
from cryptfs.transfer.plainside import PlainDirectory, PlainSide
from cryptfs.transfer.shares import Base, Files
from cryptfs.transfer.sides import Side, is_part
from cryptfs.transfer.vaultside import VaultSide
from tests.support import everything_below, pattern
from tests.transfer.trees import seen

STEPS = ("stat", "create", "put_small", "symlink", "mknod", "link", "rename", "unlink", "finish")
"""Of a target, around which interrupts come."""


class Interrupts:
    """Interrupts a side. at: the step, counted from 1.   after: once it is done, not before."""

    def __init__(self, side: Side[Any], at: int, *, after: bool) -> None:
        self.on = True
        self.count = 0
        for name in STEPS:
            setattr(side, name, self._around(getattr(side, name), at, after=after))

    def _around(self, step: Callable[..., Any], at: int, *, after: bool) -> Callable[..., Any]:
        def interrupted(*args: Any, **options: Any) -> Any:
            self.count += self.on
            comes = self.on and self.count == at
            if comes and not after:
                raise KeyboardInterrupt
            try:
                return step(*args, **options)
            finally:
                if comes:
                    raise KeyboardInterrupt

        return interrupted


class CrewOfOne:
    """Does each share at once, in this process. interrupts: none come meanwhile.

    members: nobody leaves them: another process has them, and what it cleans up is not ours.
    """

    interrupts: Interrupts
    members: ClassVar[list[Any]] = []

    def __init__(self, _: int, member: Callable[[], Any]) -> None:
        self.members.append(member())
        self._work = self.members[-1].__enter__()

    def __bool__(self) -> bool:
        return True

    def give(self, share: Any, done: Callable[[Any], None]) -> None:
        self.interrupts.on = False
        result = self._work(share)
        self.interrupts.on = True
        done(result)

    def finish(self) -> None:
        pass

    def close(self) -> None:
        pass

    def stop(self) -> None:
        pass


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """One entry of each kind that is copied in a way of its own."""
    top = tmp_path / "tree"
    (top / "below").mkdir(parents=True)
    (top / "small").write_bytes(b"small")
    (top / "large").write_bytes(pattern(LARGE + 1))
    with (top / "holes").open("wb") as file:
        file.write(b"begin")
        file.truncate(1 << 16)
    (top / "link").symlink_to("small")
    os.mkfifo(top / "pipe")
    (top / "below" / "first").write_bytes(b"of two names")
    os.link(top / "below" / "first", top / "second")
    return top


def fail(path: bytes, error: Exception) -> None:
    raise AssertionError(path) from error


def parts_in_both(vault: cryptfs.Vault, plain: Path) -> list[str]:
    names = [name for _, _, files in vault.walk() for name in files]
    names += [each.name for each in everything_below(plain)]
    return [name for name in names if is_part(os.fsencode(name))]


@pytest.mark.parametrize("with_crew", [False, True], ids=["alone", "with a crew"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("direction", ["import", "export"])
def test_at_each_step(
    direction: str, after: bool, with_crew: bool, tree: Path, opened: cryptfs.Vault, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(crew, "Crew", CrewOfOne)
    plain, root = PlainDirectory.at(str(tmp_path)), opened.tree.root
    outside, inside = PlainSide(plain), VaultSide(opened, fail)
    TreeCopy(outside, inside, fail, Copied()).run(plain, b"tree", root, b"tree", b"")
    for at in range(1, 1000):
        new_name = b"copy %d" % at
        target: Side[Any]
        if direction == "import":
            target = VaultSide(opened, fail)
            base: Base[Any, Any] = Base(plain, b"tree", root, new_name, b"")
            copy: TreeCopy[Any, Any] = TreeCopy(outside, target, fail, Copied(), workers=1)
        else:
            target = PlainSide(plain)
            base = Base(root, b"tree", plain, new_name, b"")
            copy = TreeCopy(inside, target, fail, Copied(), workers=1)
        interrupts = CrewOfOne.interrupts = Interrupts(target, at, after=after)
        if with_crew:
            copy.hire(1, base, contextlib.nullcontext)
        try:
            copy.run(*base)
        except KeyboardInterrupt:
            ended = False
        else:
            ended = True
        assert parts_in_both(opened, tmp_path) == [], f"step {at}"
        if ended:
            break
    assert interrupts.count == at - 1 > 12
    if direction == "import":
        TreeCopy(inside, outside, fail, Copied()).run(root, new_name, plain, new_name, b"")
    assert seen(tmp_path / os.fsdecode(new_name)) == seen(tree)


def refuse_names(target: Side[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """No file gets its name, and an interrupt comes just before its part is removed."""

    def refuse(*_: object, **__: object) -> None:
        Interrupts(target, 1, after=False)
        raise OSError(errno.EIO, "no name")

    monkeypatch.setattr(target, "rename", refuse)


def test_while_a_copy_cleans_up(tree: Path, opened: cryptfs.Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, target = PlainDirectory.at(str(tree)), VaultSide(opened, fail)
    refuse_names(target, monkeypatch)
    copy = TreeCopy(PlainSide(plain), target, fail, Copied(), workers=1)
    with pytest.raises(KeyboardInterrupt):
        copy.run(plain, b"small", opened.tree.root, b"small", b"small")
    assert parts_in_both(opened, tree) == []


def test_before_a_large_file_is_remembered(
    tree: Path, opened: cryptfs.Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(crew, "Crew", CrewOfOne)
    monkeypatch.setattr("cryptfs.transfer.copying._Large", interrupt)
    base = Base(PlainDirectory.at(str(tree)), b"large", opened.tree.root, b"large", b"large")
    copy = TreeCopy(PlainSide(base.source), VaultSide(opened, fail), fail, Copied(), workers=1)
    copy.hire(1, base, contextlib.nullcontext)
    with pytest.raises(KeyboardInterrupt):
        copy.run(*base)
    assert parts_in_both(opened, tree) == []


def test_while_a_worker_cleans_up(tree: Path, opened: cryptfs.Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "Crew", CrewOfOne)
    base = Base(PlainDirectory.at(str(tree)), b".", opened.tree.root, b"", b"")
    target = VaultSide(opened, fail)
    copy = TreeCopy(PlainSide(base.source), target, fail, Copied(), workers=1)
    copy.hire(1, base, contextlib.nullcontext)
    member, work = CrewOfOne.members.pop(), copy._crew._work  # type: ignore[union-attr]
    refuse_names(target, monkeypatch)
    with pytest.raises(KeyboardInterrupt) as raised:
        work(Files([((), True, [b"small"])]))
    assert len(parts_in_both(opened, tree)) == 1
    with contextlib.suppress(KeyboardInterrupt):
        member.__exit__(KeyboardInterrupt, raised.value, None)
    assert parts_in_both(opened, tree) == []
