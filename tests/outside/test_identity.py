"""Which file a name and a handle mean: numbers are used again, files move, somebody reads for long."""

from __future__ import annotations

import contextlib
import os

import pytest

from soaklib.sealed import replace
from tests.outside.stage import CONFLICT, KEPT, Place, Stage, script, until

ALLOWED = (*KEPT,)

OLD, NEW, MINE = script("old", 70_000), script("from outside", 50_000), script("mine", 300)
TRIED_NAMES = 60
HEAD = b"#" * 5000


def _make_with_inode(place: Place, inode: int) -> tuple[str, int]:
    """Make files on the mount until one has a backing inode number; returns its name and an open handle."""
    for number in range(TRIED_NAMES):
        name = f"made{number}"
        fd = os.open(place.shown / name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        if place.cipher(name).stat().st_ino == inode:
            return name, fd
        os.close(fd)
    raise AssertionError(f"none of {TRIED_NAMES} new files got the number that had become free")


def test_a_new_file_with_a_used_number_is_not_taken_for_the_old_one(stage: Stage) -> None:
    """Somebody deletes a file that the kernel knows; the next one that is made here gets its number."""
    place = stage.place()
    freed = place.plant("doc", OLD).stat().st_ino
    assert (place.shown / "doc").read_bytes() == OLD
    place.cipher("doc").unlink()
    name, fd = _make_with_inode(place, freed)
    try:
        assert os.fstat(fd).st_size == 0
        os.pwrite(fd, MINE, 0)
        assert os.fstat(fd).st_size == len(MINE)
        assert os.pread(fd, len(OLD), 0) == MINE
    finally:
        os.close(fd)
    assert (place.shown / name).read_bytes() == MINE


def test_a_name_does_not_follow_a_file_that_somebody_moves(stage: Stage) -> None:
    """The new name is looked up, and at once the old one is written to: it is a new file, or an error."""
    place = stage.place()
    place.plant("doc", OLD)
    assert (place.shown / "doc").read_bytes() == OLD
    place.cipher("doc").rename(place.cipher("moved"))
    assert (place.shown / "moved").read_bytes() == OLD
    with contextlib.suppress(FileNotFoundError):
        fd = os.open(place.shown / "doc", os.O_WRONLY | os.O_APPEND)
        os.write(fd, MINE)
        os.close(fd)
    assert (place.shown / "moved").read_bytes() == OLD
    assert until(lambda: place.content("moved") == OLD)


@pytest.mark.parametrize("flags", [os.O_TRUNC, 0], ids=["truncate", "keep"])
def test_a_known_file_that_comes_under_a_free_name_is_opened_with_its_size(stage: Stage, flags: int) -> None:
    """The kernel knows the file by another name, and has been told that this one is free."""
    place = stage.place()
    place.plant("doc", OLD)
    assert (place.shown / "doc").read_bytes() == OLD
    assert not (place.shown / "free").exists()
    place.cipher("doc").rename(place.cipher("free"))
    fd = os.open(place.shown / "free", os.O_RDWR | os.O_CREAT | flags, 0o600)
    try:
        os.pwrite(fd, MINE, 0)
    finally:
        os.close(fd)
    wanted = MINE if flags else MINE + OLD[len(MINE) :]
    assert (place.shown / "free").read_bytes() == wanted
    assert until(lambda: place.content("free") == wanted)


@pytest.mark.parametrize("kind", ["overwrite", "append"])
def test_what_a_program_closed_is_kept_while_another_reads(stage: Stage, kind: str) -> None:
    """A file is replaced while it is written to. The reader's handle may stay for days."""
    place = stage.place()
    place.plant("doc", OLD)
    os.setxattr(place.shown / "doc", "user.mark", b"of doc")
    reader = os.open(place.shown / "doc", os.O_RDONLY)
    try:
        writer = os.open(place.shown / "doc", os.O_RDWR)
        wanted = HEAD + OLD[len(HEAD) :] if kind == "overwrite" else OLD + HEAD
        os.pwrite(writer, HEAD, 0 if kind == "overwrite" else len(OLD))
        replace(place.cipher("doc"), place.sealer.seal(NEW))
        os.close(writer)
        assert until(lambda: place.keeps(wanted, [])), "what the program wrote is nowhere"
        assert place.content("doc") == NEW
        (kept,) = place.names() - {"doc"}
        assert os.getxattr(place.shown / kept, "user.mark") == b"of doc"
    finally:
        os.close(reader)


def test_what_was_replaced_long_after_it_was_closed_does_not_come_back(stage: Stage) -> None:
    """It was there for everybody to see. Its reader goes last, when even the name is free."""
    place = stage.place()
    place.plant("doc", OLD)
    reader = os.open(place.shown / "doc", os.O_RDONLY)
    try:
        with (place.shown / "doc").open("r+b") as writer:
            writer.write(HEAD)
        wanted = HEAD + OLD[len(HEAD) :]
        assert until(lambda: _holds(place, wanted)), (
            "what was closed is not in its place while somebody reads"
        )
        replace(place.cipher("doc"), place.sealer.seal(NEW))
        assert until(lambda: (place.shown / "doc").read_bytes() == NEW)
        (place.shown / "doc").unlink()
    finally:
        os.close(reader)
    assert not until(lambda: bool(place.names()), 0.5), place.names()
    assert not [name for name in os.listdir(place.shown) if CONFLICT.search(name)]


@pytest.mark.parametrize("held", [False, True])
def test_what_a_program_removes_does_not_come_back(stage: Stage, *, held: bool) -> None:
    """It was written to, replaced and then removed here by its name."""
    place = stage.place()
    place.plant("doc", OLD)
    fd = os.open(place.shown / "doc", os.O_RDWR)
    os.pwrite(fd, HEAD, 0)
    os.fsync(fd)
    if not held:
        os.close(fd)
    replace(place.cipher("doc"), place.sealer.seal(NEW))
    (place.shown / "doc").unlink()
    if held:
        os.close(fd)
    # What had been kept beside it before it was removed may be there.
    assert not until(lambda: "doc" in place.names(), 0.5), place.names()


def _holds(place: Place, wanted: bytes) -> bool:
    """Whether the backing file has all of a content, be it closed or not."""
    return place.sealer.content(place.cipher("doc").read_bytes()) == wanted
