"""Recovery words and shares at a terminal: shown once, asked back, typed again; and a person who stops."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from cryptfs.rekey.begin import begin, plan_slots
from cryptfs.unlock.offer import Offer
from cryptfs.vfs.content.redo import Durability
from cryptfs.vfs.vault import Vault, read_config
from tests.cli.test_cli_processes import CRYPTFS, ENVIRONMENT, Terminal
from tests.support import MIB

pytestmark = pytest.mark.waits

PASSPHRASE = b"typed one"
_CELL = re.compile(rb"(\d+)\. ([a-z]+)")


@pytest.fixture
def vault(tmp_path: Path) -> Path:
    Vault.create(tmp_path / "v", PASSPHRASE, kdf_memory=64 * MIB)
    (tmp_path / "passfile").touch(mode=0o600)
    (tmp_path / "passfile").write_bytes(PASSPHRASE + b"\n")
    return tmp_path / "v"


def shown_words(terminal: Terminal, count: int) -> list[str]:
    """The words on the screen, in their order."""
    terminal.expect(b"type word")
    found = {int(number): word.decode() for number, word in _CELL.findall(terminal.output)}
    assert sorted(found) == list(range(1, count + 1))
    return [found[number] for number in range(1, count + 1)]


def answer(terminal: Terminal, words: list[str], count: int) -> None:
    for _ in range(count):
        terminal.expect(b"type word ")
        terminal.output = terminal.output[terminal.output.rindex(b"type word ") :]
        terminal.expect(b": ")
        asked = int(terminal.output.removeprefix(b"type word ").partition(b":")[0])
        terminal.output = b""
        terminal.type(words[asked - 1].encode() + b"\n")


def new_words(vault: Path, *more: str) -> list[str]:
    terminal = Terminal(
        ["recovery", "words", str(vault), "--passfile", str(vault.parent / "passfile"), *more], {}
    )
    words = shown_words(terminal, 24)
    answer(terminal, words, 2)
    assert terminal.finish() == 0, terminal.output
    assert b"now opens with recovery words" in terminal.output
    return words


def lose(vault: Path) -> None:
    (vault / "cryptfs.json").unlink()


def test_a_person_makes_a_vault_with_words(tmp_path: Path) -> None:
    vault = tmp_path / "v"
    terminal = Terminal(["init", str(vault), "--kdf-memory", "64m"], {})
    for prompt in (b"New passphrase: ", b"once more: "):
        terminal.expect(prompt)
        terminal.type(PASSPHRASE + b"\n")
    words = shown_words(terminal, 24)
    assert not vault.exists()
    answer(terminal, words, 2)
    assert terminal.finish() == 0
    assert b"cryptfs recovery export" in terminal.output
    assert len(read_config(vault).recovery) == 1
    lose(vault)
    terminal = Terminal(["recovery", "restore-config", str(vault), "--kdf-memory", "64m"], {})
    terminal.expect(b"From word 1: ")
    terminal.type(" ".join(words[:10]).encode() + b"\n")
    terminal.expect(b"From word 11: ")
    terminal.type(b"1. " + words[10].upper().encode() + b" nonsense\n")
    terminal.expect(b"cryptfs did not take that line")
    terminal.expect(b"was read as 'nonsense'")
    terminal.expect(b"From word 11: ")
    terminal.type(" ".join(words[10:]).encode() + b"\n")
    for prompt in (b"New passphrase: ", b"once more: "):
        terminal.expect(prompt)
        terminal.type(b"another one\n")
    assert terminal.finish() == 0
    assert b"another one" not in terminal.output
    with Vault.unlock(vault, b"another one"):
        pass


def test_init_that_a_person_stops_makes_nothing(tmp_path: Path) -> None:
    vault = tmp_path / "v"
    terminal = Terminal(["init", str(vault), "--kdf-memory", "64m"], {})
    for prompt in (b"New passphrase: ", b"once more: "):
        terminal.expect(prompt)
        terminal.type(PASSPHRASE + b"\n")
    shown_words(terminal, 24)
    terminal.type(b"\x03")
    assert terminal.finish() == 130
    assert b"Traceback" not in terminal.output
    assert not vault.exists()


def test_words_are_asked_back_three_times(vault: Path) -> None:
    raw = (vault / "cryptfs.json").read_bytes()
    terminal = Terminal(["recovery", "words", str(vault), "--passfile", str(vault.parent / "passfile")], {})
    shown_words(terminal, 24)
    for _ in range(2):
        terminal.output = b""
        terminal.type(b"wrong\n")
        terminal.expect(b"Look again.")
        terminal.expect(b"type word")
    terminal.type(b"wrong\n")
    assert terminal.finish() == 9
    assert b"nothing was changed" in terminal.output
    assert (vault / "cryptfs.json").read_bytes() == raw
    assert not (vault / "cryptfs.recovery").exists()


@pytest.mark.parametrize("keys", [b"\x03", b"\x04"], ids=["Ctrl-C", "Ctrl-D"])
def test_a_person_stops_at_the_words(keys: bytes, vault: Path) -> None:
    old = new_words(vault)
    raw = (vault / "cryptfs.json").read_bytes()
    terminal = Terminal(["recovery", "words", str(vault), "--passfile", str(vault.parent / "passfile")], {})
    shown_words(terminal, 24)
    terminal.type(keys)
    assert terminal.finish() == (130 if keys == b"\x03" else 9)
    assert b"Traceback" not in terminal.output
    assert (vault / "cryptfs.json").read_bytes() == raw
    lose(vault)
    place = vault.parent / "words"
    place.touch(mode=0o600)
    place.write_text(" ".join(old))
    command = [*CRYPTFS, "recovery", "restore-config", str(vault), "--words-file", str(place)]
    command += ["--new-passfile", str(vault.parent / "passfile"), "--kdf-memory", "64m"]
    subprocess.run(command, env=ENVIRONMENT, check=True, capture_output=True)


def test_other_words_are_asked_for_again(vault: Path) -> None:
    words = new_words(vault)
    more = new_words(vault, "--keep")
    assert words != more
    wrong = [*("abandon",) * 23, "art"]
    terminal = Terminal(["recovery", "remove", str(vault), read_config(vault).recovery[0], "--words"], {})
    for typed in (wrong, words[::-1] if words[::-1] != words else wrong, more):
        terminal.expect(b"From word 1: ")
        terminal.output = b""
        terminal.type(" ".join(typed).encode() + b"\n")
        if typed is not more:
            terminal.expect(b"Try again (")
    assert terminal.finish() == 0
    assert len(read_config(vault).recovery) == 1


def test_shares(vault: Path) -> None:
    args = ["recovery", "shares", str(vault), "--needed", "2", "--of", "3"]
    terminal = Terminal([*args, "--passfile", str(vault.parent / "passfile")], {})
    shares = []
    for number in (1, 2, 3):
        terminal.expect(b"Share %d of 3" % number)
        shares.append(shown_words(terminal, 33))
        answer(terminal, shares[-1], 1)
        if number < 3:
            terminal.expect(b"Press Enter")
            terminal.output = b""
            terminal.type(b"\n")
    assert terminal.finish() == 0
    done = subprocess.run(
        [*CRYPTFS, "recovery", "list", str(vault), "--json"], env=ENVIRONMENT, check=True, capture_output=True
    )
    (found,) = json.loads(done.stdout)["secrets"]
    assert (found["kind"], found["needed"], found["shares"]) == ("shares", 2, 3)
    lose(vault)
    restore = ["recovery", "restore-config", str(vault), "--shares", "--kdf-memory", "64m"]
    terminal = Terminal([*restore, "--new-passfile", str(vault.parent / "passfile")], {})
    terminal.expect(b"Share 1: ")
    terminal.type(" ".join(shares[2]).encode() + b"\n")
    terminal.expect(b"Share 2 of 2: ")
    terminal.output = b""
    terminal.type(" ".join(shares[2]).encode() + b"\n")
    terminal.expect(b"typed that share already")
    terminal.expect(b"From word 1: ")
    terminal.type(" ".join(shares[0]).encode() + b"\n")
    assert terminal.finish() == 0, terminal.output
    with Vault.unlock(vault, PASSPHRASE):
        pass


def test_a_person_decides_where_the_vault_is_mixed(vault: Path, tmp_path: Path) -> None:
    words = new_words(vault)
    Vault.create(tmp_path / "other", PASSPHRASE, kdf_memory=64 * MIB)
    for place in (vault, tmp_path / "other"):
        with Vault.unlock(place, PASSPHRASE) as opened:
            opened.tree.make_directory(opened.tree.root, b"directory", 0o700)
    (theirs,) = (each for each in (tmp_path / "other").iterdir() if each.is_dir())
    (vault / theirs.name).mkdir()
    lose(vault)
    (tmp_path / "words").write_text(" ".join(words))
    (tmp_path / "words").chmod(0o600)
    args = ["recovery", "restore-config", str(vault), "--words-file", str(tmp_path / "words")]
    args += ["--new-passfile", str(tmp_path / "passfile"), "--kdf-memory", "64m"]
    for reply, code in ((b"n\n", 11), (b"y\n", 0)):
        terminal = Terminal(args, {})
        terminal.expect(b"1 of 2 names")
        terminal.expect(b"[y/N]: ")
        terminal.type(reply)
        assert terminal.finish() == code
        assert (vault / "cryptfs.json").exists() == (code == 0)


def rekeying(vault: Path, *more: str) -> Terminal:
    return Terminal(["rekey", str(vault), "--passfile", str(vault.parent / "passfile"), *more], {})


def opened_by(vault: Path, words: list[str]) -> int:
    place = vault.parent / "words"
    place.unlink(missing_ok=True)
    place.touch(mode=0o600)
    place.write_text(" ".join(words))
    command = [*CRYPTFS, "key", "test", str(vault), "--words-file", str(place)]
    return subprocess.run(command, env=ENVIRONMENT, check=False, capture_output=True).returncode


def test_a_change_of_the_masterkey_ends_with_new_words(vault: Path) -> None:
    old = new_words(vault)
    terminal = rekeying(vault)
    words = shown_words(terminal, 24)
    assert terminal.output.index(b"is changed") < terminal.output.index(b"Recovery words ")
    assert read_config(vault).recovery == []
    answer(terminal, words, 2)
    assert terminal.finish() == 0
    assert words != old
    assert len(read_config(vault).recovery) == 1
    assert (opened_by(vault, words), opened_by(vault, old)) == (0, 12)


@pytest.mark.parametrize("at", ["before the record goes", "after it"])
def test_an_interrupted_change_of_the_masterkey_ends_with_new_words(vault: Path, at: str) -> None:
    """Its config lists no words any more. If the record is gone as well, a person is asked."""
    old = new_words(vault)
    with Vault.unlock(vault, PASSPHRASE, durability=Durability.OFF) as opened:
        begin(opened, plan_slots(opened.config, [Offer(passphrase=PASSPHRASE)]))
    assert (read_config(vault).is_rekeying, read_config(vault).recovery) == (True, [])
    if at == "after it":
        (vault / "cryptfs.recovery").unlink()
    terminal = rekeying(vault)
    if at == "after it":
        terminal.expect(b"Make new words now? [Y/n]: ")
        assert b"is changed" in terminal.output
        terminal.type(b"\n")
    words = shown_words(terminal, 24)
    assert b"was interrupted; it continues now" in terminal.output
    answer(terminal, words, 2)
    assert terminal.finish() == 0
    assert len(read_config(vault).recovery) == 1
    assert (opened_by(vault, words), opened_by(vault, old)) == (0, 12)


def test_a_change_of_the_masterkey_ends_with_new_shares(vault: Path) -> None:
    passfile, shares = str(vault.parent / "passfile"), str(vault.parent / "shares")
    command = [*CRYPTFS, "recovery", "shares", str(vault), "--needed", "2", "--of", "2"]
    command += ["--passfile", passfile, "--output", shares]
    subprocess.run(command, env=ENVIRONMENT, check=True, capture_output=True)
    terminal = rekeying(vault)
    found = []
    for number in range(2):
        terminal.expect(b"Share %d of 2" % (number + 1))
        words = shown_words(terminal, 33)
        answer(terminal, words, 1)
        found.append(" ".join(words))
        if not number:
            terminal.expect(b"next share")
            terminal.type(b"\n")
    assert terminal.finish() == 0
    command = [*CRYPTFS, "key", "test", str(vault)]
    for number, text in enumerate(found):
        place = vault.parent / f"share{number}"
        place.touch(mode=0o600)
        place.write_text(text)
        command += ["--share-file", str(place)]
    subprocess.run(command, env=ENVIRONMENT, check=True, capture_output=True)


@pytest.mark.parametrize("stops", [False, True], ids=["wrong words", "Ctrl-C"])
def test_a_person_stops_after_a_change_of_the_masterkey(stops: bool, vault: Path) -> None:
    """The change itself is through, and the person reads how to make words later."""
    old = new_words(vault)
    terminal = rekeying(vault)
    shown_words(terminal, 24)
    if stops:
        terminal.type(b"\x03")
    else:
        for _ in range(2):
            terminal.output = b""
            terminal.type(b"wrong\n")
            terminal.expect(b"Look again.")
            terminal.expect(b"type word")
        terminal.type(b"wrong\n")
    assert terminal.finish() == (130 if stops else 0)
    assert b"do not work" in terminal.output
    assert b"Traceback" not in terminal.output
    assert (read_config(vault).recovery, read_config(vault).is_rekeying) == ([], False)
    assert opened_by(vault, old) == 12
    with Vault.unlock(vault, PASSPHRASE):
        pass


def test_a_change_of_the_masterkey_without_words(vault: Path) -> None:
    new_words(vault)
    terminal = rekeying(vault, "--no-recovery")
    assert terminal.finish() == 0
    assert b"has no recovery words now" in terminal.output
    assert read_config(vault).recovery == []


def test_into_a_pipe_nothing_is_shown(vault: Path) -> None:
    passfile = str(vault.parent / "passfile")
    done = subprocess.run(
        [*CRYPTFS, "recovery", "words", str(vault), "--passfile", passfile],
        env=ENVIRONMENT,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, b"")
    assert read_config(vault).recovery == []
