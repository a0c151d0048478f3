"""Every command that unlocks a vault takes every way to do so; and it refuses what does not fit."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import click
import pytest

import cryptfs
from cryptfs.cli.main import every_command
from tests.all_keys import AllKeys
from tests.cli.test_unattended import COMMANDS
from tests.commands import Run, runner

pytestmark = pytest.mark.waits

UNLOCKING = sorted(
    name
    for name, command in every_command().items()
    if any("--keyfile" in each.opts for each in command.params if isinstance(each, click.Option))
)
BY_DAEMON = ("mount", "open")
"""tests/e2e/test_keys.py mounts by every key."""
WAYS = (
    *("--passfile", "--passcommand", "--passfd", "--askpass", "--keyfile", "--identity", "--fido2"),
    *("--words-file", "--share-file", "--slot", "--expect-identity", "--accept", "--no-pin"),
)
TRIED = 4
"""Ways for each command; in all, each way is tried with several commands."""
NO_WORDS = ("rekey",)
"""Words cannot be kept by it."""
MORE = {
    "passwd": ("--change-slot", "1", "--new-passcommand", "echo a new one of words"),
    "key add passphrase": ("--new-passcommand", "echo a new one of words"),
    "rekey": ("--drop-slots",),
    "recovery remove": ("--force",),
}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> AllKeys:
    keys = AllKeys(tmp_path_factory.mktemp("keys"))
    keys.make()
    with cryptfs.Vault.unlock(keys.vault, (keys.base / "first").read_bytes()) as vault:
        vault.open("file", "wb").close()
    keys.run("snapshot", keys.vault, "-o", keys.base / "manifest", *keys.ways["a passphrase"])
    (keys.base / "empty").mkdir()
    keys.save()
    return keys


@pytest.fixture
def keys(original: AllKeys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AllKeys:
    """A copy, seen for the first time."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    shutil.copytree(original.base, tmp_path / "place")
    (tmp_path / "place" / "askpass").write_text(f"#!/bin/sh\ncat {tmp_path}/place/first\n")
    (tmp_path / "place" / "askpass").chmod(0o700)
    return AllKeys.load(tmp_path / "place")


def words_of(name: str, keys: AllKeys) -> list[str]:
    """The command without what opens the vault."""
    places = {each: str(keys.base / each.lower()) for each in ("VAULT", "EMPTY", "NEW", "MANIFEST")}
    given = [
        re.sub(r"^[A-Z]{3,}\b", lambda found: places.get(found[0], found[0]), each) for each in COMMANDS[name]
    ]
    if name == "recovery remove":
        given = [given[0], keys.recovery["recovery words"][:8]]
    return [*name.split(), *given, *MORE.get(name, ())]


def way_of(option: str, keys: AllKeys, code: str) -> list[str]:
    """Options that open the vault, with this one among them."""
    first = str(keys.base / "first")
    if option == "--passfd":
        reader, writer = os.pipe()
        os.write(writer, Path(first).read_bytes() + b"\n")
        os.close(writer)
        return ["--passfd", str(reader)]
    return {
        "--passfile": ["--passfile", first],
        "--passcommand": ["--passcommand", f"cat '{first}'"],
        "--askpass": ["--askpass", str(keys.base / "askpass")],
        "--keyfile": keys.ways["a key file"],
        "--identity": keys.ways["an age identity"],
        "--fido2": keys.ways["a token"],
        "--words-file": keys.ways["recovery words"],
        "--share-file": keys.ways["two of three shares"],
        "--slot": ["--slot", "0", "--passfile", first],
        "--expect-identity": ["--expect-identity", code, "--passfile", first],
        "--accept": ["--accept", "--passfile", first],
        "--no-pin": ["--no-pin", "--passfile", first],
    }[option]


def identity(keys: AllKeys, run: Run) -> str:
    """The code of the vault."""
    told = run("key", "test", keys.vault, "--no-pin", *keys.ways["a key file"])
    found = re.search(r"identity of the vault is ([\w-]+)", told.out)
    assert found is not None, told
    return found[1]


def ways_for(name: str) -> list[str]:
    """TRIED ways, others for each command."""
    at = UNLOCKING.index(name) * TRIED
    found = [WAYS[(at + number) % len(WAYS)] for number in range(TRIED)]
    return [each for each in found if name not in NO_WORDS or each not in ("--words-file", "--share-file")]


def test_each_way_is_tried_with_several_commands() -> None:
    tried = [way for name in UNLOCKING if name not in BY_DAEMON for way in ways_for(name)]
    assert min(tried.count(way) for way in WAYS) >= 5


@pytest.mark.parametrize("name", [each for each in UNLOCKING if each not in BY_DAEMON])
def test_a_command_and_its_ways(
    name: str,
    keys: AllKeys,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = runner(capsys)
    code = identity(keys, run)
    shutil.rmtree(tmp_path / "state", ignore_errors=True)
    shutil.copytree(keys.base, tmp_path / "whole")
    for option in ways_for(name):
        token = "another token" if name == "key add fido2" else "a token"
        monkeypatch.setattr(
            "cryptfs.unlock.carriers.ctap.list_devices", lambda token=token: keys.tokens(token)
        )
        if (option, name) == ("--fido2", "key add fido2"):
            continue  # it would be enrolled twice
        told = run(*words_of(name, keys), *way_of(option, keys, code))
        assert told.code == 0, (option, told)
        shutil.rmtree(keys.base)
        shutil.copytree(tmp_path / "whole", keys.base)
        shutil.rmtree(tmp_path / "state", ignore_errors=True)  # it has seen a newer config
    before = (keys.vault / "cryptfs.json").read_bytes()
    wrong_code = code[:-1] + ("a" if code[-1] != "a" else "b")
    for words, refused in (
        (["--slot", "1", "--passfile", str(keys.base / "first")], (12,)),
        (["--slot", "77", "--passfile", str(keys.base / "first")], (1, 12)),
        (["--passfile", str(keys.base / "second"), "--expect-identity", wrong_code], (1, 43)),
        (["--accept", "--no-pin", "--passfile", str(keys.base / "first")], (1,)),
        (["--words-file", str(keys.base / "words"), "--share-file", str(keys.base / "first")], (1,)),
        (["--identity", str(keys.base / "first")], (9,)),
        (["--keyfile", str(keys.base / "none")], (9,)),
        (["--passfd", "999"], (1,)),
    ):
        told = run(*words_of(name, keys), *words)
        assert told.code in refused, (words, told)
        assert told.err.startswith("cryptfs: ") and told.out == ""
    assert (keys.vault / "cryptfs.json").read_bytes() == before
