"""Random sequences of operations over a small pool of names, on a mount and on a plain directory."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from cryptfs.storage.libc import RENAME_EXCHANGE, RENAME_NOREPLACE, renameat2
from tests.e2e.conftest import Pair
from tests.e2e.trace import walk

EXAMPLES = int(os.environ.get("CRYPTFS_E2E_EXAMPLES", "120"))

LONG = "l" * 200
NAMES = st.sampled_from(["a", "b", "c", "d", "d/a", "d/b", "e", "e/a", LONG, f"d/{LONG}", "e/d", "e/d/a"])
OFFSETS = st.one_of(st.integers(0, 70_000), st.sampled_from([0, 4095, 4096, 16_383, 16_384, 16_385, 32_768]))
DATA = st.builds(lambda byte, size: bytes([byte]) * size, st.integers(1, 255), st.integers(0, 40_000))


class Side:
    """One of the two directories, with its open files."""

    def __init__(self, root: Path) -> None:
        self.root_fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
        self.root = root
        self.open_files: dict[int, int] = {}

    def close(self) -> None:
        """Close everything and remove what is there."""
        for fd in self.open_files.values():
            os.close(fd)
        os.close(self.root_fd)
        shutil.rmtree(self.root)


def attempt(function: Callable[..., Any], *arguments: Any, **named: Any) -> object:
    """The result, or the errno's name."""
    try:
        result = function(*arguments, **named)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return result if isinstance(result, int | bytes | str | list) else "ok"


class Differential(RuleBasedStateMachine):
    """The rules; `directories` is set by the test for one run."""

    directories: Callable[[], tuple[Path, Path]]

    @initialize()
    def begin(self) -> None:
        self.sides = [Side(path) for path in type(self).directories()]
        self.slots = 0

    def teardown(self) -> None:
        if not hasattr(self, "sides"):
            return
        trees = [list(walk(os.fsencode(side.root))) for side in self.sides]
        for side in self.sides:
            side.close()
        assert trees[0] == trees[1]

    def both(self, operation: Callable[[Side], object]) -> None:
        on_mount, on_plain = (operation(side) for side in self.sides)
        assert on_mount == on_plain

    @rule(
        name=NAMES,
        flags=st.sampled_from([os.O_RDWR, os.O_RDWR | os.O_CREAT, os.O_RDWR | os.O_CREAT | os.O_EXCL]),
    )
    def open(self, name: str, flags: int) -> None:
        slot = self.slots = (self.slots + 1) % 4

        def operation(side: Side) -> object:
            with contextlib.suppress(KeyError):
                os.close(side.open_files.pop(slot))
            try:
                side.open_files[slot] = os.open(name, flags, 0o644, dir_fd=side.root_fd)
            except OSError as error:
                return errno.errorcode[error.errno or 0]
            return "open"

        self.both(operation)

    @rule(slot=st.integers(0, 3))
    def close(self, slot: int) -> None:
        for side in self.sides:
            if slot in side.open_files:
                os.close(side.open_files.pop(slot))

    @rule(slot=st.integers(0, 3), offset=OFFSETS, data=DATA)
    def write(self, slot: int, offset: int, data: bytes) -> None:
        self.both(
            lambda side: slot in side.open_files and attempt(os.pwrite, side.open_files[slot], data, offset)
        )

    @rule(slot=st.integers(0, 3), offset=OFFSETS, size=st.integers(0, 50_000))
    def read(self, slot: int, offset: int, size: int) -> None:
        self.both(
            lambda side: slot in side.open_files and attempt(os.pread, side.open_files[slot], size, offset)
        )

    @rule(slot=st.integers(0, 3), size=OFFSETS)
    def ftruncate(self, slot: int, size: int) -> None:
        self.both(lambda side: slot in side.open_files and attempt(os.ftruncate, side.open_files[slot], size))

    @rule(slot=st.integers(0, 3))
    def fsync(self, slot: int) -> None:
        self.both(lambda side: slot in side.open_files and attempt(os.fsync, side.open_files[slot]))

    @rule(slot=st.integers(0, 3))
    def fstat(self, slot: int) -> None:
        def size_of(side: Side) -> object:
            fd = side.open_files.get(slot)
            return fd is not None and os.lseek(fd, 0, os.SEEK_END)

        self.both(size_of)

    @rule(name=NAMES)
    def mkdir(self, name: str) -> None:
        self.both(lambda side: attempt(os.mkdir, name, dir_fd=side.root_fd))

    @rule(name=NAMES)
    def rmdir(self, name: str) -> None:
        self.both(lambda side: attempt(os.rmdir, name, dir_fd=side.root_fd))

    @rule(name=NAMES)
    def unlink(self, name: str) -> None:
        self.both(lambda side: attempt(os.unlink, name, dir_fd=side.root_fd))

    @rule(name=NAMES, text=NAMES)
    def symlink(self, name: str, text: str) -> None:
        self.both(lambda side: attempt(os.symlink, text, name, dir_fd=side.root_fd))

    @rule(name=NAMES)
    def readlink(self, name: str) -> None:
        self.both(lambda side: attempt(os.readlink, name, dir_fd=side.root_fd))

    @rule(name=NAMES)
    def listing(self, name: str) -> None:
        self.both(lambda side: attempt(lambda: sorted(os.listdir(side.root / name))))

    @rule(name=NAMES, mode=st.sampled_from([0o600, 0o644, 0o755, 0o1777]))
    def chmod(self, name: str, mode: int) -> None:
        self.both(lambda side: attempt(os.chmod, name, mode, dir_fd=side.root_fd))

    @rule(old=NAMES, new=NAMES, flags=st.sampled_from([0, 0, RENAME_NOREPLACE, RENAME_EXCHANGE]))
    def rename(self, old: str, new: str, flags: int) -> None:
        self.both(lambda side: attempt(renameat2, side.root_fd, old, side.root_fd, new, flags))

    @rule(name=NAMES, data=DATA)
    def rewrite(self, name: str, data: bytes) -> None:
        self.both(lambda side: attempt((side.root / name).write_bytes, data))

    @rule(name=NAMES)
    def content(self, name: str) -> None:
        self.both(lambda side: attempt((side.root / name).read_bytes))


@pytest.fixture
def fresh_directories(pair: Pair) -> Iterator[Callable[[], tuple[Path, Path]]]:
    """A maker of pairs of empty directories."""
    yield lambda: pair.directories("machine")


def test_random_operations(pair: Pair, fresh_directories: Callable[[], tuple[Path, Path]]) -> None:
    machine = type("Machine", (Differential,), {"directories": staticmethod(fresh_directories)})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=60,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        ),
    )
    pair.mount.assert_quiet()
