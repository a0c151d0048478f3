"""The documents name only what exists."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from cryptfs.cli.exit_codes import MEANINGS, ExitCode
from cryptfs.cli.main import cli
from tests.unit.doc_names import broken_links, missing, names_of

ROOT = Path(__file__).parents[2]
CODE = names_of(ROOT / "cryptfs")
DOCUMENTS = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])
CHECKED = [path for path in DOCUMENTS if path.name != "FORMAT.md"]  # its names are those of the format
# Names of the vault, of the kernel and of programs; no code of ours.
KNOWN = frozenset(
    {
        *(
            "cryptfs.json",
            "cryptfs.lock",
            "cryptfs.dir",
            "cryptfs.tmp",
            "cryptfs.links",
            "cryptfs.sessions",
            "cryptfs.unsettled",
            "fuse.cryptfs",
            "size_min",
        ),
        *("user_allow_other", "hard_remove", "cryptfs.mount"),
        *("security.capability", "/etc/fstab", "/dev/fuse", "/sbin", "/proc/self/mountinfo"),
    }
)


def ids(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", CHECKED, ids=ids)
def test_every_name_and_file_exists(path: Path) -> None:
    found = missing(path.read_text(encoding="utf-8"), CODE, ROOT, KNOWN)
    assert [name for name in found if not name.startswith("test_")] == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=ids)
def test_every_link_leads_somewhere(path: Path) -> None:
    assert broken_links(path) == []


@pytest.mark.parametrize(
    "text",
    [
        "`OpenFile.raed`",
        "`vfs/openfiles.py`",
        "`scripts/nothing`",
        "`NoSuchClass`",
        "`no_such_function`",
        "`NO_SUCH_CONSTANT`",
        "`filestate.nothing`",
        "`VaultTree.cipher_name`",
    ],
)
def test_a_name_that_does_not_exist_is_found(text: str) -> None:
    assert missing(text, CODE, ROOT, KNOWN) == [text.strip("`")]


@pytest.mark.parametrize(
    "text",
    [
        "`OpenFile.read_into`",
        "`FileState.change_count`",
        "`VaultTree.unlink`",  # of its base class
        "`core/geometry.py`",
        "`core/`",
        "`FILLED_GAP`",
        "`size`",
        "`cryptfs mount`",
        "```\nNoSuchClass\n```",
    ],
)
def test_what_exists_or_is_no_name_passes(text: str) -> None:
    assert missing(text, CODE, ROOT, KNOWN) == []


def test_architecture_names_every_module() -> None:
    text = (ROOT / "docs" / "ARCHITECTURE.md").read_text(encoding="utf-8")
    modules = {
        str(path.relative_to(ROOT / "cryptfs"))
        for layer in ("core", "storage", "vfs", "mount")
        for path in (ROOT / "cryptfs" / layer).rglob("*.py")
        if path.name != "__init__.py"
    }
    assert {module for module in modules if f"`{module}`" not in text} == set()


def test_the_threat_model_names_tests_that_exist() -> None:
    existing = {path.stem for path in (ROOT / "tests" / "tamper").glob("test_*.py")}
    text = (ROOT / "docs" / "THREAT_MODEL.md").read_text(encoding="utf-8")
    assert set(re.findall(r"`(test_\w+)`", text)) <= existing


def test_the_readme_uses_options_that_exist() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    existing = {"--help", "--quick", "--device", "--cap-add"}  # the last three are of other programs
    for command in (cli, *cli.commands.values()):
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                existing |= {*parameter.opts, *parameter.secondary_opts}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)) <= existing


def test_the_readme_has_every_exit_code() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = {int(code): meaning for code, meaning in re.findall(r"^\| (\d+) \| (.+?) \|$", text, re.MULTILINE)}
    assert rows == {int(code): MEANINGS[code] for code in ExitCode}
