"""Every command overwrites its passphrases, whatever comes of it, and takes them from the one function."""

from __future__ import annotations

import ast
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import cryptfs
from cryptfs.cli import main as main_module
from cryptfs.cli import prompt
from cryptfs.cli.exit_codes import PassphraseUnreadableError
from cryptfs.cli.prompt import PassphraseSource, passphrase_of
from cryptfs.mount import daemon, life
from cryptfs.storage import dirs
from cryptfs.unlock.passphrase import new_passphrase
from cryptfs.unlock.table import changing_slots
from cryptfs.vfs.vault import Vault
from tests.age_keys import SPECIFICATION
from tests.commands import all_commands

CHEAP = ("--kdf-memory", "64m")
COMMANDS: dict[str, tuple[str, ...]] = {
    "init": ("init", "NEW", "--passfile", "PASSFILE", *CHEAP),
    "mount": ("mount", "VAULT", "MOUNTPOINT", "--passfile", "PASSFILE"),
    "mount -f": ("mount", "-f", "VAULT", "MOUNTPOINT", "--passfile", "PASSFILE"),
    "open": ("open", "VAULT", "--at", "MOUNTPOINT", "--no-window", "--passfile", "PASSFILE"),
    "passwd": ("passwd", "VAULT", "--passfile", "PASSFILE", "--new-passfile", "PASSFILE", *CHEAP),
    "fsck": ("fsck", "VAULT", "--passfile", "PASSFILE"),
    "fsck --repair": ("fsck", "VAULT", "--repair", "--passfile", "PASSFILE"),
    "upgrade": ("upgrade", "VAULT", "--passfile", "PASSFILE", "--slot-passfile", "PASSFILE"),
    "snapshot": ("snapshot", "VAULT", "--output", "MANIFEST", "--passfile", "PASSFILE"),
    "verify": ("verify", "VAULT", "MANIFEST", "--passfile", "PASSFILE"),
    "key add passphrase": (
        *(
            "key",
            "add",
            "passphrase",
            "SCRATCH",
            "--passfile",
            "PASSFILE",
            "--new-passfile",
            "PASSFILE",
            *CHEAP,
        ),
    ),
    "key add keyfile": (
        "key",
        "add",
        "keyfile",
        "SCRATCH",
        "KEYFILE",
        "--generate",
        "--passfile",
        "PASSFILE",
    ),
    "key add recipient": ("key", "add", "recipient", "SCRATCH", "RECIPIENT", "--passfile", "PASSFILE"),
    "recovery words": ("recovery", "words", "SCRATCH", "--output", "NEW", "--passfile", "PASSFILE"),
    "recovery shares": (
        *("recovery", "shares", "SCRATCH", "--needed", "2", "--of", "3"),
        *("--output", "NEW", "--passfile", "PASSFILE"),
    ),
    "key remove": ("key", "remove", "SCRATCH", "1", "--passfile", "PASSFILE"),
    "key label": ("key", "label", "SCRATCH", "1", "a label", "--passfile", "PASSFILE"),
    "key test": ("key", "test", "VAULT", "--passfile", "PASSFILE"),
    **{
        words[0]: (*words, "--passfile", "PASSFILE")
        for words in (
            ("ls", "VAULT"),
            ("tree", "VAULT"),
            ("find", "VAULT"),
            ("cat", "SCRATCH", "file"),
            ("cp", "SCRATCH", "file", "copy"),
            ("mv", "SCRATCH", "file", "moved"),
            ("rm", "SCRATCH", "file"),
            ("mkdir", "SCRATCH", "directory"),
            ("path", "SCRATCH", "file"),
            ("import", "MOUNTPOINT", "SCRATCH"),
            ("export", "SCRATCH", "NEW"),
        )
    },
    "rekey": (
        "rekey",
        "VAULT",
        "--passfile",
        "PASSFILE",
        "--slot-passfile",
        "PASSFILE",
    ),  # the last
}
SEVERAL = {"passwd": 2, "upgrade": 2, "key add passphrase": 2, "rekey": 2}
AFTER_THE_FIRST = ("passwd", "key add passphrase")
"""Commands that ask for the new one only after the old one has opened the vault."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("place")
    for name, passphrase in (("right", "right"), ("wrong", "wrong")):
        (place / name).touch(mode=0o600)
        (place / name).write_text(f"{passphrase}\n")
    (place / "mountpoint").mkdir()
    Vault.create(place / "vault", b"right", kdf_memory=64 << 20)
    Vault.create(place / "two slots", b"right", kdf_memory=64 << 20)
    with changing_slots(place / "two slots", b"right") as table:
        table.add(new_passphrase(b"other", 64 << 20, 3))
        table.save()
    with cryptfs.Vault.unlock(place / "two slots", b"right") as vault:
        vault.open("file", "wb").close()
    manifest = ("snapshot", place / "vault", "--output", place / "manifest", "--passfile", place / "right")
    assert main_module.main([str(each) for each in manifest]) == 0
    return place


def arguments(command: str, place: Path, tmp_path: Path, passfile: str) -> list[str]:
    places = {
        "NEW": tmp_path / "new",
        "VAULT": place / "vault",
        "MOUNTPOINT": place / "mountpoint",
        "MANIFEST": place / "manifest" if command == "verify" else tmp_path / "manifest",
        "PASSFILE": place / passfile,
        "KEYFILE": tmp_path / "keyfile",
        "RECIPIENT": SPECIFICATION["recipient"],
        "SCRATCH": tmp_path / "scratch",
    }
    if "SCRATCH" in COMMANDS[command]:
        shutil.copytree(place / "two slots", tmp_path / "scratch")
    return [str(places.get(each, each)) for each in COMMANDS[command]]


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The passphrases that were read, and are still alive."""
    passphrases: list[bytes] = []
    read_passphrase = prompt.read_passphrase

    def note(source: PassphraseSource, words: str = "", *, confirm: bool = False) -> bytes:
        passphrases.append(read_passphrase(source, words, confirm=confirm))
        return passphrases[-1]

    monkeypatch.setattr(prompt, "read_passphrase", note)
    return passphrases


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch, read: list[bytes]) -> list[bool]:
    """Whether all passphrases were overwritten when a mount would have forked its daemon."""
    wiped: list[bool] = []

    def serve(vault: Vault, *_: object) -> None:
        wiped.append(not any(map(any, read)))
        vault.close()

    monkeypatch.setattr(life, "mount_background", serve)
    monkeypatch.setattr(life, "mount_foreground", serve)
    return wiped


@pytest.mark.usefixtures("capfd")
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_that_succeeds(
    command: str, place: Path, tmp_path: Path, read: list[bytes], served: list[bool]
) -> None:
    assert main_module.main(arguments(command, place, tmp_path, "right")) == 0
    assert read == [bytes(len("right"))] * SEVERAL.get(command, 1)
    assert served == [True] * command.startswith(("mount", "open"))


@pytest.mark.usefixtures("capfd", "served")
@pytest.mark.parametrize("command", [each for each in COMMANDS if each != "init"])
def test_a_command_with_the_wrong_one(command: str, place: Path, tmp_path: Path, read: list[bytes]) -> None:
    assert main_module.main(arguments(command, place, tmp_path, "wrong")) != 0
    times = 1 if command in AFTER_THE_FIRST else SEVERAL.get(command, 1)
    assert read == [bytes(len("wrong"))] * times


@pytest.mark.usefixtures("capfd")
def test_a_vault_that_cannot_be_made(
    place: Path, tmp_path: Path, read: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(dirs, "create_small", full)
    assert main_module.main(arguments("init", place, tmp_path, "right")) != 0
    assert read == [bytes(len("right"))]


@pytest.mark.usefixtures("capfd")
@pytest.mark.parametrize("command", ["passwd", "upgrade"])
def test_a_second_one_that_cannot_be_read(
    command: str, place: Path, tmp_path: Path, read: list[bytes]
) -> None:
    given = arguments(command, place, tmp_path, "right")
    given[given.index("--new-passfile" if command == "passwd" else "--slot-passfile") + 1] = str(
        tmp_path / "missing"
    )
    assert main_module.main(given) != 0
    assert read == [bytes(len("right"))]


def test_the_process_is_hardened_before(
    place: Path, monkeypatch: pytest.MonkeyPatch, read: list[bytes]
) -> None:
    before: list[int] = []
    monkeypatch.setattr(daemon, "harden_process", lambda: before.append(len(read)))
    with passphrase_of(PassphraseSource(place / "right")) as passphrase:
        assert passphrase == b"right"
    assert before == [0]
    assert passphrase == bytes(5)


@pytest.mark.parametrize("answers", [("first", "first"), ("first", "other")])
def test_what_was_typed_to_confirm(monkeypatch: pytest.MonkeyPatch, answers: tuple[str, str]) -> None:
    typed = [answer.encode() for answer in answers]
    waiting: Iterator[bytes] = iter(typed)
    monkeypatch.setattr(prompt, "ask_person", lambda *_: next(waiting))
    if len(set(answers)) == 1:
        assert prompt._from_person(PassphraseSource(), "", confirm=True) == b"first"
        assert typed == [b"first", bytes(5)]
    else:
        with pytest.raises(PassphraseUnreadableError):
            prompt._from_person(PassphraseSource(), "", confirm=True)
        assert typed == [bytes(5), bytes(5)]


def test_no_command_reads_one_in_another_way() -> None:
    readers = ("read_passphrase", "read_secret", "read_secret_file", "harden_process")
    directory = Path(cryptfs.__file__).parent / "cli"
    users = {
        path.name
        for path in directory.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.alias) and node.name in readers
    }
    assert users == {"prompt.py", "offers.py", "tokens.py"}


def test_every_command_that_takes_one_is_tested() -> None:
    takes = {
        name
        for name, command in all_commands(main_module.cli)
        if any(parameter.name == "passfile" for parameter in command.params)
    }
    tested = {" ".join(words) for words in COMMANDS.values()}
    untested = {name for name in takes if not any(f"{each} ".startswith(f"{name} ") for each in tested)}
    assert untested == {"key add fido2", "recovery remove"}  # they need a token, and an id
