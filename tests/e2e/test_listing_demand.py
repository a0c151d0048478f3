"""Attributes come with a listing where somebody looks at them, and else only names do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import cryptfs
from cryptfs import MountedVault
from tests.e2e.mounting import PROJECT

DIRECTORIES, FILES = 20, 60

NAMES = """
import os, sys
assert sum(len(files) for _, _, files in os.walk(sys.argv[1])) == int(sys.argv[2])
"""
STATS = """
import os, sys
count = 0
for place, _, files in os.walk(sys.argv[1]):
    for name in files:
        count += os.lstat(os.path.join(place, name)).st_size
assert count == int(sys.argv[2])
"""
POOL = """
import concurrent.futures, os, sys
listing, looking = (concurrent.futures.ThreadPoolExecutor(1) for _ in range(2))
count = 0
for number in range(20):
    place = os.path.join(sys.argv[1], f"directory {number}")
    names = listing.submit(os.listdir, place).result()
    count += sum(looking.map(lambda name: os.lstat(os.path.join(place, name)).st_size, names))
assert count == int(sys.argv[2])
"""


@pytest.fixture(scope="module")
def vault(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vault with files of one byte."""
    directory = tmp_path_factory.mktemp("demand")
    cryptfs.Vault.create(directory / "vault", b"tests only", kdf_memory=64 << 20)
    (directory / "place").mkdir()
    with cryptfs.mount_vault(directory / "vault", directory / "place", b"tests only") as made:
        for number in range(DIRECTORIES):
            (made.mountpoint / f"directory {number}").mkdir()
            for name in range(FILES):
                (made.mountpoint / f"directory {number}" / f"file {name}").write_bytes(b"1")
    return directory


@pytest.fixture
def mount(vault: Path) -> Iterator[MountedVault]:
    """A new mount: the kernel knows nothing of it."""
    with cryptfs.mount_vault(vault / "vault", vault / "place", b"tests only") as made:
        yield made


def status(mount: MountedVault) -> dict[str, Any]:
    command = [sys.executable, "-m", "cryptfs", "status", "--json", str(mount.mountpoint)]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, env=environment)
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def walk(mount: MountedVault, program: str) -> None:
    command = [sys.executable, "-c", program, str(mount.mountpoint), str(DIRECTORIES * FILES)]
    subprocess.run(command, timeout=60, check=True)


def test_a_walk_for_names_asks_for_no_attributes(mount: MountedVault) -> None:
    walk(mount, NAMES)
    assert status(mount)["open"]["nodes"] < 1 + DIRECTORIES + 3 * FILES


@pytest.mark.parametrize("program", [STATS, POOL], ids=["one thread", "a pool"])
def test_a_walk_that_looks_gets_them_with_the_listings(mount: MountedVault, program: str) -> None:
    walk(mount, program)
    told = status(mount)
    assert told["open"]["nodes"] >= DIRECTORIES * FILES
    assert told["operations"]["lookup"] < DIRECTORIES * 4 + 2 * FILES


def _find_files(place: Path) -> list[str]:
    done = subprocess.run(
        ["find", place, "-type", "f", "-size", "-2c"], capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


def _grep(place: Path) -> list[str]:
    done = subprocess.run(["grep", "-r", "-l", "1", place], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def _ls(place: Path) -> list[str]:
    done = subprocess.run(["ls", "-lR", place], capture_output=True, text=True, check=True)
    return [line for line in done.stdout.splitlines() if " 1 " in line and "file" in line]


@pytest.mark.parametrize("program", [_find_files, _grep, _ls])
def test_programs_find_everything(mount: MountedVault, program: Callable[[Path], list[str]]) -> None:
    for _ in range(3):
        assert len(program(mount.mountpoint)) == DIRECTORIES * FILES
