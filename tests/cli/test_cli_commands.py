"""The commands that need no mount, run in this process on real vaults with the cheapest passphrase."""

from __future__ import annotations

import io
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

import click
import pytest
from rich.console import Console

from cryptfs.cli import init as init_module
from cryptfs.cli import main as main_module
from cryptfs.cli.mount import _GROUPS, mount
from cryptfs.cli.mounthelper import helper_arguments
from cryptfs.cli.params import ByteSize
from cryptfs.cli.speed import _table
from cryptfs.core.aead import SUITES
from cryptfs.core.slots.kdf import DEFAULT_KDF_MEMORY, DEFAULT_KDF_PASSES, MIN_KDF_MEMORY
from cryptfs.errors import NotAVaultError
from cryptfs.interpreter import Interpreter, this_interpreter
from cryptfs.vfs.vault import Vault
from tests.commands import Run, all_commands, runner

CHEAP = ("--kdf-memory", "64m")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    return runner(capsys)


@pytest.fixture
def passfile(tmp_path: Path) -> Path:
    return write_passfile(tmp_path / "passfile", "right")


@pytest.fixture
def vault(tmp_path: Path, passfile: Path, run: Run) -> Path:
    made = run("init", tmp_path / "vault", "--passfile", passfile, *CHEAP, "--label", "mine")
    assert made.code == 0
    assert made.out == ""
    assert "cryptfs mount" in made.err
    return tmp_path / "vault"


def write_passfile(file: Path, passphrase: str) -> Path:
    file.touch(mode=0o600)
    file.write_text(passphrase + "\n")
    return file


@pytest.mark.parametrize("name", ["key", "key add", *dict(all_commands(main_module.cli))])
def test_help_of_every_command(name: str, run: Run) -> None:
    shown = run(*name.split(), "--help")
    assert shown.code == 0
    assert f"Usage: cryptfs {name}" in shown.out
    assert shown.err == ""


def test_version(run: Run) -> None:
    assert run("--version").out == "cryptfs 0.1.0\n"


def test_what_help_says_of_defaults_is_so() -> None:
    assert set(init_module.CIPHERS) == set(SUITES)
    assert (MIN_KDF_MEMORY >> 20, DEFAULT_KDF_MEMORY >> 20, DEFAULT_KDF_PASSES) == (64, 256, 3)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4096", 4096),
        ("4k", 4096),
        ("16K", 16384),
        ("1MiB", 1 << 20),
        ("300MB", 300_000_000),
        ("2g", 2 << 30),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert ByteSize().convert(text, None, None) == size


@pytest.mark.parametrize(
    "args",
    [
        ("nonsense",),
        ("init",),
        ("init", "V", "--chunk-size", "5000"),
        ("init", "V", "--chunk-size", "2k"),
        ("init", "V", "--chunk-size", "2m"),
        ("init", "V", "--chunk-size", "big"),
        ("init", "V", "--cipher", "rot13"),
        ("init", "V", "--kdf-memory", "1m"),
        ("init", "V", "--kdf-passes", "1"),
        ("init", "V", "--passfile", "a", "--passcommand", "b"),
        ("mount", "V"),
        ("mount", "V", "M", "-o", "colour=blue"),
        ("mount", "V", "M", "-o", "passfile"),
        ("speed", "--size", "1k"),
    ],
)
def test_wrong_command_lines(args: tuple[str, ...], run: Run, tmp_path: Path) -> None:
    told = run(*args)
    assert told.code == 1
    assert told.err.startswith("cryptfs: ")
    assert "--help" in told.err
    assert told.out == ""


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("key", "remove", "V", "x"), "give a whole number from 0 to 4,294,967,295"),
        (("key", "test", "V", "-1"), "No such option"),
        (("init", "V", "--kdf-passes", "65"), "give a whole number from 3 to 64"),
        (("init", "V", "--kdf-passes", "9" * 5000), "give a whole number from 3 to 64"),
        (("init", "V", "--kdf-passes", "\u0663"), "give a whole number from 3 to 64"),
        (("init", "V", "--calibrate", "fast"), "give a number from "),
        (("recovery", "shares", "V", "--needed", "1", "--of", "3"), "give a whole number from 2 to 16"),
    ],
)
def test_wrong_numbers(args: tuple[str, ...], said: str, run: Run) -> None:
    told = run(*args)
    assert (told.code, told.out) == (1, "")
    assert said.casefold() in told.err.casefold()


def test_info(vault: Path, run: Run) -> None:
    found = json.loads(run("info", vault, "--json").out)
    assert found["vault"] == str(vault)
    assert found["chunk_size"] == 16384
    assert found["cipher"] in SUITES
    assert found["mounts"] == []
    assert found["held_by"] is None
    (slot,) = found["slots"]
    assert slot == {
        "id": 0,
        "kind": "passphrase",
        "label": "mine",
        "kdf": {"name": "argon2id", "memory": MIN_KDF_MEMORY, "passes": 3},
    }
    text = run("info", vault).out
    assert "chunk size:  16 KiB" in text
    assert "passphrase 'mine' (argon2id, 64 MiB, 3 passes)" in text


def test_init_takes_what_it_is_told(tmp_path: Path, passfile: Path, run: Run) -> None:
    vault = tmp_path / "other"
    vault.mkdir()
    size = ("--for", "databases", "--chunk-size", "64k")  # the second overrules what the first chooses
    options = ("--cipher", "xchacha20-poly1305", *size, "--kdf-passes", "4")
    assert run("init", vault, "--passfile", passfile, *CHEAP, *options).code == 0
    found = json.loads(run("info", vault, "--json").out)
    assert (found["cipher"], found["chunk_size"]) == ("xchacha20-poly1305", 65536)
    assert found["slots"][0]["kdf"]["passes"] == 4


def test_places_where_no_vault_can_be_made(vault: Path, tmp_path: Path, passfile: Path, run: Run) -> None:
    for place, words in (
        (vault, "already a vault"),
        (tmp_path, "not empty"),
        (passfile, "not a directory"),
        (tmp_path / "no" / "such", "mkdir -p"),
    ):
        told = run("init", place, "--passfile", passfile)
        assert (told.code, told.out) == (6, "")
        assert words in told.err


def test_what_is_not_a_vault(tmp_path: Path, passfile: Path, run: Run) -> None:
    mountpoint = tmp_path / "mountpoint"
    mountpoint.mkdir()
    (tmp_path / "empty").mkdir()
    for place in (tmp_path / "missing", tmp_path / "empty", passfile):
        assert run("info", place).code == 6
        assert run("passwd", place, "--passfile", passfile).code == 6
        assert run("mount", place, mountpoint, "--passfile", passfile).code == 6


def test_a_vault_that_lost_its_config(vault: Path, tmp_path: Path, passfile: Path, run: Run) -> None:
    """No command sends a person to init, which would be the end of the files."""
    (tmp_path / "mountpoint").mkdir()
    (vault / "5FDMxj5lcAoFQw1stft8ZDepFGTTRwR0uEPybmgMXjY").touch()
    (vault / "cryptfs.json").unlink()
    lost = (
        f"{vault} looks like a vault, but its cryptfs.json is missing. Restore that file from a backup, "
        "or make it again from recovery words and a copy of the recovery record: cryptfs recovery "
        f"restore-config {vault} --record FILE. Otherwise nobody can open the vault. Do not run init here\n"
    )
    before = sorted(vault.iterdir())
    for words in (
        *(("info", vault), ("fsck", vault), ("passwd", vault), ("upgrade", vault), ("snapshot", vault)),
        *(("verify", vault, passfile), ("mount", vault, tmp_path / "mountpoint"), ("init", vault)),
    ):
        told = run(*words, *(() if words[0] == "info" else ("--passfile", passfile)))
        assert (told.code, told.err) == (6, f"cryptfs: {lost}"), words
    for command in ("status", "umount"):
        told = run(command, vault)
        assert (told.code, told.err) == (10, f"cryptfs: {vault}: nothing is mounted there\n{lost}")
    with pytest.raises(NotAVaultError, match="Do not run init here"):
        Vault.create(vault, b"another")
    assert sorted(vault.iterdir()) == before


def test_what_is_said_of_other_directories(vault: Path, tmp_path: Path, run: Run) -> None:
    plain = tmp_path / "a plain one"
    plain.mkdir()
    told = run("info", plain)
    assert f"{plain} is not a vault: it is empty. If it should hold one, mount its disk" in told.err
    assert f"To make a new vault here: cryptfs init '{plain}'\n" in told.err
    (plain / "cryptfs.py").touch()
    told = run("info", plain)
    assert (
        f"{plain} is not a vault (it has no cryptfs.json). A new vault needs an empty directory" in told.err
    )
    inside = vault / "5FDMxj5lcAoFQw1stft8ZDepFGTTRwR0uEPybmgMXjY"
    inside.mkdir()
    (inside / "cryptfs.dir").touch()
    for command, code in (("info", 6), ("init", 6), ("umount", 10), ("status", 10)):
        told = run(command, inside)
        assert told.code == code
        assert f"{inside} is a directory inside the vault {vault}. Give the vault itself\n" in told.err
    assert run("umount", tmp_path / "none").err == f"cryptfs: {tmp_path}/none does not exist\n"


def test_broken_configs(vault: Path, run: Run) -> None:
    config = vault / "cryptfs.json"
    good = config.read_text()
    config.write_text(good.replace('"version": 2', '"version": 99'))
    assert run("info", vault).code == 27
    config.write_text("{")
    told = run("info", vault)
    assert told.code == 8
    assert told.err.endswith("; restore it from a backup\n")
    config.unlink()
    config.symlink_to(config)
    assert run("info", vault).code == 23


def test_hints_can_be_pasted_into_a_shell(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths with blanks, that begin with a dash, or that are no text."""
    monkeypatch.chdir(tmp_path)
    vault = os.fsdecode(b"./-v \xff\x1b")
    passfile = write_passfile(tmp_path / "-p f", "right")
    passfile.chmod(0o644)
    told = run("init", vault, "--passfile", "./-p f", *CHEAP)
    assert told.code == 0
    assert "chmod 600 './-p f'\n" in told.err
    assert r"cryptfs mount $'./-v \xff\x1b' MOUNTPOINT" in told.err
    told.err.encode()  # all of it is text
    hints = (
        (("mount", vault, "-m x/y"), "mkdir -p './-m x/y'"),
        (("mount", vault, "./-m x/y"), "mkdir -p './-m x/y'"),
        (("init", "./-a b/c"), "mkdir -p "),
        (("init", vault), r"cryptfs mount $'"),
    )
    for words, hint in hints:
        told = run(words[0], "--passfile", passfile, "--", *words[1:])
        assert hint in told.err
        assert all(letter.isprintable() or letter == "\n" for letter in told.err)


def test_a_changed_config_is_refused(vault: Path, passfile: Path, run: Run) -> None:
    config = vault / "cryptfs.json"
    config.write_text(config.read_text().replace('"generation": 1', '"generation": 7'))
    assert run("passwd", vault, "--passfile", passfile, "--new-passfile", passfile, *CHEAP).code == 8


def test_passwd(vault: Path, passfile: Path, tmp_path: Path, run: Run) -> None:
    other = write_passfile(tmp_path / "other", "another")
    changed = run("passwd", vault, "--passfile", passfile, "--new-passfile", other, *CHEAP)
    assert (changed.code, changed.out) == (0, "")
    told = run("passwd", vault, "--passfile", passfile, "--new-passfile", other, *CHEAP)
    assert told.code == 12
    assert "right" not in told.err + told.out
    assert told.err == f"cryptfs: the passphrase is wrong (from {passfile})\n"
    commands = ("passwd", vault, "--passcommand", "echo bad", "--new-passfile", other)
    assert run(*commands).err == "cryptfs: the passphrase is wrong (from --passcommand)\n"
    told = run("upgrade", vault, "--passfile", passfile, "--slot-passfile", other)
    assert told.err == f"cryptfs: the passphrase is wrong (from {passfile})\n"
    assert run("passwd", vault, "--passfile", other, "--new-passcommand", "echo right", *CHEAP).code == 0


def test_passwd_keeps_the_cost_of_a_try(tmp_path: Path, passfile: Path, run: Run) -> None:
    vault = tmp_path / "costly"
    assert run("init", vault, "--passfile", passfile, "--kdf-memory", "80m", "--kdf-passes", "4").code == 0

    def cost() -> tuple[int, int]:
        kdf = json.loads(run("info", vault, "--json").out)["slots"][0]["kdf"]
        return kdf["memory"] >> 20, kdf["passes"]

    def passwd(*options: str) -> str:
        told = run("passwd", vault, "--passfile", passfile, "--new-passfile", passfile, *options)
        assert told.code == 0
        return told.err

    assert "(key slot 0; a try costs 80 MiB, 4 passes)" in passwd()
    assert cost() == (80, 4)
    passwd("--kdf-passes", "3")
    assert cost() == (80, 3)
    passwd("--kdf-memory", "96m")
    assert cost() == (96, 3)
    assert run("passwd", vault, "--passfile", passfile, "--kdf-memory", "1m").code == 1


def test_passphrases_that_cannot_be_had(tmp_path: Path, run: Run) -> None:
    empty = write_passfile(tmp_path / "empty", "")
    assert run("init", tmp_path / "v", "--passfile", empty).code == 22
    assert run("init", tmp_path / "v", "--passfile", tmp_path / "missing").code == 9
    assert run("init", tmp_path / "v", "--passcommand", "false").code == 9
    assert not (tmp_path / "v").exists()


def test_mountpoints_are_checked_before_the_passphrase(vault: Path, tmp_path: Path, run: Run) -> None:
    told = run("mount", vault, tmp_path / "missing" / "m", "--passfile", tmp_path / "missing")
    assert told.code == 10
    assert "mkdir -p" in told.err
    assert run("umount", tmp_path).code == 10


def test_an_unknown_error_is_a_bug(run: Run, vault: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(_vault: Path) -> None:
        raise KeyError("oops")

    monkeypatch.setattr("cryptfs.cli.info.describe", bug)
    told = run("info", vault)
    assert told.code == 11
    assert "internal error: KeyError" in told.err
    assert "Traceback" not in told.err
    assert "Traceback" in run("info", "--debug", vault).err
    assert "Traceback" in run("--debug", "info", vault).err


def test_ctrl_c(run: Run, vault: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_vault: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("cryptfs.cli.info.describe", interrupted)
    assert run("info", vault).code == 130


def test_speed(run: Run) -> None:
    found = json.loads(run("speed", "--size", "2m", "--repeat", "1", "--threads", "2", "--json").out)
    places = {
        (row["cipher"], row["chunk_size"], row["operation"], row["layout"], row["threads"])
        for row in found["results"]
    }
    assert len(places) == 2 * 4 * 2 * 2 * 2
    assert len(found["libsodium"]) == 4
    assert all(row["rate"] > 0 for row in found["results"] + found["libsodium"])
    assert found["python"] == asdict(this_interpreter())
    shown = run("speed", "--size", "2m", "--repeat", "1", "--threads", "2")
    assert "libsodium alone" in shown.out
    assert "\x1b" not in shown.out
    assert not [line for line in shown.out.splitlines() if line.endswith(" ")]


@pytest.mark.parametrize(("pgo", "said"), [(True, ""), (False, "Python 3.14.2 was built without PGO")])
def test_speed_says_when_python_is_not_optimized(
    pgo: bool, said: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = Interpreter("3.14.2", "/bin/python", pgo, lto=True)
    monkeypatch.setattr("cryptfs.interpreter.this_interpreter", lambda: python)
    shown = run("speed", "--size", "1m", "--repeat", "1", "--threads", "2")
    assert shown.code == 0
    assert said in shown.out
    assert ("PGO" in shown.out) is not pgo


def test_speed_on_a_narrow_terminal(run: Run) -> None:
    report = json.loads(run("speed", "--size", "1m", "--repeat", "1", "--threads", "16", "--json").out)
    for row in report["results"]:
        row["rate"] = 123_456.7  # of the fastest machine
    for cipher in SUITES:
        screen = Console(width=60, file=io.StringIO())
        screen.print(_table(report, cipher))
        assert isinstance(screen.file, io.StringIO)
        lines = screen.file.getvalue().splitlines()
        assert max(map(len, lines)) <= 60
        assert any(line.split()[:3] == ["16", "KiB", "seal"] and line.count("123457") == 4 for line in lines)
        assert not any("…" in line for line in lines)


def test_every_option_of_mount_is_in_one_group() -> None:
    options = [option for group in _GROUPS.values() for option in group]
    assert len(options) == len(set(options))
    assert set(options) == {each.opts[-1] for each in mount.params if isinstance(each, click.Option)}


def test_without_aegis(tmp_path: Path, passfile: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """An older libsodium lacks it: no vault is made that cannot be opened there."""
    assert run("init", tmp_path / "aegis", "--cipher", "aegis-256", "--passfile", passfile, *CHEAP).code == 0
    monkeypatch.setattr("cryptfs.core.aead.is_offered", lambda function: "aegis" not in function)
    assert run("init", tmp_path / "new", "--passfile", passfile, *CHEAP).code == 0
    assert json.loads(run("info", tmp_path / "new", "--json").out)["cipher"] == "xchacha20-poly1305"
    told = run("init", tmp_path / "no", "--cipher", "aegis-256", "--passfile", passfile, *CHEAP)
    assert (told.code, (tmp_path / "no").exists()) == (7, False)
    assert "the libsodium of this machine does not have aegis-256" in told.err
    (tmp_path / "m").mkdir()
    for words in (("fsck", tmp_path / "aegis"), ("mount", tmp_path / "aegis", tmp_path / "m")):
        told = run(*words, "--passfile", passfile)
        assert told.code == 27
        assert "Install PyNaCl 1.6 or newer" in told.err
    assert run("info", tmp_path / "aegis").code == 0


def test_speed_warns_of_a_busy_machine(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("speed", "--size", "1m", "--repeat", "1", "--threads", "2")
    monkeypatch.setattr("os.getloadavg", lambda: (1.7, 0.0, 0.0))
    assert "load 1.7" in run(*words).err
    monkeypatch.setattr("os.getloadavg", lambda: (0.1, 0.0, 0.0))
    assert run(*words).err == ""


def test_completion(run: Run) -> None:
    told = run("completion")
    assert (told.code, told.out) == (1, "")
    assert told.err.startswith("cryptfs: name a shell: cryptfs completion bash|zsh|fish\n")
    for shell in ("bash", "zsh", "fish"):
        assert "_CRYPTFS_COMPLETE" in run("completion", shell).out


def test_being_a_mount_helper() -> None:
    assert helper_arguments(["/v", "/m", "-o", "rw,noexec"]) == [
        "mount", "--quiet", "-o", "rw,noexec", "--", "/v", "/m",
    ]  # fmt: skip
    sloppy = ["/v", "/m", "-sn", "-v", "-N", "/proc/1/ns/mnt", "-t", "fuse.cryptfs", "-o", "ro"]
    assert helper_arguments(sloppy) == ["mount", "-o", "ro", "--", "/v", "/m"]
    assert helper_arguments(["-f", "/v", "/m"]) is None


def test_two_paths_are_a_mount() -> None:
    words = ["/v", "/m", "-o", "rw"]
    assert main_module.with_command(words) == ["mount", "--quiet", *words]
    assert main_module.with_command(["info", "/v"]) == ["info", "/v"]
    assert main_module.with_command(["nonsense"]) == ["nonsense"]


def test_the_helper_is_known_by_its_name(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    monkeypatch.setattr(sys, "argv", ["/sbin/mount.fuse.cryptfs", "/v", "/m", "-f"])
    monkeypatch.setattr(main_module, "leave_environment", lambda: None)  # it would replace this process
    with pytest.raises(SystemExit) as ended:
        main_module.run()
    assert ended.value.code == 0
