"""The program as a process: what it loads, pipes that break, Ctrl-C, and a person at a terminal."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

CRYPTFS = (sys.executable, "-m", "cryptfs")
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}


def test_help_loads_neither_libsodium_nor_fuse() -> None:
    script = (
        "import sys\n"
        "from cryptfs.cli.main import main\n"
        "for args in (['--help'], ['mount', '--help'], ['speed', '--help'], ['--version'], ['nonsense']):\n"
        "    main(args)\n"
        "heavy = {'nacl', 'mfusepy', 'msgspec', 'ctypes.util'} & set(sys.modules)\n"
        "sys.exit(f'loaded: {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_reader_that_goes_away() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [*CRYPTFS, "completion", "bash"], env=ENVIRONMENT, stdout=writer, stderr=subprocess.PIPE, check=False
    )
    os.close(writer)
    assert done.returncode == 141
    assert done.stderr == b""


def test_no_colour_where_none_is_wanted(tmp_path: Path) -> None:
    shown = at_a_terminal(["--help"], {"NO_COLOR": "1"})
    assert b"Usage" in shown.output
    assert b"\x1b[3" not in shown.output


class Terminal:
    """The program on a pseudo-terminal of its own."""

    def __init__(self, args: list[str], environment: dict[str, str]) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execve(sys.executable, [*CRYPTFS, *args], {**ENVIRONMENT, "TERM": "xterm", **environment})
        self.output = b""
        self.code = -1

    def expect(self, text: bytes, seconds: float = 20) -> None:
        deadline = time.monotonic() + seconds
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        while text not in self.output:
            ready = poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
            assert ready, f"no {text!r} in {self.output!r}"
            try:
                piece = os.read(self.fd, 4096)
            except OSError:  # Linux: the other side has closed
                piece = b""
            assert piece, f"no {text!r} in {self.output!r}"
            self.output += piece

    def type(self, text: bytes) -> None:
        time.sleep(0.1)  # getpass drops what was typed before it has switched the echo off
        os.write(self.fd, text)

    def finish(self) -> int:
        while True:
            try:
                piece = os.read(self.fd, 4096)
            except OSError:
                break
            if not piece:
                break
            self.output += piece
        os.close(self.fd)
        _, status = os.waitpid(self.pid, 0)
        self.code = os.waitstatus_to_exitcode(status)
        return self.code


def at_a_terminal(args: list[str], environment: dict[str, str] | None = None) -> Terminal:
    terminal = Terminal(args, environment or {})
    terminal.finish()
    return terminal


def test_a_person_makes_a_vault(tmp_path: Path) -> None:
    terminal = Terminal(["init", str(tmp_path / "v"), "--kdf-memory", "64m"], {})
    terminal.expect(b"New passphrase: ")
    terminal.type(b"typed one\n")
    terminal.expect(b"once more: ")
    terminal.type(b"typed one\n")
    assert terminal.finish() == 0
    assert b"typed one" not in terminal.output
    assert (tmp_path / "v" / "cryptfs.json").exists()


def test_a_person_mistypes(tmp_path: Path) -> None:
    terminal = Terminal(["init", str(tmp_path / "v")], {})
    terminal.expect(b"New passphrase: ")
    terminal.type(b"typed one\n")
    terminal.expect(b"once more: ")
    terminal.type(b"typed two\n")
    assert terminal.finish() == 9
    assert b"differ" in terminal.output


def test_a_person_changes_their_mind(tmp_path: Path) -> None:
    terminal = Terminal(["init", str(tmp_path / "v")], {})
    terminal.expect(b"New passphrase: ")
    terminal.type(b"\x03")
    assert terminal.finish() == 130
    assert not (tmp_path / "v").exists()


def test_ctrl_c_in_a_passcommand(tmp_path: Path) -> None:
    with subprocess.Popen(
        [*CRYPTFS, "init", str(tmp_path / "v"), "--passcommand", "sleep 60"],
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        time.sleep(0.5)
        os.killpg(process.pid, signal.SIGINT)
        _, text = process.communicate(timeout=20)
    assert process.returncode == 130
    assert b"Traceback" not in text
