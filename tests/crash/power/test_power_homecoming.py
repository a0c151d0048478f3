"""Power cuts while files come home: a program goes on in between, wherever the checkpointer holds no lock."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cryptfs.core.aead import AEGIS_256
from cryptfs.core.names.host import StateNames
from cryptfs.vfs.content.filestate import FileState
from cryptfs.vfs.content.filetable import FileTable
from cryptfs.vfs.content.redo import Durability
from tests.crash.invault import InVault
from tests.crash.power.powermodel import Recording, crash_images
from tests.crash.power.recorder import Recorder
from tests.crash.power.test_power import CHUNK, QUIET, wrong_with
from tests.crash.program import Program, Promise
from tests.e2e.mounting import scratch_directory
from tests.support import OWNERS, BareVault, pattern

SEED = int(os.environ.get("CRYPTFS_CRASH_SEED", "0"))
PROGRAMS = int(os.environ.get("CRYPTFS_CRASH_POWER_PROGRAMS", "6"))
IMAGES = int(os.environ.get("CRYPTFS_CRASH_POWER_IMAGES", "40"))
STEPS = 80


class Beside:
    """A program, and the checkpointer's work in the middle of it.

    The program's next operation comes before or after a sync of the checkpointer's, or before it gives its
    handle back: there it holds no file's lock.
    """

    def __init__(self, vault: BareVault, seed: int, recorder: Recorder) -> None:
        checkpointer = vault.workers.checkpointer
        assert checkpointer is not None
        self._works = (checkpointer._bring_waiting_home, checkpointer.checkpoint)
        self._work = InVault(vault, Program(seed, Promise.SYNCED))
        self._recorder = recorder
        self._dice = random.Random(seed)
        self._number = 0
        self._coming_home = False
        self.steps_between = 0

    def step(self) -> None:
        """The program's next operation."""
        number = self._number
        self._number += 1
        self._recorder.mark(("asked", number))
        self._work.step()
        self._recorder.mark(("done", number))

    def _perhaps_step(self) -> None:
        if self._coming_home and self._dice.random() < 0.4:
            self._coming_home = False  # what the program syncs itself is not the checkpointer's
            self.steps_between += 1
            self.step()
            self._coming_home = True

    def wrapped(self, patch: pytest.MonkeyPatch) -> None:
        """Have the program go on in the middle of the checkpointer's work."""
        sync_backing, release = FileState.sync_backing, FileTable.release

        def synced(state: FileState, *, data_only: bool) -> None:
            if state.lock._is_owned():  # type: ignore[attr-defined]
                sync_backing(state, data_only=data_only)
                return
            self._perhaps_step()
            sync_backing(state, data_only=data_only)
            self._perhaps_step()

        def released(files: FileTable, state: FileState, *, writable: bool = False) -> None:
            self._perhaps_step()
            release(files, state, writable=writable)

        patch.setattr(FileState, "sync_backing", synced)
        patch.setattr(FileTable, "release", released)

    def _close_some(self) -> None:
        """Files with no writer are those that wait to come home."""
        for history in list(self._work._open):
            if self._dice.random() < 0.5:
                self._work.vault.tree.release(self._work._open.pop(history))

    def run(self) -> None:
        """All of the program."""
        while self._number < STEPS:
            self.step()
            if self._dice.random() < 0.3:
                self._close_some()
                work: Callable[[], None] = self._dice.choices(self._works, (3, 1))[0]
                self._coming_home = True
                work()
                self._coming_home = False
        self._work.close()


def record(vault_dir: Path, seed: int, owner: StateNames) -> Recording:
    vault = BareVault(
        vault_dir, cipher=AEGIS_256.name, chunk_size=CHUNK, durability=Durability.POWER, owner=owner
    )
    vault.put(QUIET, pattern(30_000))
    recorder = Recorder(vault_dir)
    beside = Beside(vault, seed, recorder)
    with recorder.on(), pytest.MonkeyPatch.context() as patch:
        beside.wrapped(patch)
        beside.run()
        vault.close()
    assert beside.steps_between
    return recorder.recording


@pytest.mark.parametrize("number", range(PROGRAMS))
def test_random_programs_go_on_while_files_come_home(number: int) -> None:
    seed = SEED * 1_000_000 + number
    scratch = scratch_directory(tmpfs=True)
    try:
        owner = OWNERS[number % len(OWNERS)]
        recording = record(scratch / "vault", seed, owner)
        for image in crash_images(recording, count=IMAGES, seed=seed):
            found = wrong_with(image, scratch / "image", seed, AEGIS_256.name, Durability.POWER, owner)
            assert not found, f"seed {seed}, cut {image.cut}, choices {image.choices}: {found}"
    finally:
        shutil.rmtree(scratch)
