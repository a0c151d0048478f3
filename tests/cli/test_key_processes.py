"""`cryptfs key` as a process: at a terminal, with Ctrl-C at each question, without a terminal, and killed."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from cryptfs.vfs.vault import Vault, read_config
from tests.cli.test_cli_processes import CRYPTFS, ENVIRONMENT, Terminal

pytestmark = pytest.mark.waits

MEMORY = 64 << 20
CHEAP = ("--kdf-memory", "64m")


@pytest.fixture
def vault(tmp_path: Path) -> Path:
    """A vault with the passphrase `the first of them`, which is also in the file `passfile` beside it."""
    Vault.create(tmp_path / "v", b"the first of them", kdf_memory=MEMORY)
    (tmp_path / "passfile").touch(mode=0o600)
    (tmp_path / "passfile").write_text("the first of them\n")
    return tmp_path / "v"


def cryptfs(*words: object, text: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """A command without a terminal."""
    return subprocess.run(
        [*CRYPTFS, *map(str, words)],
        env=ENVIRONMENT,
        input=text,
        capture_output=True,
        check=False,
        start_new_session=True,
    )


def test_a_person_lets_somebody_in(vault: Path) -> None:
    terminal = Terminal(["key", "add", "passphrase", str(vault), "--label", "ana", *CHEAP], {})
    terminal.expect(b"Passphrase: ")
    terminal.output = b""
    terminal.type(b"mistyped\n")
    terminal.expect(b"Wrong passphrase, try again (2 tries left)")
    terminal.expect(b"Passphrase: ")
    terminal.type(b"the first of them\n")
    terminal.expect(b"New passphrase: ")
    terminal.type(b"password1\n")
    terminal.expect(b"takes somebody with a copy of the vault about")
    terminal.expect(b"New passphrase, once more: ")
    terminal.type(b"password1\n")
    assert terminal.finish() == 0
    assert b"Added key slot 1 (passphrase, ana)" in terminal.output
    assert b"password1" not in terminal.output and b"first of them" not in terminal.output


@pytest.mark.parametrize("question", ["Passphrase: ", "New passphrase: ", "New passphrase, once more: "])
def test_ctrl_c_at_each_question(vault: Path, question: str) -> None:
    before = (vault / "cryptfs.json").read_bytes()
    terminal = Terminal(["key", "add", "passphrase", str(vault), *CHEAP], {})
    for each, answer in (("Passphrase: ", b"the first of them\n"), ("New passphrase: ", b"a new one\n")):
        terminal.expect(each.encode())
        if each == question:
            break
        terminal.output = b""
        terminal.type(answer)
    terminal.expect(question.encode())
    terminal.type(b"\x03")
    assert terminal.finish() == 130
    assert b"Traceback" not in terminal.output
    assert (vault / "cryptfs.json").read_bytes() == before


def test_questions_go_to_the_terminal_where_stderr_is_a_file(vault: Path) -> None:
    script = f"exec {CRYPTFS[0]} -m cryptfs key test {vault} 2> {vault.parent}/said"
    terminal = Terminal([], {}, program=["/bin/sh", "-c", script])
    terminal.expect(b"Passphrase: ")
    terminal.type(b"the first of them\n")
    assert terminal.finish() == 0
    assert b"Key slot 0 (passphrase) opens" in terminal.output
    assert (vault.parent / "said").read_text() == ""


def test_without_a_terminal(vault: Path) -> None:
    """No question, no hang: a pipe that is empty, and two lines for two passphrases."""
    done = cryptfs("key", "add", "passphrase", vault, *CHEAP)
    assert done.returncode == 9
    assert b"no passphrase on stdin, and no terminal to ask on" in done.stderr
    text = b"the first of them\nsomething new of words\n"
    assert cryptfs("key", "add", "passphrase", vault, *CHEAP, text=text).returncode == 0
    assert cryptfs("key", "test", vault, text=b"something new of words\n").returncode == 0
    done = cryptfs("passwd", vault, "--generate", text=text)
    assert done.returncode == 1
    assert b"--generate shows the new passphrase on a terminal, and there is none" in done.stderr


@pytest.mark.parametrize("command", ["init", "passwd", "key add passphrase"])
def test_six_random_words(vault: Path, command: str) -> None:
    """The first proposal is refused, the second one taken; then it opens the vault, and no warning is due."""
    new = vault.parent / "new"
    words = {"init": [str(new), "--no-recovery"], "passwd": [str(vault)], "key add passphrase": [str(vault)]}[
        command
    ]
    opens = [] if command == "init" else ["--passfile", str(vault.parent / "passfile")]
    terminal = Terminal([*command.split(), *words, "--generate", *CHEAP, *opens], {})
    proposals = []
    for round_ in range(2):
        terminal.output = b""
        terminal.expect(b"[Enter]: ")
        found = re.search(rb"disappears\.\r\n([a-z -]+?)   \[Enter\]", terminal.output)
        assert found is not None, terminal.output
        proposals.append(found[1])
        terminal.type(b"\n")
        terminal.expect(b"shows another one): ")
        assert b"\x1b[1A\x1b[2K" in terminal.output
        terminal.type(b"\n" if round_ == 0 else b" ".join(found[1].split()) + b"\n")
    assert terminal.finish() == 0, terminal.output
    assert len(proposals[1].split(b" ")) == 6
    assert proposals[0] != proposals[1]
    assert b"to guess" not in terminal.output
    opened = cryptfs("key", "test", new if command == "init" else vault, text=proposals[1] + b"\n")
    assert opened.returncode == 0, opened.stderr


def test_another_passphrase_than_the_proposed_one(vault: Path) -> None:
    before = (vault / "cryptfs.json").read_bytes()
    words = ["passwd", str(vault), "--generate", "--passfile", str(vault.parent / "passfile")]
    for answer, code in ((b"my own\n", 9), (b"\x03", 130)):
        terminal = Terminal(words, {})
        terminal.expect(b"[Enter]: ")
        terminal.type(b"\n")
        terminal.expect(b"shows another one): ")
        terminal.type(answer)
        assert terminal.finish() == code
        assert (vault / "cryptfs.json").read_bytes() == before


def test_a_person_keeps_a_slot_that_a_change_of_the_masterkey_would_drop(vault: Path) -> None:
    passfile = str(vault.parent / "passfile")
    added = cryptfs("key", "add", "passphrase", vault, "--passfile", passfile, *CHEAP, text=b"of words\n")
    assert added.returncode == 0
    before = (vault / "cryptfs.json").read_bytes()
    terminal = Terminal(["rekey", str(vault), "--passfile", passfile], {})
    terminal.expect(b"Continue without them? [y/N]: ")
    terminal.type(b"\n")
    assert terminal.finish() == 11
    assert b"cryptfs: nothing was changed" in terminal.output
    assert (vault / "cryptfs.json").read_bytes() == before


def test_help_of_key_loads_neither_libsodium_nor_the_word_lists() -> None:
    script = (
        "import sys\n"
        "from cryptfs.cli.main import main\n"
        "main(['key', 'add', 'passphrase', '--help'])\n"
        "heavy = {'nacl', 'mfusepy', 'msgspec', 'zxcvbn', 'xkcdpass'} & set(sys.modules)\n"
        "sys.exit(f'loaded: {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run(
        [CRYPTFS[0], "-c", script], env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_command_that_is_killed_at_any_time(vault: Path) -> None:
    """SIGKILL later and later in `key add`, until it has added two slots: each time all or nothing."""
    passfile = vault.parent / "passfile"
    text = b"another of random words\n"
    words = ["key", "add", "passphrase", str(vault), "--passfile", str(passfile), *CHEAP]
    start = time.monotonic()
    assert cryptfs(*words, text=text).returncode == 0
    delay = step = (time.monotonic() - start) / 20
    added: list[bool] = []
    while added.count(True) < 2 and len(added) < 200:
        known = len(read_config(vault).slots)
        with subprocess.Popen(
            [*CRYPTFS, *words], env=ENVIRONMENT, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as process:
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(text)
                process.stdin.flush()
            time.sleep(delay)
            process.send_signal(signal.SIGKILL)
        config = read_config(vault)
        assert len(config.slots) in (known, known + 1)
        added.append(len(config.slots) > known)
        delay += step
    assert set(added) == {False, True}
    assert cryptfs("key", "test", vault, "--passfile", passfile).returncode == 0
