"""Ctrl-C at every question: exit code 130, a terminal that echoes again, and a vault that is as it was."""

from __future__ import annotations

import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from cryptfs.cli.newfile import write_secret
from cryptfs.vfs.vault import Vault
from tests.all_keys import CHEAP, FIRST, AllKeys
from tests.cli.test_cli_processes import CRYPTFS, Terminal
from tests.support import everything_below

pytestmark = pytest.mark.waits

_FIRST = FIRST.encode() + b"\n"
NEW = b"a new one of words\n"


@dataclass(frozen=True)
class Question:
    """A question, and what leads to it.

    words: of the command; {} is the directory.   answers: questions before it, and what a person types.
    hidden: whether the terminal does not echo the answer.   lost: the vault has lost its config.
    token: the program has a token with a PIN.   mixed: some of the vault is of another masterkey.
    """

    words: str
    asks: str
    answers: Sequence[tuple[str, bytes | Callable[[bytes], bytes]]] = ()
    hidden: bool = True
    lost: bool = False
    token: bool = False
    mixed: bool = False


def word_asked(output: bytes) -> bytes:
    """The word that is asked back, from the screen."""
    asked = re.findall(rb"type word (\d+)", output)[-1]
    page = output[: output.rindex(b"To be sure")]
    shown = dict(re.findall(rb"(\d+)\. ([a-z]+)", page))
    return bytes(shown[asked]) + b"\n"


OLD = ("Passphrase: ", _FIRST)
INIT = (("New passphrase: ", NEW), ("once more: ", NEW))
BY_FILE = f"--passfile {{}}/first {' '.join(CHEAP)}"
QUESTIONS = {
    "mount": Question("mount {}/vault {}/mountpoint", "Passphrase: "),
    "fsck, third try": Question("fsck {}/vault", "Passphrase: ", [("Passphrase: ", b"wrong\n")] * 2),
    "passwd, old": Question("passwd {}/vault", "Old passphrase: "),
    "passwd, new": Question("passwd {}/vault", "New passphrase: ", [("Old passphrase: ", _FIRST)]),
    "passwd, once more": Question(f"passwd {{}}/vault {BY_FILE}", "once more: ", [INIT[0]]),
    "passwd, proposal": Question(f"passwd {{}}/vault --generate {BY_FILE}", "[Enter]: "),
    "passwd, proposal typed": Question(
        f"passwd {{}}/vault --generate {BY_FILE}", "another one): ", [("[Enter]: ", b"\n")]
    ),
    "init": Question("init {}/new", "New passphrase: "),
    "init, words": Question(f"init {{}}/new {' '.join(CHEAP)}", "type word ", INIT, hidden=False),
    "init, second word": Question(
        f"init {{}}/new {' '.join(CHEAP)}", "type word ", [*INIT, ("type word ", word_asked)], hidden=False
    ),
    "key remove": Question("key remove {}/vault 1", "Passphrase: "),
    "key label": Question("key label {}/vault 1 text", "Passphrase: "),
    "key add keyfile": Question(
        "key add keyfile {}/vault {}/new --generate --with-passphrase", "New passphrase: ", [OLD]
    ),
    "PIN": Question("key add fido2 --pin {}/vault --passfile {}/first", "left): ", token=True),
    "typed words": Question("key test {}/vault --words", "From word 1: ", hidden=False),
    "typed words, second line": Question(
        "key test {}/vault --words", "From word 3: ", [("From word 1: ", b"abandon abandon\n")], hidden=False
    ),
    "typed shares": Question("fsck {}/vault --shares", "From word 1: ", hidden=False),
    "recovery words": Question("recovery words {}/vault --passfile {}/first", "type word ", hidden=False),
    "recovery shares": Question(
        "recovery shares {}/vault --needed 2 --of 3 --passfile {}/first", "type word ", hidden=False
    ),
    "recovery shares, next": Question(
        "recovery shares {}/vault --needed 2 --of 3 --passfile {}/first",
        "next share: ",
        [("type word ", word_asked)],
        hidden=False,
    ),
    "restore-config": Question("recovery restore-config {}/vault", "From word 1: ", hidden=False, lost=True),
    "restore-config, new": Question(
        "recovery restore-config {}/vault --words-file {}/words", "New passphrase: ", lost=True
    ),
    "restore-config, confirmation": Question(
        "recovery restore-config {}/vault --words-file {}/words --new-passfile {}/second",
        "[y/N]: ",
        hidden=False,
        lost=True,
        mixed=True,
    ),
    "rekey, confirmation": Question("rekey {}/vault --passfile {}/first", "[y/N]: ", hidden=False),
}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> AllKeys:
    keys = AllKeys(tmp_path_factory.mktemp("keys"))
    keys.make()
    (keys.base / "mountpoint").mkdir()
    Vault.create(keys.base / "other", FIRST.encode(), kdf_memory=64 << 20)
    for vault_dir in (keys.vault, keys.base / "other"):
        with Vault.unlock(vault_dir, FIRST.encode()) as vault:
            vault.tree.make_directory(vault.tree.root, b"directory", 0o700)
    return keys


def everything(place: Path) -> dict[str, bytes]:
    """All files in a directory, but the locks, which a command may make."""
    files = (each for each in everything_below(place) if each.is_file() and not each.name.endswith("lock"))
    return {str(each.relative_to(place)): each.read_bytes() for each in files}


@pytest.mark.parametrize("name", QUESTIONS)
def test_ctrl_c(name: str, original: AllKeys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    question, place = QUESTIONS[name], tmp_path / "place"
    shutil.copytree(original.base, place)
    if question.lost:
        (place / "vault" / "cryptfs.json").unlink()
    if question.mixed:
        (theirs,) = (each for each in (place / "other").iterdir() if each.is_dir())
        theirs.rename(place / "vault" / theirs.name)
    before = everything(place)
    program = list(CRYPTFS)
    if question.token:
        program = [sys.executable, "-m", "tests.e2e.with_tokens", str(original.plugged["another token"])]
    words = [word.format(place) for word in question.words.split()]
    terminal = Terminal(words, {"XDG_STATE_HOME": str(tmp_path / "state")}, program=program)
    for asks, answer in question.answers:
        terminal.expect(asks.encode())
        terminal.expect(b": ")
        reply = answer if isinstance(answer, bytes) else answer(terminal.output)
        terminal.output = (
            b"" if isinstance(answer, bytes) else terminal.output.replace(b"type word", b"asked")
        )
        terminal.type(reply)
    terminal.expect(question.asks.encode())
    time.sleep(0.05)
    assert terminal.echoes is not question.hidden
    terminal.type(b"\x03")
    assert terminal.finish() == 130
    assert terminal.echoes_afterwards
    assert b"Traceback" not in terminal.output
    assert b"cryptfs: interrupted" in terminal.output
    assert everything(place) == before


@pytest.mark.parametrize("call", ["write", "fsync"])
def test_a_key_file_that_is_not_complete_does_not_stay(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the same command refuses to make it."""
    place, function = tmp_path / "key", getattr(os, call)

    def interrupted(*args: object) -> None:
        function(*args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, call, interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_secret(place, b"secret")
    assert not place.exists()
    write_secret(place, b"secret")
    assert place.read_bytes() == b"secret"
