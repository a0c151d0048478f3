"""Somebody changes the vault while it is mounted: EIO where it was changed, and nowhere else."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import pytest

from cryptfs.core.aead import AEGIS_256
from cryptfs.core.geometry import ChunkGeometry
from tests.e2e.mounting import Mounted
from tests.support import everything_below

pytestmark = pytest.mark.waits

CHUNKS = 8
CONTENT = bytes(index % 256 for index in range(16_384)) * CHUNKS


def backing_file(mount: Mounted, wanted: int) -> Path:
    """The one file of the vault with this inode: the mount shows the inodes of the vault."""
    return next(path for path in everything_below(mount.vault_dir) if path.lstat().st_ino == wanted)


def reread(path: Path) -> int:
    """A descriptor that does not answer from the page cache."""
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    return fd


def make_victim(mount: Mounted) -> tuple[Path, Path]:
    """A file with several chunks, closed and settled: (on the mount, in the vault)."""
    path = mount.mountpoint / "victim"
    path.write_bytes(CONTENT)
    (mount.mountpoint / "bystander").write_bytes(b"untouched")
    inode = path.stat().st_ino
    mount.remount()
    return path, backing_file(mount, inode)


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


@pytest.mark.parametrize("where", ["nonce", "ciphertext", "tag"])
def test_flipped_byte_in_a_chunk(own_mount: Mounted, where: str) -> None:
    path, backing = make_victim(own_mount)
    geometry = ChunkGeometry(own_mount.spec.chunk_size, AEGIS_256.overhead)
    start = geometry.record_offset(3)
    own_mount.allow_log(r"ERROR .*: .*chunk 3\b")
    fd = reread(path)
    assert os.pread(fd, 100, 0) == CONTENT[:100]
    offset = {"nonce": 0, "ciphertext": 1000, "tag": geometry.record_size - 1}[where]
    flip(backing, start + offset)
    os.close(fd)
    fd = reread(path)
    with pytest.raises(OSError, match="Input/output error"):
        os.pread(fd, 100, 3 * 16_384)
    os.close(fd)
    for index in (0, 1, 2, 4, 5, 6, 7):
        assert read_direct(path, index * 16_384, 16_384) == CONTENT[index * 16_384 : (index + 1) * 16_384]
    assert (own_mount.mountpoint / "bystander").read_bytes() == b"untouched"
    lines = own_mount.new_log_lines()
    assert any(backing.name in line and "chunk 3" in line for line in lines), lines
    assert all("victim" not in line for line in lines)
    path.unlink()
    assert not backing.exists()


def read_direct(path: Path, offset: int, size: int) -> bytes:
    """Read exactly this range and nothing around it."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        with mmap.mmap(-1, size) as buffer:
            got = os.preadv(fd, [buffer], offset)
            return bytes(buffer[:got])
    finally:
        os.close(fd)


def test_header_and_length(own_mount: Mounted) -> None:
    path, backing = make_victim(own_mount)
    own_mount.allow_log(r"ERROR ")
    own_mount.remount()
    flip(backing, 40)
    with pytest.raises(OSError, match="Input/output error"):
        path.read_bytes()
    flip(backing, 40)
    assert path.read_bytes() == CONTENT
    own_mount.remount()
    geometry = ChunkGeometry(own_mount.spec.chunk_size, AEGIS_256.overhead)
    os.truncate(backing, geometry.record_offset(4))
    with pytest.raises(OSError, match="Input/output error"):
        path.read_bytes()
    path.write_bytes(b"replaced as a whole")
    assert path.read_bytes() == b"replaced as a whole"
    path.unlink()


def test_foreign_entries_hide_nothing(own_mount: Mounted) -> None:
    make_victim(own_mount)
    own_mount.allow_log(r"WARNING .*left out of the listing")
    (own_mount.vault_dir / "not a cipher name").write_bytes(b"x")
    os.mkfifo(own_mount.vault_dir / "cGxhbnRlZA")
    assert sorted(os.listdir(own_mount.mountpoint)) == ["bystander", "victim"]


def test_damaged_directory_record(own_mount: Mounted) -> None:
    directory = own_mount.mountpoint / "dir"
    directory.mkdir()
    (directory / "file").write_bytes(b"x")
    inode = directory.stat().st_ino
    own_mount.remount()
    own_mount.allow_log(r"ERROR ")
    backing = backing_file(own_mount, inode)
    flip(backing / "cryptfs.dir", 3)
    with pytest.raises(OSError, match="Input/output error"):
        os.listdir(directory)
    (own_mount.mountpoint / "other").write_bytes(b"works")
    assert sorted(os.listdir(own_mount.mountpoint)) == ["dir", "other"]
    flip(backing / "cryptfs.dir", 3)
    assert os.listdir(directory) == ["file"]


def test_what_the_kernel_remembers(own_mount: Mounted) -> None:
    """Pages that are in its cache are shown as they were; once they are dropped, damage is noticed."""
    path, backing = make_victim(own_mount)
    own_mount.allow_log(r"ERROR .*: .*chunk 3\b")
    geometry = ChunkGeometry(own_mount.spec.chunk_size, AEGIS_256.overhead)
    with path.open("rb", buffering=0) as held:  # keeps the inode, and so its pages
        assert os.pread(held.fileno(), len(CONTENT), 0) == CONTENT
        flip(backing, geometry.record_offset(3) + 100)
        assert os.pread(held.fileno(), 16_384, 3 * 16_384) == CONTENT[3 * 16_384 : 4 * 16_384]
        os.posix_fadvise(held.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        with pytest.raises(OSError, match="Input/output error"):
            os.pread(held.fileno(), 16_384, 3 * 16_384)
    path.unlink()
