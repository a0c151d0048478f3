"""scripts/bench: what is met, what is level, what is not met, and against whom."""

from __future__ import annotations

import pytest
from rich.console import Console

from benchlib import markdown, results, targets
from benchlib.peers import C_PASS_THROUGHS, PEERS
from benchlib.quantities import Unit
from benchlib.results import Entry, Handler, Results
from benchlib.targets import BEST, BULK, GROUPS, TARGETS, C, Standing, at_least, judge
from benchlib.work_mount import IDLE, MOUNT
from benchlib.workloads import WORKLOADS
from tests.project.bench_support import a_row, entry, some_results

WRITE = "write a large file, 1 MiB requests"
SMALL_WRITES = "write a large file, 4 KiB requests"
LIST = "list small files in one directory"


def verdicts(made: results.Results) -> dict[tuple[str, str], targets.Verdict]:
    return {(each.title, each.text): each for each in judge(made)}


def test_a_target_is_against_the_best_of_a_group() -> None:
    """That is the one that we are the least ahead of. Our own pass-through is in no group."""
    row = a_row(
        WRITE, Unit.BYTES, cryptfs=entry(900, 1.0), gocryptfs=entry(300, 3.0), securefs=entry(600, 1.5),
        encfs=Entry(failed="x"), pass_through=entry(1000, 0.5), c_pass_through=entry(500, 1.8),
        c_writeback=entry(1000, 0.91),
    )  # fmt: skip
    found = verdicts(some_results(row))
    best, c = found[(WRITE, ">= 1x of best peer")], found[(WRITE, ">= 0.9x of C pass-through")]
    assert (best.measured, best.whom, best.standing) == (1.5, "securefs", Standing.MET)
    assert (c.measured, c.whom, c.standing) == (0.91, "c-writeback", Standing.MET)


def test_small_writes_have_targets_of_their_own() -> None:
    row = a_row(
        SMALL_WRITES, Unit.BYTES, cryptfs=entry(900, 1.0), gocryptfs=entry(90, 9.9), securefs=entry(90, 4.5)
    )
    found = verdicts(some_results(row))
    assert found[(SMALL_WRITES, ">= 10x of gocryptfs")].standing is Standing.NOT_MET
    assert found[(SMALL_WRITES, ">= 4x of best peer")].standing is Standing.MET
    assert (SMALL_WRITES, ">= 1x of best peer") not in found


@pytest.mark.parametrize(
    ("measured", "rounds", "standing"),
    [
        (1.2, [1.1, 1.2, 1.3], Standing.MET),
        (1.2, [0.9, 1.2, 1.3], Standing.LEVEL),
        (0.8, [0.7, 0.8, 1.0], Standing.LEVEL),
        (0.8, [0.7, 0.8, 0.99], Standing.NOT_MET),
        (0.8, [0.8], Standing.NOT_MET),
        (1.0, [1.0], Standing.MET),
        (1.0, [], Standing.MET),
    ],
)
def test_rounds_on_both_sides_of_the_limit_are_level(
    measured: float, rounds: list[float], standing: Standing
) -> None:
    assert at_least(1.0, measured, rounds) is standing


def test_every_timed_row_is_compared_with_the_best_peer_and_with_c() -> None:
    quantities = [quantity for workload in WORKLOADS for quantity in workload.quantities]
    timed = {quantity.title for quantity in quantities if quantity.unit.is_timed} - {MOUNT}
    for group in GROUPS:
        assert {target.title for target in TARGETS if target.than == group} == timed
    assert {target.title for target in TARGETS} <= {quantity.title for quantity in quantities}
    assert len({quantity.title for quantity in quantities}) == len(quantities), "two have one title"
    assert {target.than for target in TARGETS} <= {"", BEST, C, *PEERS}
    assert set(GROUPS[C]) == set(C_PASS_THROUGHS)


def test_absolute_targets_and_those_that_were_not_measured() -> None:
    found = verdicts(
        some_results(a_row(IDLE, Unit.MEMORY, cryptfs=entry(61, 1.0)), bulk={"1": 400.0, "2": 704.0})
    )
    assert found[(IDLE, "<= 60 MiB")].standing is Standing.NOT_MET
    assert found[(IDLE, "<= 60 MiB")].said == "61.00"
    assert found[(MOUNT, "<= 0.1 s")].standing is Standing.UNKNOWN
    bulk = found[(BULK, ">= 1.75x")]
    assert (bulk.measured, bulk.standing, bulk.said) == (1.76, Standing.MET, "1.76x")


def test_nearly_met_is_not_shown_as_met() -> None:
    found = verdicts(some_results(a_row(LIST, cryptfs=entry(1, 1.0), gocryptfs=entry(1, 0.996))))
    each = found[(LIST, ">= 1x of best peer")]
    assert (each.standing, each.said) == (Standing.NOT_MET, "0.9960x (gocryptfs)")


def test_a_handler_is_compared_with_the_other_tree() -> None:
    made = Results(machine={}, focus="cryptfs", subjects=[])
    made.handlers = [
        Handler(title="create", ours=[6.0, 7.0], theirs=[10.0, 10.0]),
        Handler(title="open", ours=[8.0, 6.0], theirs=[10.0, 10.0]),
        Handler(title="read", ours=[20.0, 20.0], theirs=[10.0, 10.0]),
        Handler(title="write", ours=[20.0]),
    ]
    found = [(each.title, each.standing, each.said) for each in targets.known(made)]
    assert found == [
        ("read", Standing.NOT_MET, "2.00x"),
        ("open", Standing.LEVEL, "0.7000x"),
        ("create", Standing.MET, "0.65x"),
    ]


def behind_and_ahead() -> Results:
    """Two that are not met, one that is level, one that is met."""
    return some_results(
        a_row(LIST, cryptfs=entry(1, 1.0), gocryptfs=entry(1, 0.5)),
        a_row(WRITE, Unit.BYTES, cryptfs=entry(1, 1.0), gocryptfs=entry(1, 2.0), c_writeback=entry(1, 0.3)),
        a_row(
            "delete small files in a tree",
            cryptfs=entry(1, 1.0),
            gocryptfs=Entry(median=1.0, rounds=[1.0, 1.0], ratio=0.9, ratios=[0.8, 1.1]),
        ),
    )


def test_what_is_furthest_behind_stands_first() -> None:
    made = behind_and_ahead()
    found = targets.known(made)
    assert [(each.measured, each.standing) for each in found] == [
        (0.3, Standing.NOT_MET),
        (0.5, Standing.NOT_MET),
        (0.9, Standing.LEVEL),
        (2.0, Standing.MET),
    ]
    lines = list(markdown.lines(made))
    assert lines[2] == f"| {WRITE} | tmpfs | >= 0.9x of C pass-through | 0.30x (c-writeback) | **not met** |"
    assert "targets that were measured: 4; met 1, level 1, not met 2" in lines


def test_the_table_of_targets_says_whether_one_is_missed() -> None:
    console = Console(width=160)
    with console.capture() as captured:
        assert targets.show(some_results(bulk={"1": 1.0, "2": 2.0}), console)
        assert not targets.show(some_results(bulk={"1": 1.0, "2": 1.5}), console)
        level = behind_and_ahead()
        level.places[0].rows = level.places[0].rows[2:]
        assert targets.show(level, console)
    shown = captured.get()
    assert "targets that were measured: 1; met 1" in shown
    assert "not met" in shown and "level" in shown
