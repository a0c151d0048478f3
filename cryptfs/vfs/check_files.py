"""Checks one backing file: its header, its length, and with a deep check each of its chunks."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

from cryptfs.core.geometry import HEADER_SIZE
from cryptfs.core.header import FileHeader
from cryptfs.core.verdict import Length
from cryptfs.errors import ChunkError, HeaderError
from cryptfs.storage.backing import read_fully
from cryptfs.vfs.cipherpool import usable_cores
from cryptfs.vfs.context import FileContext
from cryptfs.vfs.findings import Kind
from cryptfs.vfs.recovery import content_behind, ends_whole, found_length, names_missing_journal
from cryptfs.vfs.replay import Waiting

NOBODY_WAITS = Waiting()
RUN_SIZE = 1024 * 1024  # bytes that a thread reads and opens at once
_SHOWN_RANGES = 8
SHARE_SIZE = 32 * 1024 * 1024  # bytes of a file that one thread checks at a time


_ORDER = (Kind.HEADER, Kind.NOT_SETTLED, Kind.MISSING_JOURNAL, Kind.SURPLUS, Kind.CHUNKS, Kind.FILE_CUT)


class Problem(NamedTuple):
    """One thing that is wrong with a file."""

    kind: Kind
    detail: str


class ChunkRange(NamedTuple):
    """Consecutive chunks: first to last, both included."""

    first: int
    last: int


class ShareResult(NamedTuple):
    """The chunks of a share that do not open, and how many bytes of plaintext the share has."""

    damaged: list[ChunkRange]
    size: int


@dataclass(slots=True)
class FileReport:
    """What a file is.

    header:      None where the backing file is empty, or where it does not hold.
    size:        plaintext bytes that the file has; with FILE_CUT, those that it should have.
    cipher_size: length of the backing file that was found.
    damaged:     chunks that do not open; those behind a cut are not among them.
    recovered:   whether the size is what recovery finds, because the header does not tell it.
    awaits_replay: whether nothing can be said before the journal is replayed.
    """

    cipher_size: int
    header: FileHeader | None = None
    content_key: bytes = b""
    size: int = 0
    problems: list[Problem] = field(default_factory=list)
    damaged: list[ChunkRange] = field(default_factory=list)
    recovered: bool = False
    awaits_replay: bool = False

    def has(self, kind: Kind) -> bool:
        """Whether this is wrong with the file."""
        return any(problem.kind is kind for problem in self.problems)

    def in_order(self) -> list[Problem]:
        """The problems in the order in which they have to be mended.

        A file that was cut gets holes, so its zeroed chunks have to be filled before.
        """
        return sorted(self.problems, key=lambda problem: _ORDER.index(problem.kind))

    def add(self, kind: Kind, detail: str) -> None:
        """Note a problem."""
        self.problems.append(Problem(kind, detail))


def check_length(
    context: FileContext, fd: int, *, open_files: bool, waiting: Waiting = NOBODY_WAITS
) -> FileReport:
    """Look at header and length of a backing file. Writes nothing.

    Args: open_files: the vault is mounted, so that a file may be open and need no settling.
          waiting: of journals that wait for their replay: files that they may apply to cannot be judged.
    """
    report = FileReport(os.fstat(fd).st_size)
    if not report.cipher_size:
        return report
    try:
        header = context.header_of(fd)
    except HeaderError as error:
        report.add(Kind.HEADER, error.reason)
        return report
    if header is None:  # emptied a moment ago
        return FileReport(0)
    report.header = header
    report.content_key = context.content_key_of(header)
    if _awaits_replay(context, report, header, waiting):
        report.awaits_replay = True
        report.size = header.size
        report.add(Kind.NOT_SETTLED, "it can be judged when the journal has been replayed")
        return report
    _judge(context, fd, report, header, open_files=open_files)
    return report


def _judge(
    context: FileContext, fd: int, report: FileReport, header: FileHeader, *, open_files: bool
) -> None:
    """Note how long the file is, and what is wrong with that."""
    found = found_length(context, fd, header, report.content_key, report.cipher_size)
    report.size = found.size
    if found.kind is Length.CUT:
        report.add(Kind.FILE_CUT, found.reason)
    elif found.kind is Length.SURPLUS:
        newer = _content_of_surplus(context, fd, report, header)
        if newer > found.size:
            report.size, report.recovered = newer, True
            report.add(Kind.NOT_SETTLED, f"{newer} bytes are intact, its header says {found.size}")
        else:
            report.add(Kind.SURPLUS, f"{report.cipher_size - found.expected} bytes")
    elif found.kind is not Length.SETTLED:
        report.recovered = True
        if not open_files:
            missing = names_missing_journal(context, header)
            report.add(
                Kind.MISSING_JOURNAL if missing else Kind.NOT_SETTLED, f"{report.size} bytes are intact"
            )


def _awaits_replay(context: FileContext, report: FileReport, header: FileHeader, waiting: Waiting) -> bool:
    """Another machine's journal is nothing to a file that says it is whole, and is as long as it says."""
    whole = header.is_clean and report.cipher_size == context.geometry.cipher_size(header.size)
    return header.journal_id in waiting.own or (header.journal_id in waiting.others and not whole)


def _content_of_surplus(context: FileContext, fd: int, report: FileReport, header: FileHeader) -> int:
    """The size with what stands behind the end, where the file does not end as its header says.

    Then that is an older header, put back over a longer file.
    """
    if ends_whole(context, fd, header, report.content_key, report.size):
        return report.size
    return content_behind(context, fd, report.content_key, report.size, report.cipher_size)


def chunks_present(context: FileContext, report: FileReport) -> int:
    """How many chunks of the file have a whole record in the backing file."""
    geometry = context.geometry
    count = geometry.chunk_count(report.size)
    if not report.has(Kind.FILE_CUT):
        return count
    present = max(report.cipher_size - HEADER_SIZE, 0) // geometry.record_size
    last = geometry.record_offset(count - 1) + geometry.chunk_length(count - 1, report.size)
    return count if report.cipher_size >= last + geometry.overhead else min(present, count)


class ChunkCheck:
    """Opens the chunks of one file, in shares that can run in several threads."""

    def __init__(self, context: FileContext, fd: int, report: FileReport) -> None:
        header = report.header
        assert header is not None  # nothing else has chunks
        self._context = context
        self._fd = fd
        self._size = report.size
        self._key = report.content_key
        self._holes = header.is_sparse
        self.chunks = chunks_present(context, report)
        self.share = max(SHARE_SIZE // context.geometry.record_size, 1)

    def shares(self) -> Iterator[ChunkRange]:
        """The pieces to check. What is a hole of a file that may have holes is in none of them."""
        first = self._skip_hole(0, self.chunks - 1)
        while first < self.chunks:
            last = min(first + self.share, self.chunks) - 1
            yield ChunkRange(first, last)
            first = self._skip_hole(last + 1, self.chunks - 1)

    def damaged(self, share: ChunkRange) -> ShareResult:
        """Open the chunks of a share. Safe from many threads. Raises: OSError."""
        geometry, buffers = self._context.geometry, self._context.buffers
        run = max(RUN_SIZE // geometry.record_size, 1)
        sealed = buffers.take(run * geometry.record_size)
        plain = buffers.take(run * geometry.chunk_size)
        found: list[int] = []
        try:
            first = share.first
            while first <= share.last:
                first = self._skip_hole(first, share.last)
                last = min(first + run - 1, share.last)
                if first <= last:
                    self._check_run(first, last, sealed, plain, found)
                first = last + 1
        finally:
            buffers.give(sealed)
            buffers.give(plain)
        size = min(geometry.chunk_start(share.last + 1), self._size) - geometry.chunk_start(share.first)
        return ShareResult(joined([[ChunkRange(chunk, chunk)] for chunk in found]), size)

    def _skip_hole(self, first: int, last: int) -> int:
        """The first chunk that is not wholly in a hole of the backing file, where the file may have holes."""
        if not self._holes or first > last:
            return first
        geometry = self._context.geometry
        try:
            data = os.lseek(self._fd, geometry.record_offset(first), os.SEEK_DATA)
        except OSError as error:
            return last + 1 if error.errno == errno.ENXIO else first
        return min(max(geometry.chunk_of_record_byte(data), first), last + 1)

    def _check_run(
        self, first: int, last: int, sealed: memoryview, plain: memoryview, found: list[int]
    ) -> None:
        geometry, cipher = self._context.geometry, self._context.cipher.cipher
        start = geometry.chunk_start(first)
        length = min(geometry.chunk_start(last + 1), self._size) - start
        wanted = geometry.records_size(length)
        got = read_fully(self._fd, sealed[:wanted], geometry.record_offset(first))
        place, index = 0, first
        while index <= last:
            end = min(got, wanted)
            if place >= end:
                found.extend(range(index, last + 1))  # cut while it was looked at
                return
            try:
                cipher.open_run(self._key, index, sealed[place:end], plain, holes=self._holes)
            except ChunkError as error:
                bad = index if error.chunk_index is None else error.chunk_index
                found.append(bad)
                place += (bad + 1 - index) * geometry.record_size
                index = bad + 1
            else:
                place, index = end, last + 1


def joined(shares: Iterable[list[ChunkRange]]) -> list[ChunkRange]:
    """The ranges of all shares, in order, those that touch made one."""
    ranges: list[ChunkRange] = []
    for found in (each for share in shares for each in share):
        if ranges and ranges[-1].last == found.first - 1:
            ranges[-1] = ChunkRange(ranges[-1].first, found.last)
        else:
            ranges.append(found)
    return ranges


def describe_ranges(context: FileContext, size: int, ranges: list[ChunkRange]) -> str:
    """Damaged chunks in words: how many, and which bytes of the file."""
    geometry = context.geometry
    chunks = sum(each.last - each.first + 1 for each in ranges)
    shown = [
        f"{geometry.chunk_start(each.first)} to {min(geometry.chunk_start(each.last + 1), size) - 1}"
        for each in ranges[:_SHOWN_RANGES]
    ]
    more = f" and {len(ranges) - _SHOWN_RANGES} more ranges" if len(ranges) > _SHOWN_RANGES else ""
    word = "chunk" if chunks == 1 else "chunks"
    return f"{chunks} {word} of {geometry.chunk_count(size)}: bytes {', '.join(shown)}{more}"


class DeepPool:
    """Threads that open chunks. Without workers everything happens at once, in the caller."""

    def __init__(self, workers: int | None = None) -> None:
        self.workers = usable_cores() if workers is None else workers
        self._executor = ThreadPoolExecutor(self.workers, thread_name_prefix="cryptfs-fsck")

    def submit(self, check: ChunkCheck, share: ChunkRange) -> Future[ShareResult]:
        """Have a share checked."""
        return self._executor.submit(check.damaged, share)

    def close(self) -> None:
        """End the threads; what has not begun does not begin."""
        self._executor.shutdown(cancel_futures=True)
