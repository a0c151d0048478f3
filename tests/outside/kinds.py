"""Kinds of outside change: what stood there, what the outside actor does, and what shows afterwards."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from cryptfs.core.format.header import HeaderFlag
from soaklib.sealed import replace, replace_with_inode, rewrite
from tests.outside.operations import TAIL, in_child, line_of
from tests.outside.stage import Place, script

OLD, NEW = script("old", 40_000), script("new", 70_000)
SHORT, SAME, OTHERS = script("short", 9_000), script("same", 40_000), script("others", 50_000)
SMALL = script("small", 100)
SURPLUS = 49_152
HEADER = 256

Step = Callable[[Place], object]


@dataclass(frozen=True)
class Kind:
    """A change. before: what the mount sees first.   disturb: the outside actor.   verify: in the end."""

    name: str
    before: Step
    disturb: Step
    verify: Step


# ---- what a program sees


def shows(place: Place, name: str, content: bytes) -> None:
    """A name shows this content in every way to look at it."""
    path = place.shown / name
    assert name in os.listdir(place.shown)
    assert path.stat().st_size == len(content)
    assert path.read_bytes() == content
    fd = os.open(path, os.O_RDONLY)
    try:
        step = 7000
        assert b"".join(os.pread(fd, step, at) for at in range(0, len(content), step)) == content
    finally:
        os.close(fd)
    if content.startswith(b"#!") and path.stat().st_mode & 0o100:
        assert in_child("import subprocess, sys; subprocess.run([sys.argv[1]], check=True)", str(path)) == (
            line_of(content)
        )


def is_gone(place: Place, name: str) -> None:
    """A name is nowhere, and can be made again."""
    path = place.shown / name
    assert name not in os.listdir(place.shown)
    for look in (path.stat, path.read_bytes):
        with pytest.raises(FileNotFoundError):
            look()
    if not place.stage.read_only:
        place.write(name, SMALL)
        shows(place, name, SMALL)


def shows_or_fails(place: Place, name: str, *contents: bytes) -> None:
    """A name gives one of these contents, whole, or an error: never more, less or a mixture."""
    path = place.shown / name
    for _ in range(2):
        try:
            seen = path.read_bytes()
        except OSError:
            continue
        assert seen in contents, f"{len(seen)} bytes, {seen[:40]!r} ... {seen[-20:]!r}"


def _read(place: Place, *names: str) -> None:
    for name in names:
        (place.shown / name).read_bytes()
        (place.shown / name).stat()
    os.listdir(place.shown)


def _planted(**contents: bytes) -> Step:
    def before(place: Place) -> None:
        for name, content in contents.items():
            place.plant(name, content)
        _read(place, *contents)

    return before


def _unseen(**contents: bytes) -> Step:
    """Files of which the mount has heard nothing yet."""

    def before(place: Place) -> None:
        for name, content in contents.items():
            place.plant(name, content)

    return before


def _written(**contents: bytes) -> Step:
    def before(place: Place) -> None:
        if place.stage.read_only:
            _planted(**contents)(place)
            return
        for name, content in contents.items():
            place.write(name, content)
        _read(place, *contents)

    return before


def _none_there(place: Place) -> None:
    assert not (place.shown / "doc").exists()


# ---- the outside actor, on files


def _replaced(content: bytes) -> Step:
    return lambda place: replace(place.cipher("doc"), place.newer("doc", content))


def _in_place(content: bytes, *, block: int = 0, new_epoch: bool = False) -> Step:
    return lambda place: rewrite(
        place.cipher("doc"), place.newer("doc", content, new_epoch=new_epoch), block=block
    )


def _cut(size: Callable[[Place], int]) -> Step:
    return lambda place: os.truncate(place.cipher("doc"), size(place))


def _appended(place: Place) -> None:
    with place.cipher("doc").open("ab") as file:
        file.write(os.urandom(SURPLUS))


def _renamed(place: Place) -> None:
    place.cipher("doc").rename(place.cipher("new name"))


def _swapped(place: Place) -> None:
    doc, other = place.cipher("doc"), place.cipher("other")
    doc.rename(place.backing / ".swap")
    other.rename(doc)
    (place.backing / ".swap").rename(other)


def _inode_reused(place: Place) -> None:
    doc, other = place.cipher("doc"), place.cipher("other")
    freed, raw = doc.stat().st_ino, place.newer("other", NEW)
    doc.unlink()
    replace_with_inode(other, raw, freed)


def _void_header(flags: int) -> Step:
    def disturb(place: Place) -> None:
        target = place.cipher("doc")
        header = place.sealer.header(target.read_bytes())
        header = header.changed(epoch=header.epoch + 1, size=0, size_min=0, flags=flags)
        with target.open("r+b") as file:
            file.write(place.sealer.pack(header))

    return disturb


def _torn_and_seen(place: Place) -> None:
    _planted(doc=OLD)(place)
    raw = place.cipher("doc").read_bytes()
    (place.backing / ".kept").write_bytes(raw)
    replace(place.cipher("doc"), raw[:20_000])
    shows_or_fails(place, "doc", OLD)


def _put_back(place: Place) -> None:
    (place.backing / ".kept").rename(place.cipher("doc"))


# ---- what shows afterwards


def _all(*steps: Step) -> Step:
    def verify(place: Place) -> None:
        for step in steps:
            step(place)

    return verify


def _shows(name: str, content: bytes) -> Step:
    return lambda place: shows(place, name, content)


def _gone(name: str) -> Step:
    return lambda place: is_gone(place, name)


def _damaged(*contents: bytes) -> Step:
    """Contents that may show still; removing works."""

    def verify(place: Place) -> None:
        shows_or_fails(place, "doc", *contents)
        if not place.stage.read_only:
            (place.shown / "doc").unlink()
            is_gone(place, "doc")

    return verify


def _not_cut(place: Place) -> None:
    """Looking and opening take nothing from the disk."""
    length = place.cipher("doc").stat().st_size
    shows_or_fails(place, "doc", b"", OLD)
    if not place.stage.read_only:
        with contextlib.suppress(OSError):
            os.close(os.open(place.shown / "doc", os.O_RDWR))
    shows_or_fails(place, "doc", b"", OLD)
    assert place.cipher("doc").stat().st_size == length, "content was cut from the disk"


def _no_gap(place: Place) -> None:
    """`echo >>` adds to what a header vouches for, or fails."""
    if not place.stage.read_only:
        try:
            with (place.shown / "doc").open("ab") as file:
                file.write(TAIL)
        except OSError:
            return shows_or_fails(place, "doc", SMALL)
        return shows_or_fails(place, "doc", SMALL + TAIL)
    return shows_or_fails(place, "doc", SMALL)


def _truncates(place: Place) -> None:
    """truncate(2) upwards never makes surplus bytes, or zeros over them, part of a file without an error."""
    if not place.stage.read_only:
        try:
            os.truncate(place.shown / "doc", 5000)
        except OSError:
            return shows_or_fails(place, "doc", SMALL)
        return shows_or_fails(place, "doc", SMALL + bytes(4900))
    return shows_or_fails(place, "doc", SMALL)


def _attributes(place: Place) -> None:
    place.cipher("doc").chmod(0o640)
    os.utime(place.cipher("doc"), ns=(10**18, 10**18))


def _has_attributes(place: Place) -> None:
    st = (place.shown / "doc").stat()
    assert (st.st_mode & 0o7777, st.st_mtime_ns) == (0o640, 10**18)


# ---- directories


def _with_directory(place: Place) -> None:
    for name in ("dir", "twin"):
        backing = place.cipher(name)
        place.sealer.new_directory(backing)
        inside = Place(place.stage, f"{place.path}/{name}")
        inside.plant("doc", OLD if name == "dir" else OTHERS)
        inside.plant("only " + name, SMALL)
        _read(inside, "doc")
    os.listdir(place.shown)


def _inside(place: Place, name: str = "dir") -> Place:
    return Place(place.stage, f"{place.path}/{name}")


def _removed_and_restored(place: Place) -> None:
    backing = place.cipher("dir")
    shutil.copytree(backing, place.backing / ".restore")
    raw = _inside(place).newer("doc", NEW)
    shutil.rmtree(backing)
    (place.backing / ".restore").rename(backing)
    replace(_inside(place).cipher("doc"), raw)


def _another_incarnation(place: Place) -> None:
    shutil.rmtree(place.cipher("dir"))
    place.sealer.new_directory(place.cipher("dir"))
    _inside(place).plant("doc", NEW)
    _inside(place).plant("newcomer", SMALL)


def _works_in(name: str, content: bytes, *names: str) -> Step:
    """The directory lists exactly these, the document shows, and things can be made in it."""

    def verify(place: Place) -> None:
        inside = _inside(place, name)
        assert sorted(os.listdir(inside.shown)) == sorted(names)
        shows(inside, "doc", content)
        if not place.stage.read_only:
            inside.write("made here", SMALL)
            (inside.shown / "sub").mkdir()
            assert inside.cipher("sub").is_dir()

    return verify


def _directory_gone(place: Place) -> None:
    assert "dir" not in os.listdir(place.shown)
    with pytest.raises(FileNotFoundError):
        os.listdir(place.shown / "dir")
    if not place.stage.read_only:
        (place.shown / "dir").mkdir()
        assert os.listdir(place.shown / "dir") == []


def _exchanged(place: Place) -> None:
    one, two = place.cipher("dir"), place.cipher("twin")
    one.rename(place.backing / ".swap")
    two.rename(one)
    (place.backing / ".swap").rename(two)
    for each in (one, two):
        place.sealer.was_moved(each)


def _into_another(place: Place) -> None:
    _move_directory(place, _inside(place, "twin").cipher("moved"))


def _move_directory(place: Place, target: Path) -> None:
    place.cipher("dir").rename(target)
    place.sealer.was_moved(target)


def _file_to_directory(place: Place) -> None:
    place.cipher("doc").unlink()
    place.sealer.new_directory(place.cipher("doc"))
    _inside(place, "doc").plant("doc", NEW)


def _directory_to_file(place: Place) -> None:
    shutil.rmtree(place.cipher("dir"))
    place.plant("dir", NEW)


def _chunks(count: int) -> Callable[[Place], int]:
    return lambda place: HEADER + count * place.sealer.geometry.record_size


KINDS = (
    Kind("replaced_by_longer", _planted(doc=OLD), _replaced(NEW), _shows("doc", NEW)),
    Kind("replaced_by_shorter", _planted(doc=OLD), _replaced(SHORT), _shows("doc", SHORT)),
    Kind("replaced_by_as_long", _planted(doc=OLD), _replaced(SAME), _shows("doc", SAME)),
    Kind("replaced_by_empty", _planted(doc=OLD), _replaced(b""), _shows("doc", b"")),
    Kind("empty_replaced", _planted(doc=b""), lambda p: replace(p.cipher("doc"), p.sealer.seal(NEW)),
         _shows("doc", NEW)),
    Kind("written_then_replaced", _written(doc=OLD), _replaced(NEW), _shows("doc", NEW)),
    Kind("replaced_three_times", _planted(doc=OLD), _all(_replaced(SHORT), _replaced(SAME), _replaced(NEW)),
         _shows("doc", NEW)),
    Kind("deleted", _planted(doc=OLD), lambda p: p.cipher("doc").unlink(), _gone("doc")),
    Kind("written_then_deleted", _written(doc=OLD), lambda p: p.cipher("doc").unlink(), _gone("doc")),
    Kind("renamed_over", _planted(doc=OLD, other=OTHERS),
         lambda p: p.cipher("other").rename(p.cipher("doc")), _all(_shows("doc", OTHERS), _gone("other"))),
    Kind("renamed", _planted(doc=OLD), _renamed, _all(_shows("new name", OLD), _gone("doc"))),
    Kind("swapped", _planted(doc=OLD, other=OTHERS), _swapped,
         _all(_shows("doc", OTHERS), _shows("other", OLD))),
    Kind("inode_reused", _planted(doc=OLD, other=OTHERS), _inode_reused,
         _all(_shows("other", NEW), _gone("doc"))),
    Kind("came", _planted(other=OTHERS), lambda p: p.plant("doc", NEW), _shows("doc", NEW)),
    Kind("came_where_none_was", _none_there,
         lambda p: p.plant("doc", NEW), _shows("doc", NEW)),
    Kind("attributes", _planted(doc=OLD), _attributes, _has_attributes),
    Kind("in_place_whole", _planted(doc=OLD), _in_place(NEW), _shows("doc", NEW)),
    Kind("in_place_as_long", _planted(doc=OLD), _in_place(SAME), _shows("doc", SAME)),
    Kind("in_place_shorter", _planted(doc=OLD), _in_place(SHORT), _shows("doc", SHORT)),
    Kind("in_place_blocks", _planted(doc=OLD), _in_place(SAME, block=700), _shows("doc", SAME)),
    Kind("in_place_new_epoch", _planted(doc=OLD), _in_place(SAME, new_epoch=True), _shows("doc", SAME)),
    Kind("written_then_in_place", _written(doc=OLD), _in_place(SAME), _shows("doc", SAME)),
    Kind("appended", _planted(doc=SMALL), _appended, _damaged(SMALL)),
    Kind("appended_to_written", _written(doc=SMALL), _appended, _damaged(SMALL)),
    Kind("appended_then_echo", _planted(doc=SMALL), _appended, _no_gap),
    Kind("appended_then_truncate", _planted(doc=SMALL), _appended, _truncates),
    Kind("appended_unseen", _unseen(doc=SMALL), _appended, _damaged(SMALL)),
    Kind("appended_unseen_then_echo", _unseen(doc=SMALL), _appended, _no_gap),
    Kind("appended_unseen_then_truncate", _unseen(doc=SMALL), _appended, _truncates),
    Kind("cut_unseen", _unseen(doc=OLD), _cut(_chunks(1)), _damaged()),
    Kind("emptied", _planted(doc=OLD), _cut(lambda p: 0), _damaged(b"")),
    Kind("written_then_emptied", _written(doc=OLD), _cut(lambda p: 0), _damaged(b"")),
    Kind("cut_to_header", _planted(doc=OLD), _cut(lambda p: HEADER), _damaged()),
    Kind("cut_in_header", _planted(doc=OLD), _cut(lambda p: 99), _damaged()),
    Kind("cut_to_chunk", _planted(doc=OLD), _cut(_chunks(1)), _damaged()),
    Kind("cut_oddly", _planted(doc=OLD), _cut(lambda p: 30_001), _damaged()),
    Kind("written_then_cut", _written(doc=OLD), _cut(_chunks(1)), _damaged()),
    Kind("torn_copy_put_back", _torn_and_seen, _put_back, _shows("doc", OLD)),
    Kind("void_header", _planted(doc=OLD), _void_header(HeaderFlag.VOID), _not_cut),
    Kind("empty_header", _planted(doc=OLD), _void_header(HeaderFlag.CLEAN), _not_cut),
    Kind("void_header_unseen", _unseen(doc=OLD), _void_header(HeaderFlag.VOID), _not_cut),
    Kind("empty_header_unseen", _unseen(doc=OLD), _void_header(HeaderFlag.CLEAN), _not_cut),
    Kind("directory_restored", _with_directory, _removed_and_restored,
         _works_in("dir", NEW, "doc", "only dir")),
    Kind("directory_made_anew", _with_directory, _another_incarnation,
         _works_in("dir", NEW, "doc", "newcomer")),
    Kind("directory_deleted", _with_directory, lambda p: shutil.rmtree(p.cipher("dir")), _directory_gone),
    Kind("directory_renamed", _with_directory, lambda p: _move_directory(p, p.cipher("moved")),
         _all(_works_in("moved", OLD, "doc", "only dir"), _directory_gone)),
    Kind("directory_moved", _with_directory, _into_another,
         _all(_works_in("twin/moved", OLD, "doc", "only dir"), _directory_gone)),
    Kind("directories_exchanged", _with_directory, _exchanged,
         _all(_works_in("dir", OTHERS, "doc", "only twin"), _works_in("twin", OLD, "doc", "only dir"))),
    Kind("file_became_directory", _planted(doc=OLD), _file_to_directory, _works_in("doc", NEW, "doc")),
    Kind("directory_became_file", _with_directory, _directory_to_file, _shows("dir", NEW)),
)  # fmt: skip
