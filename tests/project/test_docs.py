"""The documents name only what exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import click
import pytest

from cryptfs.cli.exit_codes import MEANINGS, ExitCode
from cryptfs.cli.main import cli, every_command
from tests.project.doc_names import broken_links, missing, names_of
from tests.project.layers import first_lines, rooms

ROOT = Path(__file__).parents[2]
CODE = names_of(ROOT / "cryptfs")
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
OTHER_NAMES = ("FORMAT.md", "JSON.md")  # their names are those of the format, and of fields of answers
CHECKED = [path for path in DOCUMENTS if path.name not in OTHER_NAMES]
# Names of the vault, of the kernel and of programs; no code of ours.
KNOWN = frozenset(
    {
        *(
            "cryptfs.json",
            "cryptfs.lock",
            "cryptfs.dir",
            "cryptfs.tmp",
            "cryptfs.links",
            "cryptfs.recovery",
            "cryptfs.rekey",
            "cryptfs.set",
            "cryptfs.sessions",
            "cryptfs.unsettled",
            "gocryptfs.conf",
            "vaults.json",
            "application/x-cryptfs-vault",
            "fuse.cryptfs",
            "umount.fuse",
            "size_min",
        ),
        *("CRYPTFS_VAULT", "CRYPTFS_MOUNTPOINT", "CRYPTFS_EVENT"),
        *("expect_identity", "read_only", "auto_mkdir", "no_pin", "config.toml"),
        *("CRYPTFS_PASSFILE", "CRYPTFS_KEYFILE", "CRYPTFS_CONFIG", "cryptfs.passphrase", "cryptfs.keyfile"),
        *("cryptfs@.service", "bin/cryptfs", "CRYPTFS_PATH", "CRYPTFS_CHUNK", "CRYPTFS_REASON"),
        *("user_allow_other", "hard_remove", "cryptfs.mount"),
        *("security.capability", "/etc/fstab", "/dev/fuse", "/sbin", "/proc/self/mountinfo"),
    }
)


def ids(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", CHECKED, ids=ids)
def test_every_name_and_file_exists(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    of_rooms = {name for files in rooms_in(text).values() for name in files}  # see the next test
    found = missing(text, CODE, ROOT, KNOWN | of_rooms)
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


def rooms_in(text: str) -> dict[str, list[str]]:
    """The files that the table of rooms names in each room."""
    rows = re.findall(r"^\| `([a-z/]+)/` \|([^|]*)\|", text, re.MULTILINE)
    return {room: re.findall(r"`(\w+\.py)`", first) for room, first in rows}


def test_architecture_names_every_room_and_its_files() -> None:
    text = (ROOT / "docs" / "ARCHITECTURE.md").read_text(encoding="utf-8")
    named, real = rooms_in(text), rooms(ROOT / "cryptfs")
    assert named.keys() == {room.replace(".", "/") for room in real} - {"unlock/carriers"}  # drawn above it
    assert {f"{room}/{file}" for room, files in named.items() for file in files} <= {
        f"{room.replace('.', '/')}/{name}.py" for room, files in real.items() for name in files
    }


@pytest.mark.parametrize("room", sorted(rooms(ROOT / "cryptfs")))
def test_the_first_line_of_every_file_is_a_sentence(room: str) -> None:
    """It stands for the file in the list of the room."""
    lines = first_lines(ROOT / "cryptfs", room.replace(".", "/"))
    assert len(lines) == len(rooms(ROOT / "cryptfs")[room])
    assert [line for line in lines if not line.endswith(".")] == []


def test_the_page_of_tests_has_every_room() -> None:
    text = (ROOT / "tests" / "README.md").read_text(encoding="utf-8")
    named = {room.split("/")[0] for room in re.findall(r"`([a-z0-9]+/(?:[a-z]+/)?)`", text)}
    found = {path.parent.name for path in (ROOT / "tests").glob("*/__init__.py")}
    assert found - named == set()


def test_every_lock_is_named() -> None:
    text = (ROOT / "docs" / "RUNNING.md").read_text(encoding="utf-8")
    table = text.partition("## 1. Locks")[2].partition("\n## ")[0]
    made = re.compile(r"threading\.R?Lock\(|=threading\.R?Lock")
    owners = {
        owner.name
        for path in sorted((ROOT / "cryptfs").rglob("*.py"))
        for owner in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(owner, ast.ClassDef) and made.search(ast.unparse(owner))
    }
    assert "FileState" in owners
    assert [name for name in sorted(owners) if f"`{name}" not in table] == []


def test_readme_and_manual_use_options_that_exist() -> None:
    text = "".join((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/MANUAL.md"))
    existing = {"--help", "--quick", "--device", "--cap-add", "--user", "--now"}  # mostly of other programs
    for command in (cli, *every_command().values()):
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                existing |= {*parameter.opts, *parameter.secondary_opts}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", text)) <= existing


def test_the_manual_has_every_exit_code() -> None:
    text = (ROOT / "docs" / "MANUAL.md").read_text(encoding="utf-8")
    rows = {int(code): meaning for code, meaning in re.findall(r"^\| (\d+) \| (.+?) \|$", text, re.MULTILINE)}
    assert rows == {int(code): MEANINGS[code] for code in ExitCode}
