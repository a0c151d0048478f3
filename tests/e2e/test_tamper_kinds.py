"""One victim for each way to tamper, on real mounts of both engines: attacked while mounted, and while not.

tests/tamper/ goes through every byte without a mount. Here a sample of each kind goes all the way: EIO, one
line in the log, nothing wrong read, everything else works, and the victim can be emptied and removed. What is
changed under a mount was listed and read before, through the kernel's caches.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cryptfs.core.geometry import HEADER_SIZE
from cryptfs.mount.options import FRESH_SECONDS
from cryptfs.storage.libc import FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, fallocate
from cryptfs.vfs.vault import Vault
from soaklib.sealed import Sealer
from tests.e2e.conftest import ENGINES, require_fuse
from tests.e2e.mounting import PASSPHRASE, Mounted, MountSpec, mounted
from tests.e2e.tamper_files import (
    ATTACKS,
    CHUNK,
    CHUNKS,
    CONTENT,
    EARLIER,
    HOLE,
    NOT_DETECTED,
    SHORTER,
    SIZE,
    WHOLE,
    Evidence,
    content_of,
    has_hole,
    shown_after,
)
from tests.e2e.tamper_trees import TREE_ATTACKS, Backing, assert_eio, furnish
from tests.e2e.test_tamper_mounted import backing_file, read_direct
from tests.outside.stage import until
from tests.support import everything_below, pattern

pytestmark = pytest.mark.waits

pytestmark = pytest.mark.timeout(60)  # a hang is among what these cases are about

VICTIMS = (*ATTACKS, *NOT_DETECTED)


def punch(path: Path) -> None:
    """Make a chunk of a file a hole."""
    fd = os.open(path, os.O_RDWR)
    try:
        fallocate(fd, FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE, HOLE * CHUNK, CHUNK)
    finally:
        os.close(fd)


class Scene:
    """A mount with a victim for each attack, which has happened."""

    def __init__(self, mount: Mounted, *, live: bool) -> None:
        self.mount = mount
        self.live = live
        self.backing: dict[str, Path] = {}
        root = mount.mountpoint
        (root / "other").write_bytes(pattern(SIZE, 2))
        for name in VICTIMS:
            (root / name).write_bytes(pattern(SIZE, 3))
        for kind in TREE_ATTACKS:
            furnish(root / f"in {kind}")
        mount.remount()  # everything is at rest, and the kernel remembers nothing
        old = {name: self.cipher(name).read_bytes() for name in VICTIMS}
        for name in VICTIMS:
            (root / name).write_bytes(CONTENT)  # O_TRUNC: the next epoch
            if has_hole(name):
                punch(root / name)
        mount.remount()
        by_inode = {path.lstat().st_ino: path for path in everything_below(mount.vault_dir)}
        for path in everything_below(root):
            self.backing[str(path.relative_to(root))] = by_inode[path.lstat().st_ino]
        self.sealer = Sealer(mount.vault_dir, PASSPHRASE.encode())
        foreign = self.foreign()
        if live:
            self.read_everything()
            self.attack(old, foreign)
            shows_at = time.monotonic() + FRESH_SECONDS
            assert until(lambda: time.monotonic() > shows_at)
        else:
            mount.unmount()
            self.attack(old, foreign)
            mount.start()

    def cipher(self, name: str) -> Path:
        return backing_file(self.mount, (self.mount.mountpoint / name).lstat().st_ino)

    def foreign(self) -> bytes:
        """The victims' content as another vault of the same shape has it."""
        path = self.mount.scratch / "another vault"
        config = self.sealer._config
        Vault.create(
            path,
            PASSPHRASE.encode(),
            cipher=config.cipher,
            chunk_size=config.chunk_size,
            kdf_memory=64 << 20,
        )
        other = Sealer(path, PASSPHRASE.encode())
        try:
            return other.seal(CONTENT)
        finally:
            other.close()

    def read_everything(self) -> None:
        """What kernel and program can know, they know."""
        for path in everything_below(self.mount.mountpoint):
            path.lstat()
            if path.is_symlink():
                os.readlink(path)
                continue
            for attribute in os.listxattr(path):
                os.getxattr(path, attribute)
            if path.is_file():
                path.read_bytes()

    def attack(self, old: dict[str, bytes], foreign: bytes) -> None:
        other = self.backing["other"].read_bytes()
        for name in VICTIMS:
            path = self.backing[name]
            victim = path.read_bytes()
            evidence = Evidence(
                victim,
                other,
                old[name],
                self.sealer.seal(EARLIER, like=victim, new_epoch=False),
                foreign,
                self.sealer.seal(SHORTER, like=victim, new_epoch=False),
            )
            changed = ATTACKS[name][0](evidence) if name in ATTACKS else NOT_DETECTED[name][0](evidence)
            with path.open("r+b") as file:
                file.write(changed)
                file.truncate()
        for kind, (tree_attack, _) in TREE_ATTACKS.items():
            tree_attack(self.backing_of(kind))

    def backing_of(self, kind: str) -> Backing:
        """The vault's side of the directory of a kind."""
        top = f"in {kind}/"
        entries = {
            path.removeprefix(top): found for path, found in self.backing.items() if path.startswith(top)
        }
        names = self.sealer.names_in(entries["bystander"].parent)
        return Backing(entries, self.mount.vault_dir, names)

    def lines(self) -> list[str]:
        """New lines of the log; none of them holds a name from the mount."""
        lines = self.mount.new_log_lines()
        for word in ("victim", "bystander", "inside", "link", "directory 2", "l" * 8, *VICTIMS):
            assert not any(word in line.partition(": ")[2].partition(": ")[0] for line in lines), lines
        return lines

    def assert_one_line(self, *wanted: str) -> None:
        """Nothing was logged since the last look but one line that says all this."""
        self.assert_lines(1, *wanted)

    def assert_lines(self, count: int, *wanted: str) -> None:
        """As assert_one_line, for so many lines that all say this."""
        lines = self.lines()
        assert len(lines) == count, lines
        assert all(part in line for part in wanted for line in lines), (lines, wanted)


@pytest.fixture(
    scope="module", params=[(engine, live) for engine in ENGINES for live in (False, True)], ids=str
)
def scene(request: pytest.FixtureRequest) -> Iterator[Scene]:
    engine, live = request.param
    spec = MountSpec(engine)
    require_fuse(spec)
    with mounted(spec) as mount:
        scene = Scene(mount, live=live)
        yield scene
        scene.sealer.close()


def append(path: Path) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        os.write(fd, b"more")
        os.fsync(fd)
    finally:
        os.close(fd)


def write_at(path: Path, offset: int, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY)
    try:
        os.pwrite(fd, data, offset)
        os.fsync(fd)
    finally:
        os.close(fd)


def chunk_or_error(path: Path, index: int) -> bytes | int | None:
    try:
        return read_direct(path, index * CHUNK, CHUNK)
    except OSError as error:
        return error.errno


@pytest.mark.parametrize("name", ATTACKS)
def test_a_file(scene: Scene, name: str) -> None:
    _, lost_chunks = ATTACKS[name]
    path, backing = scene.mount.mountpoint / name, scene.backing[name]
    content = content_of(name)
    scene.lines()
    seen_size = path.stat().st_size
    has_content = backing.stat().st_size > HEADER_SIZE  # without any, it cannot even be opened
    for index in range(CHUNKS):
        found = chunk_or_error(path, index)
        if lost_chunks is WHOLE and has_content and seen_size <= index * CHUNK:
            assert found == b""  # behind the end that the kernel sees
        elif lost_chunks is WHOLE or index in lost_chunks:
            assert found == errno.EIO
            if lost_chunks is not WHOLE:
                scene.assert_one_line("ERROR", f"{backing.name}, chunk {index}: ")
        else:
            assert found == content[index * CHUNK : (index + 1) * CHUNK]
    if lost_chunks is WHOLE:
        scene.assert_one_line("ERROR", f"{backing.name}: ")
        assert_eio(lambda: os.truncate(path, 10))
        assert_eio(lambda: append(path))
    elif lost_chunks:
        heal_a_chunk(scene, path, lost_chunks[-1], content)
    else:
        surplus_is_cut_off(scene, path, backing)
    assert (scene.mount.mountpoint / "other").read_bytes() == pattern(SIZE, 2)
    path.write_bytes(b"new life")
    assert path.read_bytes() == b"new life"
    path.unlink()
    assert not path.exists()
    assert not backing.exists()
    scene.lines()


def heal_a_chunk(scene: Scene, path: Path, index: int, content: bytes) -> None:
    """A write that keeps a part of a damaged chunk fails; one that replaces the chunk heals it."""
    start = index * CHUNK
    whole = content[start : start + CHUNK]
    evict(path)
    assert_eio(lambda: write_at(path, start + 1, b"x"))
    assert chunk_or_error(path, index) == errno.EIO
    if len(whole) < CHUNK:  # the kernel reads a page before it replaces a part of it: so cut that off first
        os.truncate(path, start)
    write_at(path, start, whole)
    assert chunk_or_error(path, index) == whole


def evict(path: Path) -> None:
    """Make the kernel forget the pages of a file."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def surplus_is_cut_off(scene: Scene, path: Path, backing: Path) -> None:
    """What stands behind the end is no part of the file: a warning says so, and the next writer cuts it."""
    scene.assert_one_line("WARNING", f"{backing.name}: 7 bytes after its end do not belong to it")
    assert path.stat().st_size == SIZE
    append(path)
    assert path.read_bytes() == CONTENT + b"more"
    scene.assert_one_line("WARNING", f"{backing.name}: removed 7 bytes at its end")
    assert scene.sealer.content(backing.read_bytes())[:SIZE] == CONTENT


@pytest.mark.parametrize("kind", TREE_ATTACKS)
def test_the_tree(scene: Scene, kind: str) -> None:
    place = scene.mount.mountpoint / f"in {kind}"
    scene.lines()
    TREE_ATTACKS[kind][1](scene, place, scene.backing_of(kind))
    assert (place / "bystander").read_bytes() == b"fine"
    scene.lines()


@pytest.mark.parametrize("name", NOT_DETECTED)
def test_a_file_that_is_authentic_elsewhere_or_was(scene: Scene, name: str) -> None:
    """Not promised: this is what shows. Nothing of it is made up, and the file can be used and removed."""
    path, backing = scene.mount.mountpoint / name, scene.backing[name]
    scene.lines()
    shown = shown_after(name)
    assert path.stat().st_size == len(shown)
    found = b"".join(read_direct(path, index * CHUNK, CHUNK) for index in range(CHUNKS))
    assert found == shown
    assert scene.lines() == []
    path.write_bytes(b"new life")
    assert path.read_bytes() == b"new life"
    path.unlink()
    assert not backing.exists()
