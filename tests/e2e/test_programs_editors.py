"""Editors, with their swap files, backups and ways of replacing a file."""

from __future__ import annotations

import os
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.programs import require, run


@pytest.mark.parametrize("backupcopy", ["yes", "no", "auto"])
def test_vim(on_mount: Path, backupcopy: str) -> None:
    require("vim")
    path = on_mount / "text.txt"
    path.write_text("".join(f"line {number}\n" for number in range(5000)))
    path.chmod(0o640)
    script = on_mount / "script.vim"
    script.write_text(
        f"set backup backupcopy={backupcopy} swapfile directory=. backupdir=. undofile undodir=.\n"
        "edit text.txt\n"
        "%s/line/LINE/\n"
        "$put ='added at the end'\n"
        "preserve\n"
        "write\n"
        "1delete\n"
        "write\n"
        "quit\n"
    )
    run("vim", "-N", "-u", "NONE", "-i", "NONE", "-es", "-S", script, cwd=on_mount)
    lines = path.read_text().splitlines()
    assert lines[0] == "LINE 1"
    assert lines[-1] == "added at the end"
    assert len(lines) == 5000
    assert (on_mount / "text.txt~").exists()
    assert path.stat().st_mode & 0o777 == 0o640
    assert not [name for name in os.listdir(on_mount) if name.endswith(".swp")]
    assert ".text.txt.un~" in os.listdir(on_mount)


class Terminal:
    """A program in a tmux server of its own."""

    def __init__(self, directory: Path) -> None:
        self._server = ("tmux", "-L", f"e2e-{uuid.uuid4().hex[:8]}", "-f", "/dev/null")
        run(*self._server, "new-session", "-d", "-s", "s", "-x", "100", "-y", "30", "-c", directory, "sh")

    def keys(self, *keys: str) -> None:
        run(*self._server, "send-keys", "-t", "s", *keys)

    def text(self, text: str) -> None:
        run(*self._server, "send-keys", "-t", "s", "-l", text)

    def wait_for(self, wanted: str) -> None:
        deadline = time.monotonic() + 20
        screen = ""
        while time.monotonic() < deadline:
            screen = run(*self._server, "capture-pane", "-p", "-t", "s")
            if wanted in screen:
                return
            time.sleep(0.05)
        raise AssertionError(f"{wanted!r} did not appear on:\n{screen}")

    def close(self) -> None:
        subprocess.run([*self._server, "kill-server"], check=False, capture_output=True)


@pytest.fixture
def terminal(on_mount: Path) -> Iterator[Terminal]:
    """A shell in a terminal, in the test's directory on the mount."""
    require("tmux")
    shell = Terminal(on_mount)
    yield shell
    shell.close()


def test_nano(on_mount: Path, terminal: Terminal) -> None:
    require("nano")
    path = on_mount / "note.txt"
    path.write_text("first line\nsecond line\n")
    terminal.text("nano --ignorercfiles --backup --locking note.txt; echo nano has ended")
    terminal.keys("Enter")
    terminal.wait_for("second line")
    assert ".note.txt.swp" in os.listdir(on_mount)
    terminal.text("typed in nano ")
    terminal.keys("C-o")
    terminal.wait_for("File Name to Write")
    terminal.keys("Enter")
    terminal.wait_for("Wrote 2 lines")
    assert path.read_text() == "typed in nano first line\nsecond line\n"
    terminal.text("again ")
    terminal.keys("C-s")
    terminal.keys("C-x")
    terminal.wait_for("nano has ended")
    assert path.read_text() == "typed in nano again first line\nsecond line\n"
    assert (on_mount / "note.txt~").read_text().startswith("typed in nano first")
    assert ".note.txt.swp" not in os.listdir(on_mount)


def test_emacs(on_mount: Path) -> None:
    """It locks by a symlink, keeps the old version as a backup, and writes a new file."""
    require("emacs")
    path = on_mount / "text.txt"
    path.write_text("first\n")
    script = '(progn (find-file "text.txt") (insert "zeroth\\n") (save-buffer))'
    run("emacs", "-Q", "--batch", "--eval", script, cwd=on_mount)
    assert path.read_text() == "zeroth\nfirst\n"
    assert sorted(os.listdir(on_mount)) == ["text.txt", "text.txt~"]
    assert (on_mount / "text.txt~").read_text() == "first\n"


def test_the_way_of_glib(on_mount: Path) -> None:
    """Mousepad, gedit and others replace a file by g_file_replace, which `gio save` calls."""
    require("gio")
    path = on_mount / "text.txt"
    path.write_text("old")
    path.chmod(0o640)
    for options in ((), ("--backup",), ("--etag=",)):
        text = f"new {options}"
        subprocess.run(["gio", "save", *options, str(path)], input=text, text=True, check=True)
        assert path.read_text() == text
        assert path.stat().st_mode & 0o777 == 0o640
    assert sorted(os.listdir(on_mount)) == ["text.txt", "text.txt~"]
