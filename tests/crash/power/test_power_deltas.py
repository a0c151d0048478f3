"""Power cuts while a few chunks change again and again: with delta-journal most changes are deltas."""

from __future__ import annotations

import os
import random
import shutil

import pytest

from cryptfs.vfs.content.openfile import OpenFile
from cryptfs.vfs.content.redo import Durability, RedoLog
from cryptfs.vfs.recovery.redoing import FileRedo
from tests.crash import expectations
from tests.crash.history import FileHistory
from tests.crash.invault import chunks_in_vault
from tests.crash.operations import CHUNK
from tests.crash.power.powermodel import CrashImage, crash_images
from tests.crash.power.recorder import Recorder
from tests.e2e.mounting import scratch_directory
from tests.support import CIPHERS, BareVault, pattern

SEED = int(os.environ.get("CRYPTFS_CRASH_SEED", "0"))
PROGRAMS = int(os.environ.get("CRYPTFS_CRASH_POWER_PROGRAMS", "10"))
IMAGES = int(os.environ.get("CRYPTFS_CRASH_POWER_IMAGES", "25"))
NAME = b"file"


class Program:
    """Small changes of a small file, syncs and checkpoints.

    contents: after each change, and whether it cut the file.
    """

    def __init__(self, vault: BareVault, seed: int) -> None:
        self._vault = vault
        self._dice = random.Random(seed)
        self.start = pattern(self._dice.choice((3 * CHUNK + 500, 2 * CHUNK, 100)), seed)
        self.contents: list[tuple[bytes, bool]] = []
        vault.put(NAME, self.start)
        vault.reopen()

    def run(self, recorder: Recorder) -> None:
        file = self._vault.tree.open(self._vault.root, NAME, os.O_RDWR)
        for _ in range(self._dice.randrange(4, 16)):
            step = self._dice.choices(("write", "append", "cut", "sync", "checkpoint"), (6, 2, 1, 2, 1))[0]
            if step == "sync":
                self._vault.tree.sync_file(file, data_only=True)
                recorder.mark("synced")
            elif step == "checkpoint":
                self._vault.checkpoint()
            else:
                self._change(file, step, recorder)
        self._vault.tree.release(file)
        self._vault.close()

    def _change(self, file: OpenFile, step: str, recorder: Recorder) -> None:
        content = bytearray(self.contents[-1][0] if self.contents else self.start)
        size = len(content)
        offset = size if step == "append" else self._dice.randrange(size)
        data = self._dice.randbytes(self._dice.choice((10, 200, 900)))
        if step == "cut":
            del content[offset + 1 :]
        else:
            content[offset : offset + len(data)] = data
        self.contents.append((bytes(content), step == "cut"))
        recorder.mark("asked")
        if step == "cut":
            file.truncate(offset + 1)
        else:
            file.write(offset, data)

    def history_at(self, image: CrashImage) -> FileHistory:
        """What was promised when the power went."""
        history, contents = FileHistory([self.start], [False]), iter(self.contents)
        for mark in image.marks:
            if mark == "synced":
                history.keep()
            else:
                content, cut = next(contents)
                history.change(content, cut=cut)
        return history


def findings(numbers: range) -> list[str]:
    """What is wrong with images of programs."""
    rules, wrong = expectations.after_a_power_cut(CHUNK, Durability.POWER), []
    for number in numbers:
        scratch, seed = scratch_directory(tmpfs=True), SEED * 1_000_000 + number
        cipher = CIPHERS[number % len(CIPHERS)]
        options = {"cipher": cipher, "durability": Durability.POWER, "deltas": True}
        try:
            vault = BareVault(scratch / "vault", **options)  # type: ignore[arg-type]
            program = Program(vault, seed)
            recorder = Recorder(vault.vault_dir)
            with recorder.on():
                program.run(recorder)
            for image in crash_images(recorder.recording, count=IMAGES, seed=seed):
                image.write_to(scratch / "image")
                vault = BareVault(scratch / "image", **options)  # type: ignore[arg-type]
                found = program.history_at(image).findings(chunks_in_vault(vault, NAME), rules)
                wrong += [f"seed {seed}, cut {image.cut}, choices {image.choices}: {each}" for each in found]
                vault.close()
                shutil.rmtree(scratch / "image")
        finally:
            shutil.rmtree(scratch)
    return wrong


def test_chunks_that_change_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    real, deltas = RedoLog.log_delta, []

    def log_delta(self: RedoLog, *rest: object) -> bool:
        deltas.append(real(self, *rest))  # type: ignore[arg-type]
        return deltas[-1]

    monkeypatch.setattr(RedoLog, "log_delta", log_delta)
    assert findings(range(PROGRAMS)) == []
    assert deltas.count(True) >= PROGRAMS


def test_a_replay_without_deltas_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests do notice what is missing."""
    monkeypatch.setattr(FileRedo, "_redo_delta", lambda *_: True)
    assert findings(range(PROGRAMS))
