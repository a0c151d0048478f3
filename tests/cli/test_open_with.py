"""`Open With` of a file manager does not make cryptfs the program for all directories."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from cryptfs.cli.openwith import ENTRY, leave_directories, without_entry

OTHERS = "# by hand\n[Default Applications]\ntext/plain=a.desktop\n\n"
ADDED = "[Added Associations]\n"
KEPT = "text/html=b.desktop;\n"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", ""),
        (f"{ADDED}inode/directory={ENTRY};\n", ADDED),
        (f"{ADDED}inode/directory={ENTRY}\n", ADDED),
        (
            f"{ADDED}inode/directory = a.desktop; {ENTRY} ;b.desktop",
            f"{ADDED}inode/directory=a.desktop;b.desktop;",
        ),
        (f"{OTHERS}{ADDED}inode/directory={ENTRY};\n{KEPT}", f"{OTHERS}{ADDED}{KEPT}"),
    ],
)
def test_the_entry_goes(before: str, after: str) -> None:
    assert without_entry(before) == after


@pytest.mark.parametrize(
    "text",
    [
        f"[Default Applications]\ninode/directory={ENTRY};\n",
        f"[Removed Associations]\ninode/directory={ENTRY};\n",
        f"{ADDED}application/json={ENTRY};\n",
        f"{ADDED}# inode/directory={ENTRY};\ninode/directory=my-{ENTRY};\n",
    ],
)
def test_what_a_person_chose_stays(text: str) -> None:
    assert without_entry(text) == text


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's mimeapps.list, which is not there yet."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    return tmp_path / "mimeapps.list"


def test_the_file_keeps_its_mode_and_its_bytes(file: Path) -> None:
    file.write_bytes(b"# \xff\r\n[Added Associations]\ninode/directory=%s;\n" % ENTRY.encode())
    file.chmod(0o640)
    leave_directories()
    assert file.read_bytes() == b"# \xff\r\n[Added Associations]\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert os.listdir(file.parent) == [file.name]


def test_a_symlink_stays_one(file: Path) -> None:
    real = file.parent / "dotfiles"
    real.write_text(f"{ADDED}inode/directory={ENTRY};\n")
    file.symlink_to(real.name)
    leave_directories()
    assert file.is_symlink()
    assert real.read_text() == ADDED


def test_a_file_without_the_entry_is_not_written(file: Path) -> None:
    leave_directories()
    assert not file.exists()
    file.write_text(f"{ADDED}inode/directory=thunar.desktop;\n")
    about = file.stat()
    leave_directories()
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == (about.st_ino, about.st_mtime_ns)


def test_the_file_of_another_user_is_left_alone(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As root with the environment of a user: the new file would be root's."""
    file.write_text(f"{ADDED}inode/directory={ENTRY};\n")
    about = file.stat()
    monkeypatch.setattr(os, "geteuid", lambda: about.st_uid + 1)
    leave_directories()
    assert file.stat().st_ino == about.st_ino


def test_what_is_no_file_is_left_alone(file: Path) -> None:
    os.mkfifo(file)
    leave_directories()
    assert stat.S_ISFIFO(file.lstat().st_mode)
