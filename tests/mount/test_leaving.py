"""When a mount goes by itself, what runs before that, and directories that cryptfs made: without a mount."""

from __future__ import annotations

import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cryptfs.errors import MountError
from cryptfs.mount.leaving import leaver as leaver_module
from cryptfs.mount.leaving import ownmountpoint
from cryptfs.mount.leaving.control import ControlServer, ask_to_prepare
from cryptfs.mount.leaving.hooks import Hook, split_command
from cryptfs.mount.leaving.idle import IdleClock
from cryptfs.mount.leaving.leaver import IDLE, Leaver, Outcome, Want
from cryptfs.mount.opcodes import Op
from cryptfs.mount.statistics import Statistics
from tests.e2e.mounting import scratch_directory

PROJECT = Path(__file__).parents[2]
NOBODY = 65534


# ---- idleness


class World:
    """What an idle clock looks at."""

    now = 1000.0
    requests = 0
    is_open = False

    def clock(self, seconds: float) -> IdleClock:
        return IdleClock(seconds, lambda: self.requests, lambda: self.is_open, lambda: self.now)

    def later(self, seconds: float) -> None:
        self.now += seconds


def test_a_mount_is_idle_after_the_time_without_a_request() -> None:
    world = World()
    clock = world.clock(60)
    world.later(59)
    assert not clock.is_idle()
    world.requests += 1
    world.later(1)
    assert not clock.is_idle()  # noticed now: counted from now
    world.later(59.9)
    assert not clock.is_idle()
    world.later(0.1)
    assert clock.is_idle()


def test_the_time_begins_when_the_last_file_is_closed() -> None:
    world = World()
    clock = world.clock(60)
    world.is_open = True
    for _ in range(5):
        world.later(100)
        assert not clock.is_idle()
    world.is_open = False
    world.later(59)
    assert not clock.is_idle()
    world.later(1)
    assert clock.is_idle()


def test_sleep_of_the_machine_does_not_count() -> None:
    """The default clock is CLOCK_MONOTONIC, which stands still then."""
    assert IdleClock.__init__.__defaults__ == (time.monotonic,)
    assert time.get_clock_info("monotonic").implementation == "clock_gettime(CLOCK_MONOTONIC)"


@pytest.mark.parametrize(("seconds", "pause"), [(1, 0.05), (60, 3.0), (600, 30.0), (86_400, 30.0)])
def test_it_looks_seldom_and_is_late_by_a_twentieth_at_most(seconds: float, pause: float) -> None:
    assert World().clock(seconds).pause == pause


def test_what_counts_as_use() -> None:
    statistics = Statistics("native", {}, lambda: {"open": {"files": 0, "directories": 0, "nodes": 5}})
    for opcode in (Op.FORGET, Op.BATCH_FORGET, Op.INTERRUPT, Op.INIT, Op.DESTROY, Op.STATFS, Op.GETATTR):
        statistics.counts[opcode] += 3
    assert statistics.of_programs() == 0
    for opcode in (Op.LOOKUP, Op.SETATTR, Op.OPEN, Op.READ, Op.RELEASE):
        statistics.counts[opcode] += 1
    assert statistics.of_programs() == 5
    assert not statistics.has_open()
    for kind in ("files", "directories"):
        gauges = {"open": {"files": 0, "directories": 0} | {kind: 1}}
        assert Statistics("native", {}, lambda gauges=gauges: gauges).has_open()  # type: ignore[misc]


# ---- the thread that waits for a reason


class Attempts:
    """Answers attempts as a test says, and notes them."""

    def __init__(self, *outcomes: Outcome) -> None:
        self._outcomes = iter(outcomes)
        self.made: queue.SimpleQueue[tuple[str, int, bool]] = queue.SimpleQueue()
        self.tried: queue.SimpleQueue[str] = queue.SimpleQueue()

    def __call__(self, want: Want, /, *, lazily: bool) -> Outcome:
        self.made.put((want.reason, want.tries, lazily))
        return next(self._outcomes)


@pytest.fixture
def leaving() -> Iterator[Callable[..., tuple[Leaver, Attempts]]]:
    """Starts a Leaver whose attempts have these outcomes."""
    started: list[Leaver] = []

    def start(
        *outcomes: Outcome, idle: IdleClock | None = None, lazily: bool = False
    ) -> tuple[Leaver, Attempts]:
        attempts = Attempts(*outcomes)
        leaver = Leaver(attempts, idle, lazily=lazily, tried=attempts.tried.put)
        leaver.start()
        started.append(leaver)
        return leaver, attempts

    yield start
    for leaver in started:
        leaver.stop()
        leaver._thread.join(10)
        assert not leaver._thread.is_alive()


Leaving = Callable[..., tuple[Leaver, Attempts]]


def test_it_tries_at_once_and_again_while_the_reason_lasts(
    leaving: Leaving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leaver_module, "RETRY", 0.02)
    leaver, attempts = leaving(Outcome.BUSY, Outcome.BUSY, Outcome.GONE, lazily=True)
    leaver.begin("lock")
    assert [attempts.made.get(timeout=10) for _ in range(3)] == [
        ("lock", 0, True),
        ("lock", 1, False),  # only at the reason's beginning
        ("lock", 2, False),
    ]
    leaver._thread.join(10)
    assert not leaver._thread.is_alive()
    assert [attempts.tried.get(timeout=10) for _ in range(2)] == ["lock", "lock"]
    assert attempts.tried.empty()  # gone: logind waits until the vault is closed


def test_it_does_not_try_again_when_the_reason_is_gone(
    leaving: Leaving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leaver_module, "RETRY", 0.2)
    leaver, attempts = leaving(Outcome.BUSY, Outcome.GONE)
    leaver.begin("lock")
    assert attempts.made.get(timeout=10) == ("lock", 0, False)
    leaver.end("lock")
    with pytest.raises(queue.Empty):
        attempts.made.get(timeout=0.6)
    leaver.begin("sleep")
    assert attempts.made.get(timeout=10) == ("sleep", 0, False)


def test_a_busy_mount_is_tried_again_after_the_whole_time(leaving: Leaving) -> None:
    world = World()
    clock = world.clock(60)
    clock.pause = 0.01
    _, attempts = leaving(Outcome.BUSY, Outcome.GONE, idle=clock, lazily=True)
    world.later(60)
    assert attempts.made.get(timeout=10) == (IDLE, 0, False)
    world.later(59)
    with pytest.raises(queue.Empty):
        attempts.made.get(timeout=0.1)
    world.later(1)
    assert attempts.made.get(timeout=10) == (IDLE, 0, False)
    assert attempts.tried.empty()


# ---- commands of the user's


def hook(*words: str) -> Hook:
    return Hook(words, "/v/$(touch x)", "/m/`id`; rm 'y'", 0o027)


def test_a_command_is_told_by_its_environment(tmp_path: Path) -> None:
    out = tmp_path / "out"
    script = (
        f'exec > \'{out}\'; umask; printf "%s|" "$CRYPTFS_VAULT" "$CRYPTFS_MOUNTPOINT" $CRYPTFS_EVENT "$@"'
    )
    assert hook("sh", "-c", script, "name", "$HOME", "a b").run("idle", 10) == ""
    assert out.read_text() == "0027\n/v/$(touch x)|/m/`id`; rm 'y'|idle|$HOME|a b|"


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("false",), "false failed with exit code 1"),
        (("sh", "-c", "exit 7"), "sh failed with exit code 7"),
        (("sh", "-c", "kill -9 $$"), "sh failed with signal 9"),
        (("/no/such program",), "/no/such program failed with exit code 127"),
        (("sh", "-c", "trap '' TERM; sleep 60 & wait"), "sh did not end within 0 s"),
    ],
)
def test_a_command_that_fails(words: tuple[str, ...], problem: str) -> None:
    assert hook(*words).run("lock", 0.2 if "60" in words[-1] else 10) == problem


def test_a_command_without_an_end_leaves_no_child(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    script = f"sleep 60 & echo $! > '{pid_file}'; wait"
    assert hook("sh", "-c", script).run("sleep", 0.3) == "sh did not end within 0 s"
    assert has_ended(int(pid_file.read_text()))


def test_a_child_that_outlives_its_command_is_ended(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    child = "import os, signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    child += "open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(60)"
    script = f"{sys.executable} -c \"$1\" '{pid_file}' & while sleep 0.1; do :; done"
    started = time.monotonic()
    assert hook("sh", "-c", script, "sh", child).run("sleep", 3) == "sh did not end within 3 s"
    assert time.monotonic() - started < 30
    assert has_ended(int(pid_file.read_text()))


def has_ended(pid: int) -> bool:
    """Whether a process that was killed ends; nobody may have taken note of that."""
    until = time.monotonic() + 10
    while time.monotonic() < until:
        try:
            if b") Z" in Path(f"/proc/{pid}/stat").read_bytes():
                return True
        except OSError:
            return True
        time.sleep(0.01)
    return False


def test_a_command_can_be_ended_though_the_daemon_blocks_signals() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        script = "import signal; exit(bool(signal.pthread_sigmask(signal.SIG_BLOCK, ())))"
        assert hook(sys.executable, "-c", script).run("idle", 30) == ""
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@pytest.mark.parametrize(("text", "why"), [("", "empty"), ("  ", "empty"), ("a 'b", "quotation")])
def test_commands_that_are_none(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        split_command(text)


def test_umount_has_the_daemon_run_the_command() -> None:
    asked: list[bool] = []

    def prepare(lazily: bool) -> str:
        asked.append(lazily)
        return "it failed" if lazily else ""

    device = f"test:{os.getpid()}"
    server = ControlServer(device, prepare)
    try:
        assert ask_to_prepare(device, os.geteuid(), 10, lazily=False) == ""
        assert ask_to_prepare(device, os.geteuid(), 10, lazily=True) == "it failed"
        assert asked == [False, True]
        assert "another user answers" in ask_to_prepare(device, os.geteuid() + 1, 10, lazily=True)
    finally:
        server.close()
    assert ask_to_prepare(device, os.geteuid(), 10, lazily=False) == ""  # a mount without such a command
    assert len(asked) == 2


def test_umount_waits_no_longer_than_the_command_may_take() -> None:
    release = threading.Event()
    device = f"slow:{os.getpid()}"
    server = ControlServer(device, lambda _: str(release.wait(30)))
    try:
        assert "does not answer" in ask_to_prepare(device, os.geteuid(), 0.2, lazily=False)
    finally:
        release.set()
        server.close()


# ---- directories that cryptfs made


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "mountpoint"
    yield place
    if ownmountpoint.is_own(place):
        ownmountpoint.restore(place)


def as_nobody(source: str, *arguments: object) -> str:
    """Run Python in a process of an ordinary user; what it prints."""
    script = f"import os, sys\nfrom pathlib import Path\nsys.path.insert(0, {str(PROJECT)!r})\n"
    script += "from cryptfs.mount.leaving import ownmountpoint\n"
    script += f"os.setgroups([])\nos.setresgid(*[{NOBODY}] * 3)\nos.setresuid(*[{NOBODY}] * 3)\n"
    script += f"place = Path(sys.argv[1])\n{source}"
    words = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


TRY = """
def can_write():
    try:
        (place / "file").touch()
    except OSError as error:
        return error.errno
    (place / "file").unlink()
    return 0
"""


def test_nobody_writes_to_a_directory_that_cryptfs_made(place: Path) -> None:
    if not ownmountpoint.make(place):
        pytest.skip("the filesystem of this test has no immutable flag or no attributes")
    assert ownmountpoint.is_own(place)
    with pytest.raises(PermissionError):
        (place / "file").touch()
    with ownmountpoint.unlocked(place) as lock:
        lock()
    with pytest.raises(PermissionError):
        (place / "file").touch()
    ownmountpoint.restore(place)
    assert not ownmountpoint.is_own(place)
    assert place.stat().st_mode & 0o7777 == 0o700
    (place / "file").touch()
    with pytest.raises(MountError, match="cryptfs did not make this directory"):
        ownmountpoint.restore(place)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
def test_an_ordinary_user_writes_there_at_no_time_but_that_of_mounting(
    request: pytest.FixtureRequest,
) -> None:
    home = scratch_directory(tmpfs=False)
    request.addfinalizer(lambda: shutil.rmtree(home))
    os.chown(home, NOBODY, NOBODY)
    told = as_nobody(
        TRY
        + "print(ownmountpoint.make(place), can_write(), oct(place.stat().st_mode & 0o7777))\n"
        + "with ownmountpoint.unlocked(place) as lock:\n"
        + "    print(can_write())\n    lock()\n    print(can_write())\n"
        + "with ownmountpoint.unlocked(place):\n    pass\n"
        + "print(can_write())\nownmountpoint.restore(place)\n"
        + "print(can_write(), ownmountpoint.is_own(place))\n",
        home / "mountpoint",
    )
    assert told.split() == ["True", "13", "0o500", "0", "13", "13", "0", "False"]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
def test_the_mark_of_another_user_is_none(place: Path) -> None:
    """Else root would make a directory immutable because somebody set an attribute."""
    place.mkdir()
    os.chown(place, NOBODY, NOBODY)
    os.setxattr(place, ownmountpoint.ATTRIBUTE, b"0700")
    assert not ownmountpoint.is_own(place)


@pytest.mark.parametrize("value", [b"", b"x", b"99999", b"-1", b"7" * 100])
def test_a_mark_that_makes_no_sense_is_none(place: Path, value: bytes) -> None:
    place.mkdir(0o755)
    os.setxattr(place, ownmountpoint.ATTRIBUTE, value)
    assert not ownmountpoint.is_own(place)
    with ownmountpoint.unlocked(place) as lock:
        lock()
    assert place.stat().st_mode & 0o7777 == 0o755


def test_a_filesystem_that_cannot_protect_it(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "setxattr", refused)
    assert not ownmountpoint.make(place)
    (place / "file").touch()
    (place / "file").unlink()
    ownmountpoint.discard(place)
    assert not place.exists()


def test_discarding_keeps_what_is_in_it(place: Path) -> None:
    assert ownmountpoint.make(place)
    ownmountpoint.restore(place)
    (place / "file").touch()
    ownmountpoint.discard(place)
    assert (place / "file").exists()
