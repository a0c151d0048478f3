"""Repairs backing files in place: header, length, damaged chunks.

In place, not in a copy: a file of any size needs no room beside it, and its inode, its names, its attributes
and its times stay. What does not authenticate is copied to lost+found before anything is written over it.
See docs/decisions/0010.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from typing import NamedTuple

from cryptfs.core.header import NO_FLAGS, NO_JOURNAL, FileHeader, HeaderFlag
from cryptfs.core.salvage import salvage_header
from cryptfs.errors import ChunkError, HeaderError
from cryptfs.storage.backing import read_fully, read_header, reopen, write_fully
from cryptfs.storage.libc import UTIME_OMIT, futimens
from cryptfs.vfs.check_files import (
    ChunkCheck,
    ChunkRange,
    FileReport,
    check_length,
    chunks_present,
    describe_ranges,
    joined,
)
from cryptfs.vfs.context import FileContext
from cryptfs.vfs.findings import Kind, escaped
from cryptfs.vfs.lost_found import LostAndFound, numbered

_TRIED_CHUNKS = 3  # that a candidate for a header is tried on


class Place(NamedTuple):
    """Where a file is, for what is kept of it. name: None where it has none that can be told."""

    parent: bytes | None
    name: bytes


class FileMender:
    """Mends backing files."""

    def __init__(self, context: FileContext, lost: LostAndFound) -> None:
        self._context = context
        self._geometry = context.geometry
        self._lost = lost

    def mend(self, fd: int, report: FileReport, place: Place, kind: Kind) -> str:
        """Mend one thing but the header; says what was done. In FileReport.in_order."""
        match kind:
            case Kind.SURPLUS:
                return self.trim(fd, report)
            case Kind.NOT_SETTLED:
                return self.settle(fd, report)
            case Kind.MISSING_JOURNAL:
                return f"{self.settle(fd, report)}; what was synced by overwriting it may be lost"
            case Kind.CHUNKS:
                return self.fill(fd, report, place)
            case Kind.FILE_CUT:
                return self.restore_length(fd, report, place)
        raise ValueError(f"nothing mends {kind} in place")

    # ---- length

    def trim(self, fd: int, report: FileReport) -> str:
        """Cut off what stands behind the end."""
        with writable(fd) as writing:
            _cut(writing, self._geometry.cipher_size(report.size))
        return "the surplus was cut off"

    def settle(self, fd: int, report: FileReport) -> str:
        """After its writer died: what is there is what the file has."""
        assert report.header is not None
        with writable(fd) as writing:
            mtime = os.fstat(writing).st_mtime_ns
            _cut(writing, self._geometry.cipher_size(report.size))
            self._write_clean(writing, report, report.header, mtime)
        return f"settled at {report.size} bytes"

    def _write_clean(self, fd: int, report: FileReport, header: FileHeader, mtime_ns: int) -> None:
        flags = (header.flags & HeaderFlag.SPARSE if report.size else NO_FLAGS) | HeaderFlag.CLEAN
        clean = header.changed(
            size=report.size, size_min=report.size, flags=flags, journal_id=NO_JOURNAL, journal_floor=0
        )
        os.fdatasync(fd)  # a header that names no journal promises that its file is on disk
        write_fully(fd, (self._context.pack_header(clean),), 0)
        futimens(fd, (0, UTIME_OMIT, *divmod(mtime_ns, 10**9)))
        report.header = clean

    # ---- chunks

    def restore_length(self, fd: int, report: FileReport, place: Place) -> str:
        """Give a file that was cut its length again. What is lost reads as zeros, as a hole.

        Zeroed chunks before the cut would become holes, too: damaged ones have to be filled before.
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
            futimens(writing, (0, UTIME_OMIT, *divmod(mtime, 10**9)))
        return f"bytes {lost_from} to {report.size - 1} are lost, and zeros now"

    def fill(self, fd: int, report: FileReport, place: Place) -> str:
        """Put sealed zeros in the place of damaged chunks, which are kept."""
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
            futimens(writing, (0, UTIME_OMIT, *divmod(mtime, 10**9)))
        return f"lost, and zeros now{kept}"

    def _damaged_still(self, fd: int, report: FileReport) -> list[ChunkRange]:
        """Before anything is written over: what is damaged when it is read once more."""
        check = ChunkCheck(self._context, fd, report)
        return joined([check.damaged(each).damaged for each in report.damaged])

    def _write_zeros(self, fd: int, report: FileReport, chunk_index: int) -> None:
        context, geometry = self._context, self._geometry
        length = geometry.chunk_length(chunk_index, report.size)
        sealed = memoryview(bytearray(length + geometry.overhead))
        context.cipher.cipher.seal_run(
            report.content_key, chunk_index, bytes(length), context.nonces(1), sealed
        )
        write_fully(fd, (sealed,), geometry.record_offset(chunk_index))

    def _keep(self, fd: int, damaged: list[ChunkRange], place: Place, end: int) -> str:
        """Copy damaged records to lost+found, at the offsets that they have in the backing file.

        All-zero ones tell nothing and are left out. Returns: words for the report.
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
        return f"; the damaged pieces are in {escaped(path)}" if kept is not None else ""

    # ---- header

    def restore_header(self, fd: int, report: FileReport, place: Place) -> str | None:
        """Make a header anew from what can be proven; None where nothing can. Then mend the rest."""
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
            words = "made the header anew; the length could not be verified"
            header = self._with_length(fd, report, header)
        self._lost.note(f"{_shown(place)}: {words}; it was {raw.hex()}", synced=True)
        with writable(fd) as writing:
            mtime = os.fstat(writing).st_mtime_ns
            write_fully(writing, (context.pack_header(header),), 0)
            os.fsync(writing)
            futimens(writing, (0, UTIME_OMIT, *divmod(mtime, 10**9)))
        more = self._mend_rest(fd, report, place)
        return "; ".join([words, *more])

    def _opens(self, fd: int, report: FileReport, header: FileHeader) -> bool:
        """Whether one of the file's first chunks opens under a header's key."""
        key, geometry = self._context.content_key_of(header), self._geometry
        size = geometry.plain_size_floor(report.cipher_size)
        plain = memoryview(bytearray(geometry.chunk_size))
        count = geometry.chunk_count(size)
        for chunk_index in {*range(min(_TRIED_CHUNKS, count)), max(count - 1, 0)}:
            record = memoryview(bytearray(geometry.chunk_length(chunk_index, size) + geometry.overhead))
            if not count or read_fully(fd, record, geometry.record_offset(chunk_index)) < len(record):
                continue
            with contextlib.suppress(ChunkError):
                self._context.cipher.cipher.open_run(key, chunk_index, record, plain, holes=False)
                return True
        return False

    def _with_length(self, fd: int, report: FileReport, header: FileHeader) -> FileHeader:
        """A CLEAN header for a file of which only the key is known: its length is what is there.

        Holes cannot be told from zeroed chunks then. They read as zeros either way.
        """
        size = self._geometry.plain_size_floor(report.cipher_size)
        plain = header.changed(size=size, size_min=size, generation=1, flags=HeaderFlag.CLEAN)
        trial = FileReport(report.cipher_size, plain, self._context.content_key_of(plain), size)
        check = ChunkCheck(self._context, fd, trial)
        for share in check.shares():
            for each in check.damaged(share).damaged:
                if any(self._is_zeroed(fd, size, index) for index in range(each.first, each.last + 1)):
                    return plain.changed(flags=HeaderFlag.CLEAN | HeaderFlag.SPARSE)
        return plain

    def _is_zeroed(self, fd: int, size: int, chunk_index: int) -> bool:
        length = self._geometry.chunk_length(chunk_index, size) + self._geometry.overhead
        record = memoryview(bytearray(length))
        return read_fully(fd, record, self._geometry.record_offset(chunk_index)) == length and not any(record)

    def _mend_rest(self, fd: int, report: FileReport, place: Place) -> list[str]:
        """What the header hid: length and chunks."""
        found = check_length(self._context, fd, open_files=False)
        if found.header is None:
            raise HeaderError("the new header does not hold")
        if found.size:
            check = ChunkCheck(self._context, fd, found)
            found.damaged = joined(check.damaged(share).damaged for share in check.shares())
        if found.damaged:
            found.add(Kind.CHUNKS, describe_ranges(self._context, found.size, found.damaged))
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
        futimens(fd, (0, UTIME_OMIT, *divmod(st.st_mtime_ns, 10**9)))


@contextlib.contextmanager
def writable(fd: int) -> Iterator[int]:
    """A descriptor of the same file that can write, whatever its mode says to its owner."""
    try:
        writing = reopen(fd, os.O_RDWR)
    except PermissionError:
        mode = stat.S_IMODE(os.fstat(fd).st_mode)
        os.fchmod(fd, mode | stat.S_IRUSR | stat.S_IWUSR)
        try:
            writing = reopen(fd, os.O_RDWR)
        finally:
            os.fchmod(fd, mode)
    try:
        yield writing
    finally:
        os.close(writing)


def _shown(place: Place) -> str:
    return escaped(place.parent + b"/" + place.name if place.parent else place.name)
