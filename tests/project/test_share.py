"""The files in share/, which desktops read, fit together and fit the program."""

from __future__ import annotations

import configparser
import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from cryptfs.cli.exit_codes import ExitCode
from cryptfs.cli.gocryptfs import HELP
from cryptfs.cli.main import every_command
from cryptfs.core.slots.checks import CONFIG_NAME
from cryptfs.mount.mounts import FUSE_TYPE

SHARE = Path(__file__).parents[2] / "share"
ICON = "cryptfs"


def desktop_entry() -> configparser.SectionProxy:
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(SHARE / "applications" / "cryptfs.desktop")
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
