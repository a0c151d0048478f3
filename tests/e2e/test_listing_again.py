"""A directory is listed again: with --exclusive by the kernel alone, else from what was decrypted before."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import cryptfs
from cryptfs import MountedVault
from tests.e2e.listing import Stream
from tests.e2e.mounting import PROJECT


@contextmanager
def mounted(directory: Path, *, exclusive: bool) -> Iterator[MountedVault]:
    cryptfs.Vault.create(directory / "vault", b"tests only", kdf_memory=64 << 20)
    (directory / "place").mkdir()
    options = cryptfs.MountOptions(exclusive=exclusive)
    with cryptfs.mount_vault(directory / "vault", directory / "place", b"tests only", options) as made:
        yield made


@pytest.fixture(scope="module")
def exclusive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MountedVault]:
    with mounted(tmp_path_factory.mktemp("exclusive"), exclusive=True) as made:
        yield made


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MountedVault]:
    with mounted(tmp_path_factory.mktemp("shared"), exclusive=False) as made:
        yield made


@pytest.fixture(params=["exclusive", "shared"])
def mount(request: pytest.FixtureRequest) -> MountedVault:
    made = request.getfixturevalue(request.param)
    assert isinstance(made, MountedVault)
    return made


def listings(mount: MountedVault) -> int:
    """How many requests for entries the daemon has had."""
    command = [sys.executable, "-m", "cryptfs", "status", "--json", str(mount.mountpoint)]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, env=environment)
    operations = json.loads(done.stdout)["operations"]
    return int(operations.get("readdir", 0) + operations.get("readdirplus", 0))


def filled(mount: MountedVault, name: str, count: int = 300) -> Path:
    directory = mount.mountpoint / name
    directory.mkdir()
    for number in range(count):
        (directory / f"entry-{number}").touch()
    return directory


def test_the_second_listing_asks_nothing(exclusive: MountedVault) -> None:
    directory = filled(exclusive, "twice")
    first = sorted(os.listdir(directory))
    asked = []
    for _ in range(5):  # the kernel may drop pages at any time
        before = listings(exclusive)
        assert sorted(os.listdir(directory)) == first
        assert sorted(entry.name for entry in os.scandir(directory) if entry.stat().st_size == 0) == first
        asked.append(listings(exclusive) - before)
    assert 0 in asked, asked


def test_where_others_may_change_the_vault_each_listing_asks(shared: MountedVault) -> None:
    directory = filled(shared, "twice")
    for _ in range(5):
        before = listings(shared)
        os.listdir(directory)
        assert listings(shared) > before


CHANGES: dict[str, Callable[[Path, str], object]] = {
    "create": lambda directory, name: (directory / name).touch(),
    "mkdir": lambda directory, name: (directory / name).mkdir(),
    "symlink": lambda directory, name: (directory / name).symlink_to("target"),
    "link": lambda directory, name: os.link(directory / "entry-0", directory / name),
    "fifo": lambda directory, name: os.mkfifo(directory / name),
    "unlink": lambda directory, name: (directory / "entry-1").unlink(),
    "rename": lambda directory, name: (directory / "entry-2").rename(directory / name),
    "replace": lambda directory, name: (directory / "entry-3").replace(directory / "entry-4"),
    "out": lambda directory, name: (directory / "entry-5").rename(f"{directory}-{name}"),
    "in": lambda directory, name: (directory.parent / "outer").rename(directory / name),
    "long": lambda directory, name: (directory / (name + "x" * 240)).touch(),
    "rmdir": lambda directory, name: (directory / "inner").rmdir(),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_each_change_shows_at_once(mount: MountedVault, tmp_path: Path, change: str) -> None:
    places = [mount.mountpoint / change, tmp_path / change]
    for directory in places:
        directory.mkdir()
        (directory / "inner").mkdir()
        (directory.parent / "outer").touch()
        for number in range(10):
            (directory / f"entry-{number}").touch()
        os.listdir(directory)
        os.listdir(directory)
        CHANGES[change](directory, "new")
    for _ in range(2):
        found, expected = ({(e.name, e.is_dir(follow_symlinks=False)) for e in os.scandir(d)} for d in places)
        assert found == expected


def test_random_changes_between_listings(mount: MountedVault) -> None:
    directory = mount.mountpoint / "random"
    directory.mkdir()
    names: set[str] = set()
    chance = random.Random(7)
    for _ in range(400):
        name = f"name-{chance.randrange(40)}"
        if name not in names:
            (directory / name).touch()
            names.add(name)
        elif chance.random() < 0.5:
            (directory / name).unlink()
            names.remove(name)
        else:
            other = f"name-{chance.randrange(40)}"
            (directory / name).rename(directory / other)
            names = names - {name} | {other}
        if chance.random() < 0.7:
            assert sorted(os.listdir(directory)) == sorted(names)


def test_a_change_in_the_middle_of_a_first_listing(mount: MountedVault) -> None:
    directory = filled(mount, "middle", 3_000)
    stream = Stream(directory)
    seen = [stream.read() for _ in range(500)]
    (directory / "late").touch()
    (directory / "entry-2999").unlink()
    seen += stream.rest()
    stream.close()
    names = {f"entry-{number}".encode() for number in range(2_999)}
    assert names <= {name for name in seen if name}
    assert len(seen) == len(set(seen))
    for _ in range(2):
        assert set(os.listdir(os.fsencode(directory))) == names | {b"late"}


def test_seekdir_in_a_listing_that_the_kernel_has(mount: MountedVault) -> None:
    directory = filled(mount, "seek", 2_000)
    os.listdir(directory)
    stream = Stream(directory)
    places, names = [], []
    while True:
        place = stream.tell()
        name = stream.read()
        if name is None:
            break
        places.append(place)
        names.append(name)
    assert len(set(names)) == 2_002
    for index in random.Random(1).sample(range(len(places)), 100):
        stream.seek(places[index])
        assert [stream.read() for _ in range(3)] == [*names, None, None][index : index + 3]
    stream.rewind()
    assert stream.rest() == names
    stream.close()


@pytest.mark.serial  # all mounts lose their caches
def test_it_is_there_after_the_kernel_has_dropped_its_caches(mount: MountedVault) -> None:
    directory = filled(mount, "dropped")
    first = sorted(os.listdir(directory))
    Path("/proc/sys/vm/drop_caches").write_text("3")
    assert sorted(os.listdir(directory)) == first
    (directory / "new").touch()
    assert sorted(os.listdir(directory)) == sorted([*first, "new"])
