"""Sessions without FUSE: a fake engine in place of libfuse, real processes and signals."""

from __future__ import annotations

import os
import signal
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cryptfs.errors import MountError, VaultLockedError
from cryptfs.mount import mounts
from cryptfs.mount.daemon import LogTarget, Ready, start_daemon
from cryptfs.mount.life import MountableVault, check_mountpoint, mount_background, serve
from cryptfs.mount.mounts import wait_until
from cryptfs.mount.options import MountOptions


class FakeVault:
    """Writes what is done to it into a file, which outlives the daemon."""

    def __init__(self, vault_dir: Path) -> None:
        self.vault_dir = vault_dir
        self.diary = vault_dir.parent / "diary"
        self.handed_over_by: list[int] = []

    def _note(self, text: str) -> None:
        with self.diary.open("a") as file:
            file.write(text + "\n")

    def announce(self, mountpoint: str) -> None:
        self._note(f"announce {os.getpid()} {mountpoint}")

    def start(self) -> None:
        self._note("start")

    def close(self) -> None:
        self._note("close")

    def hand_over(self) -> None:
        self.handed_over_by.append(os.getpid())

    def lines(self) -> list[str]:
        return self.diary.read_text().splitlines() if self.diary.exists() else []


@pytest.fixture
def vault(tmp_path: Path) -> FakeVault:
    (tmp_path / "vault").mkdir()
    (tmp_path / "mountpoint").mkdir()
    return FakeVault(tmp_path / "vault")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "mountpoint"


def serves_until_told(vault: MountableVault, _place: Path, _options: MountOptions, on_ready: Ready) -> None:
    on_ready()
    if not wait_until((vault.vault_dir / "stop").exists, 20):
        raise MountError("nobody stopped the fake engine")


def run_in_background(
    vault: FakeVault,
    place: Path,
    engine: Callable[[MountableVault, Path, MountOptions, Ready], None],
    target: LogTarget | None = None,
) -> int:
    return mount_background(vault, place, MountOptions(), engine, target or LogTarget())


def test_the_parent_returns_when_the_mount_answers(vault: FakeVault, place: Path) -> None:
    pid = run_in_background(vault, place, serves_until_told)
    try:
        assert vault.lines() == [f"announce {pid} {place}", "start"]
        assert vault.handed_over_by == [os.getpid()]
        assert Path(f"/proc/{pid}/cwd").readlink() == Path("/")
        assert os.getsid(pid) == pid  # a session of its own
        assert {str(Path(f"/proc/{pid}/fd/{fd}").readlink()) for fd in (0, 1, 2)} == {"/dev/null"}
        limits = Path(f"/proc/{pid}/limits").read_text()
        assert "Max core file size        0                    0 " in limits
        status = Path(f"/proc/{pid}/status").read_text()
        assert "Umask:\t0000" in status
    finally:
        (vault.vault_dir / "stop").touch()
    assert wait_until(lambda: vault.lines()[-1] == "close", 10)


def test_until_it_is_ready_the_daemon_is_in_the_group_of_its_parent(vault: FakeVault, place: Path) -> None:
    """Nobody else reaches a mountpoint for which an automount waits."""

    def notes(*arguments: Any) -> None:
        (vault.vault_dir / "group").write_text(str(os.getpgrp()))
        serves_until_told(*arguments)

    pid = run_in_background(vault, place, notes)
    try:
        assert (vault.vault_dir / "group").read_text() == str(os.getpgrp())
        assert os.getpgid(pid) == pid
    finally:
        (vault.vault_dir / "stop").touch()
    assert wait_until(lambda: vault.lines()[-1] == "close", 10)


def test_ctrl_c_ends_the_parent_after_the_daemon(tmp_path: Path) -> None:
    """Else a mountpoint that cryptfs made would stay, since the daemon still has its mount on it."""
    begun, over = tmp_path / "begun", tmp_path / "over"

    def unmounts_slowly(_ready: Ready) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        begun.touch()
        signal.sigwait([signal.SIGINT])
        time.sleep(0.3)
        over.touch()

    parent = os.fork()
    if parent == 0:
        try:
            os.setpgid(0, 0)
            start_daemon(unmounts_slowly, LogTarget())
        except KeyboardInterrupt:
            os._exit(0 if over.exists() else 1)
        finally:
            os._exit(2)
    assert wait_until(begun.exists, 20)
    os.killpg(parent, signal.SIGINT)
    assert os.waitstatus_to_exitcode(os.waitpid(parent, 0)[1]) == 0


def test_errors_reach_the_parent_as_they_were(vault: FakeVault, place: Path) -> None:
    def fails(*_: object) -> None:
        raise MountError("the kernel said no")

    def locked(*_: object) -> None:
        raise VaultLockedError("somebody has it")

    def denied(*_: object) -> None:
        raise PermissionError(13, "Permission denied", "/dev/fuse")

    with pytest.raises(MountError, match=r"^the kernel said no$"):
        run_in_background(vault, place, fails)
    assert vault.lines()[-1] == "close"
    assert vault.handed_over_by == []  # still ours to close
    with pytest.raises(VaultLockedError, match="somebody has it"):
        run_in_background(vault, place, locked)
    with pytest.raises(PermissionError) as caught:
        run_in_background(vault, place, denied)
    assert caught.value.filename == "/dev/fuse"


def test_what_a_library_printed_explains_the_error(vault: FakeVault, place: Path) -> None:
    def fails(*_: object) -> None:
        os.write(2, b"fusermount3: mount failed: Operation not permitted\n")
        raise MountError("FUSE could not mount")

    with pytest.raises(MountError, match="FUSE could not mount\nfusermount3: mount failed: Operation"):
        run_in_background(vault, place, fails)


def test_a_bug_is_reported_too(vault: FakeVault, place: Path) -> None:
    def bug(*_: object) -> None:
        raise KeyError("oops")

    with pytest.raises(MountError, match="internal error: KeyError"):
        run_in_background(vault, place, bug)


def test_an_engine_that_ends_at_once_or_dies(vault: FakeVault, place: Path) -> None:
    def ends(*_: object) -> None:
        return

    def dies(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(MountError, match="before the mount was usable"):
        run_in_background(vault, place, ends)
    with pytest.raises(MountError, match="--foreground --debug"):
        run_in_background(vault, place, dies)


def test_the_log_file_is_private_and_tells_the_end(vault: FakeVault, place: Path, tmp_path: Path) -> None:
    log_file = tmp_path / "log"
    run_in_background(vault, place, serves_until_told, LogTarget(log_file))
    (vault.vault_dir / "stop").touch()
    assert wait_until(lambda: "closed the vault" in log_file.read_text(), 10)
    assert stat.S_IMODE(log_file.stat().st_mode) == 0o600


def test_a_log_file_that_cannot_be_made(vault: FakeVault, place: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        run_in_background(vault, place, serves_until_told, LogTarget(Path("/nowhere/log")))
    assert caught.value.filename == "/nowhere/log"


def test_stop_signals_unmount_and_close(
    vault: FakeVault, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon finds its mount in mountinfo, detaches it, and the engine ends because of that."""
    table = tmp_path / "mountinfo"
    table.write_text(f"5 1 0:5 / {place} rw - fuse.cryptfs {vault.vault_dir} rw\n")
    monkeypatch.setattr(mounts, "MOUNTINFO", table)
    stop = vault.vault_dir / "stop"

    def detach(mountpoint: str, *, lazy: bool) -> None:
        vault.diary.open("a").write(f"detach {mountpoint} {lazy}\n")
        stop.touch()

    monkeypatch.setattr("cryptfs.mount.mounts.detach", detach)
    pid = run_in_background(vault, place, serves_until_told)
    os.kill(pid, signal.SIGTERM)
    assert wait_until(lambda: vault.lines()[-1] == "close", 10)
    assert vault.lines()[-2] == f"detach {place} False"


def test_serve_leaves_signals_and_threads_as_they_were(vault: FakeVault, place: Path) -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    ready = threading.Event()
    (vault.vault_dir / "stop").touch()
    serve(vault, place, MountOptions(), serves_until_told, ready.set)
    assert ready.is_set()
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and any(
        thread.name.startswith("cryptfs-") for thread in threading.enumerate()
    ):
        time.sleep(0.01)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("cryptfs-")]


def test_mountpoints_that_will_do(vault: FakeVault, place: Path, tmp_path: Path) -> None:
    assert check_mountpoint(vault.vault_dir, place) == place
    (tmp_path / "link").symlink_to(place)
    assert check_mountpoint(vault.vault_dir, tmp_path / "link") == place
    assert check_mountpoint(vault.vault_dir, tmp_path / "missing") == tmp_path / "missing"
    (place / "file").touch()
    assert check_mountpoint(vault.vault_dir, place, nonempty=True) == place


def test_mountpoints_that_will_not(
    vault: FakeVault, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vault_dir = vault.vault_dir
    (vault_dir / "inside").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "access", lambda *_: False)
        with pytest.raises(MountError, match="does not exist, and you cannot make it"):
            check_mountpoint(vault_dir, tmp_path / "missing")
    (tmp_path / "file").touch()
    for mountpoint, words in (
        (tmp_path / "missing" / "below", "mkdir -p"),
        (tmp_path / "file", "not a directory"),
        (vault_dir, "over itself"),
        (vault_dir / "inside", "inside the vault"),
        (tmp_path, "is inside this directory"),
    ):
        with pytest.raises(MountError, match=words):
            check_mountpoint(vault_dir, mountpoint)
    (place / "file").touch()
    with pytest.raises(MountError, match=r"not empty.*--nonempty"):
        check_mountpoint(vault_dir, place)
    table = tmp_path / "mountinfo"
    table.write_text(f"5 1 0:5 / {place} rw - fuse.cryptfs {vault_dir} rw\n")
    monkeypatch.setattr(mounts, "MOUNTINFO", table)
    with pytest.raises(MountError, match="is mounted there already; unmount it with: cryptfs umount"):
        check_mountpoint(vault_dir, place, nonempty=True)
