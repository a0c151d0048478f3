"""What a mount tells the system: readiness, lines in the journal, and a log file that stays bounded."""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import cryptfs
from cryptfs.errors import ChunkError
from cryptfs.mount.mounts import read_mounts
from cryptfs.mount.service import journal
from cryptfs.mount.service.journal import JournalHandler, journal_listens, packed, stderr_is_journal
from cryptfs.mount.service.logfile import KEPT, LogFile
from cryptfs.mount.service.notify import notify, notify_ready, notify_stopping
from tests.e2e.mounting import PROJECT

UNIT = PROJECT / "share" / "systemd" / "user" / "cryptfs@.service"


@pytest.fixture
def listening(tmp_path: Path) -> Iterator[socket.socket]:
    """A service manager or a journal, at tmp_path/socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as opened:
        opened.bind(str(tmp_path / "socket"))
        opened.settimeout(30)
        yield opened


def fields_of(datagram: bytes) -> dict[str, str]:
    """The reader's side of the native protocol."""
    found, rest = {}, datagram
    while rest:
        line, _, rest = rest.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            (size,) = struct.unpack("<Q", rest[:8])
            value, end, rest = rest[8 : 8 + size], rest[8 + size : 9 + size], rest[9 + size :]
            assert end == b"\n"
        found[name.decode()] = value.decode()
    return found


# ---- readiness


def test_without_a_manager_nothing_is_sent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not notify("READY=1")
    for address in ("relative", str(tmp_path / "nobody")):
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        assert not notify("READY=1")


def test_it_says_ready_and_stopping(
    monkeypatch: pytest.MonkeyPatch, listening: socket.socket, tmp_path: Path
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "socket"))
    notify_ready("a status\nof two lines")
    assert listening.recv(4096).decode() == f"READY=1\nSTATUS=a status of two lines\nMAINPID={os.getpid()}"
    notify_stopping()
    assert listening.recv(4096) == b"STOPPING=1"


def test_a_socket_without_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"cryptfs-tests-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as opened:
        opened.bind(f"\0{name}")
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
        assert notify("READY=1")
        assert opened.recv(4096) == b"READY=1"


@dataclass
class Service:
    """What the unit starts: a vault of the config file, with its passphrase from a credential."""

    process: subprocess.Popen[bytes]
    environment: dict[str, str]
    mountpoint: Path


@contextlib.contextmanager
def service_of(place: Path) -> Iterator[Service]:
    """Started; it tells place/socket that it is ready."""
    cryptfs.Vault.create(place / "vault", b"five random words", kdf_memory=64 << 20)
    with cryptfs.Vault.unlock(place / "vault", b"five random words") as vault:
        vault.open("file", "wb").close()
    for directory in ("credentials", "mountpoint", "bin"):
        (place / directory).mkdir()
    (place / "credentials" / "cryptfs.passphrase").write_text("five random words")
    (place / "credentials" / "cryptfs.passphrase").chmod(0o600)
    mountpoint = place / "mountpoint"
    (place / "config.toml").write_text(
        f'[vaults.photos]\nvault = "{place}/vault"\nmountpoint = "{mountpoint}"\n'
    )
    (place / "bin" / "cryptfs").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m cryptfs "$@"\n')
    (place / "bin" / "cryptfs").chmod(0o755)
    environment = os.environ | {
        "NOTIFY_SOCKET": str(place / "socket"),
        "CREDENTIALS_DIRECTORY": str(place / "credentials"),
        "CRYPTFS_CONFIG": str(place / "config.toml"),
        "PYTHONPATH": str(PROJECT),
        "PATH": f"{place}/bin:{os.environ['PATH']}",
    }
    with subprocess.Popen(
        words_of_unit("ExecStart"), env=environment, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        try:
            yield Service(process, environment, mountpoint)
        finally:
            subprocess.run(["umount", "-l", mountpoint], check=False, stderr=subprocess.DEVNULL)
            process.kill()
    assert not os.path.ismount(mountpoint)


def words_of_unit(name: str) -> list[str]:
    """A command of the unit for the vault photos, as systemd runs it."""
    (line,) = (each for each in UNIT.read_text().splitlines() if each.startswith(f"{name}="))
    words = shlex.split(line.removeprefix(f"{name}="))
    return [word.replace("%I", "photos").replace("$$", "$") for word in words]


@pytest.mark.waits
def test_a_service_is_ready_when_the_files_are_there(listening: socket.socket, tmp_path: Path) -> None:
    """With its passphrase from a credential, as a unit gives it; SIGTERM unmounts."""
    with service_of(tmp_path) as service:
        told = listening.recv(4096).decode().splitlines()
        assert told == [
            "READY=1",
            f"STATUS={tmp_path}/vault is mounted on {service.mountpoint}",
            f"MAINPID={service.process.pid}",
        ]
        assert os.listdir(service.mountpoint) == ["file"]
        service.process.send_signal(signal.SIGTERM)
        assert listening.recv(4096) == b"STOPPING=1"
        assert service.process.wait(30) == 0


@pytest.mark.waits
def test_after_a_kill_the_unit_leaves_no_dead_mount(listening: socket.socket, tmp_path: Path) -> None:
    """Else the service could not start again. Only after a kill: the command is for nothing else."""
    with service_of(tmp_path) as service:
        listening.recv(4096)
        for result, is_mounted in (("success", True), ("exit-code", True), ("signal", False)):
            if result == "signal":
                service.process.kill()
                service.process.wait(30)
            environment = service.environment | {"SERVICE_RESULT": result}
            done = subprocess.run(
                words_of_unit("ExecStopPost"), env=environment, capture_output=True, text=True, check=True
            )
            assert (done.stdout, done.stderr) == ("", "")
            assert any(each.mountpoint == str(service.mountpoint) for each in read_mounts()) == is_mounted


def test_the_unit_is_right(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd is not installed")
    shutil.copy(UNIT, tmp_path / "cryptfs@photos.service")
    done = subprocess.run(
        ["systemd-analyze", "--user", "--man=no", "verify", tmp_path / "cryptfs@photos.service"],
        env=os.environ | {"XDG_RUNTIME_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    text = UNIT.read_text()
    assert "\nType=notify\n" in text
    assert "\nExecStart=/usr/bin/env cryptfs mount --quiet --foreground %I\n" in text


# ---- the journal


def test_a_line_has_fields(listening: socket.socket, tmp_path: Path) -> None:
    assert journal_listens(tmp_path / "socket")
    handler = JournalHandler({"CRYPTFS_VAULT": "/srv/vault"}, tmp_path / "socket")
    error = ChunkError("the tag does not verify", cipher_path="dir/file", chunk_index=7)
    handler.handle(logging.LogRecord("cryptfs.vfs", logging.WARNING, "", 0, "%s", (error,), None))
    assert fields_of(listening.recv(65536)) == {
        "SYSLOG_IDENTIFIER": "cryptfs",
        "CRYPTFS_VAULT": "/srv/vault",
        "MESSAGE": str(error),
        "PRIORITY": "4",
        "LOGGER": "cryptfs.vfs",
        "CRYPTFS_PATH": "dir/file",
        "CRYPTFS_REASON": "the tag does not verify",
        "CRYPTFS_CHUNK": "7",
    }
    handler.handle(logging.LogRecord("cryptfs", logging.INFO, "", 0, "two\nlines \x1b[2J", None, None))
    assert fields_of(listening.recv(65536))["MESSAGE"] == "two\nlines \\x1b[2J"
    handler.close()


def test_a_name_makes_no_field() -> None:
    """A cipher path may be what an attacker chose."""
    assert fields_of(packed({"CRYPTFS_PATH": "a\nPRIORITY=0", "MESSAGE": "b"})) == {
        "CRYPTFS_PATH": "a\nPRIORITY=0",
        "MESSAGE": "b",
    }


def test_a_long_line_is_cut(listening: socket.socket, tmp_path: Path) -> None:
    handler = JournalHandler({}, tmp_path / "socket")
    handler.handle(logging.LogRecord("cryptfs", logging.ERROR, "", 0, "x" * 1_000_000, None, None))
    assert fields_of(listening.recv(1 << 20))["MESSAGE"] == "x" * journal.MOST_TEXT
    handler.close()


def test_a_journal_that_was_restarted(tmp_path: Path) -> None:
    place = tmp_path / "socket"
    handler = None
    for _ in range(2):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as opened:
            opened.bind(str(place))
            opened.settimeout(30)
            handler = handler or JournalHandler({}, place)
            handler.handle(logging.LogRecord("cryptfs", logging.INFO, "", 0, "a line", None, None))
            assert fields_of(opened.recv(65536))["MESSAGE"] == "a line"
        place.unlink()
    assert handler is not None
    handler.close()
    assert not journal_listens(place)
    with pytest.raises(OSError, match="No such file"):
        JournalHandler({}, place)


def test_stderr_in_the_journal(monkeypatch: pytest.MonkeyPatch) -> None:
    st = os.fstat(2)
    monkeypatch.setenv("JOURNAL_STREAM", f"{st.st_dev}:{st.st_ino}")
    assert stderr_is_journal()
    monkeypatch.setenv("JOURNAL_STREAM", f"{st.st_dev}:{st.st_ino + 1}")
    assert not stderr_is_journal()


# ---- a log file


def write(handler: LogFile, text: str) -> None:
    handler.handle(logging.LogRecord("cryptfs", logging.INFO, "", 0, text, None, None))


def test_a_log_file_stays_bounded(tmp_path: Path) -> None:
    file = tmp_path / "log"
    handler = LogFile(file, 100)
    lines = [f"{number:03} {'x' * 30}" for number in range(40)]
    for line in lines:
        write(handler, line)
    handler.close()
    files = [file, *(Path(f"{file}.{number}") for number in range(1, KEPT + 1))]
    assert sorted(tmp_path.iterdir()) == sorted(files)
    assert all(path.stat().st_size <= 100 and path.stat().st_mode & 0o777 == 0o600 for path in files)
    kept = [line for path in reversed(files) for line in path.read_text().splitlines()]
    assert kept == lines[-len(kept) :], "the newest lines, in their order"


def test_without_a_bound_it_grows(tmp_path: Path) -> None:
    handler = LogFile(tmp_path / "log", 0)
    for _ in range(100):
        write(handler, "x" * 100)
    handler.close()
    assert (tmp_path / "log").stat().st_size == 100 * 101
    assert len(list(tmp_path.iterdir())) == 1


def test_a_file_that_another_program_moves(tmp_path: Path) -> None:
    """As logrotate does; and two mounts may write to one file."""
    file = tmp_path / "log"
    first, second = LogFile(file, 60), LogFile(file, 60)
    write(first, "before")
    file.rename(tmp_path / "moved")
    write(first, "after")
    assert ((tmp_path / "moved").read_text(), file.read_text()) == ("before\n", "after\n")
    write(second, "y" * 40)
    write(second, "z" * 40)
    write(first, "a")
    assert file.read_text().splitlines() == ["z" * 40, "a"]
    assert Path(f"{file}.1").read_text().splitlines() == ["after", "y" * 40]
    for handler in (first, second):
        handler.close()


def test_what_is_no_file_is_not_moved(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    handler = LogFile(tmp_path / "pipe", 10)
    for _ in range(3):
        write(handler, "x" * 20)
    handler.close()
    assert os.read(reader, 4096) == 3 * (b"x" * 20 + b"\n")
    os.close(reader)
    assert os.listdir(tmp_path) == ["pipe"]
