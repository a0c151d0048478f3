"""`cryptfs integrate` in a new home directory: man(1), shells, systemd and desktops find its files."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from cryptfs.cli.integrate import PARTS
from cryptfs.core.slots.checks import CONFIG_NAME
from tests.e2e.programs import require
from tests.schema import check_answer

ROOT = Path(__file__).parents[2]
# For programs, not for people; other programs; and what must not be in the data directory of a user.
NOT_INSTALLED = {
    *("cryptfs/json-schema.json", "SiriKali/backends/cryptfs.json", "cryptfs/zz-cryptfs-directory.desktop"),
}
UNIT = "systemd/user/cryptfs@.service"


@dataclass
class Home:
    """A new home directory, and a prefix with the files of the wheel, where nothing looks for them."""

    path: Path
    prefix: Path

    @property
    def data(self) -> Path:
        return self.path / ".local" / "share"

    @property
    def environment(self) -> dict[str, str]:
        return {
            "HOME": str(self.path),
            "PATH": f"{self.path}/.local/bin:{os.environ['PATH']}",
            "LC_ALL": "C.UTF-8",
            "CRYPTFS_CONFIG": "",
        }

    def install(self, prefix: Path) -> None:
        """As pip does it: the package and its data below one prefix, and the command on PATH."""
        self.prefix = prefix
        packages = prefix / "lib" / "python3" / "site-packages"
        shutil.copytree(ROOT / "cryptfs", packages / "cryptfs", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(ROOT / "share", prefix / "share", dirs_exist_ok=True)
        program = self.path / ".local" / "bin" / "cryptfs"
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text(
            f'#!/bin/sh\nexport PYTHONPATH="{packages}"\nexec {sys.executable} -P -m cryptfs "$@"\n'
        )
        program.chmod(0o755)

    def run(
        self, *words: str | Path, code: int = 0, env: Mapping[str, str] = {}
    ) -> subprocess.CompletedProcess[str]:
        environment = {**self.environment, **env}
        done = subprocess.run(
            words, env=environment, cwd=self.path, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == code, (done.stdout, done.stderr)
        return done

    def integrate(
        self, *words: str, code: int = 0, env: Mapping[str, str] = {}
    ) -> subprocess.CompletedProcess[str]:
        return self.run(self.path / ".local" / "bin" / "cryptfs", "integrate", *words, code=code, env=env)

    def states(self) -> dict[str, str]:
        """The state of each file by its path below share/."""
        found = check_answer("integrate", self.integrate("--list", "--json").stdout)
        assert found["share"] == str(self.prefix / "share")
        return {
            str(Path(each["source"]).relative_to(found["share"])): each["state"] for each in found["files"]
        }

    def all_are(self, state: str) -> bool:
        return set(self.states().values()) == {state}

    def links(self) -> list[Path]:
        return [each for each in self.data.rglob("*") if each.is_symlink()]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path / "home of ana", tmp_path)
    home.path.mkdir()
    home.install(tmp_path / "prefix")
    return home


def test_all_files_in_share_are_listed(home: Home) -> None:
    here = {
        each.relative_to(ROOT / "share").as_posix() for each in (ROOT / "share").rglob("*") if each.is_file()
    }
    assert home.states().keys() == here - NOT_INSTALLED
    assert home.all_are("missing")
    assert not home.data.exists(), "to list is not to install"
    lines = home.integrate("--list").stdout.splitlines()
    assert len(lines) == len(PARTS)
    assert any(line.startswith("missing") and f" {home.data}/{UNIT}" in line for line in lines)


def test_man_finds_the_pages(home: Home) -> None:
    require("man")
    home.run("man", "-w", "cryptfs-mount", code=16, env={"MANPATH": str(home.data / "man")})
    home.integrate()
    for page in ("cryptfs", "cryptfs-mount", "mount.fuse.cryptfs"):
        place = Path(home.run("man", "-w", page).stdout.strip())
        assert place.is_relative_to(home.data / "man") or place.is_relative_to(home.prefix)
    assert "NAME" in home.run("man", "-P", "cat", "cryptfs").stdout


def test_shells_complete(home: Home) -> None:
    require("bash", "fish", "zsh")
    assert "umount" not in home.run("fish", "-c", 'complete -C "cryptfs umo"').stdout
    said = home.integrate().stderr
    assert home.run("fish", "-c", 'complete -C "cryptfs umo"').stdout.startswith("umount")
    line = said.splitlines()[-1].partition(": ")[2]
    loaded = f"{line}; autoload -Uz compinit; compinit -u -D; print ${{_comps[cryptfs]}}"
    assert home.run("zsh", "-f", "-c", loaded).stdout == "_cryptfs\n"
    script = f'source "{home.data}/bash-completion/completions/cryptfs"; complete -p cryptfs'
    assert "_cryptfs_completion" in home.run("bash", "--norc", "-c", script).stdout


def test_the_unit_is_right_for_systemd(home: Home) -> None:
    require("systemd-analyze")
    home.integrate()
    unit = home.data / "systemd" / "user" / "cryptfs@photos.service"
    unit.symlink_to(home.data / UNIT)
    said = home.run(
        "systemd-analyze", "verify", "--user", "--man=no", unit, env={"XDG_RUNTIME_DIR": str(home.path)}
    )
    assert "cryptfs" not in said.stderr


def test_desktops_know_the_type_and_its_program(home: Home) -> None:
    require("update-mime-database", "update-desktop-database", "desktop-file-validate", "gio")
    home.integrate()
    applications = home.data / "applications"
    home.run("desktop-file-validate", applications / "cryptfs.desktop")
    vault = home.path / CONFIG_NAME
    vault.write_text("{}\n")
    told = home.run(
        "gio", "info", "-a", "standard::content-type", vault, env={"XDG_DATA_HOME": str(home.data)}
    ).stdout
    assert "application/x-cryptfs-vault" in told
    told = home.run("gio", "mime", "application/x-cryptfs-vault").stdout
    assert "cryptfs.desktop" in told.partition("\n")[0]
    assert "cryptfs.desktop" not in home.run("gio", "mime", "inode/directory", code=0).stdout
    home.integrate("--uninstall")
    assert "cryptfs.desktop" not in home.run("gio", "mime", "application/x-cryptfs-vault").stdout


def test_again_and_away(home: Home) -> None:
    said = home.integrate().stderr
    assert said.startswith(
        f"Installed {len(home.states())} links to files in {home.prefix}/share: man pages, "
    )
    assert home.all_are("installed")
    assert len(home.links()) == len(home.states())
    assert home.integrate().stderr == "There is nothing to install: cryptfs integrate --list\n"
    found = check_answer("integrate", home.integrate("--uninstall", "--json", "--quiet").stdout)
    assert {each["state"] for each in found["files"]} == {"missing"}
    assert home.links() == []
    assert home.integrate("--uninstall").stderr == "There is nothing to remove: cryptfs integrate --list\n"
    assert home.integrate("--quiet").stderr == ""
    assert home.all_are("installed")


def test_the_data_directory_may_be_elsewhere(home: Home) -> None:
    elsewhere = home.path / "data"
    home.integrate(env={"XDG_DATA_HOME": str(elsewhere)})
    assert (elsewhere / UNIT).is_symlink()
    assert {each.relative_to(home.data).parts[0] for each in home.links()} == {"man"}, (
        "man knows no such variable"
    )


def test_what_others_made_stays(home: Home) -> None:
    own = home.data / UNIT
    own.parent.mkdir(parents=True)
    own.write_text("[Service]\n")
    page = home.data / "man" / "man1" / "cryptfs.1"
    page.parent.mkdir(parents=True)
    page.symlink_to(home.path / "my own page")
    said = home.integrate(code=11).stderr
    assert f"  '{own}'\n" in said
    assert f"  '{page}'\n" in said
    states = home.states()
    assert {name for name, state in states.items() if state == "foreign"} == {UNIT, "man/man1/cryptfs.1"}
    assert set(states.values()) == {"foreign", "installed"}, "all others are installed"
    home.integrate("--uninstall")
    assert own.read_text() == "[Service]\n"
    assert page.readlink() == home.path / "my own page"
    assert home.links() == [page]


def test_another_installation(home: Home, tmp_path: Path) -> None:
    """pipx has another place for its environments in a later version; the old one may be gone."""
    home.integrate()
    first = home.prefix
    home.install(tmp_path / "another")
    assert home.all_are("other-installation")
    home.integrate("--uninstall")
    assert len(home.links()) == len(home.states()), "the other cryptfs has its files"
    home.integrate()
    assert home.all_are("installed")
    assert all(str(tmp_path / "another") in str(each.readlink()) for each in home.links())
    shutil.rmtree(home.prefix)
    home.install(first.with_name("third"))
    home.integrate("--uninstall")
    assert home.links() == [], "they led to nothing"


@pytest.mark.parametrize("where", ["of the user", "of the system"])
def test_where_programs_look_anyway(home: Home, tmp_path: Path, where: str) -> None:
    prefix = home.path / ".local" if where == "of the user" else tmp_path / "usr"
    home.install(prefix)
    more = {} if where == "of the user" else {"XDG_DATA_DIRS": f"/nowhere:{prefix}/share"}
    for option in ((), ("--uninstall",), ("--list",)):
        said = home.integrate(*option, env=more)
        assert ("nothing to" in said.stderr) == (option != ("--list",))
    found = check_answer("integrate", home.integrate("--list", "--json", env=more).stdout)
    assert {each["state"] for each in found["files"]} == {"installed"}
    assert all(each["path"] == each["source"] for each in found["files"])
    assert home.links() == []


def test_a_directory_of_links_is_not_emptied(home: Home) -> None:
    """An earlier manual said to make man a link."""
    home.data.mkdir(parents=True)
    (home.data / "man").symlink_to(home.prefix / "share" / "man")
    home.integrate()
    home.integrate("--uninstall")
    assert home.links() == [home.data / "man"]
    assert (home.prefix / "share" / "man" / "man1" / "cryptfs.1").is_file()


def test_a_program_that_fails_is_named(home: Home) -> None:
    broken = home.path / ".local" / "bin" / "update-mime-database"
    broken.write_text("#!/bin/sh\necho no room >&2\nexit 3\n")
    broken.chmod(0o755)
    assert "cryptfs: warning: update-mime-database failed: no room\n" in home.integrate().stderr
    assert home.all_are("installed")


def test_without_the_command_on_path_it_says_so(home: Home) -> None:
    program = str(home.path / ".local" / "bin" / "cryptfs")
    said = home.run(program, "integrate", env={"PATH": "/usr/bin:/bin"}).stderr
    assert "man finds the pages if ~/.local/bin is in PATH." in said
    assert "man finds" not in home.integrate("--uninstall").stderr


def test_options_that_exclude_each_other(home: Home) -> None:
    assert "exclude each other" in home.integrate("--list", "--uninstall", code=1).stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can take the home of another user")
def test_root_leaves_no_files_in_the_home_of_a_user(home: Home) -> None:
    shutil.chown(home.path, 65_534)
    shutil.rmtree(home.data, ignore_errors=True)
    (home.path / ".local").rename(home.path / "programs")
    said = home.run(home.path / "programs" / "bin" / "cryptfs", "integrate", code=1).stderr
    assert said == f"cryptfs: {home.path} belongs to another user: run this as that user, without sudo\n"
    assert not (home.path / ".local").exists()
