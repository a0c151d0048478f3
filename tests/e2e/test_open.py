"""`cryptfs open` on real mounts, as a person and as a double click on a vault start it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from cryptfs.mount.leaving import ownmountpoint
from cryptfs.mount.mounts import mount_at, wait_until
from cryptfs.unlock.table import changing_slots
from cryptfs.unlock.token import new_fido2
from cryptfs.vfs.vault import Vault
from tests.e2e.mounting import detach
from tests.e2e.programs import require
from tests.e2e.with_tokens import save_tokens
from tests.softtoken import Person, SoftToken
from tests.support import child_environment

pytestmark = pytest.mark.skipif(not Path("/dev/fuse").exists(), reason="needs /dev/fuse")


@dataclass(frozen=True)
class Home:
    """Somebody's home directory, with a vault in it."""

    path: Path

    @property
    def vault(self) -> Path:
        return self.path / "letters"

    @property
    def config(self) -> Path:
        """The config file, which a test may write."""
        return self.path / "config.toml"

    def programs(self, **bodies: str) -> dict[str, str]:
        """Make programs, by shell; returns the environment of a desktop that has them. '_' stands for '-'."""
        place = self.path / "bin"
        place.mkdir(exist_ok=True)
        for name, body in bodies.items():
            file = place / name.replace("_", "-")
            file.write_text(f"#!/bin/sh\n{body}\n")
            file.chmod(0o755)
        return {"DISPLAY": ":none", "PATH": f"{place}:{os.environ['PATH']}"}

    @property
    def place(self) -> Path:
        return self.path / "Vaults" / "letters"

    def cryptfs(
        self,
        *words: object,
        code: int = 0,
        stdin: str = "",
        program: tuple[object, ...] = ("cryptfs",),
        desktop: Mapping[str, str] | None = None,
    ) -> str:
        """Run a command without a terminal; returns what it says on both streams.

        Args: program: a module, and its first words.   desktop: from `programs`; None is none.
        """
        environment = {
            **{name: text for name, text in child_environment().items() if name != "DISPLAY"},
            "HOME": str(self.path),
            "XDG_STATE_HOME": str(self.path / ".state"),
            "CRYPTFS_CONFIG": str(self.config) if self.config.exists() else "",
            **(desktop or {}),
        }
        done = subprocess.run(
            [sys.executable, "-m", *map(str, (*program, *words))],
            input=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
            check=False,
            env=environment,
            start_new_session=True,  # without the terminal of whoever runs the tests
        )
        assert done.returncode == code, done.stdout
        return done.stdout


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    made = Home(tmp_path)
    Vault.create(made.vault, b"right", kdf_memory=64 << 20)
    yield made
    vaults = tmp_path / "Vaults"
    for place in [vaults / name for name in os.listdir(vaults)] if vaults.exists() else []:
        detach(place)
        if ownmountpoint.is_own(place):
            ownmountpoint.restore(place)  # else nothing could remove it, and pytest could not tidy up


def test_open_and_open_again(home: Home) -> None:
    said = home.cryptfs("open", home.vault, stdin="right\n")
    assert str(home.place) in said
    mount = mount_at(home.place)
    assert mount is not None
    assert mount.source == str(home.vault)
    (home.place / "diary").write_text("kept")
    assert f"already open, at {home.place}" in home.cryptfs("open", "letters")
    assert home.cryptfs("open", "--list") == f"{home.vault} on {home.place}\n"
    assert str(home.place) in home.cryptfs("status", "letters")
    home.cryptfs("umount", "letters")
    assert mount_at(home.place) is None
    assert f"the vault {home.vault} is not mounted" in home.cryptfs("umount", "letters", code=1)
    home.cryptfs("open", home.vault / "cryptfs.json", "--read-only", stdin="right\n")
    assert (home.place / "diary").read_text() == "kept"
    mount = mount_at(home.place)
    assert mount is not None
    assert mount.read_only
    home.cryptfs("umount", home.place)
    home.cryptfs("open", "letters", "--at", home.path / "Vaults" / "a" / "b", stdin="wrong\n", code=12)
    assert os.listdir(home.path / "Vaults") == ["letters"]


def test_a_double_click(home: Home) -> None:
    """The Exec line of the desktop entry, with stand-ins for zenity and the file manager."""
    shown = home.path / "shown"
    desktop = home.programs(zenity="echo right", xdg_open=f'echo "$1" > {shown}.new; mv {shown}.new {shown}')
    entry = Path(__file__).parents[2] / "share" / "applications" / "cryptfs.desktop"
    (line,) = [each for each in entry.read_text().splitlines() if each.startswith("Exec=")]
    words = [str(home.vault / "cryptfs.json") if each == "%f" else each for each in line[5:].split()]
    assert words[0] == "cryptfs"
    home.cryptfs(*words[1:], desktop=desktop)
    assert mount_at(home.place) is not None
    assert wait_until(shown.exists, 30)
    assert shown.read_text() == f"{home.place}\n"
    known = json.loads((home.path / ".state" / "cryptfs" / "vaults.json").read_text())
    assert known == {"vaults": [str(home.vault)]}


def test_open_with_in_the_menu_of_a_directory(home: Home) -> None:
    """A vault, and a directory that is none."""
    entry = Path(__file__).parents[2] / "share" / "cryptfs" / "zz-cryptfs-directory.desktop"
    (line,) = [each for each in entry.read_text().splitlines() if each.startswith("Exec=")]
    shown, plain = home.path / "shown", home.path / "plain"
    plain.mkdir()
    at_browse = home.path / "at browse"
    used_last = home.path / ".config" / "mimeapps.list"
    used_last.parent.mkdir()
    browse = f"cp '{used_last}' '{at_browse}.new'; mv '{at_browse}.new' '{at_browse}'"
    desktop = home.programs(zenity=f'echo "$@" >> {shown}; echo right', xdg_open=browse)
    desktop["XDG_CONFIG_HOME"] = str(used_last.parent)

    def chosen(directory: Path, code: int) -> None:
        """As Thunar does it, which says what was used last."""
        used_last.write_text(f"[Added Associations]\ninode/directory={entry.name};\n")
        words = [str(directory) if each == "%f" else each for each in line[5:].split()]
        home.cryptfs(*words[1:], code=code, desktop=desktop)
        assert used_last.read_text() == "[Added Associations]\n"

    chosen(plain, 6)
    assert f"{plain} is not a vault" in " ".join(shown.read_text().split()), "in lines of any length"
    assert mount_at(home.place) is None
    chosen(home.vault, 0)
    assert mount_at(home.place) is not None
    assert wait_until(at_browse.exists, 30)
    assert at_browse.read_text() == "[Added Associations]\n", "else cryptfs would be asked to show the files"


def test_several_mounts_of_one_name(home: Home) -> None:
    other = home.path / "elsewhere" / "letters"
    other.parent.mkdir()
    Vault.create(other, b"right", kdf_memory=64 << 20)
    home.cryptfs("open", home.vault, stdin="right\n")
    home.cryptfs("open", other, stdin="right\n")
    assert mount_at(home.path / "Vaults" / "letters 2") is not None
    said = home.cryptfs("umount", "letters", code=1)
    assert f"{home.place}\n" in said and "letters 2" in said
    home.cryptfs("umount", home.place)
    home.cryptfs("umount", "letters")
    assert mount_at(home.path / "Vaults" / "letters 2") is None


NAMED = """
[mount]
durability = "process"
options = ["nosuid"]
[vaults.post]
vault = "{vault}"
mountpoint = "{mountpoint}"
passcommand = "echo right"
idle = "10m"
read_only = true
fsname = "by its name"
"""


@pytest.mark.parametrize("given", ["post", "path", "cryptfs.json", "letters"])
def test_the_config_file_counts(home: Home, given: str) -> None:
    """By its name, its path, the file that a double click opens, and as a vault that was opened before."""
    place = home.path / "Vaults" / "configured"
    if given == "letters":
        home.cryptfs("open", home.vault, stdin="right\n")
        home.cryptfs("umount", home.place)
    home.config.write_text(NAMED.format(vault=home.vault, mountpoint=place))
    word: object = {"path": home.vault, "cryptfs.json": home.vault / "cryptfs.json"}.get(given, given)
    said = home.cryptfs("open", word)
    mount = mount_at(place)
    assert mount is not None, said
    assert (mount.source, mount.read_only) == ("by its name", True)
    told = json.loads(home.cryptfs("status", "--json", "post"))
    assert told["unmounts"]["idle_seconds"] == 600
    assert "already open" in home.cryptfs("open", "post")
    home.cryptfs("umount", "post")


def test_the_command_line_of_open_goes_before_the_config_file(home: Home) -> None:
    home.config.write_text(NAMED.format(vault=home.vault, mountpoint=home.path / "elsewhere"))
    (home.path / "wrong").write_text("wrong\n")
    (home.path / "wrong").chmod(0o600)
    home.cryptfs("open", "post", "--passfile", home.path / "wrong", code=12)
    assert not (home.path / "elsewhere").exists()
    home.cryptfs("open", "post", "--at", home.path / "Vaults" / "here")
    assert mount_at(home.path / "Vaults" / "here") is not None


def test_a_vault_is_remembered_if_the_command_after_its_mount_fails(home: Home) -> None:
    home.config.write_text('[mount]\nafter_mount = "false"\n')
    said = home.cryptfs("open", home.vault, stdin="right\n", code=11)
    assert "the vault is mounted, but" in said
    assert home.cryptfs("open", "--list") == f"{home.vault} on {home.place}\n"


def test_a_vault_that_is_not_mounted_is_not_remembered(home: Home) -> None:
    home.config.write_text('[mount]\nlog_file = "/nowhere/log"\n')
    home.cryptfs("open", home.vault, stdin="right\n", code=11)
    assert "No vault has been opened yet" in home.cryptfs("open", "--list")


def test_options_of_all_mounts_count_without_a_name(home: Home) -> None:
    home.config.write_text('[mount]\nread_only = true\nidle = "1h"\n')
    home.cryptfs("open", home.vault, stdin="right\n")
    told = json.loads(home.cryptfs("status", "--json", home.place))
    assert (told["read_only"], told["unmounts"]["idle_seconds"]) == (True, 3600)


def test_two_names_of_one_vault_say_nothing_about_its_path(home: Home) -> None:
    home.config.write_text(
        "".join(f'[vaults.{name}]\nvault = "{home.vault}"\nread_only = true\n' for name in ("a", "b"))
    )
    home.cryptfs("open", home.vault, stdin="right\n")
    mount = mount_at(home.place)
    assert mount is not None and not mount.read_only


def test_a_wrong_config_file_is_said_in_the_window(home: Home) -> None:
    home.config.write_text("[mount]\nread-only = true\n")
    shown = home.path / "shown"
    desktop = home.programs(zenity=f'echo "$@" >> {shown}')
    assert "write read_only" in home.cryptfs("open", "--window", home.vault, code=1, desktop=desktop)
    said = " ".join(shown.read_text().split())
    assert "--error" in said and "write read_only" in said


def with_a_token_alone(home: Home) -> Path:
    """Only a FIDO2 token opens the vault from now on; returns what plugs it in."""
    token = SoftToken("Blue")
    with changing_slots(home.vault, b"right") as table:
        table.add(new_fido2(token, Person([token]), uv=False))
        table.remove(0)
        table.save()
    token.behaviour.touch = "awaited"  # for two seconds
    return save_tokens(home.path / "plugged", [token])


def test_a_touch_on_the_desktop(home: Home) -> None:
    """Nobody has given an option; the window says what to do, and goes."""
    plugged, shown = with_a_token_alone(home), home.path / "shown"
    desktop = home.programs(zenity=f'echo "$$ $@" >> {shown}; exec sleep 60', xdg_open="exit 0")
    words = ("open", "--window", home.vault)
    home.cryptfs(*words, program=("tests.e2e.with_tokens", plugged), desktop=desktop)
    assert mount_at(home.place) is not None
    (line,) = shown.read_text().splitlines()
    assert "Touch the FIDO2 token 'Blue' now, to open the vault." in line
    with pytest.raises(ProcessLookupError):
        os.kill(int(line.split()[0]), 0)


def test_a_touch_that_is_cancelled(home: Home) -> None:
    plugged, shown = with_a_token_alone(home), home.path / "shown"
    desktop = home.programs(zenity=f'echo "$@" >> {shown}')
    words = ("open", "--window", home.vault)
    said = home.cryptfs(*words, program=("tests.e2e.with_tokens", plugged), code=9, desktop=desktop)
    assert "before the token was touched" in said
    assert len(shown.read_text().splitlines()) == 1, "the person knows, and gets no window about it"
    assert not (home.path / "Vaults").exists()


def test_the_trash_is_in_the_vault(home: Home) -> None:
    """A file that is thrown away stays encrypted: g_file_trash takes a directory of the mount."""
    require("gio")
    home.cryptfs("open", home.vault, stdin="right\n")
    (home.place / "gone").write_text("kept in the trash")
    environment = {**os.environ, "HOME": str(home.path), "XDG_DATA_HOME": str(home.path / ".data")}
    subprocess.run(["gio", "trash", home.place / "gone"], env=environment, check=True)
    trash = home.place / f".Trash-{os.getuid()}"
    assert os.listdir(home.place) == [trash.name]
    assert (trash / "files" / "gone").read_text() == "kept in the trash"
