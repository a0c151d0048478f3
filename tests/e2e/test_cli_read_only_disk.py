"""Commands that write, on a read-only disk: they say so before they ask, and name no internal file."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.crash.blockdevice import missing
from tests.e2e.test_cli_mount import Place, place

__all__ = ["place"]

pytestmark = [pytest.mark.serial, pytest.mark.skipif(bool(missing()), reason=missing() or "-")]


def test_a_read_only_disk(place: Place, tmp_path: Path) -> None:
    disk, vault = tmp_path / "disk", tmp_path / "disk" / "vault"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", disk], check=True)
    try:
        subprocess.run(["cp", "-a", place.vault, vault], check=True)
        (disk / "empty").mkdir()
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        told = place.cryptfs("passwd", vault, "--passfile", tmp_path / "none", code=24).stderr
        assert told == f"cryptfs: {vault}: cannot write the vault config: Read-only file system\n"
        told = place.cryptfs("fsck", "--repair", vault, "--passfile", place.passfile, code=6).stderr
        assert "cryptfs.tmp" not in told
        assert "cannot be opened for writing: Read-only file system" in told
        assert told.endswith(
            f" To read it: cryptfs mount --read-only {vault} MOUNTPOINT. To check it: cryptfs fsck {vault}\n"
        )
        for words in (("init", disk / "new"), ("init", disk / "empty")):
            told = place.cryptfs(*words, "--passfile", tmp_path / "none", code=6).stderr
            assert told == f"cryptfs: {words[1]} cannot be made a vault: Read-only file system\n"
        place.cryptfs("fsck", vault, "--passfile", place.passfile)
    finally:
        subprocess.run(["umount", disk], check=True)
