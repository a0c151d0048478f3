"""`cryptfs open` without a mount: the known vaults, the place of the mountpoint, and the windows."""

from __future__ import annotations

import json
import os
import stat
import sys
from pathlib import Path

import pytest

from cryptfs.cli.dialogs import Dialogs
from cryptfs.cli.exit_codes import ExitCode, NothingTypedError, NoWindowError
from cryptfs.cli.knownvaults import KnownVault, found_vault, known_vaults, remember_vault
from cryptfs.cli.main import cli
from cryptfs.cli.open import place_for
from cryptfs.cli.prompt import PassphraseSource, read_passphrase, with_passphrase
from cryptfs.errors import WrongPassphraseError
from cryptfs.vfs.vault import Vault
from tests.commands import Run, runner
from tests.schema import check_answer


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    return runner(capsys)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Somebody's home directory, without a display."""
    place = tmp_path / "home"
    place.mkdir()
    monkeypatch.setenv("HOME", str(place))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "XDG_CURRENT_DESKTOP"):
        monkeypatch.delenv(name, raising=False)
    return place


@pytest.fixture
def vault(tmp_path: Path) -> Path:
    made = tmp_path / "letters"
    Vault.create(made, b"right", kdf_memory=64 << 20)
    return made


def program(directory: Path, name: str, body: str) -> None:
    """A program in Python that notes its words, and does something; `words` are they."""
    directory.mkdir(exist_ok=True)
    file = directory / name
    log = directory / "log"
    file.write_text(
        f"#!{sys.executable}\nimport json, sys\nwords = sys.argv[1:]\n"
        f"print(json.dumps([{name!r}, *words]), file=open({str(log)!r}, 'a'))\n{body}\n"
    )
    file.chmod(0o755)


def said_to(directory: Path) -> list[list[str]]:
    """The command lines of these programs."""
    return [json.loads(line) for line in (directory / "log").read_text().splitlines()]


@pytest.fixture
def desktop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A display, and a directory for programs that is alone in PATH."""
    place = tmp_path / "bin"
    place.mkdir()
    monkeypatch.setenv("DISPLAY", ":none")
    monkeypatch.setenv("PATH", str(place))
    return place


# ---- known vaults


def test_the_last_vault_is_the_first(tmp_path: Path) -> None:
    assert known_vaults() == []
    first, second = tmp_path / "first", tmp_path / "second"
    for each in (first, second, first):
        remember_vault(each)
    assert known_vaults() == [first, second]
    file = tmp_path / "state" / "cryptfs" / "vaults.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"vaults": 5}', '{"vaults": [5, "relative", "/with\\u0000nul"]}']
)
def test_a_damaged_list_is_an_empty_one(content: str, tmp_path: Path) -> None:
    file = tmp_path / "state" / "cryptfs" / "vaults.json"
    file.parent.mkdir(parents=True)
    file.write_text(content)
    assert known_vaults() == []
    remember_vault(tmp_path / "vault")
    assert known_vaults() == [tmp_path / "vault"]


def test_the_list_is_bounded(tmp_path: Path) -> None:
    for number in range(110):
        remember_vault(tmp_path / str(number))
    assert len(known_vaults()) == 100
    assert known_vaults()[0] == tmp_path / "109"


def test_what_a_person_may_give(vault: Path, run: Run, tmp_path: Path) -> None:
    assert found_vault(vault) == vault
    assert found_vault(vault / "cryptfs.json") == vault
    assert found_vault(Path("letters")) == Path("letters")
    remember_vault(vault)
    assert found_vault(Path("letters")) == vault
    remember_vault(tmp_path / "elsewhere" / "letters")
    said = run("open", "letters")
    assert said.code == ExitCode.USAGE
    assert str(vault) in said.err
    assert "elsewhere/letters" in said.err


def test_list_and_forget(vault: Path, run: Run, tmp_path: Path) -> None:
    assert "cryptfs open DIRECTORY" in run("open").err
    remember_vault(tmp_path / "gone")
    remember_vault(vault)
    said = run("open", "--list")
    assert said.out == f"{vault}\n{tmp_path / 'gone'} (not found)\n"
    found = check_answer("open", run("open", "--list", "--json").out)["vaults"]
    assert found == [
        {"vault": str(vault), "mountpoint": None, "found": True},
        {"vault": str(tmp_path / "gone"), "mountpoint": None, "found": False},
    ]
    assert run("open", "--forget", "gone").code == 0
    assert known_vaults() == [vault]
    assert run("open", "--forget", "gone").code == ExitCode.USAGE
    assert run("open", "--forget").code == ExitCode.USAGE
    assert run("open", "--json", vault).code == ExitCode.USAGE


def test_completion_proposes_known_vaults(vault: Path, tmp_path: Path) -> None:
    remember_vault(vault)
    remember_vault(tmp_path / "a $(name)")
    context = cli.make_context("cryptfs", ["open"])
    parameter = cli.commands["open"].params[0]
    found = [item.value for item in KnownVault().shell_complete(context, parameter, "")]
    assert found == ["letters", ""]


# ---- places


def test_the_place_is_the_name_of_the_vault(vault: Path, home: Path, tmp_path: Path) -> None:
    assert place_for(vault) == home / "Vaults" / "letters"
    assert place_for(tmp_path / ".hidden") == home / "Vaults" / "hidden"
    (home / "Vaults" / "letters").mkdir(parents=True)
    assert place_for(vault) == home / "Vaults" / "letters"  # it is empty


def test_a_place_with_files_is_not_taken(vault: Path, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "Vaults" / "letters" / "plain").mkdir(parents=True)
    assert place_for(vault) == home / "Vaults" / "letters 2"
    assert "not encrypted" in capsys.readouterr().err


def test_a_vault_among_the_mountpoints(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inside = home / "Vaults" / "letters"
    inside.parent.mkdir()
    Vault.create(inside, b"right", kdf_memory=64 << 20)
    assert place_for(inside) == home / "Vaults" / "letters 2"
    assert capsys.readouterr().err == ""


def test_after_an_error_nothing_is_left(vault: Path, home: Path, run: Run, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    wrong.touch(mode=0o600)
    wrong.write_text("wrong\n")
    assert run("open", vault, "--passfile", wrong).code == ExitCode.WRONG_PASSPHRASE
    assert os.listdir(home) == []
    assert known_vaults() == []
    assert run("open", tmp_path / "none").code == ExitCode.VAULT_DIR
    assert run("open", home, "--passfile", wrong).code == ExitCode.VAULT_DIR


# ---- windows


def test_without_a_display_or_a_program(vault: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    said = run("open", "--window", vault)
    assert said.code == ExitCode.OTHER
    assert "no display" in said.err
    monkeypatch.setenv("DISPLAY", ":none")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(NoWindowError, match="install zenity"):
        Dialogs()


@pytest.mark.parametrize("name", ["zenity", "kdialog"])
def test_a_passphrase_from_a_window(name: str, desktop: Path) -> None:
    program(desktop, name, "print('right' if 'Wrong' in str(words) else 'wrong')")
    window = Dialogs().passphrase(Path("/home/a_<b>\\n"))
    tried: list[bytes] = []

    def use(passphrase: bytes) -> int:
        tried.append(bytes(bytearray(passphrase)))  # it is overwritten afterwards
        if passphrase != b"right":
            raise WrongPassphraseError("the passphrase is wrong")
        return 5

    assert with_passphrase(PassphraseSource(window=window), use) == 5
    assert tried == [b"wrong", b"right"]
    first, second = (" ".join(words) for words in said_to(desktop))
    assert first.endswith(":\nPassphrase")
    assert "2 tries left" in second
    assert ("/home/a__<b>\\\\\\\\n" if name == "zenity" else "/home/a_(b)\\\\n") in first


def test_a_window_that_is_closed(desktop: Path) -> None:
    program(desktop, "zenity", "sys.exit(1)")
    with pytest.raises(NothingTypedError):
        read_passphrase(PassphraseSource(window=Dialogs().passphrase(Path("/v"))))


def test_kde_has_its_own(desktop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("zenity", "kdialog"):
        program(desktop, name, "")
    assert Dialogs().passphrase(Path("/v"))[0] == "zenity"
    monkeypatch.setenv("XDG_CURRENT_DESKTOP", "KDE")
    assert Dialogs().passphrase(Path("/v"))[0] == "kdialog"


@pytest.mark.parametrize("name", ["zenity", "kdialog"])
def test_an_error_is_shown(name: str, desktop: Path, vault: Path, run: Run) -> None:
    body = "print('wrong') if {'--entry', '--password'} & set(words) else None"
    program(desktop, name, body)
    assert run("open", "--window", vault).code == ExitCode.WRONG_PASSPHRASE
    calls = said_to(desktop)
    assert len(calls) == 4  # three tries, and the error
    assert "--error" in calls[-1]
    assert "passphrase is wrong" in calls[-1][-1]


def test_a_closed_window_is_no_error_to_show(desktop: Path, vault: Path, run: Run) -> None:
    program(desktop, "zenity", "sys.exit(1)")
    assert run("open", "--window", vault).code == ExitCode.PASSPHRASE_UNREADABLE
    assert len(said_to(desktop)) == 1


@pytest.mark.parametrize("name", ["zenity", "kdialog"])
def test_a_vault_is_chosen(name: str, desktop: Path, vault: Path, run: Run, tmp_path: Path) -> None:
    body = (
        "chooser = {'--list', '--menu'} & set(words)\n"
        "print('0' if chooser else 'wrong') if '--error' not in words else None"
    )
    program(desktop, name, body)
    remember_vault(tmp_path / "gone")
    remember_vault(vault)
    assert run("open", "--window").code == ExitCode.WRONG_PASSPHRASE
    offered = said_to(desktop)[0]
    assert str(vault) in offered
    assert "Another vault ..." in offered
    assert str(tmp_path / "gone") not in offered


def test_another_vault_is_chosen(desktop: Path, vault: Path, run: Run) -> None:
    program(desktop, "zenity", f"print({str(vault.parent)!r} if '--directory' in words else '')")
    said = run("open", "--window")  # no vault is known: it asks for a directory at once
    assert said.code == ExitCode.VAULT_DIR
    assert "--error" in said_to(desktop)[-1]


def test_nothing_is_chosen(desktop: Path, vault: Path, run: Run) -> None:
    program(desktop, "zenity", "sys.exit(1)")
    remember_vault(vault)
    assert run("open", "--window").code == 0
    assert len(said_to(desktop)) == 1
