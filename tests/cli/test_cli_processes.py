"""The program as a process: what it loads, pipes that break, Ctrl-C, and a person at a terminal."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

pytestmark = pytest.mark.waits

CRYPTFS = (sys.executable, "-m", "cryptfs")
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}


def test_help_loads_neither_libsodium_nor_fuse() -> None:
    script = (
        "import sys\n"
        "from cryptfs.cli.main import main\n"
        "for args in (['--help'], ['mount', '--help'], ['recovery', 'words', '--help'],\n"
        "             ['speed', '--help'], ['--version'], ['nonsense']):\n"
        "    main(args)\n"
        "heavy = {'nacl', 'mfusepy', 'msgspec', 'ctypes.util', 'mnemonic', 'shamir_mnemonic'}\n"
        "heavy &= set(sys.modules)\n"
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


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["--version"],
        [],
        ["fsck", "--help"],
        ["fsck"],
        ["info"],
        ["verify"],
        ["speed"],
        ["fsck", "--json"],
        ["tree"],
        ["find", "-0"],
        ["find", "--json"],
    ],
    ids=" ".join,
)
def test_every_answer_into_a_closed_pipe(words: list[str], made: Path) -> None:
    """141 and no word, whoever notices it: the command, click or rich."""
    places = {
        "fsck": ["v", "--passfile", "passfile"],
        "info": ["v"],
        "tree": ["v", "--passfile", "passfile"],
        "find": ["v", "--passfile", "passfile"],
        "speed": ["--size", "1m", "--repeat", "1"],
    }
    places["verify"] = ["v", "manifest", "--passfile", "passfile"]
    more = places.get(words[0], []) if words and "--help" not in words else []
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [*CRYPTFS, *words, *more],
        cwd=made,
        env=ENVIRONMENT,
        stdout=writer,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(writer)
    assert done.returncode == 141, done.stderr
    assert done.stderr.count(b"\n") == done.stderr.count(b"cryptfs: warning: other programs")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vault `v`, its `passfile` and its `manifest`."""
    place = tmp_path_factory.mktemp("made")
    made_vault(place)
    command = [*CRYPTFS, "snapshot", "v", "--passfile", "passfile", "--output", "manifest"]
    subprocess.run(command, cwd=place, env=ENVIRONMENT, check=True, capture_output=True)
    return place


@pytest.mark.parametrize("words", ["--help", "info --json", "fsck v", "snapshot v"])
def test_an_answer_onto_a_full_disk(words: str, made: Path) -> None:
    """One message, and no claim that something was written."""
    more = ("--passfile", "passfile") if words.endswith(" v") else ()
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [*CRYPTFS, *words.split(), *more],
            stdout=full, stderr=subprocess.PIPE, env=ENVIRONMENT, cwd=made, check=False,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (11, b"cryptfs: stdout: No space left on device\n")


def test_no_words_at_all() -> None:
    done = subprocess.run(CRYPTFS, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "")
    assert "Usage: cryptfs" in done.stdout


def test_no_colour_where_none_is_wanted(tmp_path: Path) -> None:
    shown = at_a_terminal(["--help"], {"NO_COLOR": "1"})
    assert b"Usage" in shown.output
    assert b"\x1b[3" not in shown.output


class Terminal:
    """The program on a pseudo-terminal of its own. echoes_afterwards: whether it shows keys in the end."""

    echoes_afterwards = False

    def __init__(
        self, args: list[str], environment: dict[str, str], program: Sequence[str] = CRYPTFS
    ) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execve(program[0], [*program, *args], {**ENVIRONMENT, "TERM": "xterm", **environment})
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

    @property
    def echoes(self) -> bool:
        """Whether the terminal shows the keys that a person presses."""
        return bool(termios.tcgetattr(self.fd)[3] & termios.ECHO)

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
        self.echoes_afterwards = self.echoes
        os.close(self.fd)
        _, status = os.waitpid(self.pid, 0)
        self.code = os.waitstatus_to_exitcode(status)
        return self.code


def at_a_terminal(args: list[str], environment: dict[str, str] | None = None) -> Terminal:
    terminal = Terminal(args, environment or {})
    terminal.finish()
    return terminal


def test_a_person_makes_a_vault(tmp_path: Path) -> None:
    terminal = Terminal(["init", str(tmp_path / "v"), "--kdf-memory", "64m", "--no-recovery"], {})
    terminal.expect(b"New passphrase: ")
    terminal.type(b"typed one\n")
    terminal.expect(b"once more: ")
    terminal.type(b"typed one\n")
    assert terminal.finish() == 0
    assert b"typed one" not in terminal.output
    assert (tmp_path / "v" / "cryptfs.json").exists()
    assert not (tmp_path / "v" / "cryptfs.recovery").exists()


def made_vault(tmp_path: Path) -> str:
    """A vault with the passphrase 'grüße from me', composed."""
    (tmp_path / "passfile").touch(mode=0o600)
    (tmp_path / "passfile").write_text("gr\u00fc\u00dfe from me\n", encoding="utf-8")
    vault = str(tmp_path / "v")
    command = [*CRYPTFS, "init", vault, "--kdf-memory", "64m", "--passfile", str(tmp_path / "passfile")]
    subprocess.run(command, env=ENVIRONMENT, check=True, capture_output=True)
    return vault


def test_three_tries_at_a_terminal(tmp_path: Path) -> None:
    vault = made_vault(tmp_path)
    for right in (3, None):
        terminal = Terminal(["fsck", vault], {})
        for number in (1, 2, 3):
            terminal.expect(b"Passphrase: ")
            terminal.output = b""
            terminal.type("gr\u00fc\u00dfe from me\n".encode() if number == right else b"mistyped\n")
            if number < 3:
                terminal.expect(b"Wrong passphrase, try again (%d tr" % (3 - number))
        assert terminal.finish() == (0 if right else 12)
        assert b"from me" not in terminal.output and b"mistyped" not in terminal.output


def test_passwd_asks_for_the_new_one_after_the_old_one_is_right(tmp_path: Path) -> None:
    """A new one is stored in NFC: its letters come decomposed here, and a file has them composed."""
    vault = made_vault(tmp_path)
    terminal = Terminal(["passwd", vault, "--kdf-memory", "64m"], {})
    terminal.expect(b"Old passphrase: ")
    terminal.type(b"mistyped\n")
    terminal.expect(b"Wrong passphrase, try again (2 tries left). Is Caps Lock on?")
    assert b"New passphrase" not in terminal.output
    terminal.expect(b"Old passphrase: ")
    terminal.type("gru\u0308\u00dfe from me\n".encode())
    terminal.expect(b"with composed letters (Unicode NFC)")
    terminal.expect(b"New passphrase: ")
    terminal.type("e\u0301\n".encode())
    terminal.expect(b"this passphrase takes somebody with a copy of the vault about 100 tries to guess")
    terminal.expect(b"New passphrase, once more: ")
    terminal.type("e\u0301\n".encode())
    assert terminal.finish() == 0
    (tmp_path / "passfile").write_text("\u00e9\n", encoding="utf-8")
    command = [*CRYPTFS, "fsck", vault, "--passfile", str(tmp_path / "passfile")]
    done = subprocess.run(command, env=ENVIRONMENT, check=True, capture_output=True)
    assert b"did not open" not in done.stderr


def test_a_weak_passphrase_from_a_file_gets_a_warning_and_a_good_one_none(tmp_path: Path) -> None:
    passfile = tmp_path / "passfile"
    passfile.touch(mode=0o600)
    for number, (passphrase, words) in enumerate(
        (
            ("a", b"about 10 tries to guess"),
            ("aaaaaaaaaaaa", b"Avoid repeated words and characters."),
            ("five random words", b""),
        )
    ):
        passfile.write_text(f"{passphrase}\n")
        vault = str(tmp_path / str(number))
        command = [*CRYPTFS, "init", vault, "--kdf-memory", "64m", "--passfile", str(passfile)]
        said = subprocess.run(command, env=ENVIRONMENT, check=True, capture_output=True).stderr
        assert words in said
        assert (b"warning" in said) is bool(words)
        assert passphrase.encode() * 2 not in said


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
        [*CRYPTFS, "init", str(tmp_path / "v"), "--passcommand", "sh -c 'echo asked >&2; exec sleep 60'"],
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == b"asked\n"
        os.killpg(process.pid, signal.SIGINT)
        _, text = process.communicate(timeout=20)
    assert process.returncode == 130
    assert b"Traceback" not in text
