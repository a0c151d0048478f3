"""Whatever is done on a mount between snapshot and verify raises no alarm."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from cryptfs.errors import IntegrityError
from cryptfs.storage.libc import FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, RENAME_EXCHANGE
from cryptfs.vfs.content import ranges
from cryptfs.vfs.content.openfile import OpenFile
from cryptfs.vfs.content.redo import Durability
from cryptfs.vfs.tree.directory import Directory
from cryptfs.witness.verification import Change
from tests.support import KIB, BareVault, pattern
from tests.witness.scene import Witnessed

NAMES = st.sampled_from((b"a", b"b", b"c", b"l" * 200))
DIRECTORIES = st.sampled_from((b"", b"d"))
CHUNK = 4 * KIB
# A link or a directory where a file is wanted: the kernel would not have asked the filesystem.
REFUSED = (OSError, IntegrityError)
SIZES = st.sampled_from((0, 1, 100, CHUNK, CHUNK + 1, 3 * CHUNK, 10 * CHUNK))


class Honest(RuleBasedStateMachine):
    """A tree that is changed in every way, with files that stay open, crashes, and looks in between."""

    durability = Durability.OFF
    deltas = False

    def __init__(self) -> None:
        super().__init__()
        self.base = Path(tempfile.mkdtemp(prefix="witness-tests-"))
        self.vault = BareVault(self.base / "vault", durability=self.durability, deltas=self.deltas)
        self.vault.tree.make_directory(self.vault.root, b"d", 0o755)
        self.open: list[OpenFile] = []
        self.scene = Witnessed(self.vault)
        self.scene.snapshot()
        self.seed = 0

    def where(self, name: bytes) -> Directory:
        return self.vault.tree.directory(self.vault.root, name) if name else self.vault.root

    def content(self, size: int) -> bytes:
        self.seed += 1
        return pattern(size, self.seed)

    # ---- work

    @rule(directory=DIRECTORIES, name=NAMES, size=SIZES, truncate=st.booleans())
    def write(self, directory: bytes, name: bytes, size: int, truncate: bool) -> None:
        flags = os.O_RDWR | os.O_CREAT | (os.O_TRUNC if truncate else 0)
        try:
            with self.vault.opened(name, flags, self.where(directory)) as file:
                file.write(0, self.content(size))
        except REFUSED:
            pass  # a directory or a link stands there

    @rule(directory=DIRECTORIES, name=NAMES)
    def leave_open(self, directory: bytes, name: bytes) -> None:
        try:
            file = self.vault.tree.create(self.where(directory), name, os.O_RDWR, 0o600)
        except REFUSED:
            return
        file.write(0, self.content(500))
        self.open.append(file)

    @precondition(lambda self: self.open)
    @rule(data=st.data(), size=SIZES)
    def go_on(self, data: st.DataObject, size: int) -> None:
        data.draw(st.sampled_from(self.open)).write(CHUNK - 7, self.content(size))

    @precondition(lambda self: self.open)
    @rule()
    def close_one(self) -> None:
        self.vault.tree.release(self.open.pop())

    @rule(directory=DIRECTORIES, name=NAMES, size=SIZES)
    def truncate(self, directory: bytes, name: bytes, size: int) -> None:
        with contextlib.suppress(*REFUSED):
            self.vault.tree.truncate(self.where(directory), name, size)

    @rule(directory=DIRECTORIES, name=NAMES)
    def punch(self, directory: bytes, name: bytes) -> None:
        try:
            with self.vault.opened(name, os.O_RDWR, self.where(directory)) as file:
                ranges.allocate(file, FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE, CHUNK, CHUNK)
        except REFUSED:
            pass

    @rule(one=DIRECTORIES, name=NAMES, two=DIRECTORIES, new=NAMES, exchange=st.booleans())
    def rename(self, one: bytes, name: bytes, two: bytes, new: bytes, exchange: bool) -> None:
        flags = RENAME_EXCHANGE if exchange else 0
        with contextlib.suppress(*REFUSED):
            self.vault.tree.rename(self.where(one), name, self.where(two), new, flags)

    @rule(one=DIRECTORIES, name=NAMES, two=DIRECTORIES, new=NAMES)
    def link(self, one: bytes, name: bytes, two: bytes, new: bytes) -> None:
        with contextlib.suppress(*REFUSED):
            self.vault.tree.link(self.where(one), name, self.where(two), new)

    @rule(directory=DIRECTORIES, name=NAMES)
    def unlink(self, directory: bytes, name: bytes) -> None:
        with contextlib.suppress(*REFUSED):
            self.vault.tree.unlink(self.where(directory), name)

    @rule(directory=DIRECTORIES, name=NAMES, long=st.booleans())
    def symlink(self, directory: bytes, name: bytes, long: bool) -> None:
        with contextlib.suppress(*REFUSED):
            self.vault.tree.make_symlink(self.where(directory), name, b"t" * (3500 if long else 5))

    @rule(directory=DIRECTORIES, name=NAMES)
    def attribute(self, directory: bytes, name: bytes) -> None:
        with contextlib.suppress(*REFUSED):
            self.vault.tree.xattrs.set(self.where(directory), name, b"user.a", self.content(20), 0)

    @rule()
    def remount(self) -> None:
        for file in self.open:
            self.vault.tree.release(file)
        self.open.clear()
        self.vault.reopen()

    @rule()
    def crash(self) -> None:
        self.open.clear()
        self.vault.die_and_reopen()

    # ---- looks

    @rule()
    def snapshot(self) -> None:
        self.scene.snapshot()

    @rule()
    def verify(self) -> None:
        findings, _, _ = self.scene.run()
        assert [each for each in findings if each.change.alarms or each.change is Change.DAMAGED] == []

    @rule()
    def compare_with_itself(self) -> None:
        self.scene.snapshot()
        assert self.scene.run()[:2] == ([], {})

    def teardown(self) -> None:
        self.verify()
        self.remount()
        self.verify()
        self.vault.close()
        shutil.rmtree(self.base)


class HonestWithJournal(Honest):
    """The same with overlay, journal and replay."""

    durability = Durability.POWER
    deltas = True


@pytest.mark.parametrize("machine", [Honest, HonestWithJournal])
def test_honest_changes_never_alarm(machine: type[Honest]) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=50, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
