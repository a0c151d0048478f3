"""What a newcomer reads: which path it is about, and a next step that can be pasted."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cryptfs.cli.status import counted
from tests.cli.test_cli_commands import CHEAP, passfile, run, vault, write_passfile
from tests.cli.test_cli_processes import at_a_terminal
from tests.commands import Run

__all__ = ["passfile", "run", "vault"]

pytestmark = pytest.mark.waits


def offer(passfile: Path, *more: object) -> tuple[object, ...]:
    return ("--passfile", passfile, *more)


# ---- arguments in the wrong order


def test_the_vault_in_the_place_of_the_mountpoint(vault: Path, tmp_path: Path, run: Run) -> None:
    """What is advised of a directory that holds no vault, `cryptfs init`, would be wrong here."""
    empty = tmp_path / "an empty one"
    empty.mkdir()
    for words, right in (
        (("mount", empty, vault), f"cryptfs mount {vault} {shlex.quote(str(empty))}"),
        (("mount", tmp_path / "none", vault), f"cryptfs mount {vault} {tmp_path / 'none'}"),
        (("verify", empty, vault), f"cryptfs verify {vault} {shlex.quote(str(empty))}"),
        (("recovery", "export", empty, vault), f"cryptfs recovery export {vault} {shlex.quote(str(empty))}"),
        (
            ("key", "add", "keyfile", "--generate", empty, vault),
            f"cryptfs key add keyfile {vault} {shlex.quote(str(empty))}",
        ),
    ):
        told = run(*words)
        assert told.code == 6
        assert told.err.endswith(f" is not a vault, and {vault} is one. The vault comes first: {right}\n")


# ---- numbers


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("key", "remove", "V", "x"), "give a whole number from 0 to 4,294,967,295"),
        (("key", "remove", "V", "--", "-1"), "give a whole number from 0 to 4,294,967,295"),
        (("recovery", "shares", "V", "--needed", "1", "--of", "3"), "give a whole number from 2 to 16"),
        (("mount", "V", "M", "--max-threads", "65"), "give a whole number from 1 to 64"),
        (("mount", "V", "M", "--attr-timeout", "ever"), "give a number from 0 to 86,400"),
        (("mount", "V", "M", "--passfd", "-1"), "give a whole number from 0 to 2,147,483,647"),
        (("status", "M", "--interval", "0"), "give a number from 0.1 to 3,600"),
    ],
)
def test_numbers_out_of_bounds(words: tuple[str, ...], said: str, run: Run) -> None:
    told = run(*words)
    assert told.code == 1
    assert told.err.splitlines()[0].endswith(f": {said}")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("mount", "--log-size", "1m"), "--log-size works only with --log-file"),
        (("status", "--interval", "2"), "--interval works only with --watch"),
    ],
)
def test_an_option_without_the_one_that_it_belongs_to(
    vault: Path, tmp_path: Path, run: Run, words: tuple[str, ...], said: str
) -> None:
    command, *options = words
    told = run(command, *options, *((vault, tmp_path) if command == "mount" else (vault,)))
    assert (told.code, told.err.splitlines()[0]) == (1, f"cryptfs: {said}")


def test_a_wrong_mount_option_has_one_hint(vault: Path, tmp_path: Path, run: Run) -> None:
    told = run("mount", vault, tmp_path, "-o", "bogus")
    assert (told.code, told.err) == (1, "cryptfs: unknown mount option 'bogus'\nTry: cryptfs mount --help\n")


# ---- which file


def test_a_damaged_config_names_its_vault_and_both_ways_back(
    vault: Path, passfile: Path, tmp_path: Path, run: Run
) -> None:
    config = vault / "cryptfs.json"
    whole = config.read_text()
    config.write_text(whole[:-100])
    told = run("info", vault)
    assert told.code == 8
    assert told.err.startswith(f"cryptfs: {vault}: cryptfs.json is damaged: ")
    assert told.err.endswith("; restore it from a backup\n")
    config.write_text(whole)
    words = run("recovery", "words", vault, *offer(passfile), "--output", tmp_path / "words")
    assert words.code == 0
    config.write_text(whole[:-100])
    told = run("fsck", vault, *offer(passfile))
    assert told.code == 8
    assert told.err.endswith(
        f"restore it from a backup. With recovery words or shares: cryptfs recovery restore-config {vault}\n"
    )
    config.write_text(whole.replace('"version": 2', '"version": 9'))
    told = run("info", vault)
    assert told.code == 27
    assert told.err.startswith(f"cryptfs: {vault}: the vault has format version 9;")
    assert told.err.endswith("Use a newer cryptfs\n")


def test_an_empty_passphrase_says_where_it_is_from(vault: Path, tmp_path: Path, run: Run) -> None:
    empty = write_passfile(tmp_path / "empty", "")
    told = run("fsck", vault, "--passfile", empty)
    assert told.code == 22
    assert f"the passphrase is empty (from {empty});" in told.err


# ---- hints


def test_hints_name_the_vault(vault: Path, passfile: Path, tmp_path: Path, run: Run) -> None:
    other = vault.with_name("another vault")
    shutil.copytree(vault, other)
    word = shlex.quote(str(other))
    weak = write_passfile(tmp_path / "weak", "a")
    words = run("recovery", "words", other, *offer(passfile), "--output", tmp_path / "words")
    assert f"cryptfs recovery export {word} FILE" in words.err
    again = run("recovery", "words", other, *offer(passfile), "--output", tmp_path / "words 2")
    assert "\nRecovery words " in again.err
    assert f"To prevent that: cryptfs rekey {word}\n" in again.err
    for told, hint in (
        (run("passwd", other, *offer(passfile, "--new-passfile", passfile)), f"cryptfs rekey {word}"),
        (
            run("key", "add", "passphrase", other, *offer(passfile), "--new-passfile", weak, *CHEAP),
            f"cryptfs passwd {word}; with",
        ),
        (run("key", "remove", other, 1, *offer(passfile)), f"cryptfs rekey {word}"),
        (run("key", "remove", other, 0, *offer(passfile)), f"cryptfs key add passphrase {word}"),
        (run("key", "test", other, 7, *offer(passfile)), f"cryptfs key list {word}"),
        (run("fsck", other, *offer(passfile, "--slot", 7)), f"cryptfs key list {word}"),
        (run("recovery", "remove", other, "ff", *offer(passfile)), f"cryptfs recovery list {word}"),
        (
            run(
                "recovery", "restore-config", other, "--words-file", tmp_path / "words 2",
                "--new-passfile", passfile,
            ),
            f"cryptfs passwd {word} --words.",
        ),
    ):  # fmt: skip
        assert hint in told.err
    (other / "cryptfs.recovery").unlink()
    told = run("fsck", other, *offer(passfile))
    assert f", or make new words with cryptfs recovery words {word}." in " ".join(told.out.split())


def test_a_warning_at_unlocking_looks_like_one_and_names_the_vault(
    vault: Path, passfile: Path, tmp_path: Path, run: Run
) -> None:
    """It comes through the log, before a mount has one."""
    assert run("recovery", "words", vault, *offer(passfile), "--output", tmp_path / "words").code == 0
    (vault / "cryptfs.recovery").unlink()
    command = [sys.executable, "-m", "cryptfs", "upgrade", str(vault), "--passfile", str(passfile)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[0] == (
        "cryptfs: warning: cryptfs.recovery is missing: recovery words and shares open nothing. Put a copy "
        f"of it back, or make new words: cryptfs recovery words {vault}"
    )


# ---- files that are in the way


def test_a_copy_of_the_recovery_record_replaces_only_an_older_one(
    vault: Path, passfile: Path, tmp_path: Path, run: Run
) -> None:
    make = ("recovery", "words", vault, *offer(passfile), "--output")
    copy, before = tmp_path / "copy", passfile.read_bytes()
    assert run(*make, tmp_path / "words").code == 0
    assert run("recovery", "export", vault, copy).code == 0
    assert run(*make, tmp_path / "words 2").code == 0
    assert run("recovery", "export", vault, copy).code == 0
    assert copy.read_bytes() == (vault / "cryptfs.recovery").read_bytes()
    told = run("recovery", "export", vault, passfile)
    assert (told.code, passfile.read_bytes()) == (1, before)
    assert f"{passfile} exists, and is not a copy of the recovery record of this vault" in told.err
    other = tmp_path / "other"
    assert run("init", other, *offer(passfile), *CHEAP).code == 0
    assert run("recovery", "words", other, *offer(passfile), "--output", tmp_path / "words 3").code == 0
    kept = copy.read_bytes()
    assert run("recovery", "export", other, copy).code == 1
    assert copy.read_bytes() == kept
    told = run("recovery", "export", vault, vault / "copy")
    assert (told.code, "is in the vault itself" in told.err) == (1, True)
    assert not (vault / "copy").exists()


def test_a_manifest_replaces_only_a_manifest(vault: Path, passfile: Path, tmp_path: Path, run: Run) -> None:
    before = passfile.read_bytes()
    told = run("snapshot", vault, *offer(passfile), "-o", passfile, "--replace")
    assert (told.code, passfile.read_bytes()) == (1, before)
    empty = tmp_path / "empty"
    empty.touch()  # as mktemp makes it
    assert run("snapshot", vault, *offer(passfile), "-o", empty).code == 0
    assert run("snapshot", vault, *offer(passfile), "-o", empty).code == 1
    assert run("snapshot", vault, *offer(passfile), "-o", empty, "--replace").code == 0


@pytest.mark.parametrize("command", [("snapshot", "-o"), ("recovery", "export")])
def test_a_place_for_no_file_is_told_before_a_passphrase_is_asked_for(
    command: tuple[str, ...], vault: Path, tmp_path: Path, run: Run
) -> None:
    def at(place: Path) -> str:
        name, *option = command
        words = (name, vault, *option, place) if name == "snapshot" else (*command, vault, place)
        told = run(*words)
        assert told.code == 1
        return told.err

    assert at(tmp_path) == f"cryptfs: {tmp_path} is a directory. Give the name of a file\n"
    missing = tmp_path / "no such" / "file"
    assert at(missing) == (
        f"cryptfs: {missing}: the directory {missing.parent} does not exist. To make it: "
        f"mkdir -p '{missing.parent}'\n"
    )


def test_a_manifest_that_cannot_be_read_or_is_damaged(
    vault: Path, passfile: Path, tmp_path: Path, run: Run
) -> None:
    told = run("verify", vault, tmp_path / "none", *offer(passfile))
    assert (told.code, told.err) == (
        11, f"cryptfs: {tmp_path / 'none'}: cannot read the manifest: No such file or directory\n",
    )  # fmt: skip
    manifest = tmp_path / "manifest"
    assert run("snapshot", vault, *offer(passfile), "-o", manifest).code == 0
    manifest.write_bytes(manifest.read_bytes()[:-1])
    told = run("verify", vault, manifest, *offer(passfile))
    assert told.code == 42
    assert told.err.startswith(f"cryptfs: {manifest}: the manifest is damaged, cut short, or from before")
    assert told.err.endswith(f"or make a new one: cryptfs snapshot {vault} FILE\n")


def test_no_manifest_on_a_terminal(vault: Path) -> None:
    terminal = at_a_terminal(["snapshot", str(vault)])
    assert terminal.code == 1
    assert b"the manifest is binary: redirect stdout to a file, or use --output FILE" in terminal.output


def test_no_secret_into_the_vault(vault: Path, passfile: Path, tmp_path: Path, run: Run) -> None:
    """Words in the vault would open each copy of it."""
    before = sorted(vault.iterdir())
    for words in (
        ("recovery", "words", vault, "--output", vault / "words"),
        ("recovery", "shares", vault, "--needed", "2", "--of", "3", "--output", vault / "shares"),
        ("key", "add", "keyfile", vault, vault / "key", "--generate"),
    ):
        told = run(*words, *offer(passfile))
        assert (told.code, "is in the vault itself" in told.err) == (1, True)
    for words in (
        ("recovery", "words", vault, "--output", tmp_path / "no" / "words"),
        ("recovery", "shares", vault, "--needed", "2", "--of", "3", "--output", tmp_path / "no" / "shares"),
        ("key", "add", "keyfile", vault, tmp_path / "no" / "key", "--generate"),
    ):
        told = run(*words, "--passfile", tmp_path / "no passphrase is read")
        assert (told.code, f"To make it: mkdir -p {tmp_path}/no\n" in told.err) == (1, True)
    assert sorted(vault.iterdir()) == before


def test_no_vault_in_a_vault(vault: Path, passfile: Path, run: Run) -> None:
    (vault / "directory").mkdir()
    for place in (vault / "new", vault / "directory"):
        told = run("init", place, *offer(passfile, *CHEAP))
        assert (told.code, f"{place} is inside the vault {vault}." in told.err) == (6, True)
    assert not (vault / "new").exists()


# ---- mountpoints


def test_where_nothing_is_mounted(tmp_path: Path, run: Run) -> None:
    for command in ("status", "umount"):
        told = run(command, tmp_path)
        assert (told.code, told.err) == (
            10, f"cryptfs: {tmp_path}: nothing is mounted there. To list your mounts: cryptfs info\n",
        )  # fmt: skip


def test_a_mountpoint_in_the_vault_is_not_to_be_made(vault: Path, run: Run) -> None:
    told = run("mount", vault, vault / "inside")
    assert told.code == 10
    assert "is inside the vault" in told.err
    assert "mkdir" not in told.err


def test_one_and_many() -> None:
    assert [counted(count, "nodes") for count in (0, 1, 2)] == ["0 nodes", "1 node", "2 nodes"]
    assert [counted(count, "directories") for count in (1, 1234)] == ["1 directory", "1,234 directories"]
