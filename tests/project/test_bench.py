"""scripts/bench: its arithmetic, its tables, its files, its command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from benchlib import machine, markdown, plots, report, results
from benchlib.bulk import measure_bulk
from benchlib.cpassthrough import build
from benchlib.options import parse, sizes_of, workloads_of
from benchlib.peers import PEERS, chosen
from benchlib.quantities import GIB, MIB, Sample, Unit
from benchlib.results import Curve, Entry
from benchlib.rounds import Cells
from benchlib.run import Sizes
from benchlib.statistics import Figure, Ratio, cpu_cost, figure, ratio, shown, speed
from benchlib.turns import Outcome
from benchlib.workloads import BY_NAME, WORKLOADS
from tests.project.bench_support import a_row, a_workload, entry, some_results

ROOT = Path(__file__).parents[2]


def the_figure(*values: float | None) -> Figure:
    return Figure(values, values, ())


# ---- arithmetic


@pytest.mark.parametrize(
    ("unit", "sample", "value", "cost"),
    [
        (Unit.BYTES, Sample(GIB, 2.0, 1.5), GIB / 2e6, 1.5),
        (Unit.BYTES, Sample(GIB / 2, 2.0, 1.5), GIB / 4e6, 3.0),
        (Unit.OPERATIONS, Sample(1000, 0.5, 0.1), 2000.0, 100.0),
        (Unit.SECONDS, Sample(700, 0.5, 0.1), 0.5, 0.1),
    ],
)
def test_what_is_shown_of_a_sample(unit: Unit, sample: Sample, value: float, cost: float) -> None:
    assert shown(unit, sample) == pytest.approx(value)
    assert cpu_cost(unit, sample) == pytest.approx(cost)


def test_more_speed_is_always_better() -> None:
    assert speed(Unit.BYTES, Sample(2 * GIB, 1, 0)) > speed(Unit.BYTES, Sample(GIB, 1, 0))
    assert speed(Unit.SECONDS, Sample(1, 0.5, 0)) == 2.0
    assert speed(Unit.MEMORY, Sample(20 * MIB, 1, 0)) == 2 * speed(Unit.MEMORY, Sample(40 * MIB, 1, 0))
    assert shown(Unit.MEMORY, Sample(20 * MIB, 1, 0)) == 20
    assert speed(Unit.FACTOR, Sample(2.5, 1, 0)) == 2 * speed(Unit.FACTOR, Sample(5, 1, 0))
    assert shown(Unit.FACTOR, Sample(2.5, 1, 0)) == 2.5
    assert [unit for unit in Unit if not unit.is_timed] == [Unit.MEMORY, Unit.FACTOR]


def test_the_median_and_half_the_range() -> None:
    found = the_figure(14.0, 8.0, 10.0)
    assert found.median == 10.0
    assert found.spread == pytest.approx(0.3)


def test_a_round_that_failed_does_not_count() -> None:
    found = figure(Unit.OPERATIONS, [Sample(10, 1, 0), None, Sample(30, 1, 0)])
    assert found is not None
    assert found.values == (10.0, None, 30.0)
    assert found.median == 20.0
    assert figure(Unit.OPERATIONS, [None, None]) is None


def test_ratios_are_of_medians_and_within_rounds() -> None:
    """The best round of one and the worst of another are not compared."""
    found = ratio(the_figure(10.0, 20.0, 60.0), the_figure(5.0, 20.0, 40.0))
    assert found == Ratio(1.0, (2.0, 1.0, 1.5))
    assert (found.lowest, found.highest) == (1.0, 2.0)


def test_ratios_leave_out_rounds_that_only_one_has() -> None:
    assert ratio(the_figure(10.0, 20.0), the_figure(5.0, None)) == Ratio(2.0, (2.0,))
    assert ratio(the_figure(10.0), the_figure(None)) is None


def test_sizes_are_scaled_and_the_limit_is_not() -> None:
    made = Sizes().scaled(0.01)
    assert (made.files, made.sequential) == (100, 10 * MIB)
    assert (made.limit, made.regions) == (Sizes().limit, Sizes().regions)
    least = Sizes().scaled(0)
    assert (least.files, least.sequential) == (4, MIB)


def test_bulk_encryption_is_measured_on_one_thread_and_two() -> None:
    found = measure_bulk(1 << 20, repeat=1)
    assert set(found) == {"1", "2"}
    assert all(rate > 0 for rate in found.values())


# ---- from cells to the file


def test_rows_have_figures_ratios_and_failures(tmp_path: Path) -> None:
    workload = a_workload("work", None, "make", "break")
    cells = Cells()
    for number, (ours, theirs) in enumerate([(10.0, 5.0), (30.0, 10.0)]):
        cells.add(
            workload, "cryptfs", Outcome({"make": Sample(ours, 1, 0), "break": Sample(1, 1, 0)}), number
        )
        cells.add(workload, "encfs", Outcome({"make": Sample(theirs, 1, 0)}, "it broke"), number)
    rows = results.rows_of(cells, [workload], ["cryptfs", "encfs"], "cryptfs")
    made, broken = rows
    assert made.subjects["encfs"].rounds == [5.0, 10.0]
    assert made.subjects["encfs"].ratios == [2.0, 3.0]
    assert made.subjects["encfs"].ratio == pytest.approx(20 / 7.5, rel=1e-4)
    assert made.subjects["cryptfs"].ratio == 1.0
    assert broken.subjects["encfs"].median is None
    assert broken.subjects["encfs"].failed == "it broke"
    assert broken.subjects["cryptfs"].failed is None


def test_who_fails_in_the_second_round_keeps_the_first() -> None:
    workload = a_workload("work", None, "make")
    cells = Cells()
    cells.add(workload, "encfs", Outcome({"make": Sample(5, 1, 0)}), 0)
    cells.add(workload, "encfs", Outcome(failure="died"), 1)
    (row,) = results.rows_of(cells, [workload], ["encfs"], "cryptfs")
    assert row.subjects["encfs"] == Entry(median=5.0, rounds=[5.0, None], failed="died")


def test_a_workload_measures_only_what_it_announces() -> None:
    with pytest.raises(KeyError, match="does not announce 'other'"):
        Cells().add(a_workload("work", None, "make"), "plain", Outcome({"other": Sample(1, 1, 0)}), 0)


def test_the_file_has_the_shape_that_is_read_back(tmp_path: Path) -> None:
    made = some_results(
        a_row("make", cryptfs=entry(10, 1.0), encfs=Entry(failed="it broke")), bulk={"1": 1.0, "2": 2.0}
    )
    made.curves = [
        Curve(name="depth", title="t", x_label="x", y_label="y", filesystem="tmpfs", points={"a": [(1, 2)]})
    ]
    results.save(made, tmp_path / "file.json")
    raw = json.loads((tmp_path / "file.json").read_text())
    assert raw["format"] == results.FORMAT
    (row,) = raw["places"][0]["rows"]
    assert row["unit"] == "1/s"
    assert row["subjects"]["cryptfs"] == {
        "median": 10.0,
        "rounds": [10.0, 10.0],
        "ratio": 1.0,
        "ratios": [1.0, 1.0],
    }
    assert row["subjects"]["encfs"] == {"failed": "it broke"}
    assert raw["curves"][0]["points"] == {"a": [[1.0, 2.0]]}
    assert results.load(tmp_path / "file.json") == made


def test_a_file_of_another_format_is_refused(tmp_path: Path) -> None:
    made = some_results(a_row("make", cryptfs=entry(10, 1.0)))
    made.format = 1
    results.save(made, tmp_path / "file.json")
    with pytest.raises(ValueError, match="has format 1"):
        results.load(tmp_path / "file.json")


# ---- tables


def shown_text(made: results.Results) -> str:
    console = Console(width=160)
    with console.capture() as captured:
        report.show(made, console)
    return captured.get()


def test_the_table_shows_rates_ratios_and_failures() -> None:
    text = shown_text(
        some_results(
            a_row(
                "make files",
                cryptfs=entry(12_000, 1.0),
                gocryptfs=entry(8_000, 1.5),
                encfs=Entry(failed="no room"),
            )
        )
    )
    assert "12.0 k/s" in text and "8,000 /s" in text
    assert "x1.50 (1.50-1.50)" in text
    assert "failed: encfs: make files: no room" in text


def test_the_same_as_markdown() -> None:
    made = some_results(
        a_row(
            "list it (ls -lR)",
            plain=entry(90_000, 0.1),
            cryptfs=entry(12_000, 1.0),
            gocryptfs=entry(8_000, 1.5),
            encfs=Entry(failed="no room"),
        )
    )
    text = "\n".join(markdown.lines(made))
    for table in text.split("\n\n"):
        columns = {line.count("|") for line in table.splitlines() if line.startswith("|")}
        assert len(columns) <= 1
    assert "| list it (ls -lR) | 12.0 k/s | 90.0 k/s, **0.10**" in text
    assert "8,000 /s, **1.50** (1.50-1.50)" in text
    assert "| list it (ls -lR) | tmpfs | >= 1x of best peer | 1.50x (gocryptfs) | met |" in text
    assert "targets that were measured: 1; met 1, level 0, not met 0" in text
    assert "Failed: encfs: list it (ls -lR): no room" in text


def test_a_long_reason_keeps_both_ends() -> None:
    assert report.shortened("too long: " + "x" * 500 + ": no room").startswith("too long: xxx")
    assert report.shortened("too long: " + "x" * 500 + ": no room").endswith("xxx: no room")
    assert report.shortened("short") == "short"


def test_what_was_not_asked_for_is_no_failure() -> None:
    text = shown_text(some_results(a_row("mount", cryptfs=entry(1, 1.0), plain=Entry(failed="not measured"))))
    assert "failed" not in text


@pytest.mark.parametrize(
    ("unit", "value", "text"),
    [
        (Unit.BYTES, 1234.5, "1,234 MB/s"),
        (Unit.OPERATIONS, 950, "950 /s"),
        (Unit.OPERATIONS, 45_600, "45.6 k/s"),
        (Unit.OPERATIONS, 456_000, "456 k/s"),
        (Unit.SECONDS, 0.0123, "12 ms"),
        (Unit.SECONDS, 1.239, "1.24 s"),
        (Unit.MEMORY, 59.6, "60 MiB"),
        (Unit.FACTOR, 8.256, "8.26"),
    ],
)
def test_values_as_a_person_reads_them(unit: Unit, value: float, text: str) -> None:
    assert report.value_text(unit, value) == text


# ---- plots


def test_bars_and_curves_are_drawn(tmp_path: Path) -> None:
    made = some_results(a_row("make files", cryptfs=entry(10, 1.0), gocryptfs=entry(5, 2.0)))
    curve = Curve(
        name="depth",
        title="stat, cold",
        x_label="directories",
        y_label="1/s",
        filesystem="tmpfs",
        points={"cryptfs": [(1, 10), (2, 9)], "encfs": []},
    )
    made.curves = [curve]
    written = plots.draw(made, tmp_path / "plots")
    assert [path.name for path in written] == ["peers-tmpfs.svg", "depth-tmpfs.svg"]
    bars, lines = (path.read_text() for path in written)
    assert "make files" in bars and "against gocryptfs" in bars
    assert "stat, cold" in lines
    again = plots.draw(made, tmp_path / "again")
    assert again[0].read_text() == bars, "the same figures give the same file"


@pytest.mark.parametrize(
    ("value", "binary", "text"),
    [
        (512, True, "512 B"),
        (64 << 20, True, "64 MiB"),
        (100 << 30, True, "100 GiB"),
        (10_000, False, "10 k"),
        (16, False, "16"),
    ],
)
def test_ticks_of_an_axis(value: float, binary: bool, text: str) -> None:
    assert plots.quantity_text(value, binary=binary) == text


# ---- the machine and the command line


def test_processor_time_and_memory_of_this_process() -> None:
    before = machine.cpu_seconds(os.getpid())
    sum(range(3_000_000))
    assert machine.cpu_seconds(os.getpid()) >= before > 0
    now, highest = machine.resident_bytes(os.getpid())
    assert 0 < now <= highest


def test_the_type_of_a_filesystem() -> None:
    assert machine.filesystem_of(Path("/proc/self")) == "proc"


def test_quick_is_one_round_of_little_on_tmpfs() -> None:
    options = parse(["--quick"])
    assert (options.rounds, [str(each) for each in options.dir]) == (1, ["/dev/shm"])
    assert sizes_of(options).files < 1000
    assert sizes_of(options).limit < 1
    assert workloads_of(options) == list(WORKLOADS)


def test_what_is_said_wins() -> None:
    options = parse(
        ["--quick", "--rounds", "4", "--scale", "0.5", "--limit", "2", "--dir", "/x", "--dir", "/y"]
    )
    assert (options.rounds, len(options.dir)) == (4, 2)
    assert (sizes_of(options).files, sizes_of(options).limit) == (5000, 2.0)


def test_workloads_can_be_chosen() -> None:
    assert workloads_of(parse(["--workload", "git"])) == [BY_NAME["git"]]
    assert workloads_of(parse(["--curves", "depth"])) == []
    needed = {each.name for each in workloads_of(parse(["--targets"]))}
    assert {"small-files", "large-files", "sqlite", "mount"} <= needed
    assert "amplification" not in needed


@pytest.mark.parametrize("words", [["--curves", "nonsense"], ["--focus", "other"], ["--peer", "other"]])
def test_wrong_command_lines(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(words)
    assert caught.value.code == 2
    assert words[1] in capsys.readouterr().err


def test_subjects_can_be_chosen(tmp_path: Path) -> None:
    def names(variants: list[str], others: list[str] | None) -> list[str]:
        return [subject.name for subject in chosen(variants, others, tmp_path)]

    first = ["plain", "pass-through", "c-pass-through", "c-writeback"]
    assert names(["cryptfs::", "c64:--chunk-size 64k:"], None) == [*first, "cryptfs", "c64", *PEERS]
    assert names(["a::"], ["cryfs"]) == ["a", "cryfs"]
    assert names(["a::"], ["c-writeback"]) == ["c-writeback", "a"]
    with pytest.raises(ValueError, match="'zfs' is none of"):
        chosen([], ["zfs"], tmp_path)


def test_the_pass_through_in_c_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, program = tmp_path / "passthrough_ll.c", tmp_path / "program"
    assert build(source, program) == "passthrough_ll.c is not here: apt-get install libfuse3-dev"
    source.write_text("no C at all\n")
    found = build(source, program)
    assert found is not None and "cannot be compiled" in found and "error" in found
    monkeypatch.setenv("PATH", str(tmp_path))
    assert build(source, program) == "there is no C compiler: apt-get install gcc libc6-dev"
    program.touch()
    assert build(source, program) is None, "it is there already"


def test_help_needs_no_mount() -> None:
    path = os.pathsep.join((str(ROOT / "scripts"), str(ROOT)))
    done = subprocess.run(
        [sys.executable, "-m", "benchlib", "--help"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "--variant" in done.stdout and "--targets" in done.stdout
