"""The log of a mount stays small however hostile the vault is, and what is right is shown all the same."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cryptfs.mount.repeats import MOST_LINES
from tests.e2e.mounting import Mounted
from tests.support import KIB

pytestmark = pytest.mark.timeout(120)

PLANTED = 5000
RIGHT = {f"file {number}" for number in range(20)}


def log_lines(mount: Mounted) -> list[str]:
    """All that the daemon has said so far, once it has said all of it: the mount is gone."""
    mount.unmount()
    return mount.new_log_lines()


def plant_names(directory: Path) -> None:
    """Names that look like cipher names and are none of this vault."""
    for _ in range(PLANTED):
        (directory / os.urandom(36).hex()[:43]).touch()


def test_planted_names(own_mount: Mounted) -> None:
    for name in RIGHT:
        (own_mount.mountpoint / name).write_text("right")
    plant_names(own_mount.vault_dir)
    for _ in range(3):
        assert set(os.listdir(own_mount.mountpoint)) == RIGHT
    lines = log_lines(own_mount)
    assert len(lines) == 1, lines[:5]
    assert f"{PLANTED} names do not verify and are left out of the listing; the first: " in lines[0]
    assert len(lines[0]) < KIB


def test_planted_xattrs(own_mount: Mounted) -> None:
    file = own_mount.mountpoint / "file"
    file.write_text("right")
    os.setxattr(file, "user.right", b"value")
    (backing,) = (path for path in own_mount.vault_dir.iterdir() if not path.name.startswith("cryptfs."))
    for number in range(50):
        os.setxattr(backing, f"user.cryptfs.{number:043}", b"")
    for _ in range(3):
        assert os.listxattr(file) == ["user.right"]
    lines = log_lines(own_mount)
    assert len(lines) == 1, lines[:5]
    assert "50 xattrs do not verify and are left out of the list of xattrs; the first: " in lines[0]


def test_many_damaged_files(own_mount: Mounted) -> None:
    """A search through the mount meets each of them: the log names so many, and says that there is more."""
    damaged = MOST_LINES + 100
    for number in range(damaged):
        (own_mount.mountpoint / f"file {number}").write_text("what was written")
    own_mount.remount()
    for path in own_mount.vault_dir.iterdir():
        if not path.name.startswith("cryptfs."):
            content = bytearray(path.read_bytes())
            content[-1] ^= 1
            path.write_bytes(content)
    failed = 0
    for number in range(damaged):
        try:
            (own_mount.mountpoint / f"file {number}").read_bytes()
        except OSError:
            failed += 1
    assert failed == damaged
    lines = log_lines(own_mount)
    assert len(lines) == MOST_LINES
    assert "`cryptfs fsck --deep` names all damage" in lines[-1]
