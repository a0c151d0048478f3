"""The commands that need no mount, run in this process on real vaults with the cheapest passphrase."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from cryptfs.cli import init as init_module
from cryptfs.cli import main as main_module
from cryptfs.cli.mounthelper import helper_arguments
from cryptfs.cli.params import ByteSize
from cryptfs.core.aead import SUITES
from cryptfs.core.config import DEFAULT_KDF_MEMORY, DEFAULT_KDF_PASSES, MIN_KDF_MEMORY

CHEAP = ("--kdf-memory", "64m")


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


Run = Callable[..., Outcome]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def run_command(*args: object) -> Outcome:
        code = main_module.main([str(arg) for arg in args])
        said = capsys.readouterr()
        return Outcome(code, said.out, said.err)

    return run_command


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


@pytest.mark.parametrize("name", sorted(main_module.cli.commands))
def test_help_of_every_command(name: str, run: Run) -> None:
    shown = run(name, "--help")
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
    options = ("--cipher", "xchacha20-poly1305", "--chunk-size", "64k", "--kdf-passes", "4")
    assert run("init", vault, "--passfile", passfile, *CHEAP, *options).code == 0
    found = json.loads(run("info", vault, "--json").out)
    assert (found["cipher"], found["chunk_size"]) == ("xchacha20-poly1305", 65536)
    assert found["slots"][0]["kdf"]["passes"] == 4


def test_places_where_no_vault_can_be_made(vault: Path, tmp_path: Path, passfile: Path, run: Run) -> None:
    for place, words in (
        (vault, "a vault already"),
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


def test_broken_configs(vault: Path, run: Run) -> None:
    config = vault / "cryptfs.json"
    good = config.read_text()
    config.write_text(good.replace('"version": 1', '"version": 99'))
    assert run("info", vault).code == 27
    config.write_text("{")
    assert run("info", vault).code == 8
    config.unlink()
    config.symlink_to(config)
    assert run("info", vault).code == 23


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
    assert run("passwd", vault, "--passfile", other, "--new-passcommand", "echo right", *CHEAP).code == 0


def test_passphrases_that_cannot_be_had(tmp_path: Path, run: Run) -> None:
    empty = write_passfile(tmp_path / "empty", "")
    assert run("init", tmp_path / "v", "--passfile", empty).code == 22
    assert run("init", tmp_path / "v", "--passfile", tmp_path / "missing").code == 9
    assert run("init", tmp_path / "v", "--passcommand", "false").code == 9
    assert not (tmp_path / "v").exists()


def test_mountpoints_are_checked_before_the_passphrase(vault: Path, tmp_path: Path, run: Run) -> None:
    told = run("mount", vault, tmp_path / "missing", "--passfile", tmp_path / "missing")
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
    shown = run("speed", "--size", "2m", "--repeat", "1", "--threads", "2")
    assert "libsodium alone" in shown.out
    assert "\x1b" not in shown.out


def test_speed_warns_of_a_busy_machine(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("speed", "--size", "1m", "--repeat", "1", "--threads", "2")
    monkeypatch.setattr("os.getloadavg", lambda: (1.7, 0.0, 0.0))
    assert "load 1.7" in run(*words).err
    monkeypatch.setattr("os.getloadavg", lambda: (0.1, 0.0, 0.0))
    assert run(*words).err == ""


def test_completion(run: Run) -> None:
    for shell in ("bash", "zsh", "fish"):
        assert "_CRYPTFS_COMPLETE" in run("completion", shell).out


def test_being_a_mount_helper() -> None:
    assert helper_arguments(["/v", "/m", "-o", "rw,noexec"]) == ["mount", "-o", "rw,noexec", "--", "/v", "/m"]
    sloppy = ["/v", "/m", "-sn", "-v", "-N", "/proc/1/ns/mnt", "-t", "fuse.cryptfs", "-o", "ro"]
    assert helper_arguments(sloppy) == ["mount", "-o", "ro", "--", "/v", "/m"]
    assert helper_arguments(["-f", "/v", "/m"]) is None


def test_two_paths_are_a_mount() -> None:
    assert main_module.with_command(["/v", "/m", "-o", "rw"]) == ["mount", "/v", "/m", "-o", "rw"]
    assert main_module.with_command(["info", "/v"]) == ["info", "/v"]
    assert main_module.with_command(["nonsense"]) == ["nonsense"]


def test_the_helper_is_known_by_its_name(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    monkeypatch.setattr(sys, "argv", ["/sbin/mount.fuse.cryptfs", "/v", "/m", "-f"])
    with pytest.raises(SystemExit) as ended:
        main_module.run()
    assert ended.value.code == 0
