"""A disk that stops working at a chosen system call: the process dies there, or gets an error."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pytest

from cryptfs.storage import libc
from cryptfs.vfs import lengths, ranges, replay

PAGE = 4096


class ProcessDeath(BaseException):
    """Nothing catches it: what the process would have done next does not happen."""


@dataclass
class Faults:
    """Counts the calls that change the disk, and ends them at one.

    at:        number of the call that fails, from 0; None only counts.
    error:     errno that it fails with; None kills the process.
    torn:      whether a write does its first page before that. Less is never written: the kernel copies
               page by page, and a header is in one.
    for_good:  whether the calls after it fail, too. After a death they always do.
    """

    at: int | None = None
    error: int | None = None
    torn: bool = False
    for_good: bool = False
    calls: int = 0
    failed: bool = False

    def strikes(self) -> bool:
        """Count a call; whether it is one that fails."""
        number, self.calls = self.calls, self.calls + 1
        if self.failed:
            return self.for_good or self.error is None
        self.failed = number == self.at
        return self.failed

    def fail(self) -> BaseException:
        return ProcessDeath() if self.error is None else OSError(self.error, os.strerror(self.error))

    def first_page(self, data: bytes, offset: int) -> bytes:
        """What a torn write leaves of itself: up to the next page of the file."""
        return data[: PAGE - offset % PAGE] if self.torn and len(data) > PAGE - offset % PAGE else b""

    @contextlib.contextmanager
    def on_disk(self) -> Iterator[Faults]:
        """In effect for a while."""
        pwrite, ftruncate, fallocate = os.pwrite, os.ftruncate, libc.fallocate

        def write(fd: int, data: bytes, offset: int) -> int:
            first_time = not self.failed
            if not self.strikes():
                return pwrite(fd, data, offset)
            part = self.first_page(data, offset) if first_time else b""
            if part:
                done = pwrite(fd, part, offset)
                if self.error is None:
                    raise self.fail()
                self.failed, self.at = False, self.calls  # short now; the call for the rest fails
                return done
            raise self.fail()

        def write_vector(fd: int, pieces: Sequence[bytes], offset: int) -> int:
            return write(fd, b"".join(pieces), offset)

        def cut(fd: int, length: int) -> None:
            if self.strikes():
                raise self.fail()
            ftruncate(fd, length)

        def allocate(fd: int, mode: int, offset: int, length: int) -> None:
            if self.strikes():
                raise self.fail()
            fallocate(fd, mode, offset, length)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "pwritev", write_vector)
            patch.setattr(os, "pwrite", write)
            patch.setattr(os, "ftruncate", cut)
            patch.setattr(ranges, "fallocate", allocate)
            patch.setattr(lengths, "fallocate", allocate)
            patch.setattr(replay, "fallocate", allocate)
            yield self
