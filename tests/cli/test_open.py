"""`cryptfs open` without a mount: the known vaults, the place of the mountpoint, and the windows."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cryptfs.cli.dialogs import Dialogs
from cryptfs.cli.exit_codes import ExitCode, NothingTypedError, NoWindowError
from cryptfs.cli.knownvaults import KnownVault, found_vault, known_vaults, remember_vault
from cryptfs.cli.main import cli
from cryptfs.cli.open import place_for
from cryptfs.cli.openwith import ENTRY
from cryptfs.cli.params import shown
from cryptfs.cli.prompt import PassphraseSource, read_passphrase, with_passphrase
from cryptfs.errors import WrongPassphraseError
from cryptfs.mount.mounts import wait_until
from cryptfs.vfs.vault import Vault
from tests.cli.desktops import desktop, program, said_to, vault
from tests.commands import Run, runner
from tests.schema import check_answer

__all__ = ["desktop", "vault"]


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
    assert "cryptfs open DIRECTORY. Make one with: cryptfs init DIRECTORY\n" in run("open").err
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
    assert "--list takes no VAULT" in run("open", "--list", vault).err


def test_a_word_that_is_nothing(run: Run) -> None:
    said = run("open", "nothing")
    assert said.code == ExitCode.VAULT_DIR
    assert said.err == (
        "cryptfs: nothing is neither a directory here nor the name of a vault that was opened before; "
        "`cryptfs open --list` shows those\n"
    )
    assert "./nothing" not in run("open", "./nothing").err
    assert "nothing does not exist" in run("open", "./nothing").err


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
    window = Dialogs().secret(f"The vault {shown('/home/a_<b>' + chr(92) + 'n')}:")
    tried: list[bytes] = []

    def use(passphrase: bytes) -> int:
        tried.append(bytes(bytearray(passphrase)))  # it is overwritten afterwards
        if passphrase != b"right":
            raise WrongPassphraseError("the passphrase is wrong")
        return 5

    assert with_passphrase(PassphraseSource(window=window), use) == 5
    assert tried == [b"wrong", b"right"]
    first, second = (" ".join(words) for words in said_to(desktop))
    assert first.endswith(":\nPassphrase" if name == "zenity" else ":<br>Passphrase</qt>")
    assert "2 tries left" in second
    name_there = "a__<b>" if name == "zenity" else "a_&lt;b&gt;"  # of HTML
    # Its own backslash is doubled by `shown`, and both again: the programs take one and n for a line break.
    assert f"The vault /home/{name_there}{chr(92) * 4}n:" in first


def test_a_window_that_is_closed(desktop: Path) -> None:
    program(desktop, "zenity", "sys.exit(1)")
    with pytest.raises(NothingTypedError):
        read_passphrase(PassphraseSource(window=Dialogs().secret("The vault:")))


def test_kde_has_its_own(desktop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("zenity", "kdialog"):
        program(desktop, name, "")
    assert Dialogs().secret("The vault:")[0] == "zenity"
    monkeypatch.setenv("XDG_CURRENT_DESKTOP", "KDE")
    assert Dialogs().secret("The vault:")[0] == "kdialog"


@pytest.mark.parametrize("name", ["zenity", "kdialog"])
def test_an_error_is_shown(name: str, desktop: Path, vault: Path, run: Run) -> None:
    body = "print('wrong') if {'--entry', '--password'} & set(words) else None"
    program(desktop, name, body)
    assert run("open", "--window", vault).code == ExitCode.WRONG_PASSPHRASE
    calls = said_to(desktop)
    assert len(calls) == 4  # three tries, and the error
    assert "--error" in calls[-1]
    assert "passphrase is wrong" in calls[-1][-1]


def test_a_long_error_is_wrapped_for_zenity(desktop: Path) -> None:
    """Its window is as wide as the longest line, up to the width of the screen."""
    program(desktop, "zenity", "")
    place = "/home/" + "long_name-" * 12
    Dialogs().error(f"{place} is not a vault: it is empty. " + "Say what to do next. " * 9 + "\nThe end.")
    *wrapped, end = said_to(desktop)[0][-1].removeprefix("--text=").split("\n")
    assert wrapped[0] == place, "a path stays whole"
    assert all(len(line) <= 80 for line in wrapped[1:])
    assert (len(wrapped), end) == (4, "The end.")


def test_a_closed_window_is_no_error_to_show(desktop: Path, vault: Path, run: Run) -> None:
    program(desktop, "zenity", "sys.exit(1)")
    assert run("open", "--window", vault).code == ExitCode.PASSPHRASE_UNREADABLE
    assert len(said_to(desktop)) == 1


@pytest.mark.parametrize("name", ["zenity", "kdialog"])
def test_a_vault_is_chosen(name: str, desktop: Path, vault: Path, run: Run, tmp_path: Path) -> None:
    body = (
        "chooser = {'--list', '--menu'} & set(words)\n"
        "print('0' if chooser else 'wrong') if '--error' not in words else None\n"
        f"open({str(desktop / 'typed')!r}, 'a').write(sys.stdin.read()) if chooser else None"
    )
    odd = tmp_path / "-a <b>"
    odd.mkdir()
    remember_vault(odd)
    program(desktop, name, body)
    remember_vault(tmp_path / "gone")
    remember_vault(vault)
    assert run("open", "--window").code == ExitCode.WRONG_PASSPHRASE
    words = said_to(desktop)[0]
    cells = (desktop / "typed").read_text().splitlines()
    if name == "zenity":  # a cell for each column; it takes `--` and words that begin with - for others
        assert words[-1] == "--print-column=1"
        assert cells == [
            *("0", "letters", str(vault)),
            *("1", "-a <b>", f"{tmp_path}/-a <b>"),
            *("2", "Another vault ...", ""),
        ]
    else:
        assert words[-6:] == ["0", str(vault), "1", f"{tmp_path}/-a <b>", "2", "Another vault ..."]


def test_another_vault_is_chosen(desktop: Path, vault: Path, run: Run, home: Path) -> None:
    program(desktop, "zenity", f"print({str(vault.parent)!r} if '--directory' in words else '')")
    said = run("open", "--window")  # no vault is known: it asks for a directory at once
    assert said.code == ExitCode.VAULT_DIR
    assert "--error" in said_to(desktop)[-1]
    assert f"--filename={home}/" in said_to(desktop)[0], (
        "zenity begins with recent files if nobody says where"
    )


NO_DISPLAY = {
    "zenity": "print('Gtk-WARNING **: cannot open display: :none', file=sys.stderr); sys.exit(1)",
    "kdialog": "print('qt.qpa.xcb: could not connect to display :none', file=sys.stderr); sys.exit(2)",
}
"""As the programs of Debian 12 say it; kdialog then ends by SIGABRT."""


@pytest.mark.parametrize("name", ["zenity", "kdialog"])
def test_a_display_that_nobody_reaches_is_no_closed_window(
    name: str, desktop: Path, vault: Path, run: Run
) -> None:
    program(desktop, name, NO_DISPLAY[name])
    said = run("open", "--window", vault)
    assert said.code == ExitCode.OTHER
    assert "the display :none cannot be reached" in said.err
    assert len(said_to(desktop)) == 1, "no window about it"
    remember_vault(vault)
    assert run("open", "--window").code == ExitCode.OTHER
    cancelled: list[bool] = []
    with Dialogs().notice("Touch it.", lambda: cancelled.append(True)):
        assert wait_until(lambda: len(said_to(desktop)) == 3, 20)
        time.sleep(0.3)  # until its end is noticed
    assert not cancelled


KILLED = """
import sys
from cryptfs.cli.dialogs import Dialogs
from cryptfs.cli.prompt import PassphraseSource, read_passphrase
dialogs = Dialogs()
if sys.argv[1] == "asks":
    read_passphrase(PassphraseSource(window=dialogs.secret("The vault:")))
elif sys.argv[1] == "chooses":
    dialogs.choose([], "Another")
else:
    with dialogs.notice("Touch it.", lambda: None):
        sys.stdin.read()
"""


@pytest.mark.parametrize("what", ["asks", "chooses", "notes"])
def test_a_window_goes_with_a_cryptfs_that_is_killed(what: str, desktop: Path) -> None:
    pid = desktop / "pid"
    noting = f"open({str(pid)!r}, 'w').write(str(os.getpid()))"
    program(desktop, "zenity", f"import os, time\n{noting}\ntime.sleep(60)")
    with subprocess.Popen([sys.executable, "-c", KILLED, what], stdin=subprocess.PIPE) as running:
        assert wait_until(lambda: pid.exists() and pid.read_text() != "", 30)
        running.kill()
    status = Path("/proc", pid.read_text(), "status")

    def is_gone() -> bool:
        try:
            return "\nState:\tZ" in status.read_text()
        except FileNotFoundError:
            return True

    assert wait_until(is_gone, 20)


@pytest.mark.parametrize("name", ["notify-send", "xmessage"])
def test_a_double_click_without_zenity_says_so(
    name: str, desktop: Path, vault: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(desktop, name, "")
    monkeypatch.setattr("cryptfs.cli.open.has_terminal", lambda: False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(desktop))
    used_last = desktop / "mimeapps.list"
    used_last.write_text(f"[Added Associations]\ninode/directory={ENTRY};\n")
    assert run("open", "--window", vault).code == ExitCode.OTHER
    assert ENTRY not in used_last.read_text(), "else each directory would say so from now on"
    assert wait_until((desktop / "log").exists, 20)
    assert wait_until(lambda: "install zenity or kdialog" in (desktop / "log").read_text(), 20)


def test_nothing_is_chosen(desktop: Path, vault: Path, run: Run) -> None:
    program(desktop, "zenity", "sys.exit(1)")
    remember_vault(vault)
    assert run("open", "--window").code == 0
    assert len(said_to(desktop)) == 1
