"""Mounts for the end-to-end tests: a daemon in a process of its own, its log, and an end to it."""

from __future__ import annotations

import contextlib
import os
import re
import select
import selectors
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cryptfs.vfs.vault import Vault
from tests.e2e.forking import Daemon, start_daemon
from tests.support import everything_below, needs_no_company

PROJECT = Path(__file__).parents[2]
PASSPHRASE = "tests only"
READY_SECONDS = 30.0
END_SECONDS = 30.0
TMPFS = "/dev/shm"

_living: list[Mounted] = []
_unexplained: list[str] = []
"""What mounts that are gone by now had in their logs, and no test allowed."""


@dataclass(frozen=True, slots=True)
class MountSpec:
    """What to mount and how.

    Args: engine: one of cryptfs.mount.options.ENGINES.   cipher, chunk_size: of the vault.
          options: a `-o` string.
          tmpfs: whether vault and plain directory are on tmpfs; else on the disk.
          uid, gid: whose daemon it is; None keeps root.
          constants: (module, name, value): what is set to another value in the daemon.
          deltas: whether the journal may have deltas.
    """

    engine: str = "fusepy"
    cipher: str = "aegis-256"
    chunk_size: int = 16 * 1024
    options: str = ""
    tmpfs: bool = True
    uid: int | None = None
    gid: int | None = None
    constants: tuple[tuple[str, str, float | list[str]], ...] = ()
    deltas: bool = False

    def __str__(self) -> str:
        parts = [self.engine, self.cipher.partition("-")[0], f"{self.chunk_size // 1024}k"]
        parts += [self.options.replace(",", "-")] if self.options else []
        parts += [] if self.tmpfs else ["disk"]
        parts += ["deltas"] if self.deltas else []
        parts += [] if self.uid is None else ["user"]
        return "-".join(parts)


def scratch_directory(*, tmpfs: bool) -> Path:
    """A fresh directory that others may enter, on tmpfs or on the disk."""
    base = TMPFS if tmpfs and os.access(TMPFS, os.W_OK) else None
    directory = Path(tempfile.mkdtemp(prefix="e2e-tests-", dir=base))
    directory.chmod(0o755)
    return directory


@dataclass(slots=True)
class Mounted:
    """A vault and its mountpoint, and the daemon between them."""

    spec: MountSpec
    scratch: Path
    allowed: list[re.Pattern[str]] = field(default_factory=list)
    _process: Daemon | None = None
    _log_seen: int = 0

    @property
    def vault_dir(self) -> Path:
        """The ciphertext."""
        return self.scratch / "vault"

    @property
    def mountpoint(self) -> Path:
        """The plaintext."""
        return self.scratch / "mountpoint"

    @property
    def log_path(self) -> Path:
        """What the daemons wrote, all of them."""
        return self.scratch / "log"

    @property
    def pid(self) -> int:
        """The daemon's process."""
        assert self._process is not None
        return self._process.pid

    def create(self) -> None:
        """Make the vault and the mountpoint."""
        passphrase = PASSPHRASE.encode()
        spec = self.spec
        Vault.create(
            self.vault_dir,
            passphrase,
            cipher=spec.cipher,
            chunk_size=spec.chunk_size,
            kdf_memory=64 << 20,
            deltas=spec.deltas,
        )
        self.mountpoint.mkdir()
        self.log_path.touch()
        if spec.uid is not None:
            for path in (self.vault_dir, *everything_below(self.vault_dir), self.mountpoint):
                os.chown(path, spec.uid, -1 if spec.gid is None else spec.gid)

    def start(self) -> None:
        """Start the daemon and wait until the mount answers."""
        self._begin()
        self._wait_until_ready()

    def start_and_kill(self, seconds: float) -> None:
        """Start a daemon that is killed after so long, whatever it is doing by then."""
        self._begin()
        time.sleep(seconds)
        self.kill()

    def _begin(self) -> None:
        needs_no_company("mounts")
        self.watch()
        spec = self.spec
        options = ",".join(part for part in (f"engine={spec.engine}", spec.options) if part)
        order = {
            "vault_dir": str(self.vault_dir),
            "mountpoint": str(self.mountpoint),
            "passphrase": PASSPHRASE,
            "options": options,
            "uid": spec.uid,
            "gid": spec.gid,
            "constants": spec.constants,
        }
        with self.log_path.open("ab") as log:
            self._process = start_daemon(order, log.fileno(), os.environ)

    def _wait_until_ready(self) -> None:
        assert self._process is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            answered = selector.select(READY_SECONDS)
        line = os.read(self._process.stdout.fileno(), 64) if answered else b""
        if line != b"ready\n":
            self._process.kill()
            self._process.wait()
            raise AssertionError(f"the mount did not come up; log:\n{self.log_path.read_text()}")
        if self.spec.uid is None or "allow_other" in self.spec.options:
            self.mountpoint.stat()
            assert os.path.ismount(self.mountpoint)

    def watch(self) -> None:
        """From here on each test answers for what is in the log."""
        if self not in _living:
            _living.append(self)

    def nodes(self) -> int:
        """How many nodes the daemon keeps now; of the native engine."""
        assert self._process is not None
        answers = self._process.stdout.fileno()
        while select.select([answers], [], [], 0)[0]:
            os.read(answers, 64)  # a second one to an earlier signal
        deadline = time.monotonic() + END_SECONDS
        while time.monotonic() < deadline:
            # A signal right before the daemon blocks in read(2) is handled with its next request only.
            self._process.send_signal(signal.SIGUSR1)
            if select.select([answers], [], [], 1)[0]:
                return int(os.read(answers, 64).split()[-1])
        raise AssertionError("the daemon does not say how many nodes it keeps")

    def unmount(self) -> None:
        """Unmount, lazily if it is busy, and see the daemon end by itself, without an error."""
        process, self._process = self._process, None
        if process is None:
            return
        detach(self.mountpoint)
        try:
            code = process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGUSR2)  # for the log: where its threads are
            time.sleep(1)
            process.kill()
            process.wait()
            raise AssertionError(f"the daemon did not end; log:\n{self.log_path.read_text()}") from None
        finally:
            process.stdout.close()
        assert code == 0, f"the daemon ended with {code}; log:\n{self.log_path.read_text()}"

    def remount(self) -> None:
        """Unmount and mount again: what is found then comes from the vault alone."""
        self.unmount()
        self.start()

    def kill(self) -> None:
        """SIGKILL for the daemon; the dead mount is taken away."""
        assert self._process is not None
        process, self._process = self._process, None
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        detach(self.mountpoint)

    def abandon(self) -> None:
        """Whatever has happened: no mount, no daemon and no files stay behind."""
        with contextlib.suppress(AssertionError):
            self.unmount()
        detach(self.mountpoint)
        _unexplained.extend(self.unexpected_lines())
        if self in _living:
            _living.remove(self)
        shutil.rmtree(self.scratch, ignore_errors=True)

    def allow_log(self, *patterns: str) -> None:
        """From here on lines that match one of these are expected."""
        self.allowed += [re.compile(pattern) for pattern in patterns]

    def new_log_lines(self) -> list[str]:
        """What was logged since this was asked last."""
        try:
            with self.log_path.open("rb") as log:
                log.seek(self._log_seen)
                text = log.read()
        except FileNotFoundError:  # it never started
            return []
        self._log_seen += len(text)
        return text.decode("utf-8", "backslashreplace").splitlines()

    def unexpected_lines(self) -> list[str]:
        """What was logged since the last look, and no pattern allows; at most 20 lines."""
        lines = self.new_log_lines()
        return [line for line in lines if not any(pattern.search(line) for pattern in self.allowed)][:20]

    def assert_quiet(self) -> None:
        """Fail on every line logged since the last look that no pattern allows."""
        fail_on(self.unexpected_lines())


def assert_log_file_quiet(log_file: Path, allowed: Iterable[str] = ()) -> None:
    """Fail on warnings and errors that `cryptfs mount --log-file` wrote, but lines that match a pattern."""
    lines = log_file.read_text(errors="backslashreplace").splitlines() if log_file.exists() else []
    bad = [line for line in lines if re.search(r" (WARNING|ERROR|CRITICAL) |^Traceback", line)]
    fail_on([line for line in bad if not any(re.search(pattern, line) for pattern in allowed)])


def fail_on(lines: list[str]) -> None:
    """Fail a test that made a daemon say this."""
    assert not lines, "unexpected lines in the daemon's log:\n" + "\n".join(lines)


class LogWatch:
    """Around one test: what any daemon logs meanwhile fails it, unless the test allowed the line."""

    def __init__(self) -> None:
        self._allowed: list[tuple[Mounted, list[re.Pattern[str]]]] = []

    def before_the_call(self) -> None:
        """All mounts of the test's fixtures are there."""
        self._allowed = [(mount, list(mount.allowed)) for mount in _living]

    def check(self) -> None:
        """Fail on lines of all mounts, those that are gone among them."""
        lines = [line for mount in _living for line in mount.unexpected_lines()]
        lines += _unexplained
        _unexplained.clear()
        fail_on(lines)

    def after_the_teardown(self) -> None:
        """As check; and what the test allowed is allowed to no other test of a shared mount."""
        try:
            self.check()
        finally:
            for mount, allowed in self._allowed:
                mount.allowed = allowed


def is_mounted(mountpoint: Path) -> bool:
    """Whether anything is mounted there, dead mounts too."""
    wanted = str(mountpoint).encode("unicode_escape")
    lines = Path("/proc/self/mountinfo").read_bytes().splitlines()
    return any(line.split()[4] == wanted for line in lines)


def detach(mountpoint: Path) -> None:
    """Unmount; lazily when it stays busy for a few seconds. Does nothing where nothing is mounted."""
    deadline = time.monotonic() + 3.0
    while is_mounted(mountpoint):
        late = time.monotonic() > deadline
        command = ["fusermount3", "-u", *(["-z"] if late else []), str(mountpoint)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode == 0:
            return
        assert not late, f"fusermount3: {result.stderr}"
        time.sleep(0.1)


@contextlib.contextmanager
def mounted(spec: MountSpec) -> Iterator[Mounted]:
    """A fresh vault, mounted; afterwards unmounted, with a log that held nothing unexpected."""
    mount = Mounted(spec, scratch_directory(tmpfs=spec.tmpfs))
    try:
        mount.create()
        mount.start()
        yield mount
        mount.unmount()
        mount.assert_quiet()
    finally:
        mount.abandon()
