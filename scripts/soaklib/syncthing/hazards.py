"""Two machines at odds over a directory, a long name and a git repository, as docs/SYNC.md has it.

`python -m soaklib.syncthing.hazards`. Both work while they are not connected; then Syncthing brings all
together. It says what each of them shows at once, and after `cryptfs fsck --repair`. Nothing may be lost.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from soaklib.syncthing.cluster import ENGINES, NODES, PLAIN, Cluster, Way, engines_of, started
from soaklib.syncthing.judge import Judge
from soaklib.syncthing.repositories import git

LONG = "long" * 45
NO_ROOM = "room" * 38
"""152 bytes: its cipher name has 235 letters, and Syncthing adds 38 to that for a conflict copy."""
REPOSITORY = "repository"
SETTLE_SECONDS = 120.0
QUIET_SECONDS = 5.0
STUCK_SECONDS = 30.0
LOOKS = 12
PROMISED = (
    "a file changed in a directory that the other removes",
    "a long name changed that the other removes",
    "a name without room for a conflict copy, by node 0",
    "a name without room for a conflict copy, by node 1",
)
"""What shows without a repair, while the vault is mounted where the change was made."""


class Hazards:
    """What was written while the machines were apart, and who shows it."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.written: dict[str, bytes] = {}
        self.commits: list[str] = []

    def prepare(self) -> None:
        """All that both know."""
        root = self.cluster.root(0)
        (root / "removed").mkdir()
        (root / "removed" / "changed").write_bytes(b"before")
        (root / "removed" / "other").write_bytes(b"before")
        (root / LONG).write_bytes(b"before")
        (root / NO_ROOM).write_bytes(b"before")
        (root / REPOSITORY).mkdir()
        git(root / REPOSITORY, "init", "-q", "-b", "main")
        self._commit(0, "first")
        self._settle()

    def part(self) -> None:
        """Both work while they are not connected."""
        self.cluster.part(Way.ALL_APART, 0)
        one, other = self.cluster.root(0), self.cluster.root(1)
        shutil.rmtree(one / "removed")
        (one / LONG).unlink()
        self._write(1, PROMISED[0], other / "removed" / "changed")
        self._write(1, PROMISED[1], other / LONG)
        self._write(0, PROMISED[2], one / NO_ROOM)
        self._write(1, PROMISED[3], other / NO_ROOM)
        for node in (0, 1):
            (self.cluster.root(node) / "same").mkdir()
            self._write(node, f"a file in a directory that both make, by node {node}",
                        self.cluster.root(node) / "same" / f"of {node}")  # fmt: skip
            self._commit(node, f"by {node}")
        self.cluster.join(Way.ALL_APART, 0)
        time.sleep(STUCK_SECONDS)  # each keeps its own version, and Syncthing says why
        (other / NO_ROOM).rename(other / "as a person does then")
        self._settle()
        for _ in range(LOOKS):
            for node in range(NODES):
                self.shown(node)
            time.sleep(1.0)
        self._settle()

    def _write(self, node: int, what: str, path: Path) -> None:
        self.written[what] = f"{what}: {node}".encode()
        path.write_bytes(self.written[what])

    def _commit(self, node: int, text: str) -> None:
        where = self.cluster.root(node) / REPOSITORY
        (where / text.replace(" ", "-")).write_text(text)
        git(where, "add", "-A")
        git(where, "commit", "-q", "-m", text)
        self.commits.append(git(where, "rev-parse", "HEAD"))

    def _settle(self) -> None:
        differing = self.cluster.settle(SETTLE_SECONDS, QUIET_SECONDS)
        if differing:
            self.cluster.found(f"the copies differ: {differing[:4]}")

    def shown(self, node: int) -> set[bytes]:
        """The contents of all files that a node shows."""
        found = set()
        for directory, _, names in os.walk(self.cluster.root(node)):
            for name in names:
                with contextlib.suppress(OSError):
                    found.add(Path(directory, name).read_bytes())
        return found

    def look(self, when: str, wanted: Sequence[str]) -> None:
        """Say what is shown. wanted: what every node must show."""
        for what, content in self.written.items():
            nodes = [node for node in range(NODES) if content in self.shown(node)]
            print(f"{when}: {what}: shown by nodes {nodes}")
            if what in wanted and len(nodes) < NODES:
                self.cluster.found(f"{when}, only nodes {nodes} show {what}")
        for node in range(NODES):
            print(f"{when}: git on node {node}: {self.say_git(node)}")

    def say_git(self, node: int) -> str:
        """What has become of the repository on a node."""
        where = self.cluster.root(node) / REPOSITORY
        copies = sum("conflict" in name for _, _, names in os.walk(where / ".git") for name in names)
        there = [self._says(where, "cat-file", "-e", f"{commit}^{{tree}}") == "ok" for commit in self.commits]
        fsck = self._says(where, "fsck", "--full", "--no-dangling")
        return f"{sum(there)} of {len(there)} commits, {copies} conflict copies in .git; fsck: {fsck}"

    @staticmethod
    def _says(where: Path, *words: str) -> str:
        try:
            git(where, *words)
        except subprocess.CalledProcessError as error:
            return " / ".join(error.stderr.strip().splitlines()[:3])
        return "ok"

    def repair(self, judge: Judge) -> None:
        """On node 0, while no vault is mounted; Syncthing carries it to the others."""
        for node in range(NODES):
            self.cluster.unmount(node)
        self._settle()
        code, lines = judge.fsck(0, "--repair")
        print(f"fsck --repair: {code}: {len(lines)} lines; the first: {lines[:3]}")
        self._settle()
        for node in range(NODES):
            code, lines = judge.fsck(node)
            if code:
                self.cluster.found(f"after the repair, fsck of node {node} ends with {code}: {lines[:4]}")
            self.cluster.mount(node)

    def require_commits(self) -> None:
        """Every commit is there, on each node."""
        for node in range(NODES):
            for commit in self.commits:
                where = self.cluster.root(node) / REPOSITORY
                said = self._says(where, "cat-file", "-e", f"{commit}^{{tree}}")
                if said != "ok":
                    self.cluster.found(f"node {node} lacks the commit {commit}: {said}")


def run_on(engine: str) -> bool:
    """Run, repair, judge; False if anything is lost."""
    with started("cryptfs-hazards-", engine) as cluster:
        hazards = Hazards(cluster)
        hazards.prepare()
        hazards.part()
        if cluster.plain:
            hazards.look("at once", list(hazards.written))
        else:
            hazards.look("at once", PROMISED)
            hazards.repair(Judge(cluster))
            hazards.look("after a repair", list(hazards.written))
        hazards.require_commits()
    for text in cluster.findings:
        print(f"FOUND, {engine}: {text}")
    found = f"{len(cluster.findings)} findings" if cluster.findings else "nothing is lost"
    print(f"{engine}: {found}", flush=True)
    return not cluster.findings


def main(arguments: Sequence[str] | None = None) -> int:
    """A run on each engine that was chosen; 1 if anything is lost."""
    parser = argparse.ArgumentParser(prog="soaklib.syncthing.hazards", description=__doc__)
    parser.add_argument("--engine", choices=(*ENGINES, "both", PLAIN), default="both")
    chosen = parser.parse_args(arguments)
    os.umask(0o022)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    right = [run_on(engine) for engine in engines_of(chosen.engine)]
    return int(not all(right))


if __name__ == "__main__":
    sys.exit(main())
