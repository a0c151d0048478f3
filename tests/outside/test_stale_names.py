"""A program acts by a name whose file has just been changed outside: nothing else may change or show.

Nothing waits here: what the kernel and the mount remember is as wrong as it can be.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from soaklib.sealed import replace, replace_with_inode
from tests.outside.operations import MADE, OPERATIONS, Operation, handle_of, open_handle, read_all
from tests.outside.stage import Place, Stage, script, until

NAME, OTHER, BYSTANDER = "doc", "other", "bystander"
OLD, NEW, OTHERS = script("old", 40_000), script("new-and-longer", 70_000), script("others", 50_000)
STATES = ("cached", "written", "held")


@dataclass
class Scene:
    """contents: what the name may show, its object of before included.   there: what is under it now."""

    place: Place
    contents: list[bytes]
    there: bytes | None
    handles: list[int] = field(default_factory=list)


def _replaced(place: Place) -> tuple[list[bytes], bytes | None]:
    replace(place.cipher(NAME), place.newer(NAME, NEW))
    return [OLD, NEW], NEW


def _deleted(place: Place) -> tuple[list[bytes], bytes | None]:
    place.cipher(NAME).unlink()
    return [OLD], None


def _renamed_over(place: Place) -> tuple[list[bytes], bytes | None]:
    place.cipher(OTHER).rename(place.cipher(NAME))
    return [OLD, OTHERS], OTHERS


def _inode_reused(place: Place) -> tuple[list[bytes], bytes | None]:
    """The name is deleted, and another file's new version gets its inode number, where that is free."""
    freed = place.cipher(NAME).stat().st_ino
    raw = place.newer(OTHER, script("others-new", 50_000))
    place.cipher(NAME).unlink()
    replace_with_inode(place.cipher(OTHER), raw, freed)
    return [OLD], None


def _inode_reused_and_listed(place: Place) -> tuple[list[bytes], bytes | None]:
    """As before, and then a program looks at the directory: the number shows under the other name."""
    result = _inode_reused(place)
    for entry in os.scandir(place.shown):
        with contextlib.suppress(OSError):
            entry.stat()
    return result


FAULTS: dict[str, Callable[[Place], tuple[list[bytes], bytes | None]]] = {
    "replaced": _replaced,
    "deleted": _deleted,
    "renamed_over": _renamed_over,
    "inode_reused": _inode_reused,
    "inode_reused_and_listed": _inode_reused_and_listed,
}


def _close(fd: int) -> None:
    with contextlib.suppress(OSError):  # its object was changed under it
        os.close(fd)


@contextlib.contextmanager
def scene(stage: Stage, state: str, fault: str) -> Iterator[Scene]:
    """Files that the mount knows as well as it can, and then the fault."""
    place = stage.place()
    fill = place.write if state == "written" else place.plant
    for name, content in ((NAME, OLD), (OTHER, OTHERS), (BYSTANDER, script("bystander"))):
        fill(name, content)
        assert (place.shown / name).read_bytes() == content
    held = [os.open(place.shown / NAME, os.O_RDONLY)] if state == "held" else []
    try:
        contents, there = FAULTS[fault](place)
        yield Scene(place, contents, there, held)
    finally:
        for fd in held:
            _close(fd)


def test_the_disk_gives_inode_numbers_again(ground: Path) -> None:
    """Else the faults below are none."""
    path, other = ground / "freed", ground / "other"
    path.write_bytes(b"one")
    other.write_bytes(b"two")
    freed = path.stat().st_ino
    path.unlink()
    assert replace_with_inode(other, b"three", freed)
    assert other.stat().st_ino == freed
    other.unlink()


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("fault", FAULTS)
def test_an_operation_by_a_stale_name(stage: Stage, fault: str, state: str, operation: Operation) -> None:
    """It acts on the file that is meant, or fails; every other file keeps each byte and attribute."""
    with scene(stage, state, fault) as now:
        place = now.place
        before = place.looks(but=(NAME,))
        own = place.looks().get(NAME)
        try:
            seen = operation.act(place.shown / NAME)
            done = True
        except OSError:
            seen, done = None, False
        while now.handles:  # a file comes to rest with its last handle
            _close(now.handles.pop())
        if seen is not None:
            allowed = [operation.shows(content) for content in now.contents]
            assert seen in allowed, f"it shows {seen[:60]!r}... of {len(seen)} bytes"
        check_result(now, operation, done=done)
        after = place.looks(but=(NAME, MADE))
        changed = [name for name, look in before.items() if after.get(name) != look]
        assert not changed, f"{operation.name} by {NAME!r} changed {changed}"
        if not done and own is not None and operation.effect is not None:
            assert place.content(NAME) == now.there, "it failed, and yet changed the file"


def check_result(now: Scene, operation: Operation, *, done: bool) -> None:
    """What was done is in the vault, and the version from outside is not lost without a word."""
    place = now.place
    if operation.made and done:
        assert until(lambda: place.content(MADE) in now.contents), f"{MADE!r} is no copy of {NAME!r}"
    if operation.effect is None or not done:
        return
    bases = [*now.contents, b""] if operation.creates else now.contents
    results = [operation.effect(base) for base in bases]

    def kept() -> bool:
        return any(place.keeps(result, [NAME]) for result in results)

    assert until(kept), f"what {operation.name} wrote without an error is nowhere"
    if now.there is not None and not place.keeps(operation.effect(now.there), [NAME]):
        assert place.keeps(now.there, [NAME]), "the version from outside is lost"


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_handle_from_before(stage: Stage, fault: str, state: str) -> None:
    """open_by_handle_at gives the object that the handle was made of, its path's new version, or an error."""
    with contextlib.ExitStack() as stack:
        place = stage.place()
        fill = place.write if state == "written" else place.plant
        for name, content in ((NAME, OLD), (OTHER, OTHERS)):
            fill(name, content)
            assert (place.shown / name).read_bytes() == content
        if state == "held":
            stack.callback(_close, os.open(place.shown / NAME, os.O_RDONLY))
        handle = handle_of(place.shown / NAME)
        contents, _ = FAULTS[fault](place)
        before = place.looks(but=(NAME,))
        mountpoint: Path = stage.mount.mountpoint
        with contextlib.suppress(OSError):
            fd = open_handle(handle, mountpoint, os.O_RDWR)
            stack.callback(_close, fd)
            seen = read_all(fd)
            assert seen in contents, f"the handle shows {seen[:60]!r}... of {len(seen)} bytes"
            os.pwrite(fd, b"by the handle", 0)
            os.fsync(fd)
        assert place.looks(but=(NAME,)) == before, "writing by the handle changed another file"
