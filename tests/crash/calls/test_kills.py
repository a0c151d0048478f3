"""The daemon is killed again and again while programs write: nothing that was promised is lost."""

from __future__ import annotations

import os

import pytest

from tests.crash.killing import Killing
from tests.e2e.conftest import require_fuse
from tests.e2e.mounting import MountSpec, mounted

pytestmark = pytest.mark.waits

SEED = int(os.environ.get("CRYPTFS_CRASH_SEED", "0"))
KILLS = int(os.environ.get("CRYPTFS_CRASH_KILLS", "50"))
SPECS = [
    MountSpec("native", chunk_size=4096, options="nowriteback"),
    MountSpec("native", options="nowriteback", cipher="xchacha20-poly1305", deltas=True),
    MountSpec("native", options="nowriteback,durability=process", tmpfs=False),
    MountSpec("native", chunk_size=4096, deltas=True),
    MountSpec("native", tmpfs=False),
    MountSpec("native", options="nowriteback,durability=off"),
]


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_kills(spec: MountSpec) -> None:
    require_fuse(spec)
    with mounted(spec) as mount:
        mount.allow_log(r".*")  # each line is looked at below, with the rules of the round
        killing = Killing(mount, SEED)
        killing.prepare()
        rounds = -(-KILLS // len(SPECS))
        for number in range(rounds):
            found = killing.round(number)
            assert not found, "\n".join(found)
        print(f"{rounds} kills during {killing.operations} operations")
        assert killing.operations > rounds * 20, "hardly anything was done: the kills met nothing"
