"""Git repositories on the mounts: one of each node, and one in which nodes commit in turns."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
from pathlib import Path

from soaklib.syncthing.cluster import NODES, Cluster

FILES = 6
TURNS = "git.turns"
_GIT = ("git", "-c", "user.name=soak", "-c", "user.email=soak@example.org", "-c", "gc.auto=0")
_SECONDS = 120


def own(node: int) -> str:
    """The repository in which only this node commits."""
    return f"git.own{node}"


def git(where: Path, *words: str) -> str:
    """Run git in a repository; what it said. Raises: CalledProcessError."""
    environment = os.environ | {
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_OPTIONAL_LOCKS": "0",  # who only looks writes no index
        "LC_ALL": "C.UTF-8",
    }
    done = subprocess.run(
        [*_GIT, *words],
        cwd=where,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        check=True,
    )
    return done.stdout.strip()


class Repositories:
    """What was committed. turn: the node that may commit in TURNS.

    heads: for each repository its last commit.   counts: how many it has.   files: what the last one holds.
    """

    def __init__(self, cluster: Cluster, dice: random.Random) -> None:
        self.turn = 0
        self.heads: dict[str, str] = {}
        self.counts: dict[str, int] = {}
        self.files: dict[str, dict[str, bytes]] = {}
        self._cluster = cluster
        self._dice = dice
        self._number = 0

    def create(self) -> None:
        """All repositories, with one commit each."""
        for name, node in [(TURNS, 0), *((own(node), node) for node in range(NODES))]:
            where = self._cluster.root(node) / name
            where.mkdir()
            git(where, "init", "-q", "-b", "main")
            self.counts[name], self.files[name] = 0, {}
            self._edit_and_commit(where, name)

    def commit(self, node: int) -> bool:
        """One commit: a change, a rename, or a branch that is merged; now and then before it a gc."""
        name = TURNS if self.turn == node and self._dice.random() < 0.4 else own(node)
        where = self._cluster.root(node) / name
        try:
            roll = self._dice.random()
            if roll < 0.1:
                git(where, "gc", "-q")
            if roll < 0.7:
                self._edit_and_commit(where, name)
            elif roll < 0.85:
                self._rename_and_commit(where, name)
            else:
                self._branch_and_merge(where, name)
        except (subprocess.SubprocessError, OSError) as error:
            said = getattr(error, "stderr", "") or error
            self._cluster.found(f"git in {name} on node {node}: {said}")
            return False
        return True

    def _edit_and_commit(self, where: Path, name: str) -> None:
        for _ in range(self._dice.randrange(1, 4)):
            self._number += 1
            path = f"d{self._dice.randrange(2)}/text{self._dice.randrange(FILES)}"
            content = hashlib.shake_128(f"{name} {self._number}".encode()).hexdigest(2_000).encode()
            (where / path).parent.mkdir(exist_ok=True)
            (where / path).write_bytes(content)
            self.files[name][path] = content
        self._commit(where, name)

    def _rename_and_commit(self, where: Path, name: str) -> None:
        self._number += 1
        path, target = self._dice.choice(sorted(self.files[name])), f"moved{self._number}"
        git(where, "mv", path, target)
        self.files[name][target] = self.files[name].pop(path)
        self._commit(where, name)

    def _branch_and_merge(self, where: Path, name: str) -> None:
        git(where, "checkout", "-q", "-b", "topic")
        self._edit_and_commit(where, name)
        git(where, "checkout", "-q", "main")
        git(where, "merge", "-q", "--no-ff", "-m", "merge", "topic")
        git(where, "branch", "-q", "-d", "topic")
        self.counts[name] += 1
        self.heads[name] = git(where, "rev-parse", "HEAD")

    def _commit(self, where: Path, name: str) -> None:
        git(where, "add", "-A")
        git(where, "commit", "-q", "-m", str(self._number))
        self.counts[name] += 1
        self.heads[name] = git(where, "rev-parse", "HEAD")

    # ---- the end

    def judge(self) -> None:
        """Every repository on every node is whole, and has every commit and every file."""
        for name in self.heads:
            for node in range(NODES):
                try:
                    wrong = self.faults_of(self._cluster.root(node) / name, name)
                except (subprocess.SubprocessError, OSError) as error:
                    wrong = [str(getattr(error, "stderr", "") or error)]
                for text in wrong:
                    self._cluster.found(f"{name} on node {node}, at the end: {text}")

    def faults_of(self, where: Path, name: str) -> list[str]:
        """What is not as it was committed. Raises: CalledProcessError: git finds a fault.   OSError."""
        git(where, "fsck", "--full", "--strict", "--no-dangling")
        head, count = git(where, "rev-parse", "HEAD"), int(git(where, "rev-list", "--count", "HEAD"))
        changed = git(where, "status", "--porcelain")
        wrong = [] if head == self.heads[name] else [f"its head is {head} and not {self.heads[name]}"]
        wrong += [] if count == self.counts[name] else [f"it has {count} of {self.counts[name]} commits"]
        wrong += [f"git status says {changed!r}"] if changed else []
        for path, content in self.files[name].items():
            if (where / path).read_bytes() != content:
                wrong.append(f"{path} has another content")
        return wrong
