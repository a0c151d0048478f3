"""`cryptfs umount` while something keeps the filesystem alive, and the next `cryptfs mount`: both say who."""

from __future__ import annotations

import contextlib
import os
import re
import selectors
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cryptfs.mount.mounts import mount_at
from tests.e2e.conftest import ENGINES
from tests.e2e.test_cli_mount import ENVIRONMENT, PROGRAM, Place

pytestmark = [
    pytest.mark.serial,
    pytest.mark.timeout(120),
    pytest.mark.skipif(not Path("/dev/fuse").exists(), reason="needs /dev/fuse"),
    pytest.mark.skipif(os.geteuid() != 0, reason="mount namespaces and bind mounts need root"),
]

AT_ONCE = 8.0  # seconds, for what is said after about one, on a busy machine


@dataclass(frozen=True)
class Scene:
    """A mounted vault of one engine."""

    place: Place
    engine: str

    def mount(self, *options: object, code: int = 0) -> str:
        return self.place.mount("--engine", self.engine, *options, code=code).stderr


def take_away(mountpoint: Path) -> None:
    """Whatever is mounted there."""
    while mount_at(mountpoint) is not None:
        subprocess.run(["umount", "-l", mountpoint], check=True)


@pytest.fixture(params=ENGINES)
def scene(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Scene]:
    place = Place(tmp_path / "vault", tmp_path / "mount point", tmp_path / "passfile")
    place.mountpoint.mkdir()
    place.passfile.touch(mode=0o600)
    place.passfile.write_text("correct horse\n")
    place.cryptfs("init", place.vault, "--passfile", place.passfile, "--kdf-memory", "64m")
    made = Scene(place, request.param)
    made.mount()
    try:
        yield made
    finally:
        take_away(place.mountpoint)
    place.assert_log_quiet()


class Umount:
    """`cryptfs umount`, running."""

    def __init__(self, mountpoint: Path) -> None:
        self.process = subprocess.Popen(
            [*PROGRAM, "umount", str(mountpoint)], env=ENVIRONMENT, stderr=subprocess.PIPE
        )
        assert self.process.stderr is not None
        self._stderr = self.process.stderr
        self.said = ""

    def says(self, text: str) -> bool:
        """Whether it says that at once, and goes on to wait."""
        deadline = time.monotonic() + AT_ONCE
        with selectors.DefaultSelector() as selector:
            selector.register(self._stderr, selectors.EVENT_READ)
            while text not in self.said and (left := deadline - time.monotonic()) > 0:
                if selector.select(left):
                    self.said += os.read(self._stderr.fileno(), 65536).decode()
        return text in self.said and self.process.poll() is None

    def ends_with(self, code: int) -> None:
        """What keeps the vault open is gone: it ends by itself."""
        assert self.process.wait(30) == code, self.said

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._stderr.close()


@contextlib.contextmanager
def umount(scene: Scene) -> Iterator[Umount]:
    running = Umount(scene.place.mountpoint)
    try:
        yield running
    finally:
        running.close()


@contextlib.contextmanager
def program(*words: str | Path, cwd: Path | None = None) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(words, cwd=cwd) as process:
        try:
            yield process
        finally:
            process.kill()


def refused(scene: Scene) -> str:
    """What `mount` says of a vault that is still open; never to unmount what is not mounted."""
    told = scene.mount(code=40)
    assert f"cryptfs umount {scene.place.mountpoint}" not in told.replace("'", "")
    assert f"is not mounted on {scene.place.mountpoint} any more" in told
    return told


def test_another_mount_namespace(scene: Scene) -> None:
    """A container or a service that was started meanwhile has a copy of the mount."""
    place = scene.place
    with (
        program("unshare", "-m", "--propagation", "private", "sleep", "60") as other,
        umount(scene) as running,
    ):
        line = f"process {other.pid} (sleep) has it mounted on {place.mountpoint}, in another mount namespace"
        if not running.says(line):
            pytest.fail(running.said)
        assert "Ctrl-C" in running.said
        assert line in refused(scene)
        other.kill()
        other.wait()
        running.ends_with(0)
        assert place.info()["held_by"] is None
    scene.mount()


def test_a_bind_mount(scene: Scene, tmp_path: Path) -> None:
    bound = tmp_path / "bound there"
    bound.mkdir()
    subprocess.run(["mount", "--bind", scene.place.mountpoint, bound], check=True)
    try:
        with umount(scene) as running:
            line = f"{bound} is a bind mount of it; remove it with: umount '{bound}'"
            assert running.says(line), running.said
            assert line in refused(scene)
            subprocess.run(["umount", bound], check=True)
            running.ends_with(0)
    finally:
        take_away(bound)
    scene.mount()


def test_an_open_directory_after_a_lazy_unmount(scene: Scene) -> None:
    place = scene.place
    with program("sleep", "60", cwd=place.mountpoint) as sleeper:
        line = f"process {sleeper.pid} (sleep) uses it: current directory"
        assert line in place.umount("--lazy").stderr
        assert line in refused(scene)
        sleeper.kill()
        sleeper.wait()
    for _ in range(50):
        if place.info()["held_by"] is None:
            break
        time.sleep(0.1)
    scene.mount()


def test_ctrl_c_ends_the_waiting(scene: Scene) -> None:
    with (
        program("unshare", "-m", "--propagation", "private", "sleep", "60") as other,
        umount(scene) as running,
    ):
        assert running.says(f"process {other.pid} (sleep)"), running.said
        running.process.send_signal(signal.SIGINT)
        running.ends_with(130)
        assert not scene.place.is_mounted()


def test_a_hostile_name_of_a_process(scene: Scene, tmp_path: Path) -> None:
    """It may hold what moves a cursor or forges a line."""
    evil = tmp_path / "\x1b[2Jgone\n"
    sleep = shutil.which("sleep")
    assert sleep is not None
    shutil.copy(sleep, evil)
    with program(evil, "60", cwd=scene.place.mountpoint) as sleeper:
        told = scene.place.umount(code=10).stderr
        assert rf"\x1b[2Jgone\n (pid {sleeper.pid}, current directory)" in told
        told += scene.place.umount("--lazy").stderr + refused(scene)
        assert "\x1b" not in told
        assert len(re.findall(r"\\x1b\[2Jgone\\n", told)) == 3


def test_another_name_in_the_mount_table(scene: Scene) -> None:
    """Whatever mountinfo has as the source, umount waits, and mount says who has the vault."""
    place = scene.place
    place.umount()
    scene.mount("--fsname", "NAME@/path")
    told = scene.mount(code=10)
    assert f"cryptfs umount '{place.mountpoint}'" in told
    with (
        program("unshare", "-m", "--propagation", "private", "sleep", "60") as other,
        umount(scene) as running,
    ):
        assert running.says(f"the vault {place.vault} is still open"), running.said
        assert f"process {other.pid} (sleep)" in refused(scene)
        other.kill()
        other.wait()
        running.ends_with(0)
        assert place.info()["held_by"] is None


def test_the_vault_in_place_of_the_mountpoint(scene: Scene) -> None:
    place = scene.place
    told = place.cryptfs("umount", place.vault, code=10).stderr
    assert (
        f"is a vault; it is mounted on {place.mountpoint}. Use: cryptfs umount '{place.mountpoint}'" in told
    )
    told = place.cryptfs("status", place.vault, code=10).stderr
    assert f"Use: cryptfs status '{place.mountpoint}'" in told


def test_the_mountpoint_in_place_of_the_vault(scene: Scene, tmp_path: Path) -> None:
    place = scene.place
    (place.mountpoint / "below").mkdir()
    for command in ("info", "fsck", "snapshot", "rekey", "key list", "recovery list"):
        told = place.cryptfs(*command.split(), place.mountpoint, code=6).stderr
        assert told == (
            f"cryptfs: {place.mountpoint} is the mountpoint of the vault {place.vault}. "
            f"You probably mean: cryptfs {command} {place.vault}\n"
        )
    told = place.cryptfs("info", place.mountpoint / "below", code=6).stderr
    assert f"/below is inside the mountpoint of the vault {place.vault}. " in told
    assert told.endswith(f"You probably mean: cryptfs info {place.vault}\n")
    for command, more in (("verify", place.passfile), ("key remove", 0), ("mount", tmp_path / "a b")):
        told = place.cryptfs(*command.split(), place.mountpoint, more, code=6).stderr
        right = f"cryptfs {command} {place.vault} {shlex.quote(str(more))}"
        assert told.endswith(f"You probably mean: {right}\n")
    told = place.cryptfs("init", place.mountpoint, code=6).stderr
    assert f"{place.mountpoint} is a mountpoint: the vault " in told
    for command in ("umount", "status"):
        told = place.cryptfs(command, place.mountpoint / "below", code=10).stderr
        below = f"{place.mountpoint}/below is inside the mount on {place.mountpoint}"
        assert told == f"cryptfs: {below}. Use: cryptfs {command} '{place.mountpoint}'\n"
    os.kill(place.daemon(), signal.SIGKILL)
    while place.info()["held_by"] is not None:
        time.sleep(0.1)
    told = place.cryptfs("info", place.mountpoint, code=6).stderr
    assert told.endswith(f"You probably mean: cryptfs info {place.vault}\n")
