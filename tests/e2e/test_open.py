"""`cryptfs open` on real mounts, as a person and as a double click on a vault start it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cryptfs.mount.mounts import mount_at, wait_until
from cryptfs.vfs.vault import Vault
from tests.e2e.mounting import detach
from tests.e2e.programs import require
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
    def place(self) -> Path:
        return self.path / "Vaults" / "letters"

    def cryptfs(self, *words: object, code: int = 0, stdin: str = "", **variables: str) -> str:
        """Run a command without a terminal; returns what it says on both streams."""
        environment = {
            **{name: text for name, text in child_environment().items() if name != "DISPLAY"},
            "HOME": str(self.path),
            "XDG_STATE_HOME": str(self.path / ".state"),
            **variables,
        }
        done = subprocess.run(
            [sys.executable, "-m", "cryptfs", *map(str, words)],
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


def test_open_and_open_again(home: Home) -> None:
    said = home.cryptfs("open", home.vault, stdin="right\n")
    assert str(home.place) in said
    mount = mount_at(home.place)
    assert mount is not None
    assert mount.source == str(home.vault)
    (home.place / "diary").write_text("kept")
    assert f"open already, at {home.place}" in home.cryptfs("open", "letters")
    assert home.cryptfs("open", "--list") == f"{home.vault} on {home.place}\n"
    home.cryptfs("umount", home.place)
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
    programs = home.path / "bin"
    programs.mkdir()
    shown = programs / "shown"
    for name, body in (
        ("zenity", "echo right"),
        ("xdg-open", f'echo "$1" > {shown}.new; mv {shown}.new {shown}'),
    ):
        (programs / name).write_text(f"#!/bin/sh\n{body}\n")
        (programs / name).chmod(0o755)
    entry = Path(__file__).parents[2] / "share" / "applications" / "cryptfs.desktop"
    (line,) = [each for each in entry.read_text().splitlines() if each.startswith("Exec=")]
    words = [str(home.vault / "cryptfs.json") if each == "%f" else each for each in line[5:].split()]
    assert words[0] == "cryptfs"
    home.cryptfs(*words[1:], DISPLAY=":none", PATH=f"{programs}:{os.environ['PATH']}")
    assert mount_at(home.place) is not None
    assert wait_until(shown.exists, 30)
    assert shown.read_text() == f"{home.place}\n"
    known = json.loads((home.path / ".state" / "cryptfs" / "vaults.json").read_text())
    assert known == {"vaults": [str(home.vault)]}


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
