"""What a disk may hold after the power went: every state that the calls since the last syncs allow.

A Recording is a sequence of events: what was written, cut, named and synced, in order. From it come crash
images, each a whole tree of files as it may be found after a cut at some moment. The rules are those that
journalling filesystems of Linux keep, and nothing beyond them:

1. A sector (512 bytes) is written whole or not at all. What a sector holds on disk is what it held in the
   page cache at some moment since the last sync of its file: as it was then, or after any of the writes
   that touched it since. Sectors go to disk in any order, so a write of several may be torn anywhere.
2. The length of a file, and where it has holes, is metadata. It goes to disk in order, but at any time:
   before or after the data. Where the length is on disk and the data is not, zeros are read.
   What a cut or a punch took away is not there any more once it is on disk, and what was written to the
   place afterwards is not there as long as it is not. Everything else about data and length is
   independent.
3. fsync and fdatasync of a file bring all its earlier writes and its length to disk, and the entries that
   lead to it in the directories where they stand.
4. Entries of directories (making, linking, renaming, removing) go to disk in order, wherever they are, a
   rename in one. Only rule 3 may bring a later one to disk before an earlier one. fsync of a directory
   brings all its changes to disk. syncfs brings everything.
5. Different files are independent of each other.

`crash_images(recording, exhaustive=True)` yields all of them once for a small recording; without, a random
choice. A cut is made before each sync and at the end: what a cut in between leaves is among those, because
everything since the last sync may not have happened.
"""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.crash.power.choices import Dice, Odometer, Replayed
from tests.crash.power.filechanges import Choose, FileChanges

ROOT = 0
"""Number of the directory that everything is in."""


@dataclass(frozen=True, slots=True)
class Write:
    """Bytes at a place of a file, which grows if it has to."""

    file: int
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class SetLength:
    """ftruncate, or the growth of an allocation."""

    file: int
    length: int


@dataclass(frozen=True, slots=True)
class Punch:
    """Zeros over a range within a file, by a change of metadata."""

    file: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class SyncFile:
    """fsync or fdatasync of a file."""

    file: int


@dataclass(frozen=True, slots=True)
class SyncDirectory:
    """fsync of a directory."""

    directory: int


@dataclass(frozen=True, slots=True)
class SyncAll:
    """syncfs."""


@dataclass(frozen=True, slots=True)
class Names:
    """Entries that change together: (directory, name, what it stands for now or None)."""

    changes: tuple[tuple[int, str, int | None], ...]


@dataclass(frozen=True, slots=True)
class Mark:
    """Something that a test wants to know to have happened before the cut: a promise, say."""

    value: object


Event = Write | SetLength | Punch | SyncFile | SyncDirectory | SyncAll | Names | Mark
_SYNCS = (SyncFile, SyncDirectory, SyncAll)


@dataclass(slots=True)
class Recording:
    """What happened to a tree.

    Args: files: content by number, at the beginning.   links: texts of symlinks by number; they never change.
          entries: (directory, name) -> number, at the beginning; all of this is on disk.
          directories: their numbers, ROOT among them, also of those that are made later.
    """

    files: dict[int, bytes] = field(default_factory=dict)
    links: dict[int, str] = field(default_factory=dict)
    directories: set[int] = field(default_factory=lambda: {ROOT})
    entries: dict[tuple[int, str], int] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)

    def cuts(self) -> list[int]:
        """How many events a cut leaves behind it, for all moments that matter: see the module."""
        places = [number for number, event in enumerate(self.events) if isinstance(event, _SYNCS)]
        return [*places, len(self.events)]

    def marks(self, cut: int) -> list[object]:
        """What was marked before a cut."""
        return [event.value for event in self.events[:cut] if isinstance(event, Mark)]


@dataclass(frozen=True, slots=True)
class CrashImage:
    """What is found after a cut.

    cut: events before it.   choices: the decisions that led here, so that it can be had again.
    """

    cut: int
    choices: tuple[int, ...]
    marks: list[object]
    files: dict[int, bytes]
    links: dict[int, str]
    directories: set[int]
    entries: dict[tuple[int, str], int]

    def digest(self) -> bytes:
        """Equal for images that hold the same."""
        state = hashlib.blake2b(digest_size=16)
        for (directory, name), number in sorted(self.entries.items()):
            state.update(f"{directory}/{name}/{number}/".encode("utf-8", "surrogateescape"))
            state.update(self.files.get(number, b"\0") + b"/")
        return state.digest()

    def write_to(self, target: Path) -> None:
        """Make the tree in a directory that does not exist yet; files with several names are linked."""
        target.mkdir()
        made: dict[int, Path] = {}
        below: dict[int, list[tuple[str, int]]] = {}
        for (directory, name), number in self.entries.items():
            below.setdefault(directory, []).append((name, number))
        todo = [(ROOT, target)]
        while todo:
            directory, path = todo.pop()
            for name, number in below.get(directory, ()):
                place = path / name
                if number in self.directories:
                    place.mkdir()
                    todo.append((number, place))
                elif number in made:
                    os.link(made[number], place, follow_symlinks=False)
                else:
                    made[number] = place
                    if number in self.links:
                        place.symlink_to(self.links[number])
                    else:
                        place.write_bytes(self.files[number])


class _Disk:
    """The state of a recording at a cut: what is on disk for certain, and what may be."""

    def __init__(self, recording: Recording, cut: int) -> None:
        self.files = {number: FileChanges(content) for number, content in recording.files.items()}
        self.entries = dict(recording.entries)  # on disk for certain
        self.pending: list[tuple[tuple[int, str, int | None], ...]] = []
        for event in recording.events[:cut]:
            self._apply(event)

    def _apply(self, event: Event) -> None:
        match event:
            case Write(file, offset, data):
                self._changes(file).write(offset, data)
            case SetLength(file, length):
                self._changes(file).set_length(length)
            case Punch(file, offset, length):
                self._changes(file).punch(offset, length)
            case Names(changes):
                self.pending.append(changes)
            case SyncFile(file):
                self._changes(file).sync()
                self._settle(lambda change: change[2] == file)
            case SyncDirectory(directory):
                self._settle(lambda change: change[0] == directory)
            case SyncAll():
                for changes_of_file in self.files.values():
                    changes_of_file.sync()
                self._settle(lambda _: True)
            case Mark():
                pass

    def _changes(self, file: int) -> FileChanges:
        return self.files.setdefault(file, FileChanges(b""))

    def _settle(self, wanted: Callable[[tuple[int, str, int | None]], bool]) -> None:
        """Bring to disk the pending changes of names that hold one that is wanted, and what they need."""
        needed: set[tuple[int, str]] = set()
        kept: list[bool] = []
        for group in reversed(self.pending):
            keep = any(wanted(change) or change[:2] in needed for change in group)
            kept.append(keep)
            if keep:
                needed |= {change[:2] for change in group}
        rest = []
        for group, keep in zip(self.pending, reversed(kept), strict=True):
            if keep:
                _apply_names(self.entries, group)
            else:
                rest.append(group)
        self.pending = rest

    def entries_after(self, choose: Choose) -> dict[tuple[int, str], int]:
        """The entries in one of the states that may be found (rule 4)."""
        entries = dict(self.entries)
        for group in self.pending[: choose(len(self.pending) + 1)]:
            _apply_names(entries, group)
        return entries


def _apply_names(entries: dict[tuple[int, str], int], group: tuple[tuple[int, str, int | None], ...]) -> None:
    for directory, name, number in group:
        if number is None:
            entries.pop((directory, name), None)
        else:
            entries[directory, name] = number


def _image(recording: Recording, cut: int, disk: _Disk, choose: Choose, pieces: int) -> CrashImage:
    entries = disk.entries_after(choose)
    reachable = _reachable(entries, recording.directories)
    files = {
        number: disk.files[number].state(choose, pieces) if number in disk.files else b""
        for number in sorted(reachable)
        if number not in recording.directories and number not in recording.links
    }
    digits = getattr(choose, "digits", [])
    kept = {place: number for place, number in entries.items() if place[0] in reachable | {ROOT}}
    return CrashImage(
        cut, tuple(digits), recording.marks(cut), files, recording.links, recording.directories, kept
    )


def _reachable(entries: dict[tuple[int, str], int], directories: set[int]) -> set[int]:
    found: set[int] = set()
    todo = [ROOT]
    while todo:
        parent = todo.pop()
        for (directory, _), number in entries.items():
            if directory == parent and number not in found:
                found.add(number)
                if number in directories:
                    todo.append(number)
    return found


def crash_images(
    recording: Recording,
    *,
    exhaustive: bool = False,
    pieces: int = 3,
    count: int = 200,
    limit: int = 200_000,
    seed: int = 0,
) -> Iterator[CrashImage]:
    """What may be found after the power went, at each moment that matters; no image twice.

    Args:   exhaustive: all of them; else `count` random ones, over all moments.
            pieces: in how many pieces a run of sectors that were written together may be torn: first
                sector, last, and the middle in so many shares; 0 lets each sector go for itself.
            limit: of an exhaustive search, so that nobody waits for a universe.
    Raises: ValueError: there are more than `limit` images.
    """
    cuts = recording.cuts()
    seen: set[bytes] = set()
    if not exhaustive:
        dice = random.Random(seed)
        for _ in range(count):
            cut = dice.choice(cuts)
            image = _image(recording, cut, _Disk(recording, cut), Dice(dice), dice.choice((1, 3, 8, 0)))
            if (digest := image.digest() + str(cut).encode()) not in seen:
                seen.add(digest)
                yield image
        return
    for cut in cuts:
        disk, odometer = _Disk(recording, cut), Odometer()
        tried = 0
        while True:
            image = _image(recording, cut, disk, odometer, pieces)
            tried += 1
            if tried > limit:
                raise ValueError(f"more than {limit} crash images before event {cut}: make it smaller")
            if (digest := image.digest() + str(cut).encode()) not in seen:
                seen.add(digest)
                yield image
            if not odometer.advance():
                break


def image_again(recording: Recording, image: CrashImage, pieces: int) -> CrashImage:
    """The same image from its choices; pieces as they were."""
    disk = _Disk(recording, image.cut)
    return _image(recording, image.cut, disk, Replayed(image.choices), pieces)


def final_tree(recording: Recording) -> CrashImage:
    """The tree without a cut: everything happened."""
    disk = _Disk(recording, len(recording.events))
    return _image(recording, len(recording.events), disk, lambda limit: limit - 1, 1)
