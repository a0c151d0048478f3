"""An open file against a bytearray: whatever the order of operations, both hold the same."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from cryptfs.storage.libc import FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, FALLOC_ZERO_RANGE
from cryptfs.vfs.content import ranges
from cryptfs.vfs.content.openfile import OpenFile
from cryptfs.vfs.content.redo import Durability
from tests.support import CIPHERS, GAP, KIB, BareVault, pattern

NAME = b"modelled"
WORK_SIZE = 10 * 4 * KIB + 7  # most work happens below; only holes go past it
MAX_SIZE = 12 * 1024 * KIB


def edges(chunk_size: int) -> st.SearchStrategy[int]:
    """Offsets, with chunk edges and their neighbours more often than chance has them."""
    near = st.builds(
        lambda chunk, step: max(0, chunk * chunk_size + step), st.integers(0, 9), st.integers(-1, 1)
    )
    return st.one_of(near, st.integers(0, WORK_SIZE))


_LENGTHS = st.one_of(st.integers(1, 300), st.integers(1, 9 * KIB), st.just(4 * KIB), st.just(16 * KIB))


class OpenFileModel(RuleBasedStateMachine):
    """One file, up to three handles on it, and the bytes that it must hold."""

    cipher = CIPHERS[0]
    chunk_size = 4 * KIB
    durability = Durability.OFF
    deltas = False

    def __init__(self) -> None:
        super().__init__()
        self.vault_dir = Path(tempfile.mkdtemp(prefix="vfs-tests-"))
        self.vault = BareVault(
            self.vault_dir,
            cipher=self.cipher,
            chunk_size=self.chunk_size,
            durability=self.durability,
            deltas=self.deltas,
        )
        self.model = bytearray()
        self.seed = 0
        self.handles: list[OpenFile] = []

    @initialize()
    def create(self) -> None:
        self.handles = [self.vault.tree.create(self.vault.root, NAME, os.O_RDWR, 0o600)]
        self.left_open = False  # by a writer that died, and not changed or settled since

    @property
    def writer(self) -> OpenFile:
        return next(file for file in self.handles if file.writable)

    def grow(self, size: int) -> None:
        self.model.extend(bytes(size - len(self.model)))

    # ---- what a program may do

    @rule(data=st.data(), length=_LENGTHS)
    def write(self, data: st.DataObject, length: int) -> None:
        offset = data.draw(edges(self.chunk_size))
        self._write(offset, length)

    @rule(gap=st.integers(0, 40 * KIB))
    def write_past_the_end(self, gap: int) -> None:
        if len(self.model) < MAX_SIZE:
            self._write(len(self.model) + gap, 100)

    @precondition(lambda self: len(self.model) < WORK_SIZE)
    @rule(gap=st.sampled_from((GAP, GAP + 1, GAP + 5 * KIB)))
    def write_far_past_the_end(self, gap: int) -> None:
        self._write(len(self.model) + gap, 100)

    def _write(self, offset: int, length: int) -> None:
        self.seed += 1
        content = pattern(length, self.seed)
        assert self.writer.write(offset, content) == length
        self.left_open = False
        self.grow(max(offset + length, len(self.model)))
        self.model[offset : offset + length] = content

    @rule(data=st.data(), length=st.integers(0, 40 * KIB), which=st.integers(0, 2))
    def read(self, data: st.DataObject, length: int, which: int) -> None:
        offset = data.draw(edges(self.chunk_size))
        file = self.handles[which % len(self.handles)]
        assert file.read(offset, length) == self.model[offset : offset + length]

    @rule(data=st.data())
    def truncate(self, data: st.DataObject) -> None:
        size = data.draw(st.one_of(edges(self.chunk_size), st.just(0), st.just(len(self.model))))
        self.writer.truncate(size)
        self.left_open = self.left_open and size == len(self.model)
        del self.model[size:]
        self.grow(size)

    @rule(data=st.data(), length=st.integers(1, 30 * KIB), keep_size=st.booleans())
    def reserve(self, data: st.DataObject, length: int, keep_size: bool) -> None:
        offset = data.draw(edges(self.chunk_size))
        ranges.allocate(self.writer, FALLOC_KEEP_SIZE if keep_size else 0, offset, length)
        if not keep_size:
            self.grow(max(offset + length, len(self.model)))

    @rule(
        data=st.data(),
        length=st.integers(1, 30 * KIB),
        mode=st.sampled_from(
            (
                FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE,
                FALLOC_ZERO_RANGE,
                FALLOC_ZERO_RANGE | FALLOC_KEEP_SIZE,
            )
        ),
    )
    def zero(self, data: st.DataObject, length: int, mode: int) -> None:
        offset = data.draw(edges(self.chunk_size))
        ranges.allocate(self.writer, mode, offset, length)
        end = offset + length
        if not mode & FALLOC_KEEP_SIZE:
            self.grow(max(end, len(self.model)))
        end = min(end, len(self.model))
        if offset < end:
            self.model[offset:end] = bytes(end - offset)

    # ---- handles

    @precondition(lambda self: len(self.handles) < 3)
    @rule(flags=st.sampled_from((os.O_RDONLY, os.O_RDWR, os.O_WRONLY)))
    def open_another(self, flags: int) -> None:
        self.handles.append(self.vault.tree.open(self.vault.root, NAME, flags))

    @precondition(lambda self: len(self.handles) > 1)
    @rule(which=st.integers(0, 2))
    def close_one(self, which: int) -> None:
        file = self.handles[which % len(self.handles)]
        if file.writable and sum(each.writable for each in self.handles) == 1:
            return
        self.handles.remove(file)
        self.vault.tree.release(file)

    @rule(read_first=st.booleans())
    def close_all_and_reopen(self, read_first: bool) -> None:
        self._close_all()
        if read_first:  # the state then begins with a descriptor that cannot write
            self.handles.append(self.vault.tree.open(self.vault.root, NAME, os.O_RDONLY))
        self.handles.append(self.vault.tree.open(self.vault.root, NAME, os.O_RDWR))

    @precondition(lambda self: self.durability is not Durability.OFF)
    @rule()
    def checkpoint(self) -> None:
        self.vault.checkpoint()

    @precondition(lambda self: self.durability is Durability.POWER)
    @rule(data_only=st.booleans())
    def sync(self, data_only: bool) -> None:
        self.vault.tree.sync_file(self.writer, data_only=data_only)

    @precondition(lambda self: self.durability is not Durability.OFF)
    @rule(again=st.booleans())
    def die(self, again: bool) -> None:
        """All that was acknowledged is there after a kill, and after another one right behind it."""
        self.handles.clear()
        self.left_open = True
        self.vault.die_and_reopen()
        if again:
            self.vault.die_and_reopen()
        self.handles.append(self.vault.tree.open(self.vault.root, NAME, os.O_RDWR))

    @precondition(lambda self: self.durability is not Durability.OFF)
    @rule()
    def settle(self) -> None:
        """What the next mount does in the background after a kill."""
        if self.vault.workers.unsettled is not None:
            self.vault.workers.unsettled.sweep()
            self.left_open = False

    def _close_all(self) -> None:
        while self.handles:
            self.vault.tree.release(self.handles.pop())
        self.vault.checkpoint()
        if self.vault.backing(NAME).stat().st_size:
            header = self.vault.header(NAME)
            assert header.is_clean or self.left_open
            assert header.size == len(self.model) or not header.is_clean
        assert self.vault.get(NAME) == self.model

    # ---- what always holds

    @invariant()
    def content_is_that_of_the_model(self) -> None:
        if self.handles:
            assert self.handles[-1].read(0, len(self.model) + 1) == self.model

    @invariant()
    def size_follows_from_the_backing_length(self) -> None:
        if self.handles:
            if self.durability is not Durability.POWER:
                assert self.vault.plain_size(NAME) == len(self.model)
            assert self.vault.tree.stat(self.vault.root, NAME).size == len(self.model)

    @invariant()
    def holes_are_zeros_and_data_is_found(self) -> None:
        if self.handles and not self.deltas:
            self._look_for_holes()

    @precondition(lambda self: self.deltas)
    @rule()
    def look_for_holes(self) -> None:
        """With deltas no invariant: it brings the overlay home, before a chunk changes twice."""
        self._look_for_holes()

    def _look_for_holes(self) -> None:
        file, size, place = self.handles[0], len(self.model), 0
        while place < size:
            hole = ranges.seek(file, place, os.SEEK_HOLE)
            assert place <= hole <= size
            if hole == size:
                break
            try:
                data = ranges.seek(file, hole, os.SEEK_DATA)
            except OSError:
                data = size
            assert hole < data <= size  # a hole has a length
            assert not any(self.model[hole:data])
            place = data

    def teardown(self) -> None:
        try:
            self._close_all()
            self.vault.close()
        finally:
            shutil.rmtree(self.vault_dir)


@pytest.mark.parametrize("durability", Durability)
@pytest.mark.parametrize("chunk_size", [4 * KIB, 16 * KIB])
@pytest.mark.parametrize("cipher", CIPHERS)
def test_open_file_against_bytearray(cipher: str, chunk_size: int, durability: Durability) -> None:
    deltas = durability is Durability.POWER and cipher == CIPHERS[1]
    members = {"cipher": cipher, "chunk_size": chunk_size, "durability": durability, "deltas": deltas}
    machine = type("Machine", (OpenFileModel,), members)
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=25,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        ),
    )
