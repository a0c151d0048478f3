"""What the tests of scripts/bench share: subjects without a mount, tiny sizes, made-up results."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from benchlib.material import make_material
from benchlib.quantities import Quantity, Sample, Unit, Workload
from benchlib.results import Entry, Place, Results, Row
from benchlib.run import Material, Run, Sizes
from benchlib.subjects import PlainDirectory
from benchlib.turns import Setting
from benchlib.users import Rights

MIB = 1 << 20
TINY = Sizes(
    sequential=2 * MIB, small_requests=MIB, random_file=MIB, random=32, regions=6, pages=20, files=7,
    entries=30, rows=40, commits=3, client_files=16, limit=20.0,
    transfer_bytes=MIB, transfer_files=7,
)  # fmt: skip


def tiny_material(place: Path) -> Material:
    """A tree of three files, one of them deep, and a repository made of it."""
    tree = place / "a tree"
    (tree / "deep" / "er").mkdir(parents=True)
    for name in ("one.txt", "deep/two.txt", "deep/er/three.txt"):
        (tree / name).write_text(f"the content of {name}\n")
    made = place / "material"
    made.mkdir()
    return make_material(made, tree, tree)


@pytest.fixture
def material(tmp_path: Path) -> Material:
    return tiny_material(tmp_path)


class NoDrop(Rights):
    """The tests shall not empty the caches of the whole machine. dropped: what the answer is."""

    def __init__(self, *, dropped: bool = True) -> None:
        self.dropped = dropped

    def drop_caches(self) -> bool:
        return self.dropped


@pytest.fixture
def setting(material: Material) -> Setting:
    return Setting(TINY, material, 60.0, NoDrop())


class Home(PlainDirectory):
    """A plain directory that is there at once."""

    def __init__(self, place: Path, name: str = "home") -> None:
        super().__init__(name)
        home = place / name
        home.mkdir()
        self.create(home)


def a_workload(name: str, run: object, *titles: str) -> Workload:
    """One that measures operations."""
    quantities = tuple(Quantity(title, Unit.OPERATIONS) for title in titles)
    return Workload(name, f"about {name}", run, quantities)  # type: ignore[arg-type]


def one_second(run: Run, title: str, amount: float) -> None:
    """Report so many operations in a second, a hundredth of it on the processor."""
    run.report(title, Sample(amount, 1.0, 0.01))


def a_row(title: str, unit: Unit = Unit.OPERATIONS, **subjects: Entry) -> Row:
    """A line of a table; '_' in a name stands for '-'."""
    return Row(
        workload="w",
        heading="a heading",
        title=title,
        note="",
        unit=unit,
        cpu_unit="us/op",
        subjects={name.replace("_", "-"): entry for name, entry in subjects.items()},
    )


def entry(median: float, ratio: float | None = None) -> Entry:
    """Two rounds, both like the median."""
    return Entry(
        median=median, rounds=[median, median], ratio=ratio, ratios=[] if ratio is None else [ratio, ratio]
    )


def some_results(*rows: Row, bulk: dict[str, float] | None = None) -> Results:
    """One place on tmpfs."""
    names = list(rows[0].subjects) if rows else ["cryptfs"]
    place = Place(directory="/somewhere", filesystem="tmpfs", rows=list(rows))
    return Results(
        machine={"date": "today"}, focus="cryptfs", subjects=names, places=[place], bulk=bulk or {}
    )


def git(*words: str, cwd: Path) -> str:
    """What git says."""
    done = subprocess.run(["git", *words], cwd=cwd, capture_output=True, text=True, check=True)
    return done.stdout
