"""kill -9 of `cryptfs rekey`, the real process, at random moments on a tree with some of everything."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cryptfs.vfs.vault import Vault, read_config
from tests.e2e.mounting import scratch_directory
from tests.rekey.material import (
    PASSPHRASE,
    copy_of,
    differences,
    furnish,
    make_directory,
    make_vault,
    put,
    shown,
)
from tests.rekey.test_rekey import faults
from tests.support import KIB, MIB, child_environment, pattern

pytestmark = pytest.mark.waits

KILLS = int(os.environ.get("CRYPTFS_REKEY_KILLS", "20"))
IN_SOAK = KILLS > 20
SEED = int(os.environ.get("CRYPTFS_CRASH_SEED", "0"))
DIRECTORIES, FILES = 12 if IN_SOAK else 6, 40


def fill(vault_dir: Path) -> None:
    """Besides some of everything: many small files, and some that take a while."""
    make_vault(vault_dir)
    furnish(vault_dir)
    with Vault.unlock(vault_dir, PASSPHRASE) as vault:
        for number in range(DIRECTORIES):
            where = make_directory(vault, vault.tree.root, b"directory %d" % number)
            for file in range(FILES):
                put(vault, where, b"file %d" % file, pattern(10 * KIB, file))
            put(vault, where, b"large", pattern(MIB, number) * 3)


class Command:
    """`cryptfs rekey` of a vault. state: where it remembers which vault it opened."""

    def __init__(self, vault_dir: Path, passfile: Path, state: Path) -> None:
        words = [sys.executable, "-m", "cryptfs", "rekey", "--json", "--passfile", str(passfile)]
        self._process = subprocess.Popen(
            [*words, str(vault_dir)],
            env=child_environment() | {"XDG_STATE_HOME": str(state)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._begin = time.monotonic()

    def ends_within(self, seconds: float) -> float | None:
        """How long it took, if it ended by itself, and well, before that; else it is killed."""
        try:
            said, _ = self._process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
            return None
        assert self._process.returncode == 0, said
        return time.monotonic() - self._begin


@pytest.fixture
def place() -> Iterator[Path]:
    """On tmpfs: a kill leaves the same there, and nobody waits for the disk. The soak uses one."""
    directory = scratch_directory(tmpfs=not IN_SOAK)
    yield directory
    shutil.rmtree(directory)


@pytest.mark.timeout(900)
def test_kills(place: Path) -> None:
    dice = random.Random(SEED)
    passfile = place / "passphrase"
    passfile.write_bytes(PASSPHRASE + b"\n")
    passfile.chmod(0o600)
    original = place / "original"
    fill(original)
    vault_dir, state = copy_of(original, place / "vault"), place / "state"
    whole = Command(vault_dir, passfile, state).ends_within(1000)
    assert whole is not None
    kills, middle = 0, 0
    while kills < KILLS:
        for each in (vault_dir, state):  # else its machine refuses the older masterkey
            shutil.rmtree(each)
        copy_of(original, vault_dir)
        before, here = shown(vault_dir, link_atimes=False), 0
        while (
            took := Command(vault_dir, passfile, state).ends_within(dice.uniform(0.2, 1.1) * whole)
        ) is None:
            here += 1
            middle += read_config(vault_dir).is_rekeying
            if here > 12:  # a slow moment of the machine
                assert Command(vault_dir, passfile, state).ends_within(1000)
                break
        if took is not None and not here:
            whole = took  # other tests come and go: so does the time that it takes
        kills += here
        where = f"seed {SEED}, after {kills} kills"
        found = differences(before, shown(vault_dir, link_atimes=False))
        assert [path for path, _, _ in found if path] == [], where
        assert faults(vault_dir) == [], where
    assert middle > KILLS // 4
