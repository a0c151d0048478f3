"""One file between two syncs: what may be on disk of its changes. The rules are in powermodel.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator

SECTOR = 512
BLOCK = 4096
"""What a filesystem allocates and frees."""

Choose = Callable[[int], int]
"""Gives a number below its argument, which is at least 1."""


class FileChanges:
    """The changes of one file since its last sync, and the states that they allow."""

    def __init__(self, content: bytes) -> None:
        self.lengths = [(0, len(content))]  # number of the change, length after it; 0 is what is synced
        self.cuts: list[tuple[int, range, range]] = []  # number, sectors zeroed, those whose blocks it frees
        self.versions: dict[int, list[tuple[int, bytes]]] = {}  # by sector: change, content after it
        self.count = 0
        self._now = bytearray(content)
        self._synced = content

    @property
    def content(self) -> bytes:
        """What a reader sees while all is well."""
        return bytes(self._now)

    def sync(self) -> None:
        """Everything is on disk."""
        self.lengths = [(0, len(self._now))]
        self.cuts.clear()
        self.versions.clear()
        self.count = 0
        self._synced = bytes(self._now)

    def write(self, offset: int, data: bytes) -> None:
        if not data:
            return
        end = offset + len(data)
        self.count += 1
        if end > len(self._now):
            self._now.extend(bytes(end - len(self._now)))
            self.lengths.append((self.count, end))
        self._now[offset:end] = data
        self._note(offset, end)

    def set_length(self, length: int) -> None:
        self.count += 1
        before = len(self._now)
        if length < before:
            del self._now[length:]
            self._zero(length, -(-before // BLOCK) * BLOCK)
        else:
            self._now.extend(bytes(length - before))
        self.lengths.append((self.count, length))

    def punch(self, offset: int, length: int) -> None:
        end = min(offset + length, len(self._now))
        if offset < end:
            self.count += 1
            self._now[offset:end] = bytes(end - offset)
            self._zero(offset, end if end < len(self._now) else -(-end // BLOCK) * BLOCK)
            self.lengths.append((self.count, len(self._now)))

    def _note(self, offset: int, end: int) -> None:
        for sector in range(offset // SECTOR, -(-end // SECTOR)):
            start = sector * SECTOR
            versions = self.versions.setdefault(sector, [(0, self._padded(self._synced, start))])
            versions.append((self.count, self._padded(self._now, start)))

    def _zero(self, offset: int, end: int) -> None:
        self._note(offset, end)
        zeroed = range(offset // SECTOR, -(-end // SECTOR))
        per_block = BLOCK // SECTOR
        freed = range(-(-offset // BLOCK) * per_block, end // BLOCK * per_block)
        self.cuts.append((self.count, zeroed, freed))

    @staticmethod
    def _padded(content: bytes | bytearray, start: int) -> bytes:
        return bytes(content[start : start + SECTOR]).ljust(SECTOR, b"\0")

    def state(self, choose: Choose, pieces: int) -> bytes:
        """One of the states that may be found. pieces: see crash_images."""
        if not self.count:
            return self._synced
        metadata, length = self.lengths[choose(len(self.lengths))]
        found = bytearray(self._synced[:length].ljust(length, b"\0"))
        for extent, allowed in self._extents(metadata, length):
            for piece in _split(extent, pieces):
                chosen = allowed[choose(len(allowed)) if len(allowed) > 1 else 0]
                for sector in piece:
                    found[sector * SECTOR : (sector + 1) * SECTOR] = self.versions[sector][chosen][1]
        return bytes(found[:length])

    def _extents(self, metadata: int, length: int) -> Iterator[tuple[list[int], list[int]]]:
        """Runs of sectors that the same changes have touched, and which of their versions may be found."""
        extent: list[int] = []
        before: tuple[list[int], list[int]] = ([], [])
        for sector in sorted(self.versions):
            if sector * SECTOR >= length:
                break
            now = [number for number, _ in self.versions[sector]], self._allowed(sector, metadata)
            if extent and (sector != extent[-1] + 1 or now != before):
                yield extent, before[1]
                extent = []
            extent.append(sector)
            before = now
        if extent:
            yield extent, before[1]

    def _allowed(self, sector: int, metadata: int) -> list[int]:
        """Places in the sector's versions that go together with this state of the metadata (rule 2)."""
        earliest, before = 0, self.count + 1
        for number, zeroed, freed in self.cuts:
            if number <= metadata:
                earliest = number if sector in zeroed else earliest
            elif sector in freed:
                before = min(before, number)
        versions = self.versions[sector]
        return [place for place, (number, _) in enumerate(versions) if earliest <= number < before]


def _split(extent: list[int], pieces: int) -> list[list[int]]:
    """Pieces of an extent that go to disk each for itself: ends first; 0 takes each sector alone."""
    if not pieces or pieces >= len(extent):
        return [[sector] for sector in extent]
    if pieces == 1:
        return [extent]
    if pieces == 2:
        return [extent[:1], extent[1:]]
    middle = extent[1:-1]
    step = -(-len(middle) // (pieces - 2))
    return [extent[:1], *(middle[at : at + step] for at in range(0, len(middle), step)), extent[-1:]]
