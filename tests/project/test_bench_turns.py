"""scripts/bench: whoever fails, hangs or dies takes only its own turn with it."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from benchlib import turns
from benchlib.peers import MAKERS
from benchlib.quantities import Sample
from benchlib.rounds import Field, measure
from benchlib.run import Material, Run
from benchlib.subjects import Commands, Mounted, PlainDirectory, Subject
from benchlib.turns import Setting, explain, take_turn
from tests.project.bench_support import TINY, Home, NoDrop, a_workload, material, one_second, setting

pytestmark = pytest.mark.serial

__all__ = ["material", "setting"]  # fixtures


def test_what_was_measured_before_a_failure_is_kept(tmp_path: Path, setting: Setting) -> None:
    def work(run: Run) -> None:
        one_second(run, "first", 5)
        (run.directory / "left behind").write_text("x")
        (run.directory / "missing").read_text()

    home = Home(tmp_path)
    outcome = take_turn(home, a_workload("w", work, "first", "second"), setting)
    assert outcome.samples == {"first": Sample(5, 1.0, 0.01)}
    assert outcome.failure == "No such file or directory (missing)"
    assert list(home.directory.glob("turn*")) == []


def test_a_turn_that_takes_too_long_is_ended(tmp_path: Path, material: Material) -> None:
    def work(run: Run) -> None:
        (run.directory / "pid").write_text(str(os.getpid()))
        one_second(run, "first", 5)
        time.sleep(60)

    home = Home(tmp_path)
    start = time.monotonic()
    pids: list[int] = []
    original = turns._clean

    def remember(directory: Path, outcome: turns.Outcome) -> None:
        pids.append(int((directory / "pid").read_text()))
        original(directory, outcome)

    turns._clean = remember
    try:
        outcome = take_turn(home, a_workload("w", work, "first"), Setting(TINY, material, longest=1.0))
    finally:
        turns._clean = original
    assert outcome.failure == "it took too long"
    assert set(outcome.samples) == {"first"}
    assert time.monotonic() - start < 30
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)


def test_a_process_that_dies_is_a_failure(tmp_path: Path, setting: Setting) -> None:
    outcome = take_turn(Home(tmp_path), a_workload("w", lambda _: os._exit(3), "first"), setting)
    assert outcome.failure == "the work ended without a word"


def test_a_broken_check_of_a_workload_is_a_failure_too(tmp_path: Path, setting: Setting) -> None:
    def work(_: Run) -> None:
        raise AssertionError("3 files are listed of 7")

    outcome = take_turn(Home(tmp_path), a_workload("w", work, "first"), setting)
    assert outcome.failure == "3 files are listed of 7"


def test_explanations_are_one_line() -> None:
    assert explain(OSError(28, "No space left on device")) == "No space left on device (OSError)"
    assert explain(KeyError()) == "KeyError"


class Remounted(Home):
    """Counts how often its mount was taken away and brought back."""

    def __init__(self, place: Path) -> None:
        super().__init__(place)
        self.pid = os.getpid()
        self.calls: list[str] = []

    def stop(self) -> None:
        self.calls.append("stop")

    def start(self) -> None:
        self.calls.append("start")


def test_without_root_a_cold_cache_comes_from_a_remount(tmp_path: Path, material: Material) -> None:
    setting = Setting(TINY, material, 60.0, NoDrop(dropped=False))

    def work(run: Run) -> None:
        run.make_cold()
        one_second(run, "first", 1)

    subject = Remounted(tmp_path)
    outcome = take_turn(subject, a_workload("w", work, "first"), setting)
    assert outcome.failure is None
    assert subject.calls == ["stop", "start"]
    assert outcome.memory > 1 << 20, "the daemon's memory is watched"


def arena_of(place: Path, setting: Setting, *subjects: Subject) -> Field:
    arena = Field(subjects, place, setting)
    arena.open()
    return arena


def test_rounds_begin_with_another_subject_each(tmp_path: Path, setting: Setting) -> None:
    order = tmp_path / "order"

    def work(run: Run) -> None:
        with order.open("a") as file:
            file.write(run.directory.parents[1].name[0])
        one_second(run, "first", 1)

    arena = arena_of(tmp_path, setting, *(PlainDirectory(name) for name in "abc"))
    measure(arena, [a_workload("w", work, "first")], 4)
    assert order.read_text() == "abc" + "bca" + "cab" + "abc"


def test_who_fails_is_not_asked_again_and_the_others_go_on(tmp_path: Path, setting: Setting) -> None:
    asked = tmp_path / "asked"

    def work(run: Run) -> None:
        name = run.directory.parents[1].name[0]
        with asked.open("a") as file:
            file.write(name)
        if name == "b":
            raise OSError(95, "Operation not supported")
        one_second(run, "first", 1)

    after = a_workload("after", lambda run: one_second(run, "second", 2), "second")
    arena = arena_of(tmp_path, setting, PlainDirectory("a"), PlainDirectory("b"))
    advanced: list[int] = []
    cells = measure(arena, [a_workload("w", work, "first"), after], 3, lambda: advanced.append(1))
    assert asked.read_text().count("b") == 1
    assert cells.samples["first"]["a"] == [Sample(1, 1.0, 0.01)] * 3
    assert cells.samples["first"]["b"] == [None] * 3
    assert cells.failures == {"first": {"b": "Operation not supported (OSError)"}}
    assert cells.samples["second"]["b"] == [Sample(2, 1.0, 0.01)] * 3
    assert len(advanced) == 3 * 2 * 2


def test_a_fresh_vault_after_a_failure_is_prepared_again(tmp_path: Path, setting: Setting) -> None:
    prepared = tmp_path / "prepared"

    def prepare(run: Run) -> None:
        (run.prepared / "there").touch()
        with prepared.open("a") as file:
            file.write(".")

    def work(run: Run) -> None:
        assert (run.prepared / "there").exists()
        one_second(run, "first", 1)

    with_preparation = a_workload("w", work, "first")
    with_preparation = type(with_preparation)(
        with_preparation.name, with_preparation.title, work, with_preparation.quantities, prepare=prepare
    )

    def fails(_: Run) -> None:
        raise OSError(5, "Input/output error")

    arena = arena_of(tmp_path, setting, PlainDirectory("a"))
    cells = measure(arena, [with_preparation, a_workload("bad", fails, "second")], 3)
    assert cells.samples["first"]["a"] == [Sample(1, 1.0, 0.01)] * 3
    assert prepared.read_text() == ".."  # once at first, once after the failure, which is not repeated


def test_a_program_that_is_not_there_fails_with_what_to_install(tmp_path: Path, setting: Setting) -> None:
    missing = Mounted("ghostfs", Commands(serve=("no-such-program",), package="ghost-fs"))
    arena = arena_of(tmp_path, setting, missing, PlainDirectory("a"))
    cells = measure(arena, [a_workload("w", lambda run: one_second(run, "first", 1), "first")], 2)
    assert cells.failures["first"] == {
        "ghostfs": "no-such-program is not installed: apt-get install ghost-fs"
    }
    assert cells.samples["first"]["a"] == [Sample(1, 1.0, 0.01)] * 2


@pytest.mark.parametrize(
    ("commands", "reason"),
    [
        (Commands(init=("sh", "-c", "echo no room >&2; exit 3"), serve=("sh",)), "made no vault: no room"),
        (Commands(serve=("sh", "-c", "echo no device >&2; exit 3")), "did not mount: no device"),
    ],
)
def test_a_vault_that_cannot_be_had_fails_with_the_reason(
    commands: Commands, reason: str, tmp_path: Path, setting: Setting
) -> None:
    arena = arena_of(tmp_path, setting, Mounted("badfs", commands))
    assert reason in arena.broken["badfs"]
    assert (
        arena.turn(arena.subjects[0], a_workload("w", lambda _: None, "first")).failure
        == arena.broken["badfs"]
    )


def test_every_peer_says_where_it_comes_from() -> None:
    for name, make in MAKERS.items():
        subject = make()
        assert subject.name == name
        assert subject._commands.package or name == "pass-through"
