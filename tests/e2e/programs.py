"""Running real programs in tests."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.support import everything_below

PACKAGES = {
    "rsync": "rsync",
    "git": "git",
    "sqlite3": "sqlite3",
    "gcc": "gcc libc6-dev",
    "make": "make",
    "vim": "vim",
    "nano": "nano",
    "emacs": "emacs-nox",
    "tmux": "tmux",
    "tar": "tar",
    "fio": "fio",
    "zip": "zip",
    "unzip": "unzip",
    "getfattr": "attr",
    "inotifywait": "inotify-tools",
    "borg": "borgbackup",
    "gio": "libglib2.0-bin",
    "man": "man-db",
    "systemd-analyze": "systemd",
    "update-mime-database": "shared-mime-info",
    "update-desktop-database": "desktop-file-utils",
    "desktop-file-validate": "desktop-file-utils",
}


def require(*programs: str) -> None:
    """Skip where a program is missing, and say what to install; CI installs them all."""
    missing = [PACKAGES.get(program, program) for program in programs if shutil.which(program) is None]
    if missing:
        assert not os.environ.get("CI"), f"CI must have these: {missing}"
        pytest.skip(f"apt-get install {' '.join(missing)}")


def run(
    *command: str | Path, cwd: Path | None = None, env: Mapping[str, str] | None = None, timeout: float = 240
) -> str:
    """Run a program; its output. A failure shows what it said."""
    result = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=os.environ | {"LC_ALL": "C.UTF-8"} | dict(env or {}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="backslashreplace",
        timeout=timeout,
        check=False,
    )
    assert result.returncode == 0, (
        f"{command}: {result.returncode}\n{result.stdout[-3000:]}\n{result.stderr[-3000:]}"
    )
    return result.stdout


def part_of(source: Path, target: Path, budget: int) -> None:
    """Copy whole subdirectories of `source` until `budget` bytes are reached."""
    target.mkdir()
    for entry in sorted(source.iterdir()):
        if budget <= 0:
            return
        if entry.is_dir() and not entry.is_symlink():
            run("cp", "-a", entry, target)
            budget -= sum(path.lstat().st_size for path in everything_below(entry))


def git(*arguments: str | Path, cwd: Path) -> str:
    """git that asks nobody, reads nobody's configuration and trusts every directory."""
    settings = {
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_CONFIG_SYSTEM": "/dev/null",
        "GIT_AUTHOR_NAME": "Tester",
        "GIT_AUTHOR_EMAIL": "tester@localhost",
        "GIT_COMMITTER_NAME": "Tester",
        "GIT_COMMITTER_EMAIL": "tester@localhost",
        "GIT_TERMINAL_PROMPT": "0",
    }
    options = ("safe.directory=*", "init.defaultBranch=main", "gc.auto=0", "maintenance.auto=false")
    # Without the last two, git may leave a process behind that uses the mount.
    return run(
        "git", *(word for option in options for word in ("-c", option)), *arguments, cwd=cwd, env=settings
    )
