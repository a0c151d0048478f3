"""The content of one file under another masterkey: header and records, run by run.

A chunk that does not open is copied as it is: under the new masterkey it opens no more than before, so
reading it stays an error, and the rest of the file is saved.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from typing import NamedTuple

from cryptfs.core.format.header import FileHeader
from cryptfs.core.format.verdict import Length
from cryptfs.errors import ChunkError, HeaderError
from cryptfs.rekey.both import BothKeys
from cryptfs.storage.backing import read_fully, write_fully
from cryptfs.storage.libc import os_error
from cryptfs.vfs.content.foundlength import ends_whole, found_length

RUN_SIZE = 1024 * 1024  # bytes that a thread reads, opens, seals and writes at once
SHARE_SIZE = 8 * 1024 * 1024  # bytes of a file that one thread does


class Plan(NamedTuple):
    """How a file is sealed again.

    header:  under the new masterkey.   size: plaintext bytes of the records to seal.
    damage:  why its length is not that of its header, in words; "" if it is right.
    """

    header: FileHeader
    old_key: bytes
    new_key: bytes
    size: int
    holes: bool
    damage: str

    def __repr__(self) -> str:
        return f"Plan(size={self.size})"


def plan_of(both: BothKeys, fd: int, cipher_size: int) -> Plan:
    """How to seal a file again that has a header. Raises: HeaderError: it does not verify."""
    context = both.old
    header = context.header_of(fd)
    if header is None:
        raise HeaderError("the file header is missing")
    key = context.content_key_of(header)
    found = found_length(context, fd, header, key, cipher_size)
    size, claimed, damage = found.size, found.size, ""
    if found.kind is Length.CUT:
        size, damage = context.geometry.plain_size_floor(cipher_size), found.reason
    elif found.kind is Length.SURPLUS and not ends_whole(context, fd, header, key, found.size):
        size, damage = context.geometry.plain_size_floor(cipher_size), "content after its end"
    following = header.changed(generation=header.generation + 1).closed_at(claimed)
    return Plan(following, key, both.new.content_key_of(following), size, header.is_sparse, damage)


def records_end(both: BothKeys, plan: Plan) -> int:
    """Length of the backing file."""
    return both.new.geometry.cipher_size(plan.size)


def shares(both: BothKeys, plan: Plan) -> Iterator[tuple[int, int]]:
    """Pieces for threads: first and last chunk."""
    geometry = both.new.geometry
    count, step = geometry.chunk_count(plan.size), max(geometry.whole_records(SHARE_SIZE), 1)
    for first in range(0, count, step):
        yield first, min(first + step, count) - 1


class Resealer:
    """Seals the records of one share again. Made and used in one thread.

    Args: source_fd, target_fd: the old and the new backing file.
    """

    def __init__(self, both: BothKeys, source_fd: int, target_fd: int, plan: Plan) -> None:
        self._both = both
        self._geometry = both.new.geometry
        self._source = source_fd
        self._target = target_fd
        self._plan = plan
        self._damaged: list[int] = []

    def run(self, first: int, last: int) -> list[int]:
        """Seal these chunks again; returns the ones that do not open. Raises: OSError."""
        geometry, buffers = self._geometry, self._both.new.buffers
        step = max(geometry.whole_records(RUN_SIZE), 1)
        sealed = buffers.take(geometry.record_start(step))
        plain = buffers.take(geometry.chunk_start(step))
        out = buffers.take(geometry.record_start(step))
        try:
            while first <= last:
                first = self._skip_hole(first, last)
                end = min(first + step - 1, last)
                if first <= end:
                    self._run(first, end, sealed, plain, out)
                first = end + 1
        finally:
            for each in (sealed, plain, out):
                buffers.give(each)
        return self._damaged

    def _skip_hole(self, first: int, last: int) -> int:
        """The first chunk that is not wholly in a hole of the backing file, if the file may have holes."""
        if not self._plan.holes:
            return first
        try:
            data = os.lseek(self._source, self._geometry.record_offset(first), os.SEEK_DATA)
        except OSError as error:
            return last + 1 if error.errno == errno.ENXIO else first
        return min(max(self._geometry.chunk_of_record_byte(data), first), last + 1)

    def _run(self, first: int, last: int, sealed: memoryview, plain: memoryview, out: memoryview) -> None:
        geometry = self._geometry
        wanted = geometry.records_size(geometry.run_length(first, last, self._plan.size))
        if read_fully(self._source, sealed[:wanted], geometry.record_offset(first)) < wanted:
            raise os_error(errno.ESTALE)  # somebody cuts it now
        for start, stop in self._stretches(sealed[:wanted]):
            self._stretch(first + geometry.whole_records(start), sealed[start:stop], plain, out)

    def _stretches(self, sealed: memoryview) -> Iterator[tuple[int, int]]:
        """The pieces of a run without holes, as offsets."""
        if not self._plan.holes:
            yield 0, len(sealed)
            return
        size, begin = self._geometry.record_size, None
        zeros = bytes(size)
        for start in range(0, len(sealed), size):
            record = bytes(sealed[start : start + size])
            if record == zeros[: len(record)]:
                if begin is not None:
                    yield begin, start
                begin = None
            elif begin is None:
                begin = start
        if begin is not None:
            yield begin, len(sealed)

    def _stretch(self, first: int, sealed: memoryview, plain: memoryview, out: memoryview) -> None:
        """Consecutive records without a hole: open, seal and write; copy those that do not open."""
        geometry, cipher = self._geometry, self._both.old.cipher.cipher
        place, index = 0, first
        while place < len(sealed):
            try:
                got = cipher.open_run(self._plan.old_key, index, sealed[place:], plain, holes=False)
            except ChunkError as error:
                bad = index if error.chunk_index is None else error.chunk_index
                self._seal(index, plain[: geometry.chunk_start(bad - index)], out)
                start = place + geometry.record_start(bad - index)
                place = min(start + geometry.record_start(1), len(sealed))
                write_fully(self._target, (sealed[start:place],), geometry.record_offset(bad))
                self._damaged.append(bad)
                index = bad + 1
            else:
                self._seal(index, plain[:got], out)
                return

    def _seal(self, first: int, plain: memoryview, out: memoryview) -> None:
        if not plain:
            return
        new = self._both.new
        nonces = new.nonces(self._geometry.chunk_count(len(plain)))
        size = new.cipher.cipher.seal_run(self._plan.new_key, first, plain, nonces, out)
        write_fully(self._target, (out[:size],), self._geometry.record_offset(first))
