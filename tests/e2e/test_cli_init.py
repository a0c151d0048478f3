"""`cryptfs init` in places that are not quite empty, not quite writable, or not quite named."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cryptfs.mount.mounts import mount_at
from tests.crash.blockdevice import loop_device, missing, mounted_disk
from tests.e2e.conftest import ENGINES
from tests.e2e.test_cli_mount import Place

pytestmark = [
    pytest.mark.waits,
    pytest.mark.skipif(not Path("/dev/fuse").exists(), reason="needs /dev/fuse"),
    pytest.mark.skipif(bool(missing()), reason=missing() or "-"),
]
CHEAP = ("--kdf-memory", "64m")


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path / "vault", tmp_path / "mountpoint", tmp_path / "passfile")
    place.prepare()
    yield place
    while mount_at(place.mountpoint) is not None:
        subprocess.run(["umount", "-l", place.mountpoint], check=True)
    place.assert_log_quiet()


def init(place: Place, vault: Path, code: int = 0) -> str:
    return place.cryptfs("init", vault, "--passfile", place.passfile, *CHEAP, code=code).stderr


def test_at_the_top_of_a_fresh_ext4(place: Place, tmp_path: Path) -> None:
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(32 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
    with loop_device(image) as device, mounted_disk(device, tmp_path / "disk") as disk:
        assert os.listdir(disk) == ["lost+found"]
        init(place, disk)
        on_disk = Place(disk, place.mountpoint, place.passfile)
        for engine in ENGINES:
            on_disk.mount("--engine", engine, "--log-file", place.log_file)
            assert os.listdir(place.mountpoint) == ([] if engine == ENGINES[0] else ["lost+found"])
            (place.mountpoint / "lost+found").mkdir(exist_ok=True)  # of the vault, as fsck makes it
            assert on_disk.cryptfs("status", place.mountpoint).stdout.count("No problems were found") == 1
            on_disk.umount()
        checked = on_disk.cryptfs("fsck", "--json", disk, "--passfile", place.passfile)
        assert json.loads(checked.stdout)["findings"] == []
        assert "lost+found" in os.listdir(disk)


def test_where_litter_or_a_killed_init_is(place: Place) -> None:
    place.vault.mkdir()
    (place.vault / ".DS_Store").write_bytes(b"")
    (place.vault / "cryptfs.tmp.AAAAAAAAAAAAAAAA.BBBBBBBBBBBBBBBBBBBBBBBB").write_bytes(b"half a con")
    init(place, place.vault)
    assert sorted(os.listdir(place.vault)) == [".DS_Store", "cryptfs.json"]
    assert "already a vault" in init(place, place.vault, code=6)


@pytest.mark.parametrize("name", ["letter.txt", "lost+found", "cryptfs.tmp.x/inside"])
def test_where_anything_else_is(place: Place, name: str) -> None:
    (place.vault / name).parent.mkdir(parents=True)
    (place.vault / name).write_bytes(b"precious")
    assert f"it holds {name.partition('/')[0]}" in init(place, place.vault, code=6)
    assert (place.vault / name).read_bytes() == b"precious"


def test_a_full_disk_keeps_no_empty_directory(place: Place, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", disk], check=True)
    try:
        (disk / "filler").write_bytes(bytes(4096))
        assert "No space left on device" in init(place, disk / "vault", code=7)
        assert os.listdir(disk) == ["filler"]
        (disk / "own").mkdir()
        init(place, disk / "own", code=7)
        assert os.listdir(disk / "own") == []
        (disk / "filler").unlink()
        init(place, disk / "vault")
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize(
    "words",
    [("init", ""), ("mount", "", "m"), ("mount", "v", ""), ("umount", ""), ("info", ""), ("fsck", "")],
)
def test_an_empty_path_is_not_the_current_directory(place: Place, words: tuple[str, ...]) -> None:
    assert "the path is empty" in place.cryptfs(*words, code=1).stderr
