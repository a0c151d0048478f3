"""Checks one backing file: its header, its length, and with a deep check each of its chunks."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

from cryptfs.core.format.header import FileHeader
from cryptfs.core.format.verdict import Length
from cryptfs.errors import ChunkError, HeaderError
from cryptfs.fsck.findings import FindingKind
from cryptfs.storage.backing import read_fully
from cryptfs.vfs.content.cipherpool import usable_cores
from cryptfs.vfs.content.context import FileContext
from cryptfs.vfs.content.foundlength import content_behind, ends_whole, found_length, names_missing_journal
from cryptfs.vfs.recovery.replay import Waiting

NOBODY_WAITS = Waiting()
RUN_SIZE = 1024 * 1024  # bytes that a thread reads and opens at once
_SHOWN_RANGES = 8
SHARE_SIZE = 32 * 1024 * 1024  # bytes of a file that one thread checks at a time


_ORDER = (
    FindingKind.HEADER,
    FindingKind.NOT_SETTLED,
    FindingKind.MISSING_JOURNAL,
    FindingKind.SURPLUS,
    FindingKind.CHUNKS,
    FindingKind.FILE_CUT,
)


class Problem(NamedTuple):
    """One problem of a file."""

    kind: FindingKind
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
    """The state of a file.

    header:      None if the backing file is empty, or its header does not verify.
    size:        plaintext bytes of the file; with FILE_CUT, of the whole file before the cut.
    cipher_size: length of the backing file.
    damaged:     chunks that do not open, without those after a cut.
    recovered:   whether recovery finds the size, because the header does not have it.
    awaits_replay: whether the check has to wait for a replay of the journal.
    """

    cipher_size: int
    header: FileHeader | None = None
    content_key: bytes = b""
    size: int = 0
    problems: list[Problem] = field(default_factory=list)
    damaged: list[ChunkRange] = field(default_factory=list)
    recovered: bool = False
    awaits_replay: bool = False

    def has(self, kind: FindingKind) -> bool:
        """Whether the file has this problem."""
        return any(problem.kind is kind for problem in self.problems)

    def in_order(self) -> list[Problem]:
        """The problems in the order of their repair.

        A cut file gets holes, so the repair must fill its zeroed chunks first.
        """
        return sorted(self.problems, key=lambda problem: _ORDER.index(problem.kind))

    def add(self, kind: FindingKind, detail: str) -> None:
        """Note a problem."""
        self.problems.append(Problem(kind, detail))


def check_length(
    context: FileContext, fd: int, *, open_files: bool, waiting: Waiting = NOBODY_WAITS
) -> FileReport:
    """Check header and length of a backing file. Writes nothing.

    Args: open_files: the vault is mounted, so a file may be open and need no settling.
          waiting: journals that wait for their replay; no verdict on their files before that.
    """
    report = FileReport(os.fstat(fd).st_size)
    if not report.cipher_size:
        return report
    try:
        header = context.header_of(fd)
    except HeaderError as error:
        report.add(FindingKind.HEADER, error.reason)
        return report
    if header is None:  # just emptied
        return FileReport(0)
    report.header = header
    report.content_key = context.content_key_of(header)
    if _awaits_replay(context, report, header, waiting):
        report.awaits_replay = True
        report.size = header.size
        report.add(FindingKind.NOT_SETTLED, "it can be checked when the journal is replayed")
        return report
    _judge(context, fd, report, header, open_files=open_files)
    return report


def _judge(
    context: FileContext, fd: int, report: FileReport, header: FileHeader, *, open_files: bool
) -> None:
    """Note the file's length, and any problem with it."""
    found = found_length(context, fd, header, report.content_key, report.cipher_size)
    report.size = found.size
    if found.kind is Length.CUT:
        report.add(FindingKind.FILE_CUT, found.reason)
    elif found.kind is Length.SURPLUS:
        newer = _content_of_surplus(context, fd, report, header)
        if newer > found.size:
            report.size, report.recovered = newer, True
            report.add(FindingKind.NOT_SETTLED, f"{newer} bytes are intact, its header says {found.size}")
        else:
            report.add(FindingKind.SURPLUS, f"{report.cipher_size - found.expected} bytes")
    elif found.kind is not Length.SETTLED:
        report.recovered = True
        if not open_files:
            missing = names_missing_journal(context, header)
            report.add(
                FindingKind.MISSING_JOURNAL if missing else FindingKind.NOT_SETTLED,
                f"{report.size} bytes are intact",
            )


def _awaits_replay(context: FileContext, report: FileReport, header: FileHeader, waiting: Waiting) -> bool:
    """Another machine's journal cannot matter to a file that is CLEAN and has the length in its header."""
    whole = header.is_clean and report.cipher_size == context.geometry.cipher_size(header.size)
    return header.journal_id in waiting.own or (header.journal_id in waiting.others and not whole)


def _content_of_surplus(context: FileContext, fd: int, report: FileReport, header: FileHeader) -> int:
    """The size including the bytes after the end, if the file does not end where its header says.

    Then somebody has put an older header over a longer file.
    """
    if ends_whole(context, fd, header, report.content_key, report.size):
        return report.size
    return content_behind(context, fd, report.content_key, report.size, report.cipher_size)


def chunks_present(context: FileContext, report: FileReport) -> int:
    """The number of chunks with a whole record in the backing file."""
    geometry = context.geometry
    count = geometry.chunk_count(report.size)
    if not report.has(FindingKind.FILE_CUT):
        return count
    if report.cipher_size >= geometry.cipher_size(report.size):
        return count
    return min(geometry.chunk_of_record_byte(report.cipher_size), count)


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
        self.share = max(context.geometry.whole_records(SHARE_SIZE), 1)

    def shares(self) -> Iterator[ChunkRange]:
        """The pieces to check, without the holes of a file that may have holes."""
        first = self._skip_hole(0, self.chunks - 1)
        while first < self.chunks:
            last = min(first + self.share, self.chunks) - 1
            yield ChunkRange(first, last)
            first = self._skip_hole(last + 1, self.chunks - 1)

    def damaged(self, share: ChunkRange) -> ShareResult:
        """Open the chunks of a share. Safe from many threads. Raises: OSError."""
        geometry, buffers = self._context.geometry, self._context.buffers
        run = max(geometry.whole_records(RUN_SIZE), 1)
        sealed = buffers.take(geometry.record_start(run))
        plain = buffers.take(geometry.chunk_start(run))
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
        size = geometry.run_length(share.first, share.last, self._size)
        return ShareResult(joined([[ChunkRange(chunk, chunk)] for chunk in found]), size)

    def _skip_hole(self, first: int, last: int) -> int:
        """The first chunk that is not wholly in a hole of the backing file, if the file may have holes."""
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
        wanted = geometry.records_size(geometry.run_length(first, last, self._size))
        got = read_fully(self._fd, sealed[:wanted], geometry.record_offset(first))
        place, index = 0, first
        while index <= last:
            end = min(got, wanted)
            if place >= end:
                found.extend(range(index, last + 1))  # cut during the check
                return
            try:
                cipher.open_run(self._key, index, sealed[place:end], plain, holes=self._holes)
            except ChunkError as error:
                bad = index if error.chunk_index is None else error.chunk_index
                found.append(bad)
                place += geometry.record_start(bad + 1 - index)
                index = bad + 1
            else:
                place, index = end, last + 1


def joined(shares: Iterable[list[ChunkRange]]) -> list[ChunkRange]:
    """The ranges of all shares, in order; adjacent ones become one."""
    ranges: list[ChunkRange] = []
    for found in (each for share in shares for each in share):
        if ranges and ranges[-1].last == found.first - 1:
            ranges[-1] = ChunkRange(ranges[-1].first, found.last)
        else:
            ranges.append(found)
    return ranges


def describe_ranges(context: FileContext, size: int, ranges: list[ChunkRange]) -> str:
    """Damaged chunks in words: their number, and their bytes of the file."""
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
    """Threads that open chunks. Without workers the caller does everything at once."""

    def __init__(self, workers: int | None = None) -> None:
        self.workers = usable_cores() if workers is None else workers
        self._executor = ThreadPoolExecutor(self.workers, thread_name_prefix="cryptfs-fsck")

    def submit(self, check: ChunkCheck, share: ChunkRange) -> Future[ShareResult]:
        """Have a share checked."""
        return self._executor.submit(check.damaged, share)

    def close(self) -> None:
        """End the threads, and start no more work."""
        self._executor.shutdown(cancel_futures=True)
