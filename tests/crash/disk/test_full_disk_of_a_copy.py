"""`cryptfs import` and `export` to a real disk that becomes full, with and without workers."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import cryptfs
from tests.e2e.mounting import scratch_directory
from tests.support import pattern
from tests.transfer.test_workers import parts_below, parts_in
from tests.transfer.trees import seen
from tests.transfer.workerly import outcome

pytestmark = [
    pytest.mark.serial,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts a small disk"),
]

PASSPHRASE = b"transfer"
ROOM = 48 << 20


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A directory with a tree of 100 MiB, a vault and its passphrase."""
    place = scratch_directory(tmpfs=True)
    try:
        (place / "tree" / "d").mkdir(parents=True)
        for number in range(4):
            (place / "tree" / f"large {number}").write_bytes(pattern((24 << 20) + number, number))
        for number in range(60):
            (place / "tree" / "d" / str(number)).write_bytes(pattern(100_000, number))
        (place / "key").touch(mode=0o600)
        (place / "key").write_bytes(PASSPHRASE)
        yield place
    finally:
        shutil.rmtree(place)


@pytest.fixture
def disk(scratch: Path) -> Iterator[Path]:
    """A filesystem that is too small for the tree."""
    (scratch / "disk").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={ROOM}", "none", scratch / "disk"], check=True)
    try:
        yield scratch / "disk"
    finally:
        gc.collect()  # a vault was opened here, whose directories may wait for it
        subprocess.run(["umount", scratch / "disk"], check=True)


@pytest.mark.parametrize("workers", [0, 3])
@pytest.mark.parametrize("direction", ["import", "export"])
def test_it_says_so_and_goes_on_when_there_is_room(
    direction: str, workers: int, scratch: Path, disk: Path
) -> None:
    key, target = scratch / "key", disk / "target"
    vault_dir = target if direction == "import" else scratch / "vault"
    cryptfs.Vault.create(vault_dir, PASSPHRASE, kdf_memory=64 << 20)
    words: tuple[object, ...] = ("import", scratch / "tree", vault_dir)
    if direction == "export":
        assert outcome(0, key, *words).code == 0
        words = ("export", vault_dir, target)
    for _ in range(2):
        told = outcome(workers, key, *words)
        assert told.code == 11
        assert told.err == (
            f"cryptfs: {target}: its disk is full. Free some space there, then repeat the command: "
            "it continues\n"
        )
        assert (parts_in(vault_dir) if direction == "import" else parts_below(target)) == []
        assert outcome(0, key, "fsck", "--deep", vault_dir).code == 0
    subprocess.run(["mount", "-o", "remount,size=300m", disk], check=True)
    told = outcome(workers, key, *words, "--verify")
    assert told.code == 0, told.err
    assert "were there already" in told.err
    if direction == "import":
        assert outcome(workers, key, "export", vault_dir, scratch / "out").code == 0
        target = scratch / "out"
    assert seen(target) == seen(scratch / "tree")
