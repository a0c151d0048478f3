"""What is offered to a vault, from where, and who is asked for it."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path

import pytest

from cryptfs.cli import prompt as prompt_module
from cryptfs.cli.offers import OfferSource, mount_source
from cryptfs.cli.prompt import PassphraseSource
from cryptfs.cli.recoverywords import RecoverySource
from cryptfs.cli.terminal import Terminal
from cryptfs.cli.wishes import collect_options
from cryptfs.mount import life
from cryptfs.storage.userstate import recall
from cryptfs.unlock.keyfile import generate_key_file, new_key_file, new_passphrase_key_file
from cryptfs.unlock.kind import NewKey
from cryptfs.unlock.offer import Offer
from cryptfs.unlock.passphrase import new_passphrase
from cryptfs.unlock.table import SlotTable, changing_slots, sealed
from cryptfs.vfs.vault import Vault, read_config
from tests.commands import Run, runner

MEMORY = 64 << 20
PHOTO = bytes(range(256)) * 10


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    return runner(capsys)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The questions to a person at the terminal, who always answers with the passphrase `typed`."""
    questions: list[str] = []

    class Person(Terminal):
        def ask(self, prompt: str, what: str = "passphrase") -> bytes:
            questions.append(prompt)
            return b"typed!"[:5]

    class Opened:
        def __enter__(self) -> Terminal:
            return Person(-1, -1)

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(prompt_module, "open_terminal", Opened)
    monkeypatch.setattr(prompt_module, "stdin_is_terminal", lambda: True)
    return questions


def secret_file(file: Path, content: bytes) -> Path:
    file.touch(mode=0o600)
    file.write_bytes(content)
    return file


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With a key file, a photo, passphrase files, and a memory of its own."""
    secret_file(tmp_path / "key", generate_key_file(os.urandom(32)))
    secret_file(tmp_path / "another key", generate_key_file(os.urandom(32)))
    secret_file(tmp_path / "photo", PHOTO)
    secret_file(tmp_path / "typed", b"typed\n")
    secret_file(tmp_path / "wrong", b"wrong\n")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    for name in ("CRYPTFS_PASSFILE", "CRYPTFS_KEYFILE", "CREDENTIALS_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def made(place: Path, *kinds: str) -> Path:
    """A vault with a slot of each kind in this order, from 0; its passphrase is always `typed`."""
    vault = place / "vault"
    Vault.create(vault, b"first of all", kdf_memory=MEMORY)
    with changing_slots(vault, b"first of all") as table:
        for kind in kinds:
            table.add(_key(place, kind))
        table.remove(0)
        for number in range(len(kinds)):
            _renumber(table, number + 1, number, _key(place, kinds[number]))
        table.save()
    return vault


def _key(place: Path, kind: str) -> NewKey:
    if kind == "passphrase":
        return new_passphrase(b"typed", MEMORY, 3)
    if kind == "key-file":
        return new_key_file((place / "key").read_bytes())
    return new_passphrase_key_file(Offer(b"typed", PHOTO), MEMORY, 3)


def _renumber(table: SlotTable, old: int, new: int, key: NewKey) -> None:
    fresh = sealed(table.config, new, "", key, table.opened.masterkey)
    table._set([fresh if slot.id == old else slot for slot in table.config.slots])


def opened_by(run: Run, vault: Path, *words: object) -> int:
    """The id of the slot that opens a vault by `key test`."""
    told = run("key", "test", vault, "--json", *words)
    assert told.code == 0, told.err
    slot = json.loads(told.out)["slot"]
    assert isinstance(slot["id"], int)
    return slot["id"]


# ---- who is asked


def test_nobody_is_asked_where_the_key_file_suffices(place: Path, run: Run, asked: list[str]) -> None:
    vault = made(place, "passphrase", "key-file")
    assert opened_by(run, vault, "--keyfile", place / "key") == 1
    assert asked == []
    assert opened_by(run, vault) == 0
    assert asked == ["Passphrase"]


def test_nobody_is_asked_for_what_no_slot_takes(place: Path, run: Run, asked: list[str]) -> None:
    vault = made(place, "key-file")
    for words in ((), ("--askpass", "/bin/false")):
        told = run("key", "test", vault, *words)
        assert told.code == 12
        assert told.err == (
            "cryptfs: nothing was offered that this vault takes; it takes a key file (--keyfile FILE)\n"
        )
    assert asked == []


def test_a_key_file_that_opens_nothing_is_no_reason_to_ask(place: Path, run: Run, asked: list[str]) -> None:
    vault = made(place, "passphrase", "key-file")
    told = run("fsck", vault, "--keyfile", place / "another key")
    assert (told.code, asked) == (12, [])
    assert told.err == (f"cryptfs: the key file opens no key slot of this vault (from {place}/another key)\n")
    told = run("fsck", vault, "--keyfile", place / "photo")
    assert (told.code, asked) == (12, [])
    assert "photo is not a key file that cryptfs made, or it is damaged" in told.err


def test_a_slot_that_needs_both(place: Path, run: Run, asked: list[str]) -> None:
    vault = made(place, "key-file", "passphrase-key-file")
    assert opened_by(run, vault, "--keyfile", place / "photo") == 1
    assert asked == ["Passphrase"]
    told = run("key", "test", vault, "--keyfile", place / "photo", "--passfile", place / "wrong")
    assert told.code == 12
    assert told.err == (
        "cryptfs: passphrase and key file open no key slot of this vault "
        f"(from {place}/wrong; {place}/photo)\n"
    )
    assert run("key", "test", vault, "--passfile", place / "typed").code == 12
    assert asked == ["Passphrase"]


def test_one_slot_alone(place: Path, run: Run, asked: list[str]) -> None:
    vault = made(place, "passphrase", "key-file", "passphrase")
    assert opened_by(run, vault, "--slot", 2, "--keyfile", place / "key", "--passfile", place / "typed") == 2
    told = run("fsck", vault, "--slot", "1", "--passfile", place / "typed")
    assert told.code == 12
    assert "key slot 1 takes a key file" in told.err
    told = run("fsck", vault, "--slot", "7", "--passfile", place / "typed")
    assert (told.code, "the vault has no key slot 7" in told.err) == (12, True)
    assert run("fsck", vault, "--slot", "1").code == 12
    assert asked == []


def test_three_tries_of_a_person_and_one_of_a_file(place: Path, run: Run, asked: list[str]) -> None:
    Vault.create(place / "v", b"something else", kdf_memory=MEMORY)
    told = run("fsck", place / "v")
    assert (told.code, asked) == (12, ["Passphrase"] * 3)
    assert told.err.count("Wrong passphrase, try again") == 2
    assert run("fsck", place / "v", "--passfile", place / "wrong").err.count("Wrong passphrase, try") == 0


# ---- from where


def askpass(place: Path, answers: list[str], code: int = 0) -> Path:
    """A program like ssh-askpass: notes its question, and prints the next answer."""
    (place / "answers").write_text("".join(f"{answer}\n" for answer in answers))
    program = place / "askpass"
    program.write_text(
        f'#!/bin/sh\nprintf "%s|" "$1" >> "{place}/questions"\nhead -n 1 "{place}/answers"\n'
        f'sed -i 1d "{place}/answers"\nexit {code}\n'
    )
    program.chmod(0o700)
    return program


def test_a_program_that_asks(place: Path, run: Run) -> None:
    vault = made(place, "passphrase")
    program = askpass(place, ["mistyped", "typed"])
    assert run("fsck", vault, "--askpass", program).code == 0
    assert (place / "questions").read_text() == "Passphrase: |Passphrase: |"
    told = run("fsck", vault, "--askpass", askpass(place, ["typed"], code=1))
    assert told.code == 9
    assert "failed with exit code 1" in told.err
    assert "cannot run" in run("fsck", vault, "--askpass", place / "none").err


def test_a_program_that_asks_for_a_new_one(place: Path, run: Run) -> None:
    vault = made(place, "passphrase")
    program = askpass(place, ["typed", "of six random words", "of six random words"])
    assert run("passwd", vault, "--askpass", program).code == 0
    questions = "Old passphrase: |New passphrase: |New passphrase, once more: |"
    assert (place / "questions").read_text() == questions
    assert run("fsck", vault, "--passcommand", "echo of six random words").code == 0


def test_an_open_descriptor(place: Path, run: Run) -> None:
    vault = made(place, "passphrase")
    reader, writer = os.pipe()
    os.write(writer, b"typed\nmore")
    os.close(writer)
    assert run("fsck", vault, "--passfd", reader).code == 0
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(reader)  # a daemon would keep it
    told = run("fsck", vault, "--passfd", reader)
    assert (told.code, "no such file descriptor is open" in told.err) == (1, True)
    reader, writer = os.pipe()
    os.write(writer, b"wrong\n")
    os.close(writer)
    told = run("fsck", vault, "--passfd", reader)
    assert told.err == f"cryptfs: the passphrase is wrong (from file descriptor {reader})\n"


@pytest.mark.parametrize("how", ["variable", "credential"])
def test_the_environment_names_files(
    place: Path, run: Run, asked: list[str], monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    vault = made(place, "passphrase", "passphrase-key-file", "key-file")

    def name(passphrase: str | None, key_file: str | None) -> None:
        if how == "variable":
            for variable, file in (("CRYPTFS_PASSFILE", passphrase), ("CRYPTFS_KEYFILE", key_file)):
                if file is not None:
                    monkeypatch.setenv(variable, str(place / file))
            return
        monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(place / "credentials"))
        (place / "credentials").mkdir(exist_ok=True)
        for credential, file in (("cryptfs.passphrase", passphrase), ("cryptfs.keyfile", key_file)):
            if file is not None:
                secret_file(place / "credentials" / credential, (place / file).read_bytes())

    name("typed", None)
    assert opened_by(run, vault) == 0
    name("typed", "photo")
    assert opened_by(run, vault, "--slot", "1") == 1
    name("wrong", "key")
    assert opened_by(run, vault) == 2  # the key file alone suffices: the wrong passphrase is not read
    told = run("fsck", vault, "--slot", "0")
    assert told.code == 12
    words = ("CRYPTFS_PASSFILE", "wrong") if how == "variable" else ("the credential", "cryptfs.passphrase")
    assert all(word in told.err for word in words)
    assert opened_by(run, vault, "--slot", "0", "--passfile", place / "typed") == 0  # options go first
    assert asked == []


def test_a_key_file_of_the_environment_does_not_keep_a_person_from_typing(
    place: Path, run: Run, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    vault = made(place, "passphrase")
    monkeypatch.setenv("CRYPTFS_KEYFILE", str(place / "another key"))
    assert opened_by(run, vault) == 0
    assert asked == ["Passphrase"]


def test_a_new_vault_says_which_file_its_passphrase_is_from(
    place: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CRYPTFS_PASSFILE", str(place / "typed"))
    told = run("init", place / "new", "--kdf-memory", "64m")
    assert told.code == 0
    assert f"The new passphrase comes from {place}/typed, named by CRYPTFS_PASSFILE.\n" in told.err


def test_a_pipe_is_read_and_a_terminal_is_asked(
    place: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    vault = made(place, "passphrase")
    reader, writer = os.pipe()
    os.write(writer, b"typed\nnew one of words\n")
    os.close(writer)
    with io.TextIOWrapper(os.fdopen(reader, "rb")) as pipe:
        monkeypatch.setattr(sys, "stdin", pipe)
        assert run("passwd", vault).code == 0
        told = run("passwd", vault)
        assert (told.code, "no passphrase on stdin" in told.err) == (9, True)
        monkeypatch.undo()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("missing", None, "cannot read the key file: No such file or directory"),
        ("empty", b"", "the key file is empty"),
        ("large", bytes(1024 * 1024 + 1), "the key file may have at most 1048576 bytes"),
    ],
)
def test_key_files_that_cannot_be_read(
    place: Path, run: Run, name: str, content: bytes | None, words: str
) -> None:
    vault = made(place, "key-file")
    if content is not None:
        secret_file(place / name, content)
    told = run("fsck", vault, "--keyfile", place / name)
    assert (told.code, words in told.err) == (9, True)


def test_a_key_file_that_others_can_read(place: Path, run: Run) -> None:
    vault = made(place, "key-file")
    (place / "key").chmod(0o644)
    assert (
        "can be read by other users; fix it with: chmod 600"
        in run("fsck", vault, "--keyfile", place / "key").err
    )
    (place / "photo").chmod(0o644)
    assert "chmod" not in run("fsck", vault, "--keyfile", place / "photo").err


@pytest.mark.parametrize(
    "words",
    [
        ("--passfile", "a", "--passfd", "0"),
        ("--passcommand", "a", "--askpass", "b"),
        ("--slot", "-1"),
        ("--slot", str(2**32)),
        ("--passfd", "-1"),
        ("--passfd", "999"),
        ("--keyfile", ""),
    ],
)
def test_wrong_options(place: Path, run: Run, words: tuple[str, ...]) -> None:
    told = run("fsck", place, *words)
    assert (told.code, told.out) == (1, "")


def test_options_of_mount(place: Path) -> None:
    texts = {"keyfile": "/k", "slot": "3", "passfile": "/p", "log_file": "/l"}
    source = mount_source(OfferSource(), texts)
    assert source == OfferSource(PassphraseSource(Path("/p")), Path("/k"), slot_id=3)
    given = OfferSource(PassphraseSource(passcommand="c"), Path("/other"), slot_id=1)
    assert mount_source(given, texts) == given
    _, ours = collect_options(["fido2,words_file=/w,identity=/i"], {})
    found = mount_source(OfferSource(), ours)
    assert (found.fido2, found.recovery, found.identity_file) == (
        True,
        RecoverySource(words_file=Path("/w")),
        Path("/i"),
    )
    assert not mount_source(OfferSource(), texts).fido2


def test_wrong_options_of_mount(place: Path, run: Run) -> None:
    (place / "m").mkdir()
    vault = made(place, "passphrase")
    for text in ("slot=x", "slot=-1", f"slot={2**32}", "passfd=1e1", "keyfile", "keyfile=", "fido2=1"):
        assert run("mount", vault, place / "m", "-o", text).code == 1


# ---- the slot that opened last


def test_the_slot_that_opened_last_is_tried_first(place: Path, run: Run) -> None:
    vault = made(place, "passphrase", "passphrase")
    assert opened_by(run, vault, "--passfile", place / "typed") == 0
    told = run("fsck", vault, "--slot", "1", "--passfile", place / "typed")
    assert "Opened with key slot 1 (passphrase).\n" in told.err
    assert recall(read_config(vault).vault_id).slot == 1
    assert opened_by(run, vault, "--passfile", place / "typed") == 1
    assert json.loads(run("key", "list", vault, "--json").out)["slots"][1]["opened_last"] is True


def test_a_mount_says_which_slot_opened_it_unless_it_is_quiet(
    place: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    vault = made(place, "passphrase", "key-file")
    (place / "m").mkdir()
    monkeypatch.setattr(life, "mount_background", lambda vault, *_: vault.close())
    words = ("mount", vault, place / "m", "--log-file", place / "log")
    told = run(*words, "--keyfile", place / "key")
    assert (told.code, told.err.count("Opened with key slot 1 (key-file).\n")) == (0, 1)
    told = run(*words, "-o", f"quiet,keyfile={place}/key,slot=1")
    assert (told.code, told.err) == (0, "")


def test_a_vault_with_one_slot_leaves_no_trace(place: Path, run: Run) -> None:
    vault = made(place, "passphrase")
    told = run("fsck", vault, "--no-pin", "--passfile", place / "typed")
    assert told.err == ""
    assert not (place / "state").exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b'{"slot": true}', b'{"slot": -1}', b'{"slot": 4294967296}', b'{"slot": "1"}', b"\xff",
     b"[" * 100_000, b'{"slot": 1' + b" " * 70_000 + b"}", b'{"slot": 77}'],
)  # fmt: skip
def test_a_damaged_memory_is_none(place: Path, run: Run, content: bytes) -> None:
    vault = made(place, "passphrase", "passphrase")
    directory = place / "state" / "cryptfs"
    directory.mkdir(parents=True)
    (directory / f"{read_config(vault).vault_id}.json").write_bytes(content)
    assert run("fsck", vault, "--passfile", place / "typed").code == 0
    assert recall(read_config(vault).vault_id).slot == 0
