"""Power cuts in the middle of random programs: what was synced is there, the rest is old or new."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from cryptfs.core.names.host import SHARED_STATE, StateNames
from cryptfs.vfs.content.openfile import OpenFile
from cryptfs.vfs.content.redo import Durability
from tests.crash import expectations
from tests.crash.invault import InVault, findings
from tests.crash.power.powermodel import CrashImage, Recording, crash_images
from tests.crash.power.recorder import Recorder
from tests.crash.program import Program, Promise, replayed
from tests.e2e.mounting import scratch_directory
from tests.support import CIPHERS, OWNERS, BareVault, owner_name, pattern

SEED = int(os.environ.get("CRYPTFS_CRASH_SEED", "0"))
PROGRAMS = int(os.environ.get("CRYPTFS_CRASH_POWER_PROGRAMS", "12"))
IMAGES = int(os.environ.get("CRYPTFS_CRASH_POWER_IMAGES", "40"))
STEPS = 60
CHUNK = 4096
QUIET = b"nobody touches it"


def record(
    vault_dir: Path, seed: int, cipher: str, durability: Durability, owner: StateNames = SHARED_STATE
) -> Recording:
    """Run a program in a fresh vault; each operation is marked when it is asked for and when it returned."""
    vault = BareVault(vault_dir, cipher=cipher, chunk_size=CHUNK, durability=durability, owner=owner)
    vault.put(QUIET, pattern(30_000))
    recorder = Recorder(vault_dir)
    work = InVault(vault, Program(seed, Promise.SYNCED))
    with recorder.on():
        for number in range(STEPS):
            recorder.mark(("asked", number))
            work.step()
            recorder.mark(("done", number))
        work.close()
        vault.close()
    return recorder.recording


def program_at(image: CrashImage, seed: int) -> Program:
    """What the program had been promised by the time of the cut."""
    asked = sum(1 for mark in image.marks if isinstance(mark, tuple) and mark[0] == "asked")
    done = len(image.marks) - asked
    program = Program(seed, Promise.SYNCED)
    replayed(program, done, asked)
    return program


def wrong_with(
    image: CrashImage,
    directory: Path,
    seed: int,
    cipher: str,
    durability: Durability,
    owner: StateNames = SHARED_STATE,
) -> list[str]:
    """Mount an image, look; mount it again, and see the same."""
    rules = expectations.after_a_power_cut(CHUNK, durability)
    shutil.rmtree(directory, ignore_errors=True)
    image.write_to(directory)
    program = program_at(image, seed)
    vault = BareVault(directory, cipher=cipher, chunk_size=CHUNK, durability=durability, owner=owner)
    try:
        quiet = vault.get(QUIET)
        vault.tree.unlink(vault.root, QUIET)
        found = findings(vault, program, rules)
        vault.reopen()
        again = findings(vault, program, rules)
    finally:
        vault.close()
    if quiet != pattern(30_000):
        found.append("a file that nobody touched has changed")
    return found + [f"after another mount: {line}" for line in again if line not in found]


@pytest.mark.parametrize("owner", OWNERS, ids=owner_name)
@pytest.mark.parametrize("number", range(PROGRAMS))
def test_random_programs(number: int, owner: StateNames) -> None:
    seed, cipher = SEED * 1_000_000 + number, CIPHERS[number % len(CIPHERS)]
    durability = Durability.OFF if number % 4 == 3 else Durability.POWER
    scratch = scratch_directory(tmpfs=True)
    try:
        recording = record(scratch / "vault", seed, cipher, durability, owner)
        images = 0
        for image in crash_images(recording, count=IMAGES, seed=seed):
            images += 1
            found = wrong_with(image, scratch / "image", seed, cipher, durability, owner)
            assert not found, f"seed {seed}, cut {image.cut}, choices {image.choices}: {found}"
        assert images > IMAGES // 2
    finally:
        shutil.rmtree(scratch)


def findings_of_programs(work: Durability, promised: Durability) -> list[str]:
    """What is wrong with some images of a vault that worked at one level, by the rules of another."""
    found: list[str] = []
    scratch = scratch_directory(tmpfs=True)
    try:
        recording = record(scratch / "vault", 3, CIPHERS[0], work)
        for image in crash_images(recording, count=60, seed=1):
            found += wrong_with(image, scratch / "image", 3, CIPHERS[0], promised)
    finally:
        shutil.rmtree(scratch)
    return found


@pytest.mark.parametrize("level", [Durability.PROCESS, Durability.OFF])
def test_the_levels_below_do_not_keep_what_power_promises(level: Durability) -> None:
    """The rules for `power` are no looser than what is there without it."""
    assert findings_of_programs(level, Durability.POWER)


def test_a_sync_that_does_nothing_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests do notice when what was promised is not there."""
    monkeypatch.setattr(OpenFile, "sync", lambda *_, **__: None)
    found = findings_of_programs(Durability.POWER, Durability.POWER)
    assert any("is wrong from byte" in line or "bytes long instead of" in line for line in found)
