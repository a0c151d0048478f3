"""Each operation on a synced file, and every state of the disk that a power cut may leave of it."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from cryptfs.vfs.content import chunkwriter
from cryptfs.vfs.content.openfile import OpenFile
from cryptfs.vfs.content.redo import Durability
from tests.crash import expectations
from tests.crash.calls.test_killed_calls import empty
from tests.crash.history import FileHistory
from tests.crash.invault import chunks_in_vault
from tests.crash.operations import CHUNK, OPERATIONS, Operation
from tests.crash.power.powermodel import CrashImage, Recording, crash_images
from tests.crash.power.recorder import Recorder
from tests.crash.treeoperations import (
    BOTH_FORMATS,
    DAMAGED,
    LONGER,
    Tree,
    TreeOperation,
    new_vault,
    operation_id,
    prepare,
    tree_of,
)
from tests.e2e.mounting import scratch_directory
from tests.support import KIB, BareVault, pattern

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
    vault = BareVault(vault_dir, durability=Durability.POWER, deltas=True)
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
        history.change(operation.result, cut=len(operation.result) < len(operation.old))
    if "synced" in image.marks:
        history.keep()
    return history


def check_images(images: list[CrashImage], operation: Operation, scratch: Path) -> None:
    """After each of them the vault keeps what was promised by then."""
    rules = expectations.after_a_power_cut(CHUNK, Durability.POWER)
    for image in images:
        image.write_to(scratch / "image")
        vault = BareVault(scratch / "image", durability=Durability.POWER, deltas=True)
        history = history_at(image, operation)
        wrong = history.findings(chunks_in_vault(vault, NAME), rules)
        assert not wrong, f"cut {image.cut}, choices {image.choices}, {image.marks}: {wrong}"
        vault.close()
        shutil.rmtree(scratch / "image")


@pytest.mark.parametrize("operation", SMALL, ids=lambda operation: operation.name)
def test_every_state_of_the_disk(operation: Operation, scratch: Path) -> None:
    recording = record(scratch / "vault", operation)
    images = images_of(recording)
    assert {tuple(image.marks) for image in images} >= {("asked",), ("asked", "synced")}
    check_images(images, operation, scratch)


@pytest.mark.parametrize("old", [b"", pattern(CHUNK + 700, 1)], ids=["new", "synced"])
def test_every_state_of_a_stream_that_ends_within_chunks(
    old: bytes, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The chunk that each write makes longer waits for no sync, and no synced byte depends on it."""
    monkeypatch.setattr(chunkwriter, "SMALL_GROWTH", 0)
    content = pattern(6 * CHUNK, 2)
    pieces = [
        content[: 2 * CHUNK + 100],
        content[2 * CHUNK + 100 : 4 * CHUNK + 50],
        content[4 * CHUNK + 50 :],
    ]

    def run(file: OpenFile) -> None:
        for piece in pieces:
            file.append(piece)

    operation = Operation("stream", run, old + content, old)
    recording = record(scratch / "vault", operation)
    check_images(images_of(recording), operation, scratch)


def moved_into_a_new_directory(vault: BareVault) -> None:
    vault.tree.make_directory(vault.root, b"new", 0o755)
    vault.tree.rename(vault.root, b"file", vault.tree.directory(vault.root, b"new"), b"file")


def moved_over_a_new_long_name(vault: BareVault) -> None:
    vault.put(LONGER, b"new")
    vault.tree.rename(vault.root, b"file", vault.root, LONGER)


TREE_OPERATIONS = [
    *(each for each in BOTH_FORMATS if "xattr" not in each[1].name),  # which the model leaves out
    (False, TreeOperation("move into a new directory", moved_into_a_new_directory)),
    (False, TreeOperation("move over a new long name", moved_over_a_new_long_name)),
]


def contents_of(vault: BareVault) -> Tree:
    """All of a vault, but for xattrs."""
    tree = tree_of(vault)
    return {
        path: what[: 2 if what[0] == "link" else 1] if isinstance(what, tuple) else what
        for path, what in tree.items()
    }


def kept(tree: Tree) -> Counter[object]:
    """What is in a tree, wherever it is."""
    return Counter(repr(content) for content in tree.values() if content not in (None, DAMAGED))


@pytest.mark.parametrize(("bound", "operation"), TREE_OPERATIONS, ids=operation_id)
def test_names_in_every_state_of_the_disk(bound: bool, operation: TreeOperation, scratch: Path) -> None:
    """What was there before and is to be there afterwards is there, under one of its names at least."""
    vault = new_vault(scratch / "vault", bound=bound)
    prepare(vault)
    vault.reopen()
    before = contents_of(vault)
    vault.reopen()
    recorder = Recorder(vault.vault_dir)
    with recorder.on():
        operation.run(vault)
    after = contents_of(vault)
    vault.close()
    images = images_of(recorder.recording)
    assert len(images) > 1
    for image in images:
        image.write_to(scratch / "image")
        vault = new_vault(scratch / "image", bound=bound)
        found = contents_of(vault)
        where = f"cut {image.cut}, choices {image.choices}"
        missing = (kept(before) & kept(after)) - kept(found)
        assert not missing, where
        assert not (bound and operation.moves and DAMAGED in found.values()), where
        for path, content in found.items():
            if path in before and path in after:
                assert content in (before[path], after[path]), where
            assert path in before or path in after, where
        empty(vault)
        vault.close()
        shutil.rmtree(scratch / "image")
