"""A vault on a full disk: it can be mounted and cleared, and every command says what is wrong."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cryptfs.cli.exit_codes import CommandError
from cryptfs.cli.vaults import naming
from cryptfs.mount.mounts import wait_until
from tests.e2e.conftest import ENGINES
from tests.e2e.test_cli_mount import Place

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.skipif(not Path("/dev/fuse").exists(), reason="needs /dev/fuse"),
    pytest.mark.skipif(os.geteuid() != 0, reason="a disk of its own needs root"),
]


def fill(disk: Path) -> None:
    """Take the last byte."""
    filler = os.open(disk / "filler", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        for size in (1 << 20, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while os.write(filler, bytes(size)):
                    pass
    finally:
        os.close(filler)
    assert os.statvfs(disk).f_bavail == 0


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m,nr_inodes=100", "tmpfs", disk], check=True)
    yield disk
    subprocess.run(["umount", disk], check=True)


@pytest.fixture
def place(tmp_path: Path, disk: Path) -> Iterator[Place]:
    place = Place(disk / "vault", tmp_path / "mount", tmp_path / "passfile")
    place.prepare()
    place.cryptfs("init", place.vault, "--passfile", place.passfile, "--kdf-memory", "64m")
    yield place
    if place.is_mounted():
        place.umount("--lazy")
        wait_until(lambda: place.info()["held_by"] is None, 20)


def mount(place: Place, *options: str, code: int = 0) -> str:
    log = f"{place.passfile.parent}/log"
    return place.mount(*options, "--log-file", log, code=code).stderr


def wait_for_room(path: Path, text: str) -> None:
    """Write a file. The room of a deleted one is free once the kernel has forgotten it, moments later."""
    deadline = time.monotonic() + 10
    while True:
        try:
            path.write_text(text)
        except OSError as error:
            assert error.errno == errno.ENOSPC and time.monotonic() < deadline
            time.sleep(0.01)
        else:
            return


@pytest.mark.parametrize("engine", ENGINES)
def test_a_full_disk_can_be_mounted_and_cleared(place: Place, disk: Path, engine: str) -> None:
    mount(place, "--engine", engine)
    (place.mountpoint / "large").write_bytes(os.urandom(1 << 20))
    (place.mountpoint / "directory").mkdir()
    (place.mountpoint / "directory" / "small").write_text("kept")
    place.umount()
    fill(disk)
    mount(place, "--engine", engine)
    other = Place(place.vault, place.mountpoint.with_name("other"), place.passfile)
    other.mountpoint.mkdir()
    told = mount(other, code=40)
    assert f"unmount it with: cryptfs umount {place.mountpoint}\n" in told
    assert "process 0" not in place.cryptfs("info", place.vault).stdout
    os.rename(place.mountpoint / "directory" / "small", place.mountpoint / "small")
    (place.mountpoint / "directory").rmdir()
    assert (place.mountpoint / "small").read_text() == "kept"
    (place.mountpoint / "large").unlink()
    wait_for_room(place.mountpoint / "new", "there is room again")
    held_by = place.info()["held_by"]
    assert isinstance(held_by, dict) and held_by["pid"] > 1  # the next session had room for its note
    place.umount()
    (disk / "filler").unlink()
    assert "in order" in place.cryptfs("fsck", "--deep", place.vault, "--passfile", place.passfile).stdout


def test_a_full_disk_after_a_crash(place: Place, disk: Path) -> None:
    """The journal gives its room to what the replay must write."""
    mount(place)
    file = place.mountpoint / "file"
    file.write_bytes(bytes(200_000))
    with file.open("r+b") as opened:
        for where in range(0, 200_000, 20_000):
            opened.seek(where)
            opened.write(b"synced")
            opened.flush()
            os.fsync(opened.fileno())
        os.kill(place.daemon(), signal.SIGKILL)
        fill(disk)
        with contextlib.suppress(OSError):
            opened.close()
    place.umount()
    mount(place)
    assert file.read_bytes()[20_000:20_006] == b"synced"
    file.unlink()
    place.umount()


def test_no_inodes_are_left(place: Place, disk: Path) -> None:
    """Even a lock file cannot be made: the message says which disk is full, and what helps."""
    for lock in place.vault.glob("*.lock"):
        lock.unlink()
    with contextlib.suppress(OSError):
        for number in range(200):
            (disk / f"empty {number}").touch()
    told = mount(place, code=6)
    assert told == (
        f"cryptfs: {place.vault}: the disk that holds this vault is full; free some space there, "
        "or mount with --read-only\n"
    )
    mount(place, "--read-only")
    place.umount()


@pytest.mark.parametrize("name", [None, "cryptfs.tmp.x", 7])
def test_errors_without_a_path_get_one(name: str | None, tmp_path: Path) -> None:
    vault = tmp_path / "va\nult"
    with (
        pytest.raises(CommandError, match=r"that holds this vault is full; free some space there$"),
        naming(vault),
    ):
        raise OSError(errno.EDQUOT, "Disk quota exceeded", name)
    with pytest.raises(CommandError) as raised, naming(vault, if_full="wait"):
        raise OSError(errno.EIO, "Input/output error", name)
    below = f"/{name}" if isinstance(name, str) else ""
    assert str(raised.value) == f"{tmp_path}/va\\nult{below}: Input/output error"
    with pytest.raises(FileNotFoundError), naming(vault):
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", "/log/file")
