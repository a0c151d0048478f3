"""The vault of the tests of unmounting, and a mountpoint of its own for each of them."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from cryptfs.mount.leaving import ownmountpoint
from cryptfs.mount.mounts import wait_until
from cryptfs.storage.vaultdir import lock_holder
from tests.commands import Run
from tests.e2e.test_cli_mount import Place

ENDS = 20.0  # seconds, for what takes two


@pytest.fixture(scope="module")
def vault(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """One vault for all tests here."""
    base = tmp_path_factory.mktemp("unmounting")
    place = Place(base / "vault", base / "unused", base / "passfile")
    place.prepare()
    place.cryptfs("init", place.vault, "--passfile", place.passfile, "--kdf-memory", "64m")
    return place


@dataclass(frozen=True)
class Scene:
    """The vault, and a mountpoint of its own that does not exist yet."""

    place: Place
    engine: str
    run: Run

    @property
    def mountpoint(self) -> Path:
        return self.place.mountpoint

    def mount(self, *options: object, code: int = 0) -> str:
        words = ("--engine", self.engine, "--log-file", self.place.log_file)
        return self.place.mount(*words, *options, code=code).stderr

    def umount(self, *options: object, code: int = 0) -> str:
        told = self.run("umount", *options, self.mountpoint)
        assert told.code == code, told.err
        return told.err

    def is_closed(self) -> bool:
        """Whether the mount is gone and the vault is free."""
        return not self.place.is_mounted() and lock_holder(self.place.vault) is None

    def closes(self) -> bool:
        """Whether that becomes true."""
        return wait_until(self.is_closed, ENDS)

    def logs(self, text: str) -> bool:
        """Whether the log says that in time: why a mount went is its last line, after the vault is closed."""
        return wait_until(lambda: text in self.log(), ENDS)

    def kill(self, number: signal.Signals) -> None:
        """Send a signal to the daemon."""
        holder = lock_holder(self.place.vault)
        assert holder is not None
        os.kill(holder.pid, number)

    def log(self) -> str:
        return self.place.log_file.read_text()


@contextlib.contextmanager
def scene_of(vault: Place, mountpoint: Path, engine: str, run: Run) -> Iterator[Scene]:
    """Afterwards nothing is mounted, and the mountpoint can be removed."""
    scene = Scene(replace(vault, mountpoint=mountpoint, allowed=[]), engine, run)
    before = os.getcwd()  # umount leaves it
    try:
        yield scene
    finally:
        os.chdir(before)
        while scene.place.is_mounted():
            scene.umount("--lazy", "--no-hook")
        if ownmountpoint.is_own(mountpoint):
            ownmountpoint.restore(mountpoint)
    scene.place.assert_log_quiet()
    scene.place.log_file.unlink(missing_ok=True)
