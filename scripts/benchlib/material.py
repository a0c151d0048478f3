"""What the workloads take from outside: a real source tree and a real repository, made ready once."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sysconfig
import tarfile
from collections.abc import Iterator
from pathlib import Path

from benchlib.run import Material

ROOT = Path(__file__).parents[2]
_LEFT_OUT = {"__pycache__", "site-packages", "dist-packages", ".git", "lib-dynload", "config-3"}
_MAX_FILES = 2000
_MAX_BYTES = 40_000_000


def default_tree() -> Path:
    """Python's standard library: thousands of source files that every machine with Python has."""
    return Path(sysconfig.get_paths()["stdlib"])


def _files_of(tree: Path) -> Iterator[Path]:
    """Regular files in a fixed order, as many as a turn can bear."""
    files, size = 0, 0
    for place, directories, names in os.walk(tree):
        directories[:] = sorted(each for each in directories if each not in _LEFT_OUT)
        for name in sorted(names):
            path = Path(place, name)
            if path.is_symlink() or not path.is_file():
                continue
            files += 1
            size += path.stat().st_size
            if files > _MAX_FILES or size > _MAX_BYTES:
                return
            yield path


def make_material(place: Path, tree: Path, repository: Path, max_files: int = _MAX_FILES) -> Material:
    """Pack the tree, note the sums of its files, and see that there is a repository.

    Args: place: a directory of our own, not on a mount that is measured.
          repository: cloned as it is, where it is one; else the tree is put into a new one.
    """
    tar, sums = place / "tree.tar", place / "tree.md5"
    lines, files = [], 0
    with tarfile.open(tar, "w") as archive:
        for path in _files_of(tree):
            if files == max_files:
                break
            name = path.relative_to(tree)
            archive.add(path, f"tree/{name}", recursive=False)
            lines.append(f"{hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()}  {name}\n")
            files += 1
    if not files:
        raise ValueError(f"{tree}: no files to make a source tree of")
    sums.write_text("".join(lines), encoding="utf-8", errors="surrogateescape")
    return Material(tar, sums, files, _bare(repository, place, tar))


def _bare(repository: Path, place: Path, tar: Path) -> Path:
    """A bare copy to clone from, so that nobody's work changes it meanwhile."""
    bare = place / "repository.git"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    git = ("git", "-c", "safe.directory=*")
    command = [*git, "clone", "--quiet", "--bare", "--no-local", str(repository), str(bare)]
    if subprocess.run(command, check=False, **quiet).returncode == 0:  # type: ignore[call-overload]
        return bare
    work = place / "work"
    work.mkdir()
    subprocess.run(["tar", "-xf", str(tar)], cwd=work, check=True)
    identity = ("-c", "user.name=bench", "-c", "user.email=bench@localhost")
    for words in (("init", "--quiet"), ("add", "."), ("commit", "--quiet", "-m", "the tree")):
        subprocess.run([*git, *identity, *words], cwd=work, check=True, **quiet)  # type: ignore[call-overload]
    return work
