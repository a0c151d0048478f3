"""Three machines in one: a copy of a vault, a mount and a Syncthing for each, and the links between them."""

from __future__ import annotations

import contextlib
import random
import shutil
import tempfile
import time
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path

from soaklib.syncthing.nodes import SyncNode, free_ports
from soaklib.syncthing.versions import tree_of
from tests.e2e.mounting import Mounted, MountSpec

NODES = 3
ENGINES = ("native", "fusepy")
PLAIN = "plain"
"""In the place of an engine: the control, without cryptfs."""
RESCAN_SECONDS = 5.0
MOST_SHOWN = 15


class Way(StrEnum):
    """How the machines stand to each other while programs work."""

    TOGETHER = "all connected"
    ONE_APART = "one without connections"
    ALL_APART = "none connected"
    ONE_STOPPED = "one without its Syncthing"
    ONE_UNMOUNTED = "one without its mount"


class Cluster:
    """The machines. found: what went wrong, in words."""

    def __init__(self, scratch: Path, engine: str) -> None:
        self.scratch = scratch
        self.plain = engine == PLAIN
        self.mounts: list[Mounted] = []
        self.syncs: list[SyncNode] = []
        self.findings: list[str] = []
        self.running = True
        self._found_while_running = 0
        for number in range(NODES):
            home = scratch / f"node{number}"
            home.mkdir()
            self.mounts.append(Mounted(MountSpec("native" if self.plain else engine, tmpfs=False), home))
        ports = free_ports(2 * NODES)
        for number, mount in enumerate(self.mounts):
            sync_home = scratch / f"sync{number}"
            sync_home.mkdir()
            self.syncs.append(SyncNode(number, sync_home, mount.vault_dir, ports.pop(), ports.pop()))

    def start(self) -> None:
        """One vault, three copies, all mounted and synced."""
        first = self.mounts[0]
        if self.plain:
            first.vault_dir.mkdir()
        else:
            first.create()
        for mount in self.mounts[1:]:
            shutil.copytree(first.vault_dir, mount.vault_dir)
            mount.mountpoint.mkdir()
            mount.log_path.touch()
        for sync in self.syncs:
            sync.generate()
        for number in range(NODES):
            self.mount(number)
        for sync in self.syncs:
            sync.start(self.syncs)
        for sync in self.syncs:
            sync.wait_until_up()
        self._link(range(NODES), open_=True)

    def stop(self) -> None:
        """Whatever happened: no process and no mount stays behind."""
        for sync in self.syncs:
            sync.stop()
        for mount in self.mounts:
            with contextlib.suppress(AssertionError, OSError):
                mount.unmount()

    def mount(self, node: int) -> None:
        """Mount a node's vault, unless its programs work on the synced directory itself."""
        if not self.plain:
            self.mounts[node].start()

    def unmount(self, node: int) -> None:
        """The reverse."""
        if not self.plain:
            self.mounts[node].unmount()

    def root(self, node: int) -> Path:
        """Where a node's programs work."""
        return self.mounts[node].vault_dir if self.plain else self.mounts[node].mountpoint

    def found(self, text: str) -> None:
        """A finding; the run goes on, others may explain it. While programs run, some are enough."""
        self._found_while_running += self.running
        if not self.running or self._found_while_running <= MOST_SHOWN:
            self.findings.append(text)

    # ---- connections

    def part(self, way: Way, node: int) -> list[int]:
        """Set the machines up in a way. node: the one that is apart.   Returns: the nodes with programs."""
        if way is Way.ONE_APART:
            self._link([node], open_=False)
        elif way is Way.ALL_APART:
            self._link(range(NODES), open_=False)
        elif way is Way.ONE_STOPPED:
            self.syncs[node].stop()
        elif way is Way.ONE_UNMOUNTED:
            self.unmount(node)
        return [each for each in range(NODES) if each != node or way is not Way.ONE_UNMOUNTED]

    def join(self, way: Way, node: int) -> None:
        """The end of that."""
        if way is Way.ONE_APART:
            self._link([node], open_=True)
        elif way is Way.ALL_APART:
            self._link(range(NODES), open_=True)
        elif way is Way.ONE_STOPPED:
            self.syncs[node].start(self.syncs)
            self.syncs[node].wait_until_up()
            self._link([node], open_=True)
        elif way is Way.ONE_UNMOUNTED:
            self.mount(node)

    def _link(self, nodes: range | list[int], *, open_: bool) -> None:
        for node in nodes:
            self.syncs[node].set_links(self._others(node), open_=open_)
        for node in nodes:
            self.syncs[node].await_links(self._others(node), open_=open_)

    def _others(self, node: int) -> list[SyncNode]:
        return [sync for sync in self.syncs if sync.number != node]

    def settle(self, seconds: float, quiet: float) -> list[str]:
        """Wait until the copies are equal and stay so; what still differs after so many seconds.

        Raises: RuntimeError: a Syncthing has ended.
        """
        deadline, asked, equal_since = time.monotonic() + seconds, 0.0, 0.0
        differing = ["nobody has looked yet"]
        while time.monotonic() < deadline:
            if time.monotonic() - asked > RESCAN_SECONDS:
                asked = time.monotonic()
                for sync in self.syncs:
                    sync.rescan()
            if all(sync.is_idle() for sync in self.syncs):
                differing = self.differing()
                equal_since = 0.0 if differing else equal_since or time.monotonic()
                if equal_since and time.monotonic() - equal_since > quiet:
                    return []
            else:
                equal_since = 0.0
            time.sleep(1.0)
        return differing

    def differing(self) -> list[str]:
        """Cipher paths where the copies are not equal now."""
        trees = [tree_of(mount.vault_dir) for mount in self.mounts]
        paths = sorted(set().union(*trees))
        return [path for path in paths if len({tree.get(path) for tree in trees}) > 1]


def ways(dice: random.Random) -> list[Way]:
    """Each way at least once, in random order; a sequence of rounds repeats such lists."""
    found = [*Way, Way.TOGETHER, Way.TOGETHER, Way.ONE_APART, Way.ALL_APART]
    dice.shuffle(found)
    return found


def engines_of(chosen: str) -> tuple[str, ...]:
    """The engines that `--engine` means."""
    return ENGINES if chosen == "both" else (chosen,)


@contextlib.contextmanager
def started(prefix: str, engine: str) -> Iterator[Cluster]:
    """Machines at work. Afterwards no process and no mount stays; files do if something was found."""
    scratch = Path(tempfile.mkdtemp(prefix=prefix))
    cluster = Cluster(scratch, engine)
    keep = True
    try:
        cluster.start()
        yield cluster
        keep = bool(cluster.findings)
    except KeyboardInterrupt:
        keep = False
        raise
    finally:
        cluster.stop()
        if keep:
            print(f"everything is kept: {scratch}", flush=True)
        else:
            shutil.rmtree(scratch, ignore_errors=True)
