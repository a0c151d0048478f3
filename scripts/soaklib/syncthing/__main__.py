"""Three machines edit their mounted copies of one vault; Syncthing carries the ciphertext.

`python -m soaklib.syncthing --seed N --edits N`. The edits come in rounds. In each round all machines are
connected, or some are not, or one has no Syncthing or no mount; after it the copies settle. At the end the
copies are equal, every last version is shown under a readable name, every git repository is whole, and fsck
finds every vault in order. Directories of one name that two nodes make at once are out of scope.

`--engine plain` has the programs edit the synced directories themselves, without cryptfs: what is found then
is a fault of this program, or of Syncthing.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence

from soaklib.syncthing.cluster import ENGINES, NODES, PLAIN, Cluster, Way, engines_of, started, ways
from soaklib.syncthing.edits import Edits
from soaklib.syncthing.judge import Judge
from soaklib.syncthing.repositories import Repositories

ROUND_EDITS = 250
ROUND_SETTLE_SECONDS = 90.0
ROUND_QUIET_SECONDS = 3.0
SETTLE_SECONDS = 240.0
QUIET_SECONDS = 8.0
PAUSE_SECONDS = 0.06


class Run:
    """One run from a seed."""

    def __init__(self, cluster: Cluster, seed: int) -> None:
        self.cluster = cluster
        self.dice = random.Random(seed)
        self.repositories = Repositories(cluster, self.dice)
        self.edits = Edits(cluster, self.repositories, self.dice)
        self.rounds: Counter[Way] = Counter()
        self.unsettled = 0

    def work(self, edits: int) -> None:
        """Rounds until there are so many edits."""
        self.repositories.create()
        self.cluster.settle(SETTLE_SECONDS, ROUND_QUIET_SECONDS)
        coming: list[Way] = []
        while self.edits.count < edits:
            coming = coming or ways(self.dice)
            self.round(coming.pop(), min(edits, self.edits.count + ROUND_EDITS))

    def round(self, way: Way, until: int) -> None:
        """Edits in one state of the connections; then all are connected again, and the copies settle."""
        node = self.dice.randrange(NODES)
        self.rounds[way] += 1
        began = time.monotonic()
        nodes = self.cluster.part(way, node)
        while self.edits.count < until:
            self.edits.step(nodes)
            time.sleep(self.dice.random() * PAUSE_SECONDS)
        edited = time.monotonic()
        self.cluster.join(way, node)
        differing = self.cluster.settle(ROUND_SETTLE_SECONDS, ROUND_QUIET_SECONDS)
        if differing:
            self.unsettled += 1  # so no other node may commit where this one has
        else:
            self.repositories.turn = (self.repositories.turn + 1) % NODES
        print(
            f"{time.strftime('%H:%M:%S')} {self.edits.count} edits; {way}, node {node}: "
            f"{edited - began:.0f} s, and {time.monotonic() - edited:.0f} s to settle"
            + (f", not settled: {differing[:3]}" if differing else ""),
            flush=True,
        )

    def judge(self) -> None:
        """All is settled, whole and in order."""
        self.cluster.running = False
        differing = self.cluster.settle(SETTLE_SECONDS, QUIET_SECONDS)
        if differing:
            self.cluster.found(f"the copies differ after {SETTLE_SECONDS:.0f} s: {differing[:6]}")
        kinds = ", ".join(f"{name} {count}" for name, count in self.edits.done.most_common())
        print(f"{self.edits.count} edits: {kinds}")
        print("rounds: " + ", ".join(f"{way} {count}" for way, count in self.rounds.items())
              + f"; {self.unsettled} did not settle in {ROUND_SETTLE_SECONDS:.0f} s")  # fmt: skip
        print(f"{self.edits.partial} looks met a copy on its way, {self.edits.errors} no file or an error")
        judge = Judge(self.cluster)
        judge.mounted(self.edits)
        self.repositories.judge()
        judge.vaults()


def run_on(engine: str, seed: int, edits: int) -> bool:
    """Run, wait, judge; False where something was found."""
    began = time.monotonic()
    with started("cryptfs-syncthing-", engine) as cluster:
        run = Run(cluster, seed)
        run.work(edits)
        run.judge()
    for text in cluster.findings:
        print(f"FOUND, seed {seed}, {engine}: {text}")
    found = f"{len(cluster.findings)} findings" if cluster.findings else "nothing found"
    minutes = (time.monotonic() - began) / 60
    print(f"seed {seed}, {engine}: {run.edits.count} edits in {minutes:.0f} minutes, {found}", flush=True)
    return not cluster.findings


def main(arguments: Sequence[str] | None = None) -> int:
    """A run on each engine that was chosen; 1 if anything was found."""
    parser = argparse.ArgumentParser(prog="soaklib.syncthing", description=__doc__)
    parser.add_argument("--seed", type=int, default=int(os.environ.get("CRYPTFS_CRASH_SEED", "1")))
    parser.add_argument("--edits", type=int, default=5000)
    parser.add_argument("--engine", choices=(*ENGINES, "both", PLAIN), default="both")
    chosen = parser.parse_args(arguments)
    os.umask(0o022)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # whoever ends it leaves no mount behind
    right = [run_on(engine, chosen.seed, chosen.edits) for engine in engines_of(chosen.engine)]
    return int(not all(right))


if __name__ == "__main__":
    sys.exit(main())
