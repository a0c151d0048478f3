"""Each option of `recovery`, `rekey`, `snapshot` and `verify`, by what it changes; as a process."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cryptfs.vfs.vault import Vault
from tests.e2e.desk import CHEAP, LARGE, PASSPHRASE, Desk, as_json
from tests.e2e.test_cli_keys import KDF_LIMITS, SECOND, proposal
from tests.rekey.material import begin_change
from tests.schema import check_answer
from tests.support import make_old_vault

NEW = ("--new-passcommand", "echo the one after that")
AFTER = ("--passcommand", "echo the one after that")


@pytest.fixture
def words(desk: Desk) -> Path:
    """A file with words that open the vault."""
    place = desk.base / "words"
    desk("recovery", "words", desk.vault, "--output", place)
    return place


def kinds(desk: Desk) -> list[str]:
    found = check_answer("recovery list", desk("recovery", "list", "--json", desk.vault).out)
    return [each["kind"] for each in found["secrets"]]


# ---- words and shares


def test_words(desk: Desk, words: Path) -> None:
    assert words.stat().st_mode & 0o777 == 0o600
    second, third = desk.base / "second", desk.base / "third"
    desk("recovery", "words", desk.vault, "--keep", "--output", second)
    assert kinds(desk) == ["words", "words"]
    for place in (words, second):
        assert desk.opens("--words-file", place)["recovery"]
    desk("recovery", "words", desk.vault, "--output", third)
    assert kinds(desk) == ["words"]
    desk.opens("--words-file", second, code=12)
    desk.opens("--words-file", third)
    for place, code in (
        (third, 11),
        (desk.vault / "words", 1),
        (desk.base / "no" / "words", 1),
        (desk.base, 1),
    ):
        told = desk("recovery", "words", desk.vault, "--output", place, code=code)
        assert told.err.startswith(f"cryptfs: {place}")
    desk.opens("--words-file", third)


def test_shares(desk: Desk) -> None:
    first, second = desk.base / "first", desk.base / "second"
    desk("recovery", "shares", desk.vault, "--needed", "2", "--of", "3", "--output", first)
    desk("recovery", "shares", desk.vault, "--needed", "3", "--of", "3", "--output", second, "--keep")
    assert kinds(desk) == ["shares", "shares"]

    def given(place: Path, count: int) -> list[str]:
        return [word for share in sorted(place.iterdir())[:count] for word in ("--share-file", str(share))]

    assert desk.opens(*given(first, 2))["recovery"]
    desk.opens(*given(second, 2), code=12)
    assert desk.opens(*given(second, 3))["recovery"]
    for numbers in (
        ("--needed", "4", "--of", "3"),
        ("--needed", "1", "--of", "3"),
        ("--needed", "2"),
        ("--of", "3"),
    ):
        desk("recovery", "shares", desk.vault, *numbers, "--output", desk.base / "none", code=1)
    assert not (desk.base / "none").exists()


def test_the_last_words_go_by_force_alone(desk: Desk, words: Path) -> None:
    (secret,) = as_json(desk("recovery", "list", "--json", desk.vault))["secrets"]
    remove = ("recovery", "remove", desk.vault, secret["id"][:8])
    said = desk(*remove, "--words-file", words, code=11, opens=False)
    assert "or use --force" in said.err
    desk("recovery", "remove", "--force", desk.vault, secret["id"][:8], "--words-file", words, opens=False)
    assert "the ID is empty" in desk("recovery", "remove", desk.vault, "", code=1).err
    assert kinds(desk) == [] and not (desk.vault / "cryptfs.recovery").exists()
    assert desk(*remove, code=11).err.startswith("cryptfs: ")


# ---- the record, and the config that comes back


def test_the_config_comes_back(desk: Desk, words: Path) -> None:
    kept = desk.base / "record"
    desk("recovery", "export", desk.vault, kept)
    assert kept.read_bytes() == (desk.vault / "cryptfs.recovery").read_bytes()
    for name in ("cryptfs.json", "cryptfs.recovery"):
        (desk.vault / name).unlink()
    restore = ("recovery", "restore-config", desk.vault, "--words-file", words)
    assert "give it with --record FILE" in desk(*restore, *NEW, code=12).err
    cost = ("--kdf-memory", "80m", "--kdf-passes", "4")
    desk(
        "recovery",
        "restore-config",
        desk.vault,
        "--words-file",
        words,
        "--record",
        kept,
        "--label",
        "after",
        *NEW,
        *cost,
    )
    assert desk.cost() == (80, 4)
    assert desk.slots()[0]["label"] == "after"
    assert desk("cat", desk.vault, "a/b/large.TXT", *AFTER).out == os.fsdecode(LARGE)
    assert "--force" in desk(*restore, *NEW, *CHEAP, code=11).err
    second = ("--new-passcommand", "echo and one more")
    desk(
        "recovery",
        "restore-config",
        desk.vault,
        "--words-file",
        words,
        "--force",
        *second,
        "--calibrate",
        "0.1",
    )
    assert desk.opens("--passcommand", "echo and one more")["slot"]["label"] == ""
    desk.opens(*AFTER, code=12)


def test_the_config_comes_back_with_a_proposed_passphrase(desk: Desk, words: Path) -> None:
    (desk.vault / "cryptfs.json").unlink()
    terminal = desk.terminal(
        "recovery", "restore-config", desk.vault, "--words-file", words, "--generate", "--kdf-memory", "64m"
    )
    typed = proposal(terminal)
    assert terminal.finish() == 0, terminal.output
    assert desk.opens("--passcommand", f"echo {typed.decode()}")


@pytest.mark.parametrize(
    ("more", "says", "code"),
    [
        *((options, says, 1) for options, says in KDF_LIMITS),
        (("--label", "a\nb"), "no control characters", 1),
        (("--record", "{}/none"), "{}/none: cannot be read: No such file or directory", 11),
        (("--record", "{}"), "{}: cannot be read: Is a directory", 11),
        (("--record", "/dev/zero"), "/dev/zero is damaged, or is no recovery record", 8),
    ],
)
def test_a_config_that_does_not_come_back(
    desk: Desk, words: Path, more: tuple[str, ...], says: str, code: int
) -> None:
    (desk.vault / "cryptfs.json").unlink()
    (desk.vault / "cryptfs.recovery").rename(desk.base / "elsewhere")
    given = [each.format(desk.base) for each in more]
    given += [] if "--record" in given else ["--record", str(desk.base / "elsewhere")]
    told = desk("recovery", "restore-config", desk.vault, "--words-file", words, *given, *NEW, code=code)
    assert says.format(desk.base) in told.err
    assert not (desk.vault / "cryptfs.json").exists()


def test_no_place_for_a_config(desk: Desk, words: Path) -> None:
    restore = ("recovery", "restore-config")
    for place, reason in ((desk.base / "none", "does not exist"), (words, "is not a directory")):
        told = desk(*restore, place, "--words-file", words, *NEW, code=6)
        assert told.err == f"cryptfs: {place} {reason}\n"


def test_places_for_a_copy_of_the_record(desk: Desk, words: Path) -> None:
    thesis = desk.file("thesis", "of years")
    for place in (thesis, desk.base, desk.vault / "copy", desk.base / "no" / "copy"):
        told = desk("recovery", "export", desk.vault, place, code=1)
        assert told.err.startswith(f"cryptfs: {place}")
    assert thesis.read_text() == "of years"


# ---- rekey


def test_rekey_keeps_what_is_given(desk: Desk) -> None:
    second, key = desk.file("second", f"{SECOND}\n"), desk.base / "key"
    desk("key", "add", "passphrase", desk.vault, "--new-passfile", second, *CHEAP)
    desk("key", "add", "keyfile", desk.vault, key, "--generate")
    desk("key", "add", "passphrase", desk.vault, "--new-passcommand", "echo nobody gives it", *CHEAP)
    before = (desk.vault / "cryptfs.json").read_bytes()
    given = ("--slot-passfile", second, "--slot-keyfile", key)
    assert "--drop-slots" in desk("rekey", "--json", desk.vault, *given, code=1).err
    assert (desk.vault / "cryptfs.json").read_bytes() == before
    said = desk(
        "rekey", "--json", desk.vault, "--slot-passfile", second, "--slot-keyfile", key, "--drop-slots"
    )
    found = check_answer("rekey", said.out)
    assert [each["id"] for each in found["dropped"]] == [3]
    for way in (("--passfile", desk.passfile), ("--passfile", second), ("--keyfile", key)):
        desk.opens(*way)
    desk.opens("--passcommand", "echo nobody gives it", code=12)
    assert desk("cat", desk.vault, "a/b/large.TXT").out == os.fsdecode(LARGE)
    for option in ("--slot-passfile", "--slot-keyfile"):
        told = desk("rekey", desk.vault, option, desk.base / "none", code=9)
        assert f"{desk.base}/none" in told.err


def test_rekey_sets_damage_aside(desk: Desk) -> None:
    cipher = desk.damage(at=100)
    before = (desk.vault / "cryptfs.json").read_bytes()
    assert "--set-aside" in desk("rekey", desk.vault, code=11).err
    assert (desk.vault / "cryptfs.json").read_bytes() == before
    found = check_answer("rekey", desk("rekey", "--json", "--set-aside", desk.vault, code=26).out)
    (damaged,) = found["damaged"]
    assert damaged["cipher_path"] == cipher
    assert (desk.vault / "cryptfs.set-aside" / damaged["set_aside"]).exists()
    assert desk("cat", desk.vault, "a/one.txt").out == "0123456789"


def test_rekey_goes_on_elsewhere(desk: Desk) -> None:
    """A copy of the vault in which another machine has begun."""
    begin_change(desk.vault, PASSPHRASE.encode())
    copy = desk.base / "copy"
    shutil.copytree(desk.vault, copy, symlinks=True)
    assert "was interrupted, or is still running" in desk("ls", copy, code=11).err
    assert "cryptfs rekey --take-over" in desk("rekey", copy, code=11).err
    found = check_answer("rekey", desk("rekey", "--json", "--take-over", copy).out)
    assert found["resumed"] is True
    assert desk("cat", copy, "a/b/large.TXT").out == os.fsdecode(LARGE)


@pytest.mark.parametrize("more", [(), ("--no-recovery",)])
def test_rekey_makes_new_words_at_a_terminal(desk: Desk, words: Path, more: tuple[str, ...]) -> None:
    assert "no longer open it" in desk("rekey", "--no-recovery", desk.vault).err
    assert kinds(desk) == []
    desk("recovery", "words", desk.vault, "--output", desk.base / "again")
    terminal = desk.terminal("rekey", desk.vault, "--passfile", desk.passfile, *more)
    if not more:
        for _ in range(2):
            terminal.expect(b"type word ")
            terminal.expect(b": ")
            asked = re.findall(rb"type word (\d+)", terminal.output)[-1]
            shown = dict(re.findall(rb"(\d+)\. ([a-z]+)", terminal.output))
            terminal.output = terminal.output.replace(b"type word", b"asked")
            terminal.type(shown[asked] + b"\n")
    assert terminal.finish() == 0, terminal.output
    assert kinds(desk) == ([] if more else ["words"])
    desk.opens("--words-file", words, code=12)


# ---- snapshot and verify


def test_manifests(desk: Desk) -> None:
    manifest = desk.base / "manifest"
    desk("snapshot", desk.vault, "--output", manifest)
    first = manifest.read_bytes()
    assert "--replace" in desk("snapshot", desk.vault, "--output", manifest, code=1).err
    assert manifest.read_bytes() == first
    desk("mkdir", desk.vault, "new")
    found = check_answer("verify", desk("verify", "--json", desk.vault, manifest).out)
    assert found["summary"]["counts"] == {"added": 1}
    assert "new" in desk("verify", "--changed", desk.vault, manifest).out
    desk("snapshot", desk.vault, "--output", manifest, "--replace")
    assert manifest.read_bytes() != first
    assert json.loads(desk("verify", "--json", desk.vault, manifest).out)["summary"]["counts"] == {}


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (lambda place: place.unlink(), 11),
        (lambda place: place.write_bytes(b""), 42),
        (lambda place: place.write_bytes(b"nonsense" * 100), 42),
        (lambda place: place.write_bytes(place.read_bytes()[:-1]), 42),
        (lambda place: (place.unlink(), place.mkdir()), 11),
    ],
)
def test_manifests_that_are_none(desk: Desk, spoil: Callable[[Path], object], code: int) -> None:
    manifest = desk.base / "manifest"
    desk("snapshot", desk.vault, "--output", manifest)
    spoil(manifest)
    for more in ((), ("--json",), ("--changed",)):
        told = desk("verify", *more, desk.vault, manifest, code=code)
        assert told.err.startswith(f"cryptfs: {manifest}: ")
        assert told.out == ""


def test_old_vaults_need_every_passphrase(desk: Desk) -> None:
    """`upgrade --slot-passfile`: of a vault of 0.1 with two slots."""
    old, second = desk.base / "old", desk.file("second", f"{SECOND}\n")
    make_old_vault(old, PASSPHRASE.encode(), kdf_memory=64 << 20)
    desk("key", "add", "passphrase", old, "--new-passfile", second, *CHEAP)
    refused = desk("upgrade", old, code=11)
    assert "--slot-passfile" in refused.err
    found = check_answer("upgrade", desk("upgrade", "--json", old, "--slot-passfile", second).out)
    assert "bound-dirs" in found["added"]
    with Vault.unlock(old, SECOND.encode()) as vault:
        assert vault.config.version == 2
