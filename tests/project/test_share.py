"""The files in share/, which desktops read, fit together and fit the program."""

from __future__ import annotations

import configparser
import json
import os
import re
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import pytest

from cryptfs.cli.exit_codes import ExitCode
from cryptfs.cli.gocryptfs import HELP
from cryptfs.cli.main import every_command
from cryptfs.cli.openwith import ENTRY, leave_directories
from cryptfs.core.slots.checks import CONFIG_NAME
from cryptfs.mount.mounts import FUSE_TYPE
from tests.e2e.programs import require

SHARE = Path(__file__).parents[2] / "share"
ICON = "cryptfs"


FOR_DIRECTORIES = SHARE / "cryptfs" / "zz-cryptfs-directory.desktop"
FILE_MANAGERS = (
    *("caja-folder-handler", "nemo", "org.gnome.Nautilus", "org.kde.dolphin", "pcmanfm", "pcmanfm-qt"),
    *("spacefm", "thunar", "vifm", "xfe"),
)


def desktop_entry(file: Path = SHARE / "applications" / "cryptfs.desktop") -> configparser.SectionProxy:
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(file)
    return parser["Desktop Entry"]


def test_the_config_of_a_vault_has_the_type_that_the_entry_opens() -> None:
    space = "{http://www.freedesktop.org/standards/shared-mime-info}"
    kind = ElementTree.parse(SHARE / "mime" / "packages" / "cryptfs.xml").getroot().find(f"{space}mime-type")
    assert kind is not None
    assert [glob.get("pattern") for glob in kind.findall(f"{space}glob")] == [CONFIG_NAME]
    assert desktop_entry()["MimeType"] == f"{kind.get('type')};"
    named = kind.find(f"{space}icon")
    assert named is not None
    assert named.get("name") == desktop_entry()["Icon"] == ICON
    picture = SHARE / "icons" / "hicolor" / "scalable" / "apps" / f"{ICON}.svg"
    assert ElementTree.parse(picture).getroot().tag.endswith("svg")


def test_the_entry_runs_a_command_that_exists() -> None:
    program, name, option, place = desktop_entry()["Exec"].split()
    assert (program, place) == ("cryptfs", "%f")
    assert any(option in parameter.opts for parameter in every_command()[name].params)
    assert "inode/directory" not in desktop_entry()["MimeType"]


def test_directories_have_an_entry_that_is_never_the_first() -> None:
    entry = desktop_entry(FOR_DIRECTORIES)
    assert FOR_DIRECTORIES.name == ENTRY
    assert entry["MimeType"] == "inode/directory;"
    assert (entry["Exec"], entry["NoDisplay"]) == (desktop_entry()["Exec"], "true")
    assert max(FOR_DIRECTORIES.name, *(f"{name}.desktop" for name in FILE_MANAGERS)) == FOR_DIRECTORIES.name
    others = [desktop_entry(file)["MimeType"] for file in (SHARE / "applications").iterdir()]
    assert not any("inode/directory" in kinds for kinds in others)


def test_the_file_manager_stays_the_default_for_directories(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As GIO sees it: from a package's cache, and after a file manager and cryptfs have changed a list."""
    require("gio", "update-desktop-database", "desktop-file-validate")
    applications, used_last = tmp_path / "applications", tmp_path / "mimeapps.list"
    applications.mkdir()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    entry = "[Desktop Entry]\nType=Application\nName=Files\nExec=true %f\nMimeType=inode/directory;\n"
    for name in FILE_MANAGERS:
        (applications / f"{name}.desktop").write_text(entry)
    installed = FOR_DIRECTORIES.read_text().replace("Exec=cryptfs", "Exec=true")  # else GIO leaves it out
    (applications / FOR_DIRECTORIES.name).write_text(installed)
    subprocess.run(["desktop-file-validate", FOR_DIRECTORIES], check=True)
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "XDG_CONFIG_HOME": str(tmp_path),
        "XDG_DATA_HOME": str(tmp_path / "none"),
        "XDG_DATA_DIRS": str(tmp_path),
        "LC_ALL": "C.UTF-8",
    }

    def seen() -> str:
        words = ["gio", "mime", "inode/directory"]
        return subprocess.run(words, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout

    for name in sorted(FILE_MANAGERS, key="{}.desktop".format):  # as in the cache
        subprocess.run(["update-desktop-database", applications], check=True)
        first, _, registered = seen().partition("\n")
        assert f"{name}.desktop" in first
        assert FOR_DIRECTORIES.name in registered, "it is among those of Open With"
        used_last.write_text(f"[Added Associations]\ninode/directory={FOR_DIRECTORIES.name};\n")
        assert FOR_DIRECTORIES.name in seen().partition("\n")[0], "what leave_directories is for"
        leave_directories()
        assert seen().partition("\n")[::2] == (first, registered)
        (applications / f"{name}.desktop").unlink()


def test_the_description_for_sirikali() -> None:
    about = json.loads((SHARE / "SiriKali" / "backends" / "cryptfs.json").read_text())
    assert about["fuseNames"] == [FUSE_TYPE]
    assert about["configFileNames"] == [CONFIG_NAME]
    assert about["wrongPasswordErrorCode"] == str(int(ExitCode.WRONG_PASSPHRASE))
    assert about["configFileArgument"]  # without it, SiriKali 1.5.0 refuses to mount
    structures = (about["createControlStructure"], about["mountControlStructure"])
    calls = [["cryptfs", *each.split()] for each in structures]
    calls += [about["unMountCommand"], *(each.split() for each in about["volumePropertiesCommands"])]
    for program, name, *words in calls:
        assert program == about["executableName"]
        known = {opt for parameter in every_command()[name].params for opt in parameter.opts}
        assert {word for word in words if word.startswith("-")} <= known


@pytest.mark.parametrize("flag", re.findall(r"(?m)^  (-[a-z_]+)", HELP))
def test_the_page_of_cryptfs_gocryptfs_has_its_flags(flag: str) -> None:
    page = (SHARE / "man" / "man1" / "cryptfs-gocryptfs.1").read_text().replace("\\-", "-")
    assert re.search(rf"^(\.B |\\fB.*\\fB|\\fB){flag}\b", page, re.MULTILINE)
