"""Repairs backing files in place: header, length, damaged chunks.

In place, not in a copy: so a large file needs no second room, and keeps its inode, names and attributes, and
mostly its times. The repair copies data that does not authenticate to lost+found before it writes over it.
See docs/decisions/0010.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import NamedTuple

from cryptfs.core.format.header import FileHeader, HeaderFlag
from cryptfs.core.format.salvage import salvage_header
from cryptfs.core.printable import shown
from cryptfs.errors import ChunkError, HeaderError
from cryptfs.fsck.files import (
    ChunkCheck,
    ChunkRange,
    FileReport,
    check_length,
    chunks_present,
    describe_ranges,
    joined,
)
from cryptfs.fsck.findings import FindingKind
from cryptfs.fsck.lost_found import LostAndFound, numbered
from cryptfs.storage.backing import read_fully, read_header, reopen_for_owner, write_fully
from cryptfs.storage.libc import restore_mtime
from cryptfs.vfs.content.context import FileContext
from cryptfs.vfs.content.mtimes import AHEAD_NS

_TRIED_CHUNKS = 3  # to try a candidate for a header on


class Origin(NamedTuple):
    """The place of a file, for its damaged pieces in lost+found. name: None if unknown."""

    parent: bytes | None
    name: bytes


class FileMender:
    """Repairs backing files."""

    def __init__(self, context: FileContext, lost: LostAndFound) -> None:
        self._context = context
        self._geometry = context.geometry
        self._lost = lost

    def mend(self, fd: int, report: FileReport, place: Origin, kind: FindingKind) -> str:
        """Repair one problem other than the header; returns the action in words. In FileReport.in_order."""
        match kind:
            case FindingKind.SURPLUS:
                return self.trim(fd, report)
            case FindingKind.NOT_SETTLED:
                return self.settle(fd, report)
            case FindingKind.MISSING_JOURNAL:
                return f"{self.settle(fd, report)}; synced changes to it may be lost"
            case FindingKind.CHUNKS:
                return self.fill(fd, report, place)
            case FindingKind.FILE_CUT:
                return self.restore_length(fd, report, place)
        raise ValueError(f"nothing mends {kind} in place")

    # ---- length

    def trim(self, fd: int, report: FileReport) -> str:
        """Cut off the bytes after the end."""
        with writable(fd) as writing:
            _cut(writing, self._geometry.cipher_size(report.size))
        return "the surplus was cut off"

    def settle(self, fd: int, report: FileReport) -> str:
        """After its writer died: accept the length of the file.

        Its time of change moves, so that a sync client brings the new header to other machines, which have
        the file as it was here. Other repairs move no times: elsewhere there may be an undamaged copy.
        """
        assert report.header is not None
        with writable(fd) as writing:
            mtime = os.fstat(writing).st_mtime_ns + AHEAD_NS
            _cut(writing, self._geometry.cipher_size(report.size))
            self._write_clean(writing, report, report.header, mtime)
        return f"kept {report.size} bytes"

    def _write_clean(self, fd: int, report: FileReport, header: FileHeader, mtime_ns: int) -> None:
        clean = header.closed_at(report.size)
        os.fdatasync(fd)  # a header without a journal promises that its file is on disk
        write_fully(fd, (self._context.pack_header(clean),), 0)
        restore_mtime(fd, mtime_ns)
        report.header = clean

    # ---- chunks

    def restore_length(self, fd: int, report: FileReport, place: Origin) -> str:
        """Give a cut file its length again. The lost part is a hole and reads as zeros.

        Zeroed chunks before the cut would also become holes: fill damaged ones first.
        """
        header, geometry = report.header, self._geometry
        assert header is not None
        present = chunks_present(self._context, report)
        end = geometry.record_offset(present)
        lost_from = geometry.chunk_start(present)
        with writable(fd) as writing:
            mtime = os.fstat(writing).st_mtime_ns
            if os.fstat(writing).st_size > end:
                self._keep(writing, [ChunkRange(present, present)], place, report.cipher_size)
            _cut(writing, end)
            self._write_clean(writing, report, header.changed(flags=header.flags | HeaderFlag.SPARSE), mtime)
            os.ftruncate(writing, geometry.cipher_size(report.size))
            os.fsync(writing)
            restore_mtime(writing, mtime)
        return f"bytes {lost_from} to {report.size - 1} are lost, and are zeros now"

    def fill(self, fd: int, report: FileReport, place: Origin) -> str:
        """Replace damaged chunks by sealed zeros, and keep the damaged ones in lost+found."""
        with writable(fd) as writing:
            damaged = self._damaged_still(writing, report)
            if not damaged:
                return "they can be read now; nothing was changed"
            mtime = os.fstat(writing).st_mtime_ns
            kept = self._keep(writing, damaged, place, self._geometry.cipher_size(report.size))
            for each in damaged:
                for chunk_index in range(each.first, each.last + 1):
                    self._write_zeros(writing, report, chunk_index)
            os.fsync(writing)
            restore_mtime(writing, mtime)
        return f"replaced them with zeros{kept}"

    def _damaged_still(self, fd: int, report: FileReport) -> list[ChunkRange]:
        """Read once more before writing: the chunks that are still damaged."""
        check = ChunkCheck(self._context, fd, report)
        return joined([check.damaged(each).damaged for each in report.damaged])

    def _write_zeros(self, fd: int, report: FileReport, chunk_index: int) -> None:
        context, geometry = self._context, self._geometry
        length = geometry.chunk_length(chunk_index, report.size)
        sealed = memoryview(bytearray(geometry.record_length(length)))
        context.cipher.cipher.seal_run(
            report.content_key, chunk_index, bytes(length), context.nonces(1), sealed
        )
        write_fully(fd, (sealed,), geometry.record_offset(chunk_index))

    def _keep(self, fd: int, damaged: list[ChunkRange], place: Origin, end: int) -> str:
        """Copy damaged records to lost+found, at their offsets in the backing file.

        Leaves out all-zero records, which hold nothing. Returns: words for the report.
        """
        geometry, kept, path = self._geometry, None, b""
        buffer = memoryview(bytearray(geometry.record_size))
        try:
            for each in damaged:
                for chunk_index in range(each.first, each.last + 1):
                    offset = geometry.record_offset(chunk_index)
                    got = read_fully(fd, buffer[: max(min(geometry.record_size, end - offset), 0)], offset)
                    if buffer[:got] == memoryview(bytes(got)):
                        continue
                    if kept is None:
                        kept, path = self._lost.make_file(place.parent, numbered(place.name, b".damaged"))
                    kept.write(offset, buffer[:got])
        finally:
            if kept is not None:
                self._lost.finish(kept)
        return f"; the damaged pieces are in {shown(path)}" if kept is not None else ""

    # ---- header

    def restore_header(self, fd: int, report: FileReport, place: Origin) -> str | None:
        """Make a new header from what can be proven, then repair the rest; None if nothing can be proven."""
        raw = read_header(fd)
        context = self._context
        header = salvage_header(
            raw,
            context.keys,
            context.config.suite.cipher_id,
            context.log2_chunk_size,
            lambda candidate: self._opens(fd, report, candidate),
        )
        if header is None:
            return None
        words = "restored the header as it was"
        if not header.generation:
            words = "made a new header; the length could not be verified"
            header = self._with_length(fd, report, header)
        self._lost.note(f"{_shown(place)}: {words}; it was {raw.hex()}", synced=True)
        with writable(fd) as writing:
            mtime = os.fstat(writing).st_mtime_ns
            write_fully(writing, (context.pack_header(header),), 0)
            os.fsync(writing)
            restore_mtime(writing, mtime)
        more = self._mend_rest(fd, report, place)
        return "; ".join([words, *more])

    def _opens(self, fd: int, report: FileReport, header: FileHeader) -> bool:
        """Whether one of the file's first chunks opens under a header's key."""
        key, geometry = self._context.content_key_of(header), self._geometry
        size = geometry.plain_size_floor(report.cipher_size)
        plain = memoryview(bytearray(geometry.chunk_size))
        count = geometry.chunk_count(size)
        for chunk_index in {*range(min(_TRIED_CHUNKS, count)), max(count - 1, 0)}:
            record = memoryview(bytearray(geometry.record_length(geometry.chunk_length(chunk_index, size))))
            if not count or read_fully(fd, record, geometry.record_offset(chunk_index)) < len(record):
                continue
            with contextlib.suppress(ChunkError):
                self._context.cipher.cipher.open_run(key, chunk_index, record, plain, holes=False)
                return True
        return False

    def _with_length(self, fd: int, report: FileReport, header: FileHeader) -> FileHeader:
        """A CLEAN header for a file when only its key is known, with the present length.

        Then holes look like zeroed chunks; both read as zeros.
        """
        size = self._geometry.plain_size_floor(report.cipher_size)
        plain = header.closed_at(size).changed(generation=1)
        trial = FileReport(report.cipher_size, plain, self._context.content_key_of(plain), size)
        check = ChunkCheck(self._context, fd, trial)
        for share in check.shares():
            for each in check.damaged(share).damaged:
                if any(self._is_zeroed(fd, size, index) for index in range(each.first, each.last + 1)):
                    return plain.changed(flags=plain.flags | HeaderFlag.SPARSE)
        return plain

    def _is_zeroed(self, fd: int, size: int, chunk_index: int) -> bool:
        length = self._geometry.record_length(self._geometry.chunk_length(chunk_index, size))
        record = memoryview(bytearray(length))
        return read_fully(fd, record, self._geometry.record_offset(chunk_index)) == length and not any(record)

    def _mend_rest(self, fd: int, report: FileReport, place: Origin) -> list[str]:
        """Repair what the damaged header hid: length and chunks."""
        found = check_length(self._context, fd, open_files=False)
        if found.header is None:
            raise HeaderError("the new header does not verify")
        if found.size:
            check = ChunkCheck(self._context, fd, found)
            found.damaged = joined(check.damaged(share).damaged for share in check.shares())
        if found.damaged:
            found.add(FindingKind.CHUNKS, describe_ranges(self._context, found.size, found.damaged))
        done = [
            f"{problem.detail}: {self.mend(fd, found, place, problem.kind)}" for problem in found.in_order()
        ]
        report.header, report.content_key, report.size = found.header, found.content_key, found.size
        return done


def _cut(fd: int, size: int) -> None:
    """Cut a file to this length, if it is longer; its time of change stays."""
    st = os.fstat(fd)
    if st.st_size > size:
        os.ftruncate(fd, size)
        restore_mtime(fd, st.st_mtime_ns)


@contextlib.contextmanager
def writable(fd: int) -> Iterator[int]:
    """A descriptor of the same file that can write, even if the mode forbids it to the owner."""
    writing = reopen_for_owner(fd)
    try:
        yield writing
    finally:
        os.close(writing)


def _shown(place: Origin) -> str:
    return shown(place.parent + b"/" + place.name if place.parent else place.name)
