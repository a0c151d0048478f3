"""What is measured: a directory to work in, and the daemon behind it, if there is one."""

from __future__ import annotations

import abc
import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchlib.machine import cpu_seconds
from cryptfs.mount.mounts import mount_at

PASSPHRASE = "not a secret"  # noqa: S105 - it says so
_START_TIMEOUT = 180.0  # seconds; CryFS derives its key for long, and longer on a busy machine
_STOP_TIMEOUT = 60.0
_CONNECTIONS = Path("/sys/fs/fuse/connections")


class Carrier(abc.ABC):
    """Puts a tree into an encrypted directory, and gets it out."""

    @abc.abstractmethod
    def put(self, source: Path, name: str) -> None:
        """Copy the content of a plain directory in, into a new directory of this name."""

    @abc.abstractmethod
    def get(self, name: str, target: Path) -> None:
        """Copy it out, to a plain directory that is not there yet."""

    @abc.abstractmethod
    def remove(self, name: str) -> None:
        """Remove it inside."""

    def stored(self) -> Path | None:
        """Where the ciphertext is, if no mount is in front of it."""
        return None


class CopyingCarrier(Carrier):
    """cp -a, with a directory that is mounted, or plain."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def put(self, source: Path, name: str) -> None:
        self._copy(source, self._directory / name)

    def get(self, name: str, target: Path) -> None:
        self._copy(self._directory / name, target)

    def remove(self, name: str) -> None:
        shutil.rmtree(self._directory / name)

    @staticmethod
    def _copy(source: Path, target: Path) -> None:
        done = subprocess.run(["cp", "-a", source, target], capture_output=True, check=False)
        if done.returncode:
            raise RuntimeError(_last_line(done.stderr))


class Subject:
    """A directory to work in: `create`, then `start` and `stop` as often as one likes."""

    only: tuple[str, ...] = ()  # the workloads that it takes part in; () is all

    def __init__(self, name: str) -> None:
        self.name = name
        self.pid: int | None = None
        self.directory = Path()

    def missing(self) -> str | None:
        """What has to be installed before it can run; None: it can."""
        return None

    def create(self, place: Path) -> None:
        """Make it below an empty directory."""
        self.directory = place

    def start(self) -> None:
        """Have `directory` ready to work in."""

    def stop(self) -> None:
        """Take it away again; what is in it stays."""

    def healthy(self) -> bool:
        """Whether one can work in it."""
        return self.directory.is_dir()

    def abort(self) -> None:
        """End it whatever hangs."""

    def derivation_seconds(self) -> float:
        """How much of a start is spent on deriving a key, where that is known; else 0."""
        return 0.0

    def carrier(self) -> Carrier:
        """How trees get in and out; in the directory of a turn."""
        return CopyingCarrier(self.directory / "turn")

    def cpu(self) -> float:
        """Processor seconds of its daemon so far; 0 without one."""
        return daemon_cpu(self.pid)


def daemon_cpu(pid: int | None) -> float:
    """Processor seconds of a daemon; 0 without one, and where it has died."""
    try:
        return cpu_seconds(pid) if pid is not None else 0.0
    except FileNotFoundError:
        return 0.0


class PlainDirectory(Subject):
    """The backing filesystem itself."""

    def create(self, place: Path) -> None:
        self.directory = place / "files"
        self.directory.mkdir()


@dataclass(frozen=True)
class Commands:
    """How to make a vault and how to serve it in the foreground, with {vault}, {mountpoint}, {passfile}.

    Args: init: () where the first start makes it.   first: how to start then.
          package: the Debian package that holds the program.   stdin: given to each.
          derivation: measures what deriving the key takes.
    """

    serve: tuple[str, ...]
    init: tuple[str, ...] = ()
    first: tuple[str, ...] = ()
    package: str = ""
    stdin: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    derivation: Callable[[], float] | None = None


class Mounted(Subject):
    """A filesystem that a child process of ours serves, so that its pid is known."""

    def __init__(self, name: str, commands: Commands) -> None:
        super().__init__(name)
        self._commands = commands
        self._process: subprocess.Popen[bytes] | None = None
        self._place = Path()
        self._fresh = True

    def missing(self) -> str | None:
        program = self._commands.serve[0]
        if shutil.which(program) is not None:
            return None
        return f"{program} is not installed: apt-get install {self._commands.package or program}"

    def create(self, place: Path) -> None:
        self._place, self.directory, self._fresh = place, place / "mountpoint", True
        for directory in (place / "vault", self.directory, place / "state"):
            directory.mkdir()
        passfile = place / "passfile"
        passfile.touch(mode=0o600)
        passfile.write_text(PASSPHRASE + "\n")
        if self._commands.init:
            self._run(self._commands.init)

    def _words(self, words: tuple[str, ...]) -> list[str]:
        names = {"vault": "vault", "mountpoint": "mountpoint", "passfile": "passfile"}
        return [word.format(**{key: self._place / name for key, name in names.items()}) for word in words]

    def _environment(self) -> dict[str, str]:
        added = {
            key: value.format(state=self._place / "state")
            for key, value in self._commands.environment.items()
        }
        return {**os.environ, **added}

    def _run(self, words: tuple[str, ...]) -> None:
        done = subprocess.run(
            self._words(words),
            input=self._commands.stdin.encode(),
            capture_output=True,
            env=self._environment(),
            check=False,
            timeout=_START_TIMEOUT,
        )
        if done.returncode:
            raise RuntimeError(f"{self.name} made no vault: {_last_line(done.stderr + done.stdout)}")

    def start(self) -> None:
        commands = self._commands
        words = commands.first if self._fresh and commands.first else commands.serve
        log_path = self._place / "log"
        with log_path.open("wb") as log:
            self._process = subprocess.Popen(
                self._words(words), stdin=subprocess.PIPE, stdout=log, stderr=log, env=self._environment()
            )
        assert self._process.stdin is not None
        self._process.stdin.write(commands.stdin.encode())
        self._process.stdin.close()
        deadline = time.monotonic() + _START_TIMEOUT
        while mount_at(self.directory) is None:
            late = time.monotonic() > deadline
            if late or self._process.poll() is not None:
                self.abort()
                when = f" within {_START_TIMEOUT:.0f} s" if late else ""
                raise RuntimeError(f"{self.name} did not mount{when}: {_last_line(log_path.read_bytes())}")
            time.sleep(0.005)
        self.directory.stat()
        self._fresh = False
        self.pid = self._process.pid

    def stop(self) -> None:
        if self._process is None:
            return
        if mount_at(self.directory) is not None:
            for options in (["-u"], ["-u"], ["-uz"]):
                done = subprocess.run(
                    ["fusermount3", *options, str(self.directory)], capture_output=True, check=False
                )
                if done.returncode == 0:
                    break
                time.sleep(0.5)
        try:
            self._process.wait(_STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self.abort()
        self._process = self.pid = None

    def healthy(self) -> bool:
        if self._process is None or self._process.poll() is not None:
            return False
        try:
            os.listdir(self.directory)
        except OSError:
            return False
        return True

    def abort(self) -> None:
        mount = mount_at(self.directory)
        if mount is not None:
            with contextlib.suppress(OSError):  # without fusectl, the kill below ends it as well
                (_CONNECTIONS / mount.device.partition(":")[2] / "abort").write_text("1\n")
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        if mount is not None:
            subprocess.run(["fusermount3", "-uz", str(self.directory)], capture_output=True, check=False)
        self._process = self.pid = None

    def derivation_seconds(self) -> float:
        return 0.0 if self._commands.derivation is None else self._commands.derivation()


def _last_line(raw: bytes) -> str:
    lines = raw.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"
