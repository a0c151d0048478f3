"""Each operation on a synced file, and every state of the disk that a power cut may leave of it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crash import expectations
from tests.crash.history import FileHistory
from tests.crash.invault import chunks_in_vault
from tests.crash.powermodel import CrashImage, Recording, crash_images
from tests.crash.recorder import Recorder
from tests.e2e.mounting import scratch_directory
from tests.recovery.operations import CHUNK, OPERATIONS, Operation
from tests.support import KIB, BareVault

NAME = b"file"
SMALL = [operation for operation in OPERATIONS if len(operation.result) <= 64 * KIB]
LIMIT = int(os.environ.get("CRYPTFS_CRASH_EXHAUSTIVE_IMAGES", "300"))
"""Where an operation has more images than that, so many are taken of them, at random."""


@pytest.fixture
def scratch() -> Iterator[Path]:
    directory = scratch_directory(tmpfs=True)
    yield directory
    shutil.rmtree(directory)


def record(vault_dir: Path, operation: Operation) -> Recording:
    """A file that is on disk; the operation; an fsync; the close; the end of the vault."""
    vault = BareVault(vault_dir)
    vault.put(NAME, operation.old)
    vault.reopen()
    recorder = Recorder(vault_dir)
    with recorder.on():
        file = vault.tree.open(vault.root, NAME, os.O_RDWR)
        recorder.mark("asked")
        operation.run(file)
        vault.tree.sync_file(file, data_only=True)
        recorder.mark("synced")
        vault.tree.release(file)
        vault.close()
    return recorder.recording


def images_of(recording: Recording) -> list[CrashImage]:
    try:
        return list(crash_images(recording, exhaustive=True, limit=LIMIT))
    except ValueError:
        return list(crash_images(recording, count=LIMIT))


def history_at(image: CrashImage, operation: Operation) -> FileHistory:
    """What was promised when the power went."""
    history = FileHistory([operation.old], [False])
    if "asked" in image.marks:
        history.change(operation.result, cut="truncate" in operation.name)
    if "synced" in image.marks:
        history.keep()
    return history


@pytest.mark.parametrize("operation", SMALL, ids=lambda operation: operation.name)
def test_every_state_of_the_disk(operation: Operation, scratch: Path) -> None:
    recording = record(scratch / "vault", operation)
    rules = expectations.after_a_power_cut(CHUNK)
    images = images_of(recording)
    assert {tuple(image.marks) for image in images} >= {("asked",), ("asked", "synced")}
    for image in images:
        image.write_to(scratch / "image")
        vault = BareVault(scratch / "image")
        history = history_at(image, operation)
        wrong = history.findings(chunks_in_vault(vault, NAME), rules)
        assert not wrong, f"cut {image.cut}, choices {image.choices}, {image.marks}: {wrong}"
        vault.close()
        shutil.rmtree(scratch / "image")
