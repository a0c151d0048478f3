"""scripts/bench: each workload does what it says, tried on a plain directory."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from benchlib import curves, work_amplification, work_data, work_files, work_trees
from benchlib.clients import in_parallel
from benchlib.quantities import Sample, Unit
from benchlib.run import Material, Run
from benchlib.turns import Outcome, Setting, take_turn
from benchlib.workloads import BY_NAME, WORKLOADS
from tests.project.bench_support import MIB, TINY, Home, NoDrop, git, material, setting

__all__ = ["material", "setting"]  # fixtures

IN_CHILDREN = [each for each in WORKLOADS if not each.whole_mount]


class Witness:
    """Looks at the directory whenever something has been measured."""

    def __init__(self, place: Path, material: Material, look: Callable[[Path], object]) -> None:
        place.mkdir()
        self.amounts: dict[str, float] = {}
        self.seen: dict[str, object] = {}
        self.run = Run(place, TINY, material, lambda: 0.0, self._report, backing=place, rights=NoDrop())
        self._look = look

    def _report(self, title: str, sample: Sample) -> None:
        assert title not in self.amounts, "measured twice"
        assert sample.seconds > 0
        self.amounts[title] = sample.amount
        self.seen[title] = self._look(self.run.directory)


def files_below(directory: Path) -> dict[str, int]:
    return {
        str(path.relative_to(directory)): path.stat().st_size
        for path in directory.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("workload", IN_CHILDREN, ids=lambda each: each.name)
def test_every_workload_measures_all_that_it_announces_and_leaves_nothing(
    workload: object, tmp_path: Path, setting: Setting
) -> None:
    workload = BY_NAME[workload.name]  # type: ignore[attr-defined]
    home = Home(tmp_path)
    if workload.prepare is not None:
        assert take_turn(home, workload, setting, prepare=True) == Outcome()
    outcome = take_turn(home, workload, setting)
    assert outcome.failure is None
    if workload.name == "amplification":
        assert outcome.samples == {}, "a plain directory has no daemon"
        return
    assert set(outcome.samples) == {quantity.title for quantity in workload.quantities}
    assert all(sample.amount > 0 and sample.seconds > 0 for sample in outcome.samples.values())
    assert not (home.directory / "turn").exists()


@pytest.mark.parametrize(
    ("where", "name"), [("in one directory", "small-files"), ("in a tree", "small-files-tree")]
)
def test_small_files(
    where: str, name: str, tmp_path: Path, material: Material, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work_files, "FILES_IN_DIRECTORY", 3)
    witness = Witness(tmp_path / "place", material, files_below)
    BY_NAME[name].run(witness.run)
    made = witness.seen[f"make small files {where}"]
    assert isinstance(made, dict)
    assert list(made.values()) == [2048] * 7
    assert len({str(Path(path).parent) for path in made}) == (1 if name == "small-files" else 3)
    renamed = witness.seen[f"rename small files {where}"]
    assert isinstance(renamed, dict)
    assert set(renamed) == {f"{path}, renamed" for path in made}
    assert witness.seen[f"delete small files {where}"] == {}
    assert set(witness.amounts.values()) == {7}


def test_a_loop_stops_at_its_limit_and_counts_what_it_did(tmp_path: Path, material: Material) -> None:
    witness = Witness(tmp_path / "place", material, lambda _: None)
    with witness.run.timed("loop") as meter:
        witness.run._deadline = 0.0
        done = list(witness.run.within(range(100), meter))
    assert done == [0]
    assert witness.amounts == {"loop": 1}


def test_large_files_have_the_size_that_is_counted(tmp_path: Path, material: Material) -> None:
    witness = Witness(tmp_path / "place", material, files_below)
    work_data.sequential(witness.run)
    assert witness.seen["write a large file, 1 MiB requests"] == {"1 MiB": 2 * MIB}
    assert witness.amounts["read a large file, 1 MiB requests"] == 2 * MIB
    assert witness.seen["write a large file, 4 KiB requests"] == {"4 KiB": MIB}
    assert witness.amounts["write a large file, 4 KiB requests"] == MIB


def test_random_access_stays_in_the_file(tmp_path: Path, material: Material) -> None:
    witness = Witness(tmp_path / "place", material, files_below)
    work_data.random_access(witness.run)
    assert set(witness.amounts.values()) == {32}
    assert all(seen == {"random": MIB} for seen in witness.seen.values())


def test_database_pages_are_synced(
    tmp_path: Path, material: Material, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    monkeypatch.setattr(work_data, "_READS", 0.0)
    witness = Witness(tmp_path / "place", material, files_below)
    work_data.database_pages(witness.run)
    assert len(synced) == TINY.pages // 10


def test_a_source_tree_is_unpacked_copied_and_removed(tmp_path: Path, material: Material) -> None:
    witness = Witness(tmp_path / "place", material, lambda place: sorted(files_below(place)))
    work_trees.source_tree(witness.run)
    tree = ["tree/deep/er/three.txt", "tree/deep/two.txt", "tree/one.txt"]
    assert witness.seen["unpack a source tree"] == tree
    assert witness.seen["copy it (cp -a)"] == [path.replace("tree", "copy", 1) for path in tree] + tree
    assert witness.seen["remove it (rm -r)"] == tree
    assert set(witness.amounts.values()) == {3}


def test_a_file_that_came_back_changed_fails_the_check(tmp_path: Path, material: Material) -> None:
    material.sums.write_text(material.sums.read_text().replace("one.txt", "deep/two.txt"))
    witness = Witness(tmp_path / "place", material, lambda _: None)
    with pytest.raises(RuntimeError, match="md5sum: "):
        work_trees.source_tree(witness.run)


def test_the_reason_of_a_program_is_its_first_error() -> None:
    stderr = b"Cloning\nerror: unable to create file x\nfatal: unable to checkout\nand retry\n"
    assert work_trees.complaint(stderr) == "error: unable to create file x"
    assert work_trees.complaint(b"one\ntwo\n") == "two"
    assert work_trees.complaint(b"") == ""


def test_a_repository_is_cloned_whole(tmp_path: Path, material: Material) -> None:
    witness = Witness(
        tmp_path / "place", material, lambda place: git("status", "--porcelain", cwd=place / "clone")
    )
    work_trees.repository(witness.run)
    assert witness.seen["clone a repository (git clone)"] == ""
    assert git("log", "--format=%s", cwd=tmp_path / "place" / "clone").strip() == "the tree"


def test_rows_are_inserted_in_both_ways(tmp_path: Path, material: Material) -> None:
    witness = Witness(tmp_path / "place", material, lambda _: None)
    work_trees.database(witness.run)
    connection = sqlite3.connect(tmp_path / "place" / "database")
    assert connection.execute("select count(*) from notes").fetchone() == (TINY.commits + TINY.rows,)
    connection.close()


def test_a_huge_directory_is_made_once_and_listed(tmp_path: Path, material: Material) -> None:
    witness = Witness(tmp_path / "place", material, lambda _: None)
    witness.run.prepared = tmp_path / "prepared"
    witness.run.prepared.mkdir()
    work_files.make_many(witness.run)
    assert len(list((witness.run.prepared / "many").iterdir())) == TINY.entries
    work_files.list_many(witness.run)
    assert set(witness.amounts.values()) == {TINY.entries}


def test_clients_all_work_and_are_all_counted(tmp_path: Path, material: Material) -> None:
    witness = Witness(tmp_path / "place", material, files_below)
    work_files.clients(witness.run)
    assert witness.amounts == {
        "1 client with small files": 5 * 16,
        "4 clients with small files": 5 * 16,
        "16 clients with small files": 5 * 16,
    }
    assert all(seen == {} for seen in witness.seen.values())


def test_what_one_client_meets_reaches_the_parent() -> None:
    def work(number: int) -> float:
        if number == 2:
            raise FileNotFoundError(2, "No such file or directory")
        return number

    with pytest.raises(ChildProcessError, match="No such file"):
        in_parallel(3, work)
    done, seconds = in_parallel(3, float)
    assert (sorted(done), seconds > 0) == ([0, 1, 2], True)


def test_clients_start_together_after_they_are_prepared(tmp_path: Path) -> None:
    ready: list[int] = []
    in_parallel(
        3,
        lambda _: 0.0,
        prepare=lambda number: (tmp_path / str(number)).touch(),
        start=lambda: ready.append(len(list(tmp_path.iterdir()))),
    )
    assert ready == [3]


@pytest.mark.parametrize("spec", curves.SPECS, ids=lambda spec: spec.name)
def test_curves_have_a_point_for_each_size(
    spec: curves.CurveSpec, tmp_path: Path, material: Material, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(curves, "_MOMENT", 0.01)
    monkeypatch.setattr(curves, "_PLACES", 5)
    monkeypatch.setattr(curves, "_PROBES", 5)
    witness = Witness(tmp_path / "place", material, lambda _: None)
    points = spec.points[:2]
    outcome = Outcome()
    witness.run.report = lambda title, sample: outcome.samples.update({title: sample})
    spec.run(witness.run, points)
    for axis in spec.axes:
        found = curves.points_of(outcome, axis)
        assert [x for x, _ in found] == list(points)
        assert all(y > 0 for _, y in found)


def test_big_points_come_only_when_asked_for() -> None:
    spec = next(each for each in curves.SPECS if each.name == "directory-size")
    assert max(spec.chosen(1.0, big=False)) == 10_000
    assert max(spec.chosen(1.0, big=True)) == 1_000_000
    assert spec.chosen(0.0, big=False) == [10, 100]
    assert max(each.points[-1] for each in curves.SPECS) == 100 << 30


def test_who_makes_no_holes_is_not_asked_for_a_large_one(
    tmp_path: Path, material: Material, monkeypatch: pytest.MonkeyPatch
) -> None:
    witness = Witness(tmp_path / "place", material, lambda _: None)
    sizes = []

    def truncate(fd: int, size: int) -> None:
        sizes.append(size)
        os.write(fd, b"x" * size)

    monkeypatch.setattr(os, "truncate", truncate)
    with pytest.raises(RuntimeError, match="it makes no holes: 1 MiB were written for 1 MiB"):
        curves.sparse_size(witness.run, [MIB, 100 << 30])
    assert sizes == [MIB]


def test_units_of_axes_are_rates() -> None:
    assert {axis.unit for spec in curves.SPECS for axis in spec.axes} == {Unit.BYTES, Unit.OPERATIONS}


def test_bytes_written_are_counted_until_the_last_is_in_its_place(
    tmp_path: Path, material: Material, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A made-up daemon writes everything three times, and a constant amount later."""
    monkeypatch.setattr(work_amplification, "_QUIET", 0.12)
    monkeypatch.setattr(os, "fsync", lambda fd: late.append(time.monotonic() + 0.06))
    late: list[float] = []
    counted = 0
    original = os.pwrite

    def pwrite(fd: int, content: bytes, place: int) -> int:
        nonlocal counted
        counted += 3 * len(content)
        return original(fd, content, place)

    monkeypatch.setattr(os, "pwrite", pwrite)
    witness = Witness(tmp_path / "place", material, lambda _: None)
    # Once in each pass, and so as much for each byte.
    extra = TINY.regions * work_amplification.PIECE
    witness.run.written = lambda: counted + extra * sum(moment <= time.monotonic() for moment in late)
    work_amplification.amplification(witness.run)
    assert witness.amounts == {work_amplification.title(hits): 4.0 for hits in (1, 4, 16)}


def test_every_place_of_a_chunk_is_hit_in_turn(
    tmp_path: Path, material: Material, monkeypatch: pytest.MonkeyPatch
) -> None:
    hits: list[int] = []
    path = tmp_path / "file"
    path.write_bytes(bytes(TINY.regions * work_amplification.REGION))
    monkeypatch.setattr(os, "pwrite", lambda fd, content, place: hits.append(place))
    work_amplification._overwrite(path, TINY.regions, 16)
    places = range(0, TINY.regions * work_amplification.REGION, work_amplification.PIECE)
    assert sorted(hits) == sorted([*places] * 4)


def test_bytes_that_are_not_seen_are_a_failure(tmp_path: Path, material: Material) -> None:
    witness = Witness(tmp_path / "place", material, lambda _: None)
    witness.run.written = lambda: 0
    with pytest.raises(RuntimeError, match=r"only 0\.00 bytes for each byte"):
        work_amplification.amplification(witness.run)


def test_without_a_daemon_nothing_is_counted(tmp_path: Path, material: Material) -> None:
    witness = Witness(tmp_path / "place", material, lambda _: None)
    work_amplification.amplification(witness.run)
    assert witness.amounts == {}
    assert list(witness.run.directory.iterdir()) == []
