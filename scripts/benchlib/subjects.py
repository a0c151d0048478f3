"""What is measured: a plain directory, gocryptfs, and cryptfs with whatever options."""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from benchlib.machine import cpu_seconds
from cryptfs.mount.mounts import mount_at

PASSPHRASE = "not a secret\n"  # noqa: S105 - it says so
_START_TIMEOUT = 60.0


class Subject:
    """A directory to work in. `start` before, `stop` after; `pid` is the daemon, if there is one."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.pid: int | None = None

    def start(self, place: Path) -> Path:
        """Make it ready below an empty directory; returns where to work."""
        return place

    def stop(self) -> None:
        """Take it away again."""

    def cpu(self) -> float:
        """Processor seconds of its daemon so far; 0 without one."""
        return cpu_seconds(self.pid) if self.pid is not None else 0.0


class PlainDirectory(Subject):
    """The backing filesystem itself."""


@dataclass(frozen=True)
class Commands:
    """How to make a vault and how to serve it in the foreground; {vault}, {mountpoint}, {passfile}."""

    init: tuple[str, ...]
    serve: tuple[str, ...]


class Mounted(Subject):
    """A filesystem that a child process of ours serves, so that its pid is known."""

    def __init__(self, name: str, commands: Commands) -> None:
        super().__init__(name)
        self._commands = commands
        self._process: subprocess.Popen[bytes] | None = None
        self._mountpoint = Path()

    def start(self, place: Path) -> Path:
        vault, self._mountpoint, passfile = place / "vault", place / "mountpoint", place / "passfile"
        passfile.touch(mode=0o600)
        passfile.write_text(PASSPHRASE)
        vault.mkdir()
        self._mountpoint.mkdir()
        places = {"vault": str(vault), "mountpoint": str(self._mountpoint), "passfile": str(passfile)}
        init = [word.format(**places) for word in self._commands.init]
        subprocess.run(init, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        with (place / "log").open("wb") as log:
            serve = [word.format(**places) for word in self._commands.serve]
            self._process = subprocess.Popen(serve, stdout=log, stderr=log)
        deadline = time.monotonic() + _START_TIMEOUT
        while mount_at(self._mountpoint) is None:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{self.name} did not mount: {(place / 'log').read_text()}")
            time.sleep(0.02)
        self._mountpoint.stat()
        self.pid = self._process.pid
        return self._mountpoint

    def stop(self) -> None:
        if self._process is None:
            return
        if mount_at(self._mountpoint) is not None:
            subprocess.run(["fusermount3", "-u", str(self._mountpoint)], check=False)
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.terminate()
            self._process.wait(60)
        self._process = self.pid = None


def gocryptfs() -> Mounted:
    """gocryptfs with its defaults, but for a cheap scrypt, which only its start pays."""
    return Mounted(
        "gocryptfs",
        Commands(
            init=("gocryptfs", "-q", "-init", "-scryptn", "10", "-passfile", "{passfile}", "{vault}"),
            serve=(
                *("gocryptfs", "-fg", "-q", "-nosyslog", "-passfile", "{passfile}"),
                *("{vault}", "{mountpoint}"),
            ),
        ),
    )


def cryptfs(name: str, init_options: str = "", mount_options: str = "") -> Mounted:
    """cryptfs with options as on the command line."""
    program = (sys.executable, "-m", "cryptfs")
    return Mounted(
        name,
        Commands(
            init=(
                *(*program, "init", "--kdf-memory", "64m", "--passfile", "{passfile}"),
                *(*shlex.split(init_options), "{vault}"),
            ),
            serve=(
                *(*program, "mount", "--foreground", "--passfile", "{passfile}"),
                *(*shlex.split(mount_options), "{vault}", "{mountpoint}"),
            ),
        ),
    )
