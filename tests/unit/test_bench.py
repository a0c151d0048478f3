"""scripts/bench: its arithmetic, and that it runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchlib import machine
from benchlib.statistics import GIB, Figure, figure, ratio
from benchlib.workloads import IN_BYTES, WORKLOADS, Run, Sample, Sizes

ROOT = Path(__file__).parents[2]
TINY = Sizes(sequential=2 << 20, small_writes=1 << 16, random=4, random_file=1 << 20, files=3)


def test_rates_of_bytes_are_mb_a_second_and_cpu_is_for_a_gib() -> None:
    quantity = "sequential write, 1 MiB"
    assert quantity in IN_BYTES
    found = figure(quantity, [Sample(GIB, 2.0, 1.5), Sample(GIB, 1.0, 0.5), Sample(GIB, 4.0, 2.5)])
    assert found.rates == (GIB / 2e6, GIB / 1e6, GIB / 4e6)
    assert found.rate == GIB / 2e6
    assert found.cpu_cost == 1.5


def test_other_rates_are_operations_a_second_and_cpu_is_for_one() -> None:
    found = figure("stat", [Sample(1000, 0.5, 0.1)])
    assert found.rates == (2000.0,)
    assert found.cpu_cost == pytest.approx(100)


def test_the_spread_is_half_the_range() -> None:
    assert Figure((8.0, 10.0, 14.0), 0).spread == pytest.approx(0.3)


def test_ratios_are_of_medians_and_within_rounds() -> None:
    """The best round of one and the worst of another are not compared."""
    found = ratio(Figure((10.0, 20.0, 60.0), 0), Figure((5.0, 20.0, 40.0), 0))
    assert (found.of_medians, found.lowest, found.highest) == (1.0, 1.0, 2.0)


def test_every_workload_runs_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchlib.workloads.drop_caches", lambda: False)
    quantities = set()
    for workload in WORKLOADS:
        run = Run(tmp_path, lambda: 0.0)
        workload(run, TINY)
        quantities |= set(run.samples)
        assert list(tmp_path.iterdir()) == []
    assert quantities > IN_BYTES


def test_processor_time_and_memory_of_this_process() -> None:
    before = machine.cpu_seconds(os.getpid())
    sum(range(3_000_000))
    assert machine.cpu_seconds(os.getpid()) >= before > 0
    now, highest = machine.resident_bytes(os.getpid())
    assert 0 < now <= highest


def test_help_needs_no_mount() -> None:
    path = os.pathsep.join((str(ROOT / "scripts"), str(ROOT)))
    done = subprocess.run(
        [sys.executable, "-m", "benchlib", "--help"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "--variant" in done.stdout
