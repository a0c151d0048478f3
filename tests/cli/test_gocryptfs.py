"""The command line of gocryptfs: what it becomes for cryptfs, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from cryptfs.cli import gocryptfs as spoken
from cryptfs.cli.exit_codes import ExitCode
from cryptfs.cli.goflags import FlagError, duration_seconds, parse_flags
from cryptfs.core.names.litter import FRONT_END_NAME
from cryptfs.fsck.check import check_vault
from cryptfs.vfs.vault import Vault
from tests.cli.desktops import vault
from tests.commands import Outcome, runner

__all__ = ["vault"]

Speak = Callable[..., Outcome]


@pytest.fixture
def speak(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Speak:
    """Runs a command line in this process, with some text on stdin."""

    def run_with(*words: object, stdin: str = "") -> Outcome:
        given = tmp_path / "stdin"
        given.write_text(stdin)
        with given.open() as stream:
            monkeypatch.setattr("sys.stdin", stream)
            code = spoken.speak([str(word) for word in words])
        said = capsys.readouterr()
        return Outcome(code, said.out, said.err)

    return run_with


def words_of(line: str) -> list[str]:
    """The command line of cryptfs, without the options for the passphrase."""
    return spoken.translate(spoken.understand(line.split()), (), ())


@pytest.mark.parametrize(
    ("line", "options"),
    [
        ("V M", "-o nodev,nosuid,exec"),
        ("-q -- V M", "--quiet -o nodev,nosuid,exec"),
        ("--quiet V M", "--quiet -o nodev,nosuid,exec"),
        ("V M -q", "--quiet -o nodev,nosuid,exec"),
        ("-q=false V M", "-o nodev,nosuid,exec"),
        ("-ro V M", "--read-only -o nodev,nosuid,exec"),
        ("-rw -ro V M", "--read-only -o nodev,nosuid,exec"),
        ("-fg V M", "--foreground -o nodev,nosuid,exec"),
        ("-f V M", "--foreground -o nodev,nosuid,exec"),
        ("-nonempty V M", "--nonempty -o nodev,nosuid,exec"),
        ("-allow_other V M", "--allow-other -o nodev,nosuid,exec"),
        ("-fsname NAME V M", "--fsname NAME -o nodev,nosuid,exec"),
        ("-idle 5m V M", "--idle 300s -o nodev,nosuid,exec"),
        ("-i=1h30m V M", "--idle 5400s -o nodev,nosuid,exec"),
        ("-idle 300ms V M", "--idle 1s -o nodev,nosuid,exec"),
        ("-idle 500h V M", "--idle 1800000s -o nodev,nosuid,exec"),
        ("-idle 0 V M", "-o nodev,nosuid,exec"),
        ("-ko noexec,noatime V M", "-o nodev,nosuid,noexec,noatime"),
        ("-suid -dev -noexec V M", "-o suid,dev,noexec"),
        ("-d V M", "--debug -o nodev,nosuid,exec"),
        ("-fusedebug -nosyslog -acl -scryptn 10 -sharedstorage V M", "-o nodev,nosuid,exec"),
        ("-o rw,nodev,nosuid,fsname=N@/p,subtype=gocryptfs V M", "--fsname N@/p -o nodev,nosuid,exec"),
        ("V M -o ro,allow_other,nonempty,user,x-gvfs-show",
         "--read-only --nonempty --allow-other -o nodev,nosuid,exec"),
        ("V M -o idle=10m,q", "--quiet --idle 600s -o nodev,nosuid,exec"),
    ],
)  # fmt: skip
def test_what_a_mount_becomes(line: str, options: str) -> None:
    flags = spoken.understand(line.split())
    words = spoken.translate(flags, (), ())
    assert words[0] == "mount"
    assert words[-3:] == ["--", "V", "M"]
    given, wanted = words[1:-3], options.split()
    assert sorted(given[:-1]) == sorted(wanted[:-1])
    assert sorted(given[-1].split(",")) == sorted(wanted[-1].split(","))


def test_of_an_option_and_its_contrary_the_one_with_no_counts() -> None:
    assert words_of("-dev -nodev -nosuid -suid -exec -noexec V M")[2] == "nodev,nosuid,noexec"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("-init V", "init --no-recovery --quiet -- V"),
        ("--init -q -- V", "init --no-recovery --quiet -- V"),
        ("-init -xchacha V", "init --no-recovery --quiet --cipher xchacha20-poly1305 -- V"),
        ("V -passwd", "passwd -- V"),
        ("-info V", "info -- V"),
        ("-fsck V", "fsck --deep -- V"),
    ],
)
def test_what_other_actions_become(line: str, words: str) -> None:
    assert words_of(line) == words.split()


@pytest.mark.parametrize(
    "line",
    [
        "", "V", "V M X", "-init", "-init V M", "-info", "-passwd V M", "-fsck",
        "-bogus V M", "-o bogus V M", "-o bogus=1 V M", "-ko bogus V M", "V M -o", "-q=perhaps V M",
        "-idle 30 V M", "-idle soon V M", "-idle -5s V M", "-o idle V M", "-init -passwd V",
        "-extpass a -passfile b V M", "-reverse V M", "-plaintextnames -init V", "-masterkey 00 V M",
        "-config c V M", "-force_owner 1:1 V M", "-o reverse V M", "-o trailing\\ V M",
    ],
)  # fmt: skip
def test_what_is_no_command_line(line: str, speak: Speak) -> None:
    said = speak(*line.split())
    assert said.code == ExitCode.USAGE
    assert "cryptfs-gocryptfs" in said.out + said.err


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0), ("500s", 500), ("2h45m", 9900), ("1.5h", 5400), ("300ms", 0.3), (".5m", 30), ("+1m", 60)],
)
def test_durations(text: str, seconds: float) -> None:
    assert duration_seconds(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "30", "s", "1d", "1m30", "-1m", "1 m", "m1", "1.2.3s"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(FlagError):
        duration_seconds(text)


def test_a_value_may_begin_with_a_dash() -> None:
    found = parse_flags(["-extpass", "-X", "--", "-ro"], ("ro",), ("extpass",), {})
    assert found.values == {"extpass": ["-X"]}
    assert found.places == ["-ro"]
    assert not found.switches


# ---- with vaults


def test_version_and_help(speak: Speak) -> None:
    first, second = speak("--version").out.split(";")[:2]
    assert first == "gocryptfs 2.3"  # Plasma Vault wants this name, and 1.8 or newer
    assert second.startswith(" cryptfs ")
    for flag in ("-h", "-help", "-hh"):
        assert "-extpass CMD" in speak(flag).out


def test_init_makes_a_vault_and_the_file_that_front_ends_look_for(
    speak: Speak, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place = tmp_path / "new"
    place.mkdir()
    said = speak("--init", "-q", "--", place, stdin="a long secret\na long secret\n")
    assert said.code == 0
    assert said.out == ""
    marker = place / FRONT_END_NAME
    assert stat.S_IMODE(marker.stat().st_mode) == 0o444
    assert json.loads(marker.read_text())["FeatureFlags"] == ["cryptfs"]
    with Vault.unlock(place, b"a long secret", read_only=True) as opened:
        assert [entry.name for entry in opened.tree.list(opened.tree.root)] == []
        assert list(check_vault(opened, deep=True).run()) == []
    assert caplog.records == []
    assert speak("-init", place, stdin="x\n").code == ExitCode.VAULT_DIR


def test_snapshot_verify_and_rekey_pass_over_that_file(
    vault: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoken.write_front_end_file(vault)
    before = (vault / FRONT_END_NAME).read_bytes()
    passfile = tmp_path / "passfile"
    passfile.touch(mode=0o600)
    passfile.write_text("right")
    key = ("--passfile", passfile)
    run = runner(capsys)
    manifest = tmp_path / "manifest"
    assert run("snapshot", vault, *key, "-o", manifest).code == 0
    said = run("verify", vault, manifest, *key)
    assert (said.code, FRONT_END_NAME in said.out + said.err) == (0, False)
    said = run("rekey", vault, *key)
    assert (said.code, FRONT_END_NAME in said.out + said.err) == (0, False)
    assert (vault / FRONT_END_NAME).read_bytes() == before
    assert run("fsck", vault, *key).out.startswith("Checked 1 directory")


def test_nothing_else_writes_that_file(vault: Path, speak: Speak) -> None:
    assert speak("-passwd", vault, stdin="right\nanother one\n").code == 0
    assert speak("-info", vault).code == 0
    assert speak("-fsck", vault, stdin="another one\n").code == 0
    assert not (vault / FRONT_END_NAME).exists()


def test_init_says_if_that_file_cannot_be_written(
    speak: Speak, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(vault_dir: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(spoken, "write_front_end_file", refuse)
    said = speak("-init", tmp_path / "new", stdin="a long secret\n")
    assert said.code == ExitCode.CONFIG_UNWRITABLE
    assert "the vault is made" in said.err


@pytest.mark.parametrize("stdin", ["\n", "\nright\n"])
def test_an_empty_passphrase(stdin: str, speak: Speak, vault: Path, tmp_path: Path) -> None:
    """22 is for -init, by the manual of gocryptfs; it gives 9 elsewhere."""
    assert speak("-init", tmp_path / "new", stdin=stdin).code == ExitCode.EMPTY_PASSPHRASE
    assert not (tmp_path / "new").exists()
    assert speak("-fsck", vault, stdin=stdin).code == ExitCode.PASSPHRASE_UNREADABLE


def test_no_passphrase_at_all(speak: Speak, vault: Path) -> None:
    assert speak("-fsck", vault).code == ExitCode.PASSPHRASE_UNREADABLE


def test_a_wrong_passphrase(speak: Speak, vault: Path) -> None:
    for action in ("-fsck", "-passwd"):
        said = speak(action, vault, stdin="wrong\nnew\n")
        assert said.code == ExitCode.WRONG_PASSPHRASE
        assert said.err.endswith("Password incorrect.\n")


def test_passwd(speak: Speak, vault: Path) -> None:
    said = speak("-passwd", vault, stdin="right\nthe next one\nthe next one\n")
    assert said.code == 0
    assert said.out == "Password changed.\n"
    assert speak("-fsck", "-q", vault, stdin="right\n").code == ExitCode.WRONG_PASSPHRASE
    assert speak("-fsck", "-q", vault, stdin="the next one\n") == Outcome(0, "", "")


def test_where_passphrases_come_from(speak: Speak, vault: Path, tmp_path: Path) -> None:
    first, second, blank = tmp_path / "1", tmp_path / "2", tmp_path / "with a blank"
    for file, text in ((first, "rig\nnotes"), (second, "ht"), (blank, "right\n")):
        file.write_text(text)
        file.chmod(0o600)
    ways = (
        ("-passfile", first, "-passfile", second),
        ("-passfile", blank),
        (f"-passfile={blank}",),
        ("-extpass", "echo right"),
        ("-extpass", "cat", "-extpass", blank),
        ("-o", "extpass=echo right"),
    )
    for way in ways:
        assert speak("-fsck", "-q", *way, vault).code == 0, way
    for way in (("-extpass", "false"), ("-extpass", "no-such-program"), ("-passfile", tmp_path / "none")):
        assert speak("-fsck", "-q", *way, vault).code == ExitCode.PASSPHRASE_UNREADABLE
    missing = speak("-fsck", "-passfile", first, "-passfile", tmp_path / "none", vault)
    assert missing.code == ExitCode.PASSPHRASE_UNREADABLE
    assert "none" in missing.err


def test_places_that_are_no_vault(speak: Speak, tmp_path: Path) -> None:
    assert speak("-info", tmp_path / "none").code == ExitCode.VAULT_DIR
    assert speak("-fsck", tmp_path, stdin="x\n").code == ExitCode.VAULT_DIR
    assert speak(tmp_path, tmp_path / "none", stdin="x\n").code == ExitCode.VAULT_DIR


def test_a_damaged_vault(speak: Speak, vault: Path) -> None:
    (vault / ("A" * 43)).write_bytes(b"no ciphertext")
    said = speak("-fsck", "-q", vault, stdin="right\n")
    assert said.code == ExitCode.DAMAGE
    assert "error" in said.out
    config = vault / "cryptfs.json"
    config.write_text("{")
    assert speak("-info", vault).code == ExitCode.CONFIG_INVALID


def test_the_place_of_a_mount(speak: Speak, vault: Path, tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "file").touch()
    said = speak(vault, full, stdin="right\n")
    assert said.code == ExitCode.MOUNTPOINT
    assert "'nonempty'" in said.err  # Plasma Vault looks for it, with the quotes
    assert speak(vault, tmp_path / "none", stdin="right\n").code == ExitCode.MOUNTPOINT


def test_info_needs_no_passphrase(speak: Speak, vault: Path) -> None:
    said = speak("-info", vault)
    assert said.code == 0
    assert said.out.startswith("Creator:     cryptfs ")


# ---- vaults of gocryptfs under the same name


def test_a_vault_of_gocryptfs_goes_to_gocryptfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs, bin_dir, own = tmp_path / "theirs", tmp_path / "bin", tmp_path / "own"
    for directory in (theirs, bin_dir, own):
        directory.mkdir()
    (theirs / FRONT_END_NAME).write_text("{}")
    for program in (bin_dir / "gocryptfs", own / "gocryptfs"):
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
    started: list[tuple[str, list[str]]] = []
    monkeypatch.setattr(os, "execve", lambda place, words, _: started.append((place, words)))
    monkeypatch.setenv("PATH", f"{own}:{bin_dir}")
    words = ["-q", "--", str(theirs), "M"]
    monkeypatch.setattr("sys.argv", [str(own / "cryptfs-gocryptfs")])
    spoken.pass_on(spoken.understand(words), words)
    assert not started
    monkeypatch.setattr("sys.argv", [str(own / "gocryptfs")])
    spoken.pass_on(spoken.understand(words), words)
    assert started == [(str(bin_dir / "gocryptfs"), ["gocryptfs", *words])]
    (theirs / "cryptfs.json").write_text("{}")
    spoken.pass_on(spoken.understand(words), words)
    assert len(started) == 1


# What a front end can see of these; measured with gocryptfs 2.3.
CASES = (
    (("-bogus", "V", "M"), "right\n", 1),
    (("V",), "right\n", 1),
    (("-idle", "30", "V", "M"), "right\n", 1),
    (("-init", "-passwd", "V"), "right\n", 1),
    (("-extpass", "true", "-passfile", "x", "V", "M"), "", 1),
    (("-init", "-q", "V"), "right\n", 6),
    (("none", "M"), "right\n", 6),
    (("-info", "none"), "", 6),
    (("V", "M"), "", 9),
    (("V", "M"), "\n", 9),
    (("-extpass", "false", "V", "M"), "", 9),
    (("-passfile", "none", "V", "M"), "", 9),
    (("V", "none"), "right\n", 10),
    (("V", "full"), "right\n", 10),
    (("-q", "V", "M"), "wrong\n", 12),
    (("-fsck", "V"), "wrong\n", 12),
    (("-passwd", "V"), "wrong\nnew\n", 12),
    (("-info", "V"), "", 0),
    (("-fsck", "-q", "V"), "right\n", 0),
    (("-version",), "", 0),
)


def fill(tmp_path: Path) -> dict[str, Path]:
    """The places of CASES."""
    full = tmp_path / "full"
    (full / "file").mkdir(parents=True)
    (tmp_path / "M").mkdir()
    return {"V": tmp_path / "letters", "M": tmp_path / "M", "none": tmp_path / "none", "full": full}


def test_exit_codes(speak: Speak, vault: Path, tmp_path: Path) -> None:
    places = fill(tmp_path)
    for words, stdin, code in CASES:
        said = speak(*(places.get(word, word) for word in words), stdin=stdin)
        assert said.code == code, (words, said)


@pytest.mark.skipif(shutil.which("gocryptfs") is None, reason="gocryptfs is not installed")
def test_they_are_those_of_gocryptfs(tmp_path: Path) -> None:
    places = fill(tmp_path)
    places["V"].mkdir()
    for words, stdin, code in ((("-init", "-q", "-scryptn", "10", "V"), "right\n", 0), *CASES):
        command = ["gocryptfs", *(str(places.get(word, word)) for word in words)]
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == code, (words, done)
