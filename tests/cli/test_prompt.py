"""Where passphrases come from. The terminal itself is a pseudo-terminal in test_cli_processes.py."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cryptfs.cli import prompt as prompt_module
from cryptfs.cli.exit_codes import EmptyPassphraseError, PassphraseUnreadableError
from cryptfs.cli.prompt import MAX_PASSPHRASE_SIZE, PassphraseSource, read_passphrase
from cryptfs.cli.terminal import Terminal


class Stdin(io.TextIOWrapper):
    """A stand-in for sys.stdin: a pipe that somebody has written to and closed."""

    def __init__(self, raw: bytes, *, tty: bool) -> None:
        reader, writer = os.pipe()
        os.write(writer, raw)
        os.close(writer)
        super().__init__(os.fdopen(reader, "rb"), encoding="utf-8")
        self._tty = tty

    def __del__(self) -> None:
        self.close()

    def isatty(self) -> bool:
        return self._tty


@pytest.fixture
def passfile(tmp_path: Path) -> Path:
    file = tmp_path / "passfile"
    file.touch(mode=0o600)
    return file


@pytest.mark.parametrize(
    ("content", "passphrase"),
    [
        (b"secret", b"secret"),
        (b"secret\n", b"secret"),
        (b"secret\r\n", b"secret"),
        (b" se cret \n", b" se cret "),
        (b"\xff\x00bytes\n", b"\xff\x00bytes"),
        (b"first\nsecond\n", b"first"),
    ],
)
def test_first_line_of_a_file(passfile: Path, content: bytes, passphrase: bytes) -> None:
    passfile.write_bytes(content)
    assert read_passphrase(PassphraseSource(passfile)) == passphrase


def test_others_who_can_read_it_are_mentioned(passfile: Path, capsys: pytest.CaptureFixture[str]) -> None:
    passfile.write_bytes(b"secret\n")
    read_passphrase(PassphraseSource(passfile))
    assert capsys.readouterr().err == ""
    passfile.chmod(0o644)
    read_passphrase(PassphraseSource(passfile))
    text = capsys.readouterr().err
    assert "can be read by other users" in text
    assert "chmod 600" in text
    assert "secret" not in text


@pytest.mark.parametrize("content", [b"", b"\n", b"\nsecond\n"])
def test_an_empty_one_is_refused(passfile: Path, content: bytes) -> None:
    passfile.write_bytes(content)
    with pytest.raises(EmptyPassphraseError):
        read_passphrase(PassphraseSource(passfile))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(PassphraseUnreadableError, match="No such file"):
        read_passphrase(PassphraseSource(tmp_path / "missing"))
    with pytest.raises(PassphraseUnreadableError, match="Is a directory"):
        read_passphrase(PassphraseSource(tmp_path))
    with pytest.raises(PassphraseUnreadableError, match="the passphrase file may have at most"):
        read_passphrase(PassphraseSource(Path("/dev/zero")))


@pytest.mark.parametrize(
    ("command", "passphrase"),
    [
        ("printf 'from a command\\n'", b"from a command"),
        ("printf 'two\\nlines\\n'", b"two\nlines"),
        ("echo 'quoted words'", b"quoted words"),
    ],
)
def test_output_of_a_command(command: str, passphrase: bytes) -> None:
    assert read_passphrase(PassphraseSource(passcommand=command)) == passphrase


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("false", "false failed with exit code 1"),
        ("sh -c 'kill -9 $$'", "sh failed with signal 9"),
        ("no-such-program-here", "cannot run no-such-program-here"),
        ("echo 'open", "cannot split"),
        ("", "empty"),
    ],
)
def test_commands_that_fail(command: str, words: str) -> None:
    with pytest.raises(PassphraseUnreadableError, match=words):
        read_passphrase(PassphraseSource(passcommand=command))


def test_a_silent_command_gives_an_empty_one() -> None:
    with pytest.raises(EmptyPassphraseError):
        read_passphrase(PassphraseSource(passcommand="true"))


def test_two_from_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", Stdin(b"old\nnew\n", tty=False))
    assert read_passphrase(PassphraseSource()) == b"old"
    assert read_passphrase(PassphraseSource(Path("-"))) == b"new"
    with pytest.raises(PassphraseUnreadableError, match="--passfile or --passcommand"):
        read_passphrase(PassphraseSource())


def test_what_follows_a_line_is_left_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    stdin = Stdin(b"first\nfor somebody else", tty=False)
    monkeypatch.setattr(sys, "stdin", stdin)
    assert read_passphrase(PassphraseSource()) == b"first"
    assert os.read(stdin.fileno(), 100) == b"for somebody else"


@pytest.mark.parametrize("size", [MAX_PASSPHRASE_SIZE, MAX_PASSPHRASE_SIZE + 1])
def test_the_longest_one(passfile: Path, size: int) -> None:
    passfile.write_bytes(b"x" * size)
    if size == MAX_PASSPHRASE_SIZE:
        assert len(read_passphrase(PassphraseSource(passfile))) == size
        assert len(read_passphrase(PassphraseSource(passcommand=f"cat {passfile}"))) == size
    else:
        for source in (PassphraseSource(passfile), PassphraseSource(passcommand=f"cat {passfile}")):
            with pytest.raises(PassphraseUnreadableError, match="at most 1048576 bytes"):
                read_passphrase(source)


def test_no_stdin_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(PassphraseUnreadableError, match="closed"):
        read_passphrase(PassphraseSource())


def typed(monkeypatch: pytest.MonkeyPatch, *answers: str) -> list[str]:
    """Stand in for a person at a terminal; returns the prompts shown."""
    prompts: list[str] = []
    coming: Iterator[str] = iter(answers)

    class Typist(Terminal):
        def ask(self, prompt: str, what: str = "passphrase") -> bytes:
            prompts.append(prompt)
            try:
                return next(coming).encode()
            except StopIteration:
                raise PassphraseUnreadableError("no passphrase was typed") from None

    @contextlib.contextmanager
    def opened() -> Iterator[Terminal]:
        yield Typist(-1, -1)

    monkeypatch.setattr(prompt_module, "open_terminal", opened)
    monkeypatch.setattr(sys, "stdin", Stdin(b"", tty=True))
    return prompts


def test_a_new_one_is_typed_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = typed(monkeypatch, "grüße", "grüße")
    assert read_passphrase(PassphraseSource(), "New passphrase", confirm=True) == "grüße".encode()
    assert prompts == ["New passphrase", "New passphrase, once more"]


def test_an_old_one_is_typed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = typed(monkeypatch, "x")
    assert read_passphrase(PassphraseSource()) == b"x"
    assert len(prompts) == 1


def test_typing_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    typed(monkeypatch, "one", "other")
    with pytest.raises(PassphraseUnreadableError, match="differ"):
        read_passphrase(PassphraseSource(), confirm=True)
    typed(monkeypatch)
    with pytest.raises(PassphraseUnreadableError, match="no passphrase was typed"):
        read_passphrase(PassphraseSource())
    typed(monkeypatch, "")
    with pytest.raises(EmptyPassphraseError):
        read_passphrase(PassphraseSource(), confirm=True)


def test_one_source_only() -> None:
    with pytest.raises(ValueError, match="one of"):
        PassphraseSource(Path("file"), "command")
