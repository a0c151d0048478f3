"""Something else is planted where a file of the vault belongs, on mounts of both engines.

The kind of an entry is in clear, so a planted FIFO, socket, device or directory shows as what it is. Nothing
of it is content, nothing leads out of the vault, nothing that waits for it holds up the mount, and it can go.
"""

from __future__ import annotations

import errno
import os
import shutil
import socket
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from cryptfs.core.names.dirrecord import RECORD_NAME
from cryptfs.core.names.names import SIDECAR_SUFFIX
from cryptfs.mount.options import FRESH_SECONDS
from cryptfs.vfs.tree.symlinks import LINKS_DIRECTORY
from soaklib.sealed import Sealer
from tests.e2e.conftest import ENGINES, require_fuse
from tests.e2e.mounting import PASSPHRASE, Mounted, MountSpec, mounted
from tests.e2e.tamper_trees import assert_eio, assert_eio_or_kept
from tests.outside.stage import until
from tests.support import everything_below

pytestmark = [
    pytest.mark.timeout(60),  # a hang is among what these cases are about
    pytest.mark.skipif(os.geteuid() != 0, reason="makes devices"),
]

SECRET = b"outside of the vault"
LONG = "l" * 200
TARGET = "/" + "far/" * 900

Result = TypeVar("Result")


def plant_socket(path: Path) -> None:
    here = os.open(path.parent, os.O_PATH)  # the path is too long for the address of a socket
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(f"/proc/self/fd/{here}/{path.name}")
    finally:
        os.close(here)


PLANTS: dict[str, Callable[[Path, Path], None]] = {
    "fifo": lambda path, _: os.mkfifo(path),
    "socket": lambda path, _: plant_socket(path),
    "device": lambda path, _: os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5)),
    "link": lambda path, outside: path.symlink_to(outside),
    "directory": lambda path, _: path.mkdir(),
}
PLACES = ("file", "directory", "record", "sidecar", "target")


class Case:
    """A directory of its own, with one thing in it that is replaced by another."""

    def __init__(self, scene: Scene, place: str, plant: str) -> None:
        self.scene, self.place, self.plant = scene, place, plant
        self.shown = scene.mount.mountpoint / f"{plant} for {place}"
        self.at_once: dict[str, object] = {}
        self.shown.mkdir()
        (self.shown / "file").write_bytes(b"content")
        (self.shown / LONG).write_bytes(b"long")
        (self.shown / "directory").mkdir()
        (self.shown / "directory" / "inside").write_bytes(b"inside")
        (self.shown / "empty").mkdir()
        (self.shown / "link").symlink_to(TARGET)

    def backing(self) -> Path:
        """What is replaced."""
        entry = self.scene.sealer.entry
        if self.place == "record":
            return entry(f"{self.shown.name}/empty") / RECORD_NAME
        if self.place == "sidecar":
            return Path(f"{entry(f'{self.shown.name}/{LONG}')}{SIDECAR_SUFFIX}")
        if self.place == "target":
            link_id = os.readlink(entry(f"{self.shown.name}/link")).split(".")[2]
            return self.scene.mount.vault_dir / LINKS_DIRECTORY / link_id
        return entry(f"{self.shown.name}/{self.place}")

    def look(self) -> None:
        """The kernel learns all that there is to know."""
        for path in everything_below(self.shown):
            os.readlink(path) if path.is_symlink() else path.is_file() and path.read_bytes()

    def replace(self) -> None:
        path = self.backing()
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        PLANTS[self.plant](path, self.scene.outside)

    def attempts(self) -> dict[str, Callable[[], object]]:
        """What a program does before it can know better."""
        if self.place == "file":
            return {
                "read": lambda: opened(self.shown / "file", os.O_RDONLY, lambda fd: os.read(fd, 10)),
                "write": lambda: opened(self.shown / "file", os.O_WRONLY, lambda fd: os.write(fd, b"x")),
            }
        if self.place == "directory":
            return {
                "list": lambda: os.listdir(self.shown / "directory"),
                "read": lambda: (self.shown / "directory" / "inside").read_bytes(),
            }
        return {}

    def attempt(self) -> None:
        for name, action in self.attempts().items():
            try:
                self.at_once[name] = action()
            except OSError as error:
                self.at_once[name] = error.errno or 0


def opened(path: Path, flags: int, action: Callable[[int], Result]) -> Result:
    fd = os.open(path, flags | os.O_NONBLOCK)  # else the kernel waits for the other end of a FIFO
    try:
        return action(fd)
    finally:
        os.close(fd)


class Scene:
    """A mount with all cases, which have happened: at rest, or after a look at everything."""

    def __init__(self, mount: Mounted, *, live: bool) -> None:
        self.mount, self.live = mount, live
        self.outside = mount.scratch / "outside"
        self.outside.mkdir()
        (self.outside / "inside").write_bytes(SECRET)
        self.sealer = Sealer(mount.vault_dir, PASSPHRASE.encode())
        (mount.mountpoint / "bystander").write_bytes(b"fine")
        self.cases = {(place, plant): Case(self, place, plant) for place in PLACES for plant in PLANTS}
        cases = list(self.cases.values())
        if not live:
            mount.unmount()
            for case in cases:
                case.replace()
            mount.start()
            return
        mount.remount()
        for case in cases:
            case.look()
            case.replace()
            case.attempt()
        shows_at = time.monotonic() + FRESH_SECONDS
        assert until(lambda: time.monotonic() > shows_at)


@pytest.fixture(
    scope="module", params=[(engine, live) for engine in ENGINES for live in (False, True)], ids=str
)
def scene(request: pytest.FixtureRequest) -> Iterator[Scene]:
    engine, live = request.param
    spec = MountSpec(engine)
    require_fuse(spec)
    with mounted(spec) as mount:
        mount.allow_log(r"ERROR cryptfs\.mount\.errno_map: ", r"WARNING .* left out of the listing")
        scene = Scene(mount, live=live)
        yield scene
        scene.sealer.close()


@pytest.fixture
def case(scene: Scene, place: str, plant: str) -> Iterator[Case]:
    """One of them; afterwards nothing else has suffered, and nothing has come from outside."""
    case = scene.cases[place, plant]
    yield case
    assert (scene.mount.mountpoint / "bystander").read_bytes() == b"fine"
    assert [path.name for path in scene.outside.iterdir()] == ["inside"]
    assert (scene.outside / "inside").read_bytes() == SECRET


def errno_from(action: Callable[[], object]) -> int:
    with pytest.raises(OSError) as raised:
        action()
    return raised.value.errno or 0


REFUSED = {errno.EIO, errno.ESTALE, errno.EISDIR, errno.ENOTDIR, errno.ENOENT, errno.ENXIO, errno.EACCES}
"""How a program's next step fails after a change that it cannot know of."""


@pytest.mark.parametrize("plant", PLANTS)
@pytest.mark.parametrize("place", ["file", "directory"])
def test_before_it_shows(case: Case, plant: str) -> None:
    """While the kernel remembers what was there: an error, nothing is followed or opened.

    A directory that was open stays so. It is empty, as it has been removed.
    """
    assert set(case.at_once) == (set(case.attempts()) if case.scene.live else set())
    for name, outcome in case.at_once.items():
        assert outcome == [] or outcome in REFUSED, (name, outcome)


KINDS = {
    "fifo": stat.S_IFIFO,
    "socket": stat.S_IFSOCK,
    "device": stat.S_IFCHR,
    "link": stat.S_IFLNK,
    "directory": stat.S_IFDIR,
}


def assert_shows_as_planted(path: Path, plant: str) -> None:
    """It shows as what it is. A link or directory is damaged; a device does nothing on a mount."""
    assert stat.S_IFMT(path.lstat().st_mode) == KINDS[plant]
    assert path.name in os.listdir(path.parent)
    if plant == "fifo":
        assert errno_from(lambda: opened(path, os.O_WRONLY, os.fsync)) == errno.ENXIO  # nobody reads it
    elif plant == "socket":
        assert errno_from(lambda: opened(path, os.O_RDONLY, os.fsync)) == errno.ENXIO
    elif plant == "device":
        assert errno_from(lambda: opened(path, os.O_RDONLY, os.fsync)) == errno.EACCES
    elif plant == "link":
        assert_eio(lambda: path.readlink())
        assert_eio(lambda: opened(path, os.O_RDONLY, os.fsync))
    else:
        assert_eio(lambda: os.listdir(path))
        assert_eio(lambda: (path / "new").touch())


@pytest.mark.parametrize("plant", PLANTS)
@pytest.mark.parametrize("place", ["file", "directory"])
def test_in_place_of_an_entry(case: Case, place: str, plant: str) -> None:
    path = case.shown / place
    assert_shows_as_planted(path, plant)
    inside = errno_from((path / "inside").read_bytes)
    assert inside == (errno.EIO if plant in ("link", "directory") else errno.ENOTDIR)
    path.rmdir() if plant == "directory" else path.unlink()
    assert place not in os.listdir(case.shown)
    path.write_bytes(b"new life")
    assert path.read_bytes() == b"new life"


@pytest.mark.parametrize("plant", PLANTS)
@pytest.mark.parametrize("place", ["record"])
def test_in_place_of_a_directory_record(case: Case, plant: str) -> None:
    assert_eio(lambda: os.listdir(case.shown / "empty"))
    assert_eio((case.shown / "empty" / "new").touch)
    (case.shown / "empty").rmdir()
    assert "empty" not in os.listdir(case.shown)


@pytest.mark.parametrize("plant", PLANTS)
@pytest.mark.parametrize("place", ["sidecar"])
def test_in_place_of_a_sidecar(case: Case, plant: str) -> None:
    """The long name is left out. A program that knows it can use the file."""
    assert sorted(os.listdir(case.shown)) == ["directory", "empty", "file", "link"]
    assert (case.shown / LONG).read_bytes() == b"long"
    (case.shown / LONG).unlink()
    assert not (case.shown / LONG).exists()


@pytest.mark.parametrize("plant", PLANTS)
@pytest.mark.parametrize("place", ["target"])
def test_in_place_of_a_long_target(case: Case, plant: str) -> None:
    """A kernel that has read the link may keep its target, as it keeps pages: the link is unchanged."""
    link = case.shown / "link"
    if case.scene.live and case.scene.mount.spec.engine == "native":
        assert_eio_or_kept(link, TARGET)
    else:
        assert_eio(link.readlink)
    link.unlink()
    assert not link.is_symlink()
