"""Somebody changes or replaces journal and list of sessions: after a crash, after an unmount, under a mount.

Whatever a replay finds, each chunk of a file is as one of its versions had it, nothing that was closed is
rolled back, and the mount comes up at once.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import ENGINES, require_fuse
from tests.e2e.mounting import Mounted, MountSpec, mounted
from tests.e2e.test_tamper_config import take_away
from tests.e2e.test_tamper_planted import PLANTS
from tests.support import KIB, pattern, state_files

pytestmark = [
    pytest.mark.timeout(60),  # a hang is among what these cases are about
    pytest.mark.skipif(os.geteuid() != 0, reason="makes devices"),
]

CHUNK = 16 * KIB
SIZE = 20 * CHUNK
EXPECTED = (
    r"WARNING .*(did not end with an unmount|was interrupted|bytes at its end|closed shortly)",
    r"WARNING .*unfinished session",
    r"WARNING .*(journal|list of sessions|sessions)",
    r"ERROR .*(journal|list of sessions|sessions)",
)

Raw = dict[str, bytes]


class Session:
    """A vault with a file that gets a new version in each of its sessions."""

    def __init__(self, mount: Mounted) -> None:
        self.mount = mount
        self.path = mount.mountpoint / "file"
        self.path.write_bytes(pattern(SIZE))
        mount.remount()
        self.versions = [pattern(SIZE)]
        self._fd = -1

    def overwrite(self) -> None:
        """The next version: pieces of most chunks, synced, and still open. They are in the journal."""
        if self._fd < 0:
            self._fd = os.open(self.path, os.O_RDWR)
        for offset in range(0, SIZE, 3 * 4 * KIB):
            os.pwrite(self._fd, os.urandom(4 * KIB), offset)
        os.fsync(self._fd)
        self.versions.append(os.pread(self._fd, SIZE + 1, 0))
        assert len(self.versions[-1]) == SIZE

    def close(self) -> None:
        """The program closes the file."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            with contextlib.suppress(OSError):  # the mount is dead
                os.close(fd)

    def crash(self) -> None:
        self.mount.kill()
        self.close()

    def settle(self) -> None:
        """Mounted anew: what the file holds is one of its versions, chunk by chunk; it counts from now on.

        A chunk of two pieces may also have one of them alone: the kernel may have written it back before
        the fsync, and then it has a record of its own.
        """
        self.mount.start()
        found = self.path.read_bytes()
        assert len(found) == SIZE
        for start in range(0, SIZE, CHUNK):
            chunk = slice(start, start + CHUNK)
            steps = itertools.pairwise([self.versions[0], *self.versions])
            assert any(_is_between(found[chunk], old[chunk], new[chunk]) for old, new in steps), (
                start // CHUNK
            )
        self.versions = [found]

    def state(self, kind: str) -> list[Path]:
        """The files of journal or sessions."""
        return [self.mount.vault_dir / name for name in state_files(self.mount.vault_dir, kind)]

    def taken(self) -> Raw:
        """A copy of the journal as it is."""
        return {path.name: path.read_bytes() for path in self.state("journal")}

    def put_back(self, raw: Raw) -> None:
        for path in self.state("journal"):
            take_away(path)
        for name, content in raw.items():
            (self.mount.vault_dir / name).write_bytes(content)

    def said(self, pattern: str) -> bool:
        """Whether the log has a new line like that."""
        return any(re.search(pattern, line) for line in self.mount.new_log_lines())


def _is_between(chunk: bytes, old: bytes, new: bytes) -> bool:
    """Whether each page of a chunk is of one of two versions."""
    pages = [slice(at, at + 4 * KIB) for at in range(0, len(chunk), 4 * KIB)]
    return all(chunk[page] in (old[page], new[page]) for page in pages)


def flipping(step: int) -> Callable[[bytes], bytes]:
    def flip(raw: bytes) -> bytes:
        changed = bytearray(raw)
        for place in range(len(raw) // 3, len(raw), step):
            changed[place] ^= 0x04
        return bytes(changed)

    return flip


def moved(raw: bytes) -> bytes:
    """The second half of the records before the first."""
    middle = len(raw) // 2
    return raw[:256] + raw[middle:] + raw[256:middle]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "some bytes": flipping(50_000),
    "cut": lambda raw: raw[: len(raw) * 2 // 3],
    "moved": moved,
}


@pytest.fixture(scope="module", params=ENGINES)
def session(request: pytest.FixtureRequest) -> Iterator[Session]:
    spec = MountSpec(request.param, deltas=request.param == ENGINES[0])
    require_fuse(spec)
    with mounted(spec) as mount:
        session = Session(mount)
        yield session
        session.close()


@pytest.fixture(autouse=True)
def _expected(session: Session) -> None:
    session.mount.allow_log(*EXPECTED)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_journal_changed_after_a_crash(session: Session, damage: str) -> None:
    session.overwrite()
    session.overwrite()
    session.crash()
    session.put_back({name: DAMAGES[damage](raw) for name, raw in session.taken().items()})
    session.settle()


def test_a_journal_changed_under_a_mount(session: Session) -> None:
    """What the programs wrote is in its place after the close all the same."""
    for damage in DAMAGES.values():
        session.overwrite()
        for path in session.state("journal"):
            raw = path.read_bytes()
            with path.open("r+b") as file:
                file.write(damage(raw))
                file.truncate()
    session.overwrite()
    session.close()
    session.mount.unmount()
    session.versions = session.versions[-1:]
    session.settle()


def test_an_old_journal_after_its_session(session: Session) -> None:
    session.overwrite()
    old = session.taken()
    session.overwrite()
    session.close()
    session.mount.unmount()
    session.versions = session.versions[-1:]
    session.put_back(old)
    session.mount.new_log_lines()
    session.settle()
    assert session.said("WARNING .*journal")


def test_an_old_journal_of_this_session(session: Session) -> None:
    """What was in the later one only is lost. What has come to its place since stays."""
    session.overwrite()
    old = session.taken()
    session.overwrite()
    session.crash()
    session.put_back(old)
    session.settle()


def test_a_journal_of_another_vault(session: Session) -> None:
    with mounted(session.mount.spec) as other:
        other.allow_log(*EXPECTED)
        another = Session(other)
        another.overwrite()
        another.crash()
        foreign = another.taken()
    session.overwrite()
    session.crash()
    session.put_back(foreign)
    session.mount.new_log_lines()
    session.settle()
    assert session.said("journal")


@pytest.mark.parametrize("plant", PLANTS)
def test_something_else_in_its_place(session: Session, plant: str, tmp_path: Path) -> None:
    """In place of the list and of one part of the journal: not followed, opened or waited for."""
    outside = tmp_path / "outside"
    outside.write_bytes(b"outside of the vault")
    session.overwrite()
    session.crash()
    for path in (*session.state("sessions"), session.state("journal")[0]):
        take_away(path)
        PLANTS[plant](path, outside)
    session.settle()
    assert outside.read_bytes() == b"outside of the vault"
