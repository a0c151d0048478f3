"""What people do with trees of files: unpack, check, search, copy, remove; git; and with SQLite."""

from __future__ import annotations

import os
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

from benchlib.quantities import Quantity, Unit, Workload
from benchlib.run import Run

_GIT = ("git", "-c", "safe.directory=*", "-c", "gc.auto=0", "-c", "maintenance.auto=false")
_ENVIRONMENT = {"LC_ALL": "C", "GIT_TERMINAL_PROMPT": "0", "GIT_CONFIG_GLOBAL": os.devnull}
_NOTHING_FOUND = 1


def do(*command: object, cwd: Path, accept: tuple[int, ...] = (0,)) -> None:
    """Run a program whose output is not of interest. Raises: RuntimeError: what it complained of."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, **_ENVIRONMENT},
        check=False,
    )
    if done.returncode not in accept:
        raise RuntimeError(f"{command[0]}: {complaint(done.stderr) or f'exit code {done.returncode}'}")


def complaint(stderr: bytes) -> str:
    """The line that says why: the first that calls itself an error, else the last; or ''."""
    lines = stderr.decode(errors="replace").strip().splitlines()
    errors = [line for line in lines if line.startswith(("error:", "fatal:"))]
    return (errors or lines[-1:] or [""])[0]


def source_tree(run: Run) -> None:
    """A source tree, from the tar until it is gone again."""
    place, material = run.directory, run.material
    with run.timed("unpack a source tree", material.files):
        do("tar", "-xf", material.tar, cwd=place)
    tree = place / "tree"
    run.make_cold()
    with run.timed("check its files (md5sum)", material.files):
        do("md5sum", "--check", "--quiet", material.sums, cwd=tree)
    run.make_cold()
    with run.timed("list it (ls -lR)", material.files):
        do("ls", "-lR", ".", cwd=tree)
    run.make_cold()
    with run.timed("search it (grep -r)", material.files):
        do("grep", "-r", "no such words in any of these files", ".", cwd=tree, accept=(_NOTHING_FOUND,))
    run.make_cold()
    with run.timed("copy it (cp -a)", material.files):
        do("cp", "-a", "tree", "copy", cwd=place)
    with run.timed("remove it (rm -r)", material.files):
        do("rm", "-r", "copy", cwd=place)


def repository(run: Run) -> None:
    """A clone into the mount, and what an editor asks all the time."""
    clone = run.directory / "clone"
    with run.timed("clone a repository (git clone)"):
        do(*_GIT, "clone", "--quiet", "--no-local", run.material.repository, clone, cwd=run.directory)
    run.make_cold()
    with run.timed("see what changed (git status)"):
        do(*_GIT, "status", "--porcelain", cwd=clone)


def database(run: Run) -> None:
    """SQLite with its defaults: a rollback journal and an fsync at every commit."""
    with closing(sqlite3.connect(run.directory / "database", isolation_level=None)) as connection:
        connection.execute("create table notes (number integer primary key, text text)")
        insert = "insert into notes values (?, ?)"
        with run.timed("insert rows, a transaction each (SQLite)") as meter:
            for number in run.within(range(run.sizes.commits), meter):
                connection.execute(insert, (number, f"note number {number}"))
        first = run.sizes.commits
        with run.timed("insert rows in one transaction (SQLite)", run.sizes.rows):
            connection.execute("begin")
            rows = ((first + number, f"note number {number}") for number in range(run.sizes.rows))
            connection.executemany(insert, rows)
            connection.execute("commit")
        expected = int(meter.amount) + run.sizes.rows
        (count,) = connection.execute("select count(*) from notes").fetchone()
    if count != expected:
        raise AssertionError(f"{count} rows are there of {expected}")


_TREE = (
    "unpack a source tree",
    "check its files (md5sum)",
    "list it (ls -lR)",
    "search it (grep -r)",
    "copy it (cp -a)",
    "remove it (rm -r)",
)

WORKLOADS = (
    Workload(
        "source-tree",
        "a source tree",
        source_tree,
        tuple(Quantity(title, Unit.SECONDS, "" if title[:2] in ("un", "re") else "cold") for title in _TREE),
    ),
    Workload(
        "git",
        "a git repository",
        repository,
        (
            Quantity("clone a repository (git clone)", Unit.SECONDS),
            Quantity("see what changed (git status)", Unit.SECONDS, "cold"),
        ),
    ),
    Workload(
        "sqlite",
        "a SQLite database",
        database,
        (
            Quantity("insert rows, a transaction each (SQLite)", Unit.OPERATIONS, "an fsync each"),
            Quantity("insert rows in one transaction (SQLite)", Unit.OPERATIONS),
        ),
    ),
)
