"""Sorts more records than memory holds: sorted runs go to a file without a name; reading merges them."""

from __future__ import annotations

import contextlib
import heapq
import struct
import tempfile
from collections.abc import Iterator
from typing import IO

RUN_SIZE = 16 * 1024 * 1024  # bytes of records that are sorted in memory at a time
_READ_SIZE = 64 * 1024  # of each run, while merging
_MAX_RUNS = 64  # that are merged at once: memory and seeks
_LENGTH = struct.Struct("<I")


class Sorter:
    """Takes byte strings in any order and returns them in ascending order, once. Close it after use.

    Its file holds them in clear, so add nothing of the plaintext.
    """

    def __init__(self, run_size: int = RUN_SIZE) -> None:
        self._run_size = run_size
        self._pending: list[bytes] = []
        self._pending_size = 0
        self._file: IO[bytes] | None = None
        self._runs: list[tuple[int, int]] = []  # start and end in the file

    def add(self, record: bytes) -> None:
        """One more."""
        self._pending.append(record)
        self._pending_size += len(record) + 64  # about what Python needs for it
        if self._pending_size >= self._run_size:
            self._spill()

    def _spill(self) -> None:
        self._pending.sort()
        self._write_run(iter(self._pending))
        self._pending.clear()
        self._pending_size = 0
        if len(self._runs) >= _MAX_RUNS:
            merged = heapq.merge(*map(self._read_run, self._runs))
            self._runs.clear()
            self._write_run(merged)

    def _write_run(self, records: Iterator[bytes]) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="cryptfs-", buffering=0)  # noqa: SIM115 - close()
        file = self._file
        start = end = file.seek(0, 2)
        buffer = bytearray()
        for record in records:
            buffer += _LENGTH.pack(len(record)) + record
            if len(buffer) >= _READ_SIZE:
                file.seek(end)
                end += _write_all(file, buffer)
                buffer.clear()
        file.seek(end)
        end += _write_all(file, buffer)
        self._runs.append((start, end))

    def _read_run(self, run: tuple[int, int]) -> Iterator[bytes]:
        file = self._file
        assert file is not None
        place, end = run
        buffer, at = b"", 0
        while place < end or at < len(buffer):
            if len(buffer) - at < _LENGTH.size or (
                len(buffer) - at - _LENGTH.size < _LENGTH.unpack_from(buffer, at)[0]
            ):
                file.seek(place)
                more = file.read(min(_READ_SIZE, end - place))
                place += len(more)
                buffer, at = buffer[at:] + more, 0
                continue
            (length,) = _LENGTH.unpack_from(buffer, at)
            at += _LENGTH.size
            yield buffer[at : at + length]
            at += length

    def sorted(self) -> Iterator[bytes]:
        """All of them, in ascending order."""
        self._pending.sort()
        yield from heapq.merge(*map(self._read_run, self._runs), iter(self._pending))

    def close(self) -> None:
        """Free the space."""
        self._pending.clear()
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> Sorter:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self.close()


def _write_all(file: IO[bytes], data: bytearray) -> int:
    """Raises: OSError: no space for it."""
    view = memoryview(data)
    done = 0
    try:
        while done < len(view):
            done += file.write(view[done:])
    finally:
        view.release()
    return done
