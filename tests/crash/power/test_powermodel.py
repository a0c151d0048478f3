"""The power model itself: it yields every state that its rules allow, and none that they forbid."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from cryptfs.storage.libc import RENAME_EXCHANGE
from tests.crash.invault import InVault
from tests.crash.power.powermodel import (
    ROOT,
    CrashImage,
    Mark,
    Names,
    Punch,
    Recording,
    SetLength,
    SyncAll,
    SyncDirectory,
    SyncFile,
    Write,
    crash_images,
    final_tree,
    image_again,
)
from tests.crash.power.recorder import Recorder
from tests.crash.program import Program, Promise
from tests.support import BareVault

OLD = b"o" * 2048
FILE = 1


def recording(*events: object, old: bytes = OLD) -> Recording:
    """One file in the root, and what happens to it."""
    return Recording(files={FILE: old}, entries={(ROOT, "f"): FILE}, events=list(events))  # type: ignore[arg-type]


def contents(what: Recording, **options: int) -> set[bytes]:
    return {image.files[FILE] for image in crash_images(what, exhaustive=True, **options)}


def test_a_write_of_one_sector_is_there_or_not() -> None:
    assert contents(recording(Write(FILE, 700, b"new"))) == {OLD, OLD[:700] + b"new" + OLD[703:]}


def test_a_write_of_several_sectors_tears_between_any() -> None:
    found = contents(recording(Write(FILE, 0, b"n" * 2048)), pieces=0)
    sectors = {tuple(content[at : at + 512] for at in range(0, 2048, 512)) for content in found}
    assert len(sectors) == 16
    assert {sector for image in sectors for sector in image} == {b"n" * 512, b"o" * 512}


def test_pieces_bound_how_it_tears() -> None:
    assert len(contents(recording(Write(FILE, 0, b"n" * 2048)), pieces=1)) == 2
    assert len(contents(recording(Write(FILE, 0, b"n" * 2048)), pieces=3)) == 8


def test_what_was_synced_is_there_and_what_came_after_need_not() -> None:
    what = recording(Write(FILE, 0, b"1"), SyncFile(FILE), Mark("synced"), Write(FILE, 1, b"2"))
    images = list(crash_images(what, exhaustive=True))
    assert {image.files[FILE][:2] for image in images if image.marks} == {b"1o", b"12"}
    assert {image.files[FILE][:2] for image in images if not image.marks} == {b"oo", b"1o"}


def test_a_sync_of_another_file_says_nothing() -> None:
    what = recording(Write(FILE, 0, b"1"), SyncFile(2), Mark("other"))
    assert {i.files[FILE][:1] for i in crash_images(what, exhaustive=True) if i.marks} == {b"o", b"1"}


def test_a_sector_holds_what_it_held_at_some_moment() -> None:
    """The page cache merges writes: the later one is not there without the earlier in its sector."""
    found = contents(recording(Write(FILE, 0, b"1"), Write(FILE, 1, b"2")))
    assert {content[:2] for content in found} == {b"oo", b"1o", b"12"}


def test_the_length_goes_for_itself() -> None:
    found = contents(recording(Write(FILE, 2048, b"n" * 512)))
    assert found == {OLD, OLD + bytes(512), OLD + b"n" * 512}


def test_a_cut_and_what_comes_after_it() -> None:
    """Data within a block that stays may be there before the cut is; behind it nothing survives the cut."""
    what = recording(SetLength(FILE, 1000), Write(FILE, 10, b"n"), SetLength(FILE, 1200))
    found = contents(what)
    assert {len(content) for content in found} == {2048, 1000, 1200}
    assert all(content[1000:] == bytes(200) for content in found if len(content) == 1200)
    assert OLD[:10] + b"n" + OLD[11:] in found


def test_data_in_freed_blocks_comes_with_the_cut_only() -> None:
    what = recording(SetLength(FILE, 0), Write(FILE, 0, b"n" * 4096), old=b"o" * 4096)
    found = contents(what, pieces=1)
    assert found == {b"o" * 4096, b"", bytes(4096), b"n" * 4096}


def test_a_punch_is_there_or_not() -> None:
    what = recording(Punch(FILE, 512, 512))
    assert contents(what) == {OLD, OLD[:512] + bytes(512) + OLD[1024:]}


def names_found(what: Recording) -> set[frozenset[str]]:
    return {frozenset(name for _, name in i.entries) for i in crash_images(what, exhaustive=True)}


def test_a_rename_is_one_change() -> None:
    what = recording(Names(((ROOT, "f", None), (ROOT, "g", FILE))))
    assert names_found(what) == {frozenset("f"), frozenset("g")}


def test_changes_of_names_go_in_order() -> None:
    what = recording(Names(((7, "x", 2),)), Names(((ROOT, "a", 3),)), Names(((7, "x", None), (ROOT, "b", 2))))
    what.entries[ROOT, "d"] = 7
    what.directories.add(7)
    assert names_found(what) == {frozenset("fd" + more) for more in ("", "x", "ax", "ab")}


def test_what_brings_names_to_disk() -> None:
    made = Names(((ROOT, "a", 2),)), Names(((ROOT, "b", 3),))
    for sync, certain in ((SyncFile(2), {"a"}), (SyncDirectory(ROOT), {"a", "b"}), (SyncAll(), {"a", "b"})):
        images = crash_images(recording(*made, sync, Mark("synced")), exhaustive=True)
        names = [{name for _, name in image.entries} for image in images if image.marks]
        assert names
        assert all(certain <= found for found in names)
        assert (sync == SyncFile(2)) == any("b" not in found for found in names)


def test_a_synced_file_may_be_there_before_what_was_made_earlier() -> None:
    what = recording(Names(((ROOT, "b", 3),)), Names(((ROOT, "a", 2),)), SyncFile(2), Mark("synced"))
    names = {
        frozenset(n for _, n in image.entries) for image in crash_images(what, exhaustive=True) if image.marks
    }
    assert names == {frozenset("fa"), frozenset("fab")}


def test_a_lost_directory_takes_its_files_along() -> None:
    what = recording(Names(((ROOT, "d", 2),)), Names(((2, "x", 3),)), SyncFile(3))
    what.directories.add(2)
    found = {frozenset(image.entries) for image in crash_images(what, exhaustive=True)}
    assert frozenset({(ROOT, "f"), (2, "x")}) not in found
    assert frozenset({(ROOT, "f"), (ROOT, "d"), (2, "x")}) in found


def test_too_many_images_are_refused() -> None:
    with pytest.raises(ValueError, match="more than 100"):
        list(crash_images(recording(Write(FILE, 0, bytes(100_000))), exhaustive=True, pieces=0, limit=100))


def test_random_images_are_among_all_and_can_be_had_again() -> None:
    what = recording(Write(FILE, 0, b"n" * 2048), SetLength(FILE, 1500), Write(FILE, 1400, b"m" * 700))
    every = contents(what, pieces=0)
    images = list(crash_images(what, count=300, seed=5))
    assert len(images) > 10
    assert {image.files[FILE] for image in images} <= every
    for image in images[:20]:
        assert any(image_again(what, image, pieces).files == image.files for pieces in (0, 1, 3, 8))


def tree_of(directory: Path) -> dict[str, bytes | str | None]:
    """Paths and contents below a directory."""
    found: dict[str, bytes | str | None] = {}
    for top, directories, files in os.walk(directory):  # not rglob, which follows links on some versions
        for name in (*directories, *files):
            path = Path(top) / name
            relative = str(path.relative_to(directory))
            if path.is_symlink():
                found[relative] = str(path.readlink())
            else:
                found[relative] = None if path.is_dir() else path.read_bytes()
    return found


def recorded(vault_dir: Path, seed: int, steps: int) -> Recording:
    vault = BareVault(vault_dir)
    vault.put(b"a file from before", b"content")
    recorder = Recorder(vault_dir)
    with recorder.on():
        work = InVault(vault, Program(seed, Promise.SYNCED))
        for _ in range(steps):
            work.step()
        work.close()
        vault.close()
    return recorder.recording


@pytest.mark.parametrize("seed", range(6))
def test_the_recorder_misses_nothing(seed: int, tmp_path: Path) -> None:
    """With nothing lost, the model has what the disk has: every call that matters was seen, in order."""
    what = recorded(tmp_path / "vault", seed, 150)
    final_tree(what).write_to(tmp_path / "modelled")
    assert tree_of(tmp_path / "modelled") == tree_of(tmp_path / "vault")


def test_the_recorder_knows_renames_of_all_kinds(tmp_path: Path) -> None:
    vault = BareVault(tmp_path / "vault")
    for name in (b"a", b"b", b"c"):
        vault.put(name, name)
    recorder = Recorder(vault.vault_dir)
    with recorder.on():
        vault.tree.rename(vault.root, b"a", vault.root, b"b", RENAME_EXCHANGE)
        vault.tree.link(vault.root, b"c", vault.root, b"same")
        vault.tree.rename(vault.root, b"c", vault.root, b"same")
        vault.tree.rename(vault.root, b"b", vault.root, b"new")
        vault.close()
    final_tree(recorder.recording).write_to(tmp_path / "modelled")
    assert tree_of(tmp_path / "modelled") == tree_of(tmp_path / "vault")


def test_images_differ_from_each_other(tmp_path: Path) -> None:
    """Enough of what may be lost is lost."""
    what = recorded(tmp_path / "vault", 1, 60)
    images: list[CrashImage] = list(crash_images(what, count=100, seed=random.Random(1).getrandbits(32)))
    assert len({image.digest() for image in images}) > 50
