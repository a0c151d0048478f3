"""Three machines edit their mounted copies of one vault; Syncthing carries the ciphertext.

`python -m soaklib.syncthing --seed N --minutes N`. Every file says what it is: node, origin, sequence number
and a body that follows from them. At the end the copies are equal, no version that was closed last is lost,
and fsck finds every vault in order. Directories of one name that two nodes make at once are out of scope.

`--engine plain` has the programs edit the synced directories themselves, without cryptfs: what is found then
is a fault of this program, or of Syncthing.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from cryptfs.errors import IntegrityError
from cryptfs.storage.libc import RENAME_NOREPLACE, renameat2
from soaklib.sealed import Sealer
from soaklib.syncnodes import SyncNode
from soaklib.versions import UNDER_WAY, is_on_its_way, stamp_of, stamped, tree_of
from tests.e2e.mounting import PASSPHRASE, Mounted, MountSpec

NODES = 3
FILES = 24
SIZES = (0, 300, 5_000, 20_000, 60_000)
QUIET_SECONDS = 6.0
AT_FDCWD = -100
CONVERGE_SECONDS = 120.0
CONFLICT = "conflict"
MOST_SHOWN = 15
DROPPED = re.compile(
    r"Conflict for (\S+?)\.sync-conflict-\S+ which is already a conflict copy; not copying again"
)
"""Two nodes have made conflict copies of one name in one second. Syncthing keeps one and says this."""


class Cluster:
    """The nodes, and what their programs did.

    leaves:  sequence numbers of versions that nobody overwrote or removed who saw them, with their sizes.
    places:  where the objects of an origin may be.
    """

    def __init__(self, scratch: Path, seed: int, engine: str) -> None:
        self.dice = random.Random(seed)
        self.mounts: list[Mounted] = []
        self.syncs: list[SyncNode] = []
        self.scratch = scratch
        self.plain = engine == "plain"
        self.sequence = 0
        self.leaves: dict[int, tuple[str, int]] = {}
        self.known: dict[int, bytes] = {}
        self.places: dict[str, set[str]] = {}
        self.directories = [{""} for _ in range(NODES)]
        self.findings: list[str] = []
        self.running = True
        self.found_while_running = 0
        self.partial = self.operations = self.errors = 0
        for number in range(NODES):
            home = scratch / f"node{number}"
            home.mkdir()
            self.mounts.append(Mounted(MountSpec("native" if self.plain else engine, tmpfs=False), home))
        for number, mount in enumerate(self.mounts):
            sync_home = scratch / f"sync{number}"
            sync_home.mkdir()
            self.syncs.append(SyncNode(number, sync_home, mount.vault_dir))

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
        for mount in self.mounts:
            if not self.plain:
                mount.start()
        for sync in self.syncs:
            sync.start(self.syncs)

    def stop(self) -> None:
        """Whatever happened: no process and no mount stays behind."""
        for sync in self.syncs:
            sync.stop()
        for mount in self.mounts:
            with contextlib.suppress(AssertionError, OSError):
                mount.unmount()

    # ---- programs

    def root(self, node: int) -> Path:
        """Where a node's programs work."""
        return self.mounts[node].vault_dir if self.plain else self.mounts[node].mountpoint

    def found(self, text: str) -> None:
        """A finding; the run goes on, others may explain it. While programs run, some are enough."""
        self.found_while_running += self.running
        if not self.running or self.found_while_running <= MOST_SHOWN:
            self.findings.append(text)

    def read(self, node: int, path: str) -> int | None:
        """The sequence number of what a node shows; None: nothing, or an error."""
        try:
            content = (self.root(node) / path).read_bytes()
        except OSError:
            self.errors += 1
            return None
        stamp = stamp_of(content)
        if stamp is None:
            if is_on_its_way(content, self.versions_of(path)):
                self.partial += 1
            else:
                self.found(
                    f"node {node} shows in {path} {len(content)} bytes that nobody wrote: {content[:20]!r}"
                )
            return None
        if path not in self.places.get(stamp[0], {path}) and CONFLICT not in path:
            self.found(f"node {node} shows in {path} what was written to {stamp[0]}")
        return stamp[1]

    def versions_of(self, path: str) -> list[bytes]:
        """All that was ever written to a path, or to what was renamed to it; to its original, of a copy."""
        origins = {origin for origin, places in self.places.items() if path in places or CONFLICT in path}
        return [content for content in self.known.values() if content.split(b" ", 2)[1].decode() in origins]

    def note(self, node: int, what: str, path: str, seen: int | None) -> None:
        """For who looks into a finding."""
        when = time.strftime("%H:%M:%S")
        with (self.scratch / "events").open("a") as events:
            events.write(f"{when} node {node} {what} {path}, which showed {seen}\n")

    def replace_leaf(self, old: int | None, new: tuple[int, str] | None) -> None:
        """Who wrote or removed had seen `old`."""
        if old is not None:
            self.leaves.pop(old, None)
        if new is not None:
            self.leaves[new[0]] = (new[1], len(self.known[new[0]]))

    def step(self) -> None:
        """One program on one node does one thing."""
        self.operations += 1
        node = self.dice.randrange(NODES)
        roll = self.dice.random()
        # Two nodes may write to a file: of three versions made at once Syncthing itself loses one (tried).
        shared = self.dice.random() < 0.25
        owner = (node - 1) % NODES if shared else node
        directory = self.dice.choice(sorted(self.directories[owner]))
        path = os.path.join(directory, f"f{owner}.{self.dice.randrange(FILES // NODES)}")
        mountpoint = self.root(node)
        with contextlib.suppress(OSError):
            if roll < 0.03 and len(self.directories[node]) < 6:
                name = f"dir{node}.{self.sequence}"
                (mountpoint / name).mkdir()
                self.directories[node].add(name)
            elif roll < 0.40:
                self.read(node, path)
            elif roll < 0.44:
                seen = self.read(node, path)
                if seen is not None:  # else nobody knows which version goes
                    self.note(node, "removes", path, seen)
                    (mountpoint / path).unlink()
                    self.replace_leaf(seen, None)
            elif roll < 0.48:
                self.rename(node, path)
            elif (mountpoint / directory).is_dir():
                self.write(node, path)

    def rename(self, node: int, path: str) -> None:
        """Over or to another name of the same node; no copy on its way, which would stay as it is there."""
        mountpoint = self.root(node)
        if (mountpoint / path).exists() and self.read(node, path) is None:
            return
        directory = self.dice.choice(sorted(self.directories[node]))
        target = os.path.join(directory, f"f{node}.{self.dice.randrange(FILES // NODES)}")
        lost = self.read(node, target) if (mountpoint / target).exists() else None
        if lost is None and (mountpoint / target).exists():
            return
        for origins in self.places.values():
            if path in origins:
                origins.add(target)
        self.note(node, f"renames {path} to", target, lost)
        (mountpoint / path).rename(mountpoint / target)
        if target != path:
            self.replace_leaf(lost, None)

    def write(self, node: int, path: str) -> None:
        """A new version, in one of the ways of programs; a version that failed to close is none."""
        target = self.root(node) / path
        seen = None
        if target.exists():
            seen = self.read(node, path)
            if seen is None:  # nobody knows which version it would replace
                return
        self.sequence += 1
        size = self.dice.choice(SIZES)
        content = stamped(node, path, self.sequence, size)
        self.known[self.sequence] = content
        self.places.setdefault(path, {path})
        self.note(node, f"writes version {self.sequence} to", path, seen)
        # Without cryptfs a file that is replaced while a program has it open is lost to the program.
        way = self.dice.choice(("whole", "editor", "whole" if self.plain else "slow", "same"))
        if way == "editor":
            beside = target.with_name(f"tmp{node}.{self.sequence}")
            self.places[path].add(os.path.join(os.path.dirname(path), beside.name))
            self._put(beside, content, os.O_TRUNC, slow=False)
            if not self._put_in_place(beside, target, alone=seen is None):
                return
        elif way == "same" and seen is not None:
            self._put(target, content, 0, slow=False)
        else:
            # What another node made since the look must not be cut unseen: then this is no version.
            alone = os.O_EXCL if seen is None else os.O_TRUNC
            try:
                self._put(target, content, alone, slow=way == "slow")
            except FileExistsError:
                return
        self.replace_leaf(seen, (self.sequence, path))

    @staticmethod
    def _put_in_place(beside: Path, target: Path, *, alone: bool) -> bool:
        """Rename a new version to its name. alone: not over what another node has made since the look."""
        if not alone:
            beside.rename(target)
            return True
        try:
            renameat2(AT_FDCWD, str(beside), AT_FDCWD, str(target), RENAME_NOREPLACE)
        except FileExistsError:
            beside.unlink()
            return False
        return True

    def _put(self, target: Path, content: bytes, flags: int, *, slow: bool) -> None:
        fd = os.open(target, os.O_RDWR | os.O_CREAT | flags, 0o644)
        try:
            half = len(content) // 2
            os.pwrite(fd, content[:half], 0)
            if slow:
                time.sleep(self.dice.random() * 0.5)
            os.pwrite(fd, content[half:], half)
            os.ftruncate(fd, len(content))
            if self.dice.random() < 0.3:
                os.fsync(fd)
        finally:
            os.close(fd)

    # ---- the end

    def converge(self) -> None:
        """Wait until the ciphertext of all nodes is equal and stays so."""
        deadline, equal_since = time.monotonic() + CONVERGE_SECONDS, 0.0
        while time.monotonic() < deadline:
            for sync in self.syncs:
                sync.rescan()
            trees = [tree_of(mount.vault_dir) for mount in self.mounts]
            if all(tree == trees[0] for tree in trees[1:]):
                equal_since = equal_since or time.monotonic()
                if time.monotonic() - equal_since > QUIET_SECONDS:
                    return
            else:
                equal_since = 0.0
            time.sleep(1.0)
        differing = [
            path for path in sorted(set().union(*trees)) if len({tree.get(path) for tree in trees}) > 1
        ]
        self.found(f"the copies differ after {CONVERGE_SECONDS:.0f} s: {differing[:6]}")

    def judge(self) -> None:
        """What the mounts show, what became of every last version, and fsck."""
        shown = [self.shown(node) for node in range(NODES)]
        for node in range(1, NODES):
            differing = [
                p for p in sorted({*shown[0], *shown[node]}) if shown[0].get(p) != shown[node].get(p)
            ]
            if differing:
                self.found(f"nodes 0 and {node} show different content in {differing[:6]}")
        visible = {stamp_of(content) for contents in shown for content in contents.values()}
        present = {stamp[1] for stamp in visible if stamp is not None}
        hidden = self.conflict_copies()
        dropped = self.dropped_by_syncthing()
        for sequence, (path, size) in sorted(self.leaves.items()):
            if sequence in present | hidden:
                continue
            if path in dropped:
                dropped.remove(path)  # one version each time
                print(f"version {sequence} of {path} was in a conflict copy that Syncthing dropped")
            else:
                self.found(f"version {sequence} of {path}, {size} bytes, was closed last and is lost")
                events = (self.scratch / "events").read_text().splitlines()
                print("\n".join([line for line in events if f" {path}," in line][-8:]))
        here, only_there = present & self.leaves.keys(), (hidden - present) & self.leaves.keys()
        print(f"{len(self.leaves)} last versions: {len(here)} are shown, {len(only_there)} are only in "
              "conflict copies of the ciphertext")  # fmt: skip
        if self.plain:
            return
        for number, mount in enumerate(self.mounts):
            mount.unmount()
            if "Traceback" in mount.log_path.read_text(errors="replace"):
                self.found(f"a traceback in the log of node {number}")
            self.fsck(number)

    def shown(self, node: int) -> dict[str, bytes]:
        """Every file of a mount; what is no whole version is a finding."""
        contents = {}
        root = self.root(node)
        for directory, _, names in os.walk(root):
            for name in names:
                path = Path(directory, name)
                if self.plain and name.startswith(UNDER_WAY):
                    continue
                try:
                    contents[str(path.relative_to(root))] = path.read_bytes()
                except OSError as error:
                    self.found(f"node {node}, {path.relative_to(root)}, at the end: {error.strerror}")
        for name, content in contents.items():
            if stamp_of(content) is not None:
                continue
            # Syncthing keeps the copy that it took of a file being written where another version meets it.
            if CONFLICT not in name or not is_on_its_way(content, self.versions_of(name)):
                self.found(f"node {node} shows in {name}, at the end, {len(content)} bytes, no version")
        return contents

    def conflict_copies(self) -> set[int]:
        """Versions in conflict copies that Syncthing made of ciphertext."""
        mount = self.mounts[0]
        if self.plain:
            return set()  # they are shown
        sealer = Sealer(mount.vault_dir, PASSPHRASE.encode())
        found = set()
        try:
            for path in mount.vault_dir.rglob("*.sync-conflict-*"):
                with contextlib.suppress(IntegrityError, OSError):
                    stamp = stamp_of(sealer.content(path.read_bytes()))
                    if stamp is not None:
                        found.add(stamp[1])
        finally:
            sealer.close()
        return found

    def dropped_by_syncthing(self) -> list[str]:
        """The path of each conflict copy that a Syncthing gave up for another of the same name."""
        logs = "".join((sync.home / "log").read_text(errors="replace") for sync in self.syncs)
        originals = [found[1] for found in DROPPED.finditer(logs)]
        if self.plain:
            return originals
        sealer = Sealer(self.mounts[0].vault_dir, PASSPHRASE.encode())
        try:
            return [sealer.plain_path(original) for original in originals]
        finally:
            sealer.close()

    def fsck(self, number: int) -> None:
        """A node's vault is in order."""
        passfile = self.scratch / "passphrase"
        passfile.write_text(PASSPHRASE + "\n")
        passfile.chmod(0o600)
        words = [sys.executable, "-m", "cryptfs", "fsck", "--deep", "--passfile", str(passfile)]
        done = subprocess.run(
            [*words, str(self.mounts[number].vault_dir)],
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        errors = [line for line in done.stdout.splitlines() if line.startswith("error")]
        # Such a copy names the journal of a session that has brought it home elsewhere: fsck says so.
        copies = [line for line in errors if CONFLICT in line and "missing-journal" in line]
        if done.returncode and (not errors or copies != errors):
            said = (done.stdout + done.stderr)[-500:]
            self.found(f"fsck --deep of node {number} ends with {done.returncode}: {said}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, wait, judge; 1 if anything was found."""
    parser = argparse.ArgumentParser(prog="soaklib.syncthing", description=__doc__)
    parser.add_argument("--seed", type=int, default=int(os.environ.get("CRYPTFS_CRASH_SEED", "1")))
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--engine", choices=("native", "fusepy", "plain"), default="native")
    chosen = parser.parse_args(arguments)
    os.umask(0o022)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # whoever ends it leaves no mount behind
    scratch = Path(tempfile.mkdtemp(prefix="cryptfs-syncthing-"))
    cluster = Cluster(scratch, chosen.seed, chosen.engine)
    try:
        cluster.start()
        end = time.monotonic() + chosen.minutes * 60
        while time.monotonic() < end:
            cluster.step()
            time.sleep(cluster.dice.random() * 0.06)
        print(
            f"{cluster.operations} operations, {cluster.errors} errors, {cluster.partial} partial copies seen"
        )
        cluster.running = False
        cluster.converge()
        cluster.judge()
    finally:
        cluster.stop()
    for text in cluster.findings:
        print(f"FOUND, seed {chosen.seed}: {text}")
    if cluster.findings:
        print(f"{len(cluster.findings)} findings; everything is kept: {scratch}")
        return 1
    shutil.rmtree(scratch, ignore_errors=True)
    print(f"seed {chosen.seed}: {cluster.operations} operations in {chosen.minutes:g} minutes, nothing found")
    return 0


if __name__ == "__main__":
    sys.exit(main())
