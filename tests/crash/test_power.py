"""Power cuts in the middle of random programs: what was synced is there, the rest is old or new."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from cryptfs.vfs.openfile import OpenFile
from tests.crash import expectations
from tests.crash.invault import InVault, findings
from tests.crash.powermodel import CrashImage, Recording, crash_images
from tests.crash.program import Program, Promise, replayed
from tests.crash.recorder import Recorder
from tests.e2e.mounting import scratch_directory
from tests.support import CIPHERS, BareVault, pattern

SEED = int(os.environ.get("CRYPTFS_CRASH_SEED", "0"))
PROGRAMS = int(os.environ.get("CRYPTFS_CRASH_POWER_PROGRAMS", "12"))
IMAGES = int(os.environ.get("CRYPTFS_CRASH_POWER_IMAGES", "40"))
STEPS = 60
CHUNK = 4096
QUIET = b"nobody touches it"


def record(vault_dir: Path, seed: int, cipher: str) -> Recording:
    """Run a program in a fresh vault; each operation is marked when it is asked for and when it returned."""
    vault = BareVault(vault_dir, cipher=cipher, chunk_size=CHUNK)
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
    replayed(program, done, one_more=asked > done)
    return program


def wrong_with(image: CrashImage, directory: Path, seed: int, cipher: str) -> list[str]:
    """Mount an image, look; mount it again, and see the same."""
    shutil.rmtree(directory, ignore_errors=True)
    image.write_to(directory)
    program = program_at(image, seed)
    vault = BareVault(directory, cipher=cipher, chunk_size=CHUNK)
    try:
        quiet = vault.get(QUIET)
        vault.tree.unlink(vault.root, QUIET)
        found = findings(vault, program, expectations.after_a_power_cut(CHUNK))
        vault.reopen()
        again = findings(vault, program, expectations.after_a_power_cut(CHUNK))
    finally:
        vault.close()
    if quiet != pattern(30_000):
        found.append("a file that nobody touched has changed")
    return found + [f"after another mount: {line}" for line in again if line not in found]


@pytest.mark.parametrize("number", range(PROGRAMS))
def test_random_programs(number: int) -> None:
    seed, cipher = SEED * 1_000_000 + number, CIPHERS[number % len(CIPHERS)]
    scratch = scratch_directory(tmpfs=True)
    try:
        recording = record(scratch / "vault", seed, cipher)
        images = 0
        for image in crash_images(recording, count=IMAGES, seed=seed):
            images += 1
            found = wrong_with(image, scratch / "image", seed, cipher)
            assert not found, f"seed {seed}, cut {image.cut}, choices {image.choices}: {found}"
        assert images > IMAGES // 2
    finally:
        shutil.rmtree(scratch)


def findings_of_programs(*, journal: bool) -> list[str]:
    """What is wrong with some images, as seen with or without the journal's rules."""
    found: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(expectations, "JOURNAL", journal)
        scratch = scratch_directory(tmpfs=True)
        try:
            recording = record(scratch / "vault", 3, CIPHERS[0])
            for image in crash_images(recording, count=60, seed=1):
                found += wrong_with(image, scratch / "image", 3, CIPHERS[0])
        finally:
            shutil.rmtree(scratch)
    return found


@pytest.mark.skipif(expectations.JOURNAL, reason="the gap is closed")
def test_the_known_gap_is_one() -> None:
    """Without the journal, the rules that hold with it do not: they are no looser than what is there."""
    assert findings_of_programs(journal=True)


def test_a_sync_that_does_nothing_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests do notice when what was promised is not there."""
    monkeypatch.setattr(OpenFile, "sync", lambda *_, **__: None)
    found = findings_of_programs(journal=expectations.JOURNAL)
    assert any("is wrong from byte" in line or "bytes long instead of" in line for line in found)
