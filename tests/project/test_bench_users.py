"""scripts/bench --user: what is measured belongs to the user, and root's process does what needs root."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchlib import machine, users
from benchlib.options import parse
from benchlib.users import Rights, User, as_user, find_user, require_usable

pytestmark = pytest.mark.serial
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")

SOMEBODY = User("somebody", 64001, 64001, (64001, 64002))


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that SOMEBODY can write in, which pytest's own are not."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as made:
        Path(made).chmod(0o777)
        yield Path(made)


@needs_root
def test_the_work_is_done_by_the_user_in_an_empty_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_OF_ROOT", "1")

    def work(_: Rights) -> bytes:
        home = Path.cwd()
        home.joinpath("file").touch()
        owner = home.joinpath("file").stat().st_uid
        with pytest.raises(PermissionError):
            os.setresuid(0, 0, 0)
        environment = [os.environ.get(name) for name in ("HOME", "USER", "SECRET_OF_ROOT")]
        found = [os.getresuid(), os.getresgid(), sorted(os.getgroups()), owner, environment, str(home)]
        return json.dumps(found).encode()

    *ids, owner, environment, home = json.loads(as_user(SOMEBODY, work))
    assert ids == [[64001] * 3, [64001] * 3, [64001, 64002]]
    assert owner == 64001
    assert environment == [home, "somebody", None]
    assert not Path(home).exists()


@needs_root
def test_root_s_process_drops_caches_and_reads_counters(monkeypatch: pytest.MonkeyPatch) -> None:
    by: list[int] = []

    def drop() -> bool:
        by.append(os.getpid())
        return True

    monkeypatch.setattr(machine, "drop_caches", drop)
    monkeypatch.setattr(machine, "bytes_written", lambda pid: 7 if by else pid)

    def work(rights: Rights) -> bytes:
        return json.dumps([rights.drop_caches(), rights.bytes_written(1), by]).encode()

    assert json.loads(as_user(SOMEBODY, work)) == [True, 7, []]
    assert by == [os.getpid()]


@needs_root
def test_what_a_hidden_process_has_written_is_known_to_root(tmp_path: Path) -> None:
    """A daemon that forbids dumps shows its counters to root alone."""
    program = (
        "import sys; from cryptfs.storage.libc import forbid_dumps; forbid_dumps();"
        "open('/dev/null', 'wb', 0).write(bytes(50_000)); print(flush=True); sys.stdin.read()"
    )

    def work(rights: Rights) -> bytes:
        pipe = subprocess.PIPE
        with subprocess.Popen(["/usr/bin/env", "cat"], stdin=pipe, stdout=pipe) as cat:
            deadline = time.monotonic() + 10
            while (mine := machine.bytes_written(cat.pid)) is None and time.monotonic() < deadline:
                time.sleep(0.01)  # it has not yet become another program
        return json.dumps(
            [mine is not None, machine.bytes_written(hidden.pid), rights.bytes_written(hidden.pid)]
        ).encode()

    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, user=64001, cwd="/"
    ) as hidden:
        assert hidden.stdout is not None and hidden.stdin is not None
        hidden.stdout.readline()
        own, theirs, asked = json.loads(as_user(SOMEBODY, work))
        hidden.stdin.close()
    assert own
    assert theirs is None
    assert 50_000 <= asked < 60_000


@needs_root
def test_a_failure_is_shown_and_ends_the_bench(capfd: pytest.CaptureFixture[str]) -> None:
    def breaks(_: Rights) -> bytes:
        raise RuntimeError("no room")

    with pytest.raises(SystemExit) as caught:
        as_user(SOMEBODY, breaks)
    assert caught.value.code == 1
    assert "RuntimeError: no room" in capfd.readouterr().err

    def refuses(_: Rights) -> bytes:
        raise SystemExit("bench: it cannot be")

    with pytest.raises(SystemExit):
        as_user(SOMEBODY, refuses)
    assert capfd.readouterr().err == "bench: it cannot be\n"


@needs_root
def test_a_stop_reaches_the_user_s_process(place: Path) -> None:
    """It takes its mounts away before root's process ends."""

    def work(_: Rights) -> bytes:
        try:
            (place / "ready").touch()
            time.sleep(30)
        finally:
            time.sleep(0.2)
            (place / "cleaned").touch()
        return b""

    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        try:
            as_user(SOMEBODY, work)
        except SystemExit as error:
            os._exit(error.code if isinstance(error.code, int) else 1)
        finally:
            os._exit(1)
    deadline = time.monotonic() + 20
    while not (place / "ready").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(pid, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 143
    assert (place / "cleaned").exists()


@needs_root
def test_a_user_who_cannot_work_is_told_why(
    place: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o700)

    def tried(directory: Path, *, mounts: bool = False) -> str:
        def work(_: Rights) -> bytes:
            require_usable("somebody", [directory], mounts=mounts)
            return b""

        with pytest.raises(SystemExit):
            as_user(SOMEBODY, work)
        return capfd.readouterr().err

    private = tmp_path / "python"
    private.symlink_to(sys.executable)
    with monkeypatch.context() as patched:
        patched.setattr(sys, "executable", str(private))
        told = tried(place)
    assert f"somebody cannot run {private} with cryptfs (Permission denied)" in told
    assert "/usr/bin/python3" in told
    with monkeypatch.context() as patched:
        patched.setattr(sys, "executable", "/bin/true")
        assert tried(tmp_path) == f"bench: somebody may not write in {tmp_path}\n"
        device = place / "fuse"
        device.touch(mode=0o600)
        patched.setattr(users, "FUSE_DEVICE", device)
        told = tried(place, mounts=True)
        assert told.startswith(f"bench: somebody cannot open {device} (Permission denied), and so not mount")
        assert told.endswith(f"chmod 666 {device}\n")


def test_users_are_found_by_name_and_number(monkeypatch: pytest.MonkeyPatch) -> None:
    found = find_user("root")
    assert (found.name, found.uid, found.gid) == ("root", 0, 0)
    assert find_user("0") == found
    with pytest.raises(ValueError, match="there is no user 'no-such-user'"):
        find_user("no-such-user")
    monkeypatch.setattr(os, "geteuid", lambda: 64001)
    with pytest.raises(ValueError, match="only root can become root"):
        find_user("root")


def test_the_command_line_takes_a_user(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse([]).user is None
    options = parse(["--user", users.this_user(), "--dir", "here", "--tree", "t"])
    assert options.user.uid == os.geteuid()
    assert (options.dir, options.tree) == ([Path.cwd() / "here"], Path.cwd() / "t")
    with pytest.raises(SystemExit):
        parse(["--user", "no-such-user"])
    assert "--user: there is no user 'no-such-user'" in capsys.readouterr().err
