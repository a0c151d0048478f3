"""What programs do on the three machines, and which versions must be somewhere afterwards.

Every file says what it is: node, origin, sequence number and a body that follows from them. A version is
*last* until a program that has seen it overwrites or removes it.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from cryptfs.storage.libc import RENAME_EXCHANGE, RENAME_NOREPLACE, renameat2
from soaklib.syncthing.cluster import NODES, Cluster
from soaklib.syncthing.repositories import Repositories
from soaklib.syncthing.versions import is_on_its_way, stamp_of, stamped

NAMES = ("0", "1", "2", "3", "4", "5", "6.txt", "long" * 45)
"""Of each node in each directory, behind its `fN.`; the last one has its cipher name in a sidecar."""
SIZES = (0, 300, 5_000, 20_000, 60_000)
AT_FDCWD = -100
CONFLICT = "conflict"
MOST_DIRECTORIES = 6
_COPY = re.compile(r"\.sync-conflict-[0-9]{8}-[0-9]{6}-[A-Z2-7]{7}| \(conflict [^()]*\)")


class Edits:
    """Programs on all machines, one operation at a time, at random.

    leaves:  sequence numbers of last versions, with their paths and sizes.
    places:  where the objects of an origin may be.
    shared:  for each node its directories in which the next node writes as well; private: those without.
    """

    def __init__(self, cluster: Cluster, repositories: Repositories, dice: random.Random) -> None:
        self.dice = dice
        self.leaves: dict[int, tuple[str, int]] = {}
        self.known: dict[int, bytes] = {}
        self.places: dict[str, set[str]] = {}
        self.shared: list[set[str]] = [{""} for _ in range(NODES)]
        self.private: list[set[str]] = [set() for _ in range(NODES)]
        self.done: Counter[str] = Counter()
        self.partial = self.errors = 0
        self._cluster = cluster
        self._repositories = repositories
        self._sequence = 0
        self._kinds: dict[Callable[[int], bool], int] = {
            self.write: 62,
            self.rename: 12,
            self.remove: 5,
            self.resolve: 6,
            self.make_directory: 4,
            self.rename_directory: 4,
            self.remove_directory: 1,
            self.commit: 6,
        }

    @property
    def count(self) -> int:
        """How many edits there have been."""
        return self.done.total()

    def step(self, nodes: list[int]) -> None:
        """One program on one of these nodes does one thing; now and then another one looks first."""
        if self.dice.random() < 0.3:
            looker = self.dice.choice(nodes)
            self.read(looker, self._some_path(looker, self.dice.choice(range(NODES))))
        node = self.dice.choice(nodes)
        (kind,) = self.dice.choices(list(self._kinds), weights=list(self._kinds.values()))
        try:
            if kind(node):
                self.done[kind.__name__.replace("_", " ")] += 1
        except OSError as error:  # what another node brought is in the way
            self.errors += 1
            self.note(
                node, f"meets an error ({error.strerror}) by {kind.__name__} at", str(error.filename), None
            )

    def _some_path(self, node: int, owner: int) -> str:
        directories = self.shared[owner] | (self.private[owner] if owner == node else set())
        return os.path.join(self.dice.choice(sorted(directories)), f"f{owner}.{self.dice.choice(NAMES)}")

    # ---- looking

    def read(self, node: int, path: str) -> int | None:
        """The sequence number of what a node shows; None: nothing, or an error."""
        try:
            content = (self._cluster.root(node) / path).read_bytes()
        except OSError:
            self.errors += 1
            return None
        stamp = stamp_of(content)
        if stamp is None:
            if is_on_its_way(content, self.versions_of(path)):
                self.partial += 1
            else:
                said = f"{len(content)} bytes that nobody wrote: {content[:20]!r}"
                self._cluster.found(f"node {node} shows in {path} {said}")
            return None
        if path not in self.places.get(stamp[0], {path}) and CONFLICT not in path:
            self._cluster.found(f"node {node} shows in {path} what was written to {stamp[0]}")
        return stamp[1]

    def versions_of(self, path: str) -> list[bytes]:
        """All that was ever written to a path, or to what was renamed to it; to its original, of a copy."""
        origins = {origin for origin, places in self.places.items() if path in places or CONFLICT in path}
        return [content for content in self.known.values() if content.split(b" ", 2)[1].decode() in origins]

    def note(self, node: int, what: str, path: str, seen: int | None) -> None:
        """For who looks into a finding."""
        with (self._cluster.scratch / "events").open("a") as events:
            events.write(f"{time.strftime('%H:%M:%S')} node {node} {what} {path}, which showed {seen}\n")

    def replace_leaf(self, old: int | None, new: tuple[int, str] | None) -> None:
        """Who wrote or removed had seen `old`."""
        if old is not None:
            self.leaves.pop(old, None)
        if new is not None:
            self.leaves[new[0]] = (new[1], len(self.known[new[0]]))

    # ---- changing

    def write(self, node: int) -> bool:
        """A new version, in one of the ways of programs; a version that failed to close is none."""
        # Two nodes may write to a file: of three versions made at once Syncthing itself loses one (tried).
        path = self._some_path(node, (node - 1) % NODES if self.dice.random() < 0.25 else node)
        target = self._cluster.root(node) / path
        if not target.parent.is_dir():
            return False
        seen = self.read(node, path) if target.exists() else None
        if seen is None and target.exists():  # nobody knows which version it would replace
            return False
        self._sequence += 1
        sequence = self._sequence
        content = stamped(node, path, sequence, self.dice.choice(SIZES))
        self.known[sequence] = content
        self.places.setdefault(path, {path})
        self.note(node, f"writes version {sequence} to", path, seen)
        # Without cryptfs a file that is replaced while a program has it open is lost to the program.
        way = self.dice.choice(("whole", "editor", "whole" if self._cluster.plain else "slow", "same"))
        if way == "editor":
            beside = os.path.join(os.path.dirname(path), f"tmp{node}.{sequence}")
            self.places[path].add(beside)
            with (self._cluster.root(node) / beside).open("xb") as file:
                file.write(content)
            if not self._put_in_place(node, beside, path, seen):
                (self._cluster.root(node) / beside).unlink()
                return False
        elif not self._write_in_place(target, content, seen, way):
            return False
        self.replace_leaf(seen, (sequence, path))
        return True

    def _write_in_place(self, target: Path, content: bytes, seen: int | None, way: str) -> bool:
        """Whether a version was written: over the one that was seen, and not over what has come since."""
        try:
            fd = os.open(target, os.O_RDWR | (os.O_CREAT | os.O_EXCL if seen is None else 0), 0o644)
        except FileExistsError:
            return False
        try:
            if seen is not None:
                stamp = stamp_of(os.pread(fd, max(SIZES) + 1_000, 0))
                if stamp is None or stamp[1] != seen:
                    return False
                if way != "same":
                    os.ftruncate(fd, 0)
            half = len(content) // 2
            os.pwrite(fd, content[:half], 0)
            if way == "slow":
                time.sleep(self.dice.random() * 0.5)
            os.pwrite(fd, content[half:], half)
            os.ftruncate(fd, len(content))
            if self.dice.random() < 0.3:
                os.fsync(fd)
            return not self._cluster.plain or os.fstat(fd).st_nlink > 0
        finally:
            os.close(fd)

    def _put_in_place(self, node: int, source: str, target: str, lost: int | None) -> bool:
        """Rename over the version that was seen, not over what another node has brought since the look."""
        root = self._cluster.root(node)
        one, other = str(root / source), str(root / target)
        if lost is None:
            try:
                renameat2(AT_FDCWD, one, AT_FDCWD, other, RENAME_NOREPLACE)
            except FileExistsError:
                return False
        elif os.path.dirname(target) in self.private[node]:
            os.rename(one, other)
        else:
            renameat2(AT_FDCWD, one, AT_FDCWD, other, RENAME_EXCHANGE)
            self._moves(target, source)
            if self.read(node, source) == lost:
                os.unlink(one)
        return True

    def rename(self, node: int) -> bool:
        """Over or to another name of the same node; no copy on its way, which would stay as it is there."""
        path, target = self._some_path(node, node), self._some_path(node, node)
        root = self._cluster.root(node)
        if path == target or not (root / path).exists() or self.read(node, path) is None:
            return False
        lost = self.read(node, target) if (root / target).exists() else None
        if lost is None and (root / target).exists():
            return False
        self._moves(path, target)
        self.note(node, f"renames {path} to", target, lost)
        if not self._put_in_place(node, path, target, lost):
            return False
        self.replace_leaf(lost, None)
        return True

    def _moves(self, path: str, target: str) -> None:
        """What may be at a path may be at another one from now on."""
        for places in self.places.values():
            if path in places:
                places.add(target)

    def remove(self, node: int) -> bool:
        """A file that the node owns, or the one before it."""
        path = self._some_path(node, (node - 1) % NODES if self.dice.random() < 0.25 else node)
        seen = self.read(node, path) if (self._cluster.root(node) / path).exists() else None
        if seen is None:  # else nobody knows which version goes
            return False
        self.note(node, "removes", path, seen)
        root = self._cluster.root(node)
        if os.path.dirname(path) not in self.private[node]:  # another node may bring a version at any moment
            self._sequence += 1
            aside = os.path.join(os.path.dirname(path), f"removed{node}.{self._sequence}")
            self._moves(path, aside)
            (root / path).rename(root / aside)
            if self.read(node, aside) != seen:
                return False
            path = aside
        (root / path).unlink()
        self.replace_leaf(seen, None)
        return True

    def resolve(self, node: int) -> bool:
        """The owner of a file has a look at a conflict copy of it: delete it, take it, or keep both."""
        directory = self.dice.choice(sorted(self.shared[node]))
        here = self._cluster.root(node) / directory
        copies = sorted(
            name for name in os.listdir(here) if name.startswith(f"f{node}") and _COPY.search(name)
        )
        if not copies:
            return False
        name = self.dice.choice(copies)
        copy, original = os.path.join(directory, name), os.path.join(directory, _COPY.sub("", name))
        seen = self.read(node, copy)
        if seen is None:
            return False
        root = self._cluster.root(node)
        choice = self.dice.choice(("delete", "take", "keep"))
        if choice == "delete":
            self.note(node, "removes", copy, seen)
            (root / copy).unlink()
            self.replace_leaf(seen, None)
            return True
        if choice == "keep":
            self._sequence += 1
            original = os.path.join(directory, f"kept{node}.{self._sequence}")
        lost = self.read(node, original) if (root / original).exists() else None
        if lost is None and (root / original).exists():
            return False
        origin = self.known[seen].split(b" ", 2)[1].decode()
        self.places[origin].add(original)
        self.note(node, f"renames {copy} to", original, lost)
        if not self._put_in_place(node, copy, original, lost):
            return False
        self.replace_leaf(lost, None)
        return True

    # ---- directories; of one name only one node makes one

    def make_directory(self, node: int) -> bool:
        """A directory for two nodes, or one for its own node alone."""
        directories = self.dice.choice((self.shared, self.private))[node]
        if len(directories) >= MOST_DIRECTORIES:
            return False
        self._sequence += 1
        name = f"{'shared' if directories is self.shared[node] else 'private'}{node}.{self._sequence}"
        (self._cluster.root(node) / name).mkdir()
        self.note(node, "makes", name, None)
        directories.add(name)
        return True

    def rename_directory(self, node: int) -> bool:
        """One in which no other node writes."""
        if not self.private[node]:
            return False
        name = self.dice.choice(sorted(self.private[node]))
        self._sequence += 1
        target = f"private{node}.{self._sequence}"
        self.note(node, f"renames {name} to", target, None)
        (self._cluster.root(node) / name).rename(self._cluster.root(node) / target)
        self.private[node] -= {name}
        self.private[node] |= {target}
        for places in self.places.values():
            moved = {target + place.removeprefix(name) for place in places if place.startswith(name + "/")}
            places |= moved
        return True

    def remove_directory(self, node: int) -> bool:
        """One in which no other node writes, with all that is in it."""
        if not self.private[node]:
            return False
        name = self.dice.choice(sorted(self.private[node]))
        here = self._cluster.root(node) / name
        seen = [self.read(node, os.path.join(name, each)) for each in sorted(os.listdir(here))]
        if None in seen:
            return False
        self.note(node, "removes", name, None)
        shutil.rmtree(here)
        self.private[node] -= {name}
        for each in seen:
            self.replace_leaf(each, None)
        return True

    # ---- git

    def commit(self, node: int) -> bool:
        """In the node's own repository, or in the one that nodes take in turns."""
        return self._repositories.commit(node)
