"""Paths with as many directories as a path can have."""

from __future__ import annotations

import os
from pathlib import Path

from cryptfs.mount.native.node import MAX_OPEN_DIRECTORIES

DEPTH = 1950  # of 'd/', which makes 3,900 of the 4,096 bytes that a path may have


def test_deep_paths_whose_directories_were_closed(on_mount: Path) -> None:
    before = Path.cwd()
    os.chdir(on_mount)
    try:
        for _ in range(DEPTH):
            os.mkdir("d")
            os.chdir("d")
        Path("file").write_bytes(b"down here")
        os.chdir(on_mount)
        for number in range(MAX_OPEN_DIRECTORIES + 10):  # the daemon closes others for these
            os.mkdir(f"other{number}")
            Path(f"other{number}/file").touch()
        deep = "d/" * DEPTH
        assert Path(f"{deep}file").read_bytes() == b"down here"
        os.rename(f"{deep}file", f"{deep}f")
        os.unlink(f"{deep}f")
        for depth in range(DEPTH, 0, -1):
            os.rmdir("d/" * depth)
    finally:
        os.chdir(before)
    assert not (on_mount / "d").exists()
