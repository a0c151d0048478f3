"""Copy one file, symlink or device from one side to the other.

A file is written under a name of its own and gets its final name when it is whole, with owner, attributes and
times. So a file under its name is right, also after a kill, and also if two copies go to the same place.
"""

from __future__ import annotations

import contextlib
import os
import stat
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, NamedTuple

from cryptfs.errors import CryptfsError
from cryptfs.signals import interrupt_behind
from cryptfs.storage.libc import NO_ROOM
from cryptfs.transfer.pieces import PIECE, pieces_of, read_ahead
from cryptfs.transfer.sides import DiffersError, From, OnLost, Parts, Side, SideFile, To
from cryptfs.transfer.walking import OnProblem

LARGE = 1 << 20
"""From this size on a file has the cores for itself."""
ENTRY_WORK = 64 << 10
"""Bytes of content that take as long as an entry of any kind."""
_LABEL = b"security.selinux"
_STEPS = (1, 100, 1_000, 1_000_000, 10_000_000, 1_000_000_000, 2_000_000_000)
"""Nanoseconds between the times that a filesystem can keep: 100 on NTFS and SMB, 2 seconds on FAT."""


class ExistsError(Exception):
    """Something else has the name already. The copy leaves it alone."""


class CopiedCounts(NamedTuple):
    """What a share of a copy did, to be added to `Copied`."""

    entries: int
    size: int
    present: int
    verified: int
    lost: dict[bytes, int]


@dataclass(slots=True)
class Copied:
    """CopiedCounts the work of a copy. tell: called now and then by its thread."""

    tell: Callable[[Copied], None] = lambda _: None
    entries: int = 0
    size: int = 0
    present: int = 0  # entries that were there already
    verified: int = 0
    lost: dict[bytes, int] = field(default_factory=dict)  # attributes that the target cannot keep
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, *, entries: int = 0, size: int = 0, present: int = 0, verified: int = 0) -> None:
        """Count."""
        with self._lock:
            self.entries += entries
            self.size += size
            self.present += present
            self.verified += verified

    @property
    def work(self) -> int:
        """The work so far, in the unit of `work_of`."""
        return self.size + self.entries * ENTRY_WORK

    def lose(self, attribute: bytes, times: int = 1) -> None:
        """Count an attribute that the target cannot keep."""
        with self._lock:
            self.lost[attribute] = self.lost.get(attribute, 0) + times

    def counts(self) -> CopiedCounts:
        """All of it, to be sent to another process."""
        return CopiedCounts(self.entries, self.size, self.present, self.verified, self.lost)

    def take(self, counts: CopiedCounts) -> None:
        """Add what another process counted."""
        entries, size, present, verified, lost = counts
        self.add(entries=entries, size=size, present=present, verified=verified)
        for attribute, times in lost.items():
            self.lose(attribute, times)


class Item(NamedTuple, Generic[From, To]):
    """One entry to copy, and where to. path: in the vault, for reports.   st: of the source."""

    source: From
    name: bytes
    target: To
    new_name: bytes
    path: bytes
    st: os.stat_result


class EntryCopy(Generic[From, To]):
    """Copies all entries but directories. Safe from many threads.

    Args: source, target: the sides.   on_problem: gets each entry that could not be copied.
          overwrite: replace files that differ.   verify: read again what was written, and compare.
    parts: those of this copy.   reader: the thread that reads the next piece of a large file; None reads it
    in turn.
    """

    def __init__(
        self,
        source: Side[From],
        target: Side[To],
        on_problem: OnProblem,
        progress: Copied,
        *,
        overwrite: bool,
        verify: bool,
    ) -> None:
        self.source = source
        self.target = target
        self.parts = Parts(target)
        self.reader: ThreadPoolExecutor | None = None
        self.overwrite = overwrite
        self.verify = verify
        self.progress = progress
        self.on_problem = on_problem
        self._buffer: memoryview | None = None  # for spans; a new one each time costs as much as the read
        # A first copy, by device and inode, and how many names may still come: else it would keep its
        # directory open.
        self._links: dict[tuple[int, int], tuple[To, bytes, int]] = {}

    def copy(self, item: Item[From, To], *, fresh: bool) -> None:
        """Copy one entry, or report why not. fresh: nothing is in the target.

        Raises: OSError: the disk is full.
        """
        try:
            if self._is_linked(item):
                self.progress.add(entries=1)
                return
            if not self.is_passed_over(item, fresh=fresh):
                self._make(item)
                self.progress.add(entries=1)
            if self.verify:
                self.compare(item)
            if item.st.st_nlink > 1:
                self._links[item.st.st_dev, item.st.st_ino] = (
                    item.target,
                    item.new_name,
                    item.st.st_nlink - 1,
                )
        except (OSError, CryptfsError, ExistsError, DiffersError) as error:
            self.tell(item.path, error)

    def tell(self, path: bytes, error: Exception) -> None:
        """Report an entry, and go on.

        Raises: OSError: the disk is full: so are all that follow.   What interrupted the work on the entry.
        """
        interrupt = interrupt_behind(error)
        if interrupt is not None:
            raise interrupt from error
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            raise error
        self.on_problem(path, error)

    def _is_linked(self, item: Item[From, To]) -> bool:
        """Whether it is a further name of a file that was copied; then it gets that name."""
        st, target = item.st, item.target
        first = self._links.pop((st.st_dev, st.st_ino), None) if st.st_nlink > 1 else None
        if first is None:
            return False
        where, name, left = first
        if left > 1:
            self._links[st.st_dev, st.st_ino] = (where, name, left - 1)
        part = self.parts.begin(item.path, target, item.new_name)
        try:
            self.target.link(where, name, target, part)
            self._name(item, part)
        finally:
            self.parts.drop(item.path, target, part)  # of two names of one file, a rename leaves both
        return True

    def is_passed_over(self, item: Item[From, To], *, fresh: bool) -> bool:
        """Whether it is there already; counts it then. fresh: nothing is in the target.

        Raises: ExistsError: something else is, which must stay.
        """
        if fresh or not self._is_present(item):
            return False
        self.progress.add(entries=1, present=1)
        return True

    def _is_present(self, item: Item[From, To]) -> bool:
        st = item.st
        try:
            there = self.target.stat(item.target, item.new_name)
        except FileNotFoundError:
            return False
        if stat.S_ISDIR(there.st_mode):
            raise ExistsError("the target has a directory of this name")
        same = stat.S_IFMT(there.st_mode) == stat.S_IFMT(st.st_mode)
        if same and stat.S_ISLNK(st.st_mode):
            same = self._same_link(item)
        elif same:
            same = there.st_size == st.st_size and _is_kept(st.st_mtime_ns, there.st_mtime_ns)
        if same or self.overwrite:
            return same
        raise ExistsError("the target has another file of this name (--overwrite replaces it)")

    def _same_link(self, item: Item[From, To]) -> bool:
        text = self.source.readlink(item.source, item.name)
        return text == self.target.readlink(item.target, item.new_name)

    def _make(self, item: Item[From, To]) -> None:
        part = self.parts.begin(item.path, item.target, item.new_name)
        try:
            if not self._make_small(item, part):
                self._begin(item, part)
                self.finish(item, part)
            self._name(item, part)
        except BaseException:
            self.parts.drop(item.path, item.target, part)
            raise
        self.parts.end(item.path)

    def _make_small(self, item: Item[From, To], part: bytes) -> bool:
        """Make a small file at once; False: it is not one, or has holes."""
        st = item.st
        if not stat.S_ISREG(st.st_mode) or st.st_size >= LARGE:
            return False
        cannot_read, cannot_keep = self._reporters(item)
        small = self.source.read_small(item.source, item.name, st, cannot_read)
        if small is None:
            return False
        self.target.put_small(item.target, part, st, small, cannot_keep)
        self.progress.add(size=st.st_size)
        return True

    def _begin(self, item: Item[From, To], part: bytes) -> None:
        """Make an entry, under the name that it has until it is whole."""
        st = item.st
        if stat.S_ISREG(st.st_mode):
            self._content(item, part)
        elif stat.S_ISLNK(st.st_mode):
            self.target.symlink(item.target, part, self.source.readlink(item.source, item.name))
        else:
            self.target.mknod(item.target, part, st.st_mode, st.st_rdev)

    def _name(self, item: Item[From, To], part: bytes) -> None:
        target = item.target
        try:
            self.target.rename(target, part, item.new_name, replace=self.overwrite)
        except FileExistsError:
            there = self.target.stat(target, item.new_name)
            linked = self.target.stat(target, part)
            if (there.st_dev, there.st_ino) == (linked.st_dev, linked.st_ino):
                return
            if not self._is_present(item):
                raise
            self.parts.remove(target, part)  # another copy was faster

    def _content(self, item: Item[From, To], part: bytes) -> None:
        reading = self.source.open(item.source, item.name)
        try:
            writing = self.target.create(item.target, part, item.st.st_mode)
            try:
                self._move(reading, writing, is_large=item.st.st_size >= LARGE)
                writing.set_size(item.st.st_size)
            except BaseException:
                _close_quietly(writing)
                raise
            writing.close()
        finally:
            reading.close()
        self._require_unchanged(item)

    def _require_unchanged(self, item: Item[From, To]) -> None:
        """Raises: DiffersError."""
        if not self.source.may_change:
            return
        after, st = self.source.stat(item.source, item.name), item.st
        if (after.st_size, after.st_mtime_ns) != (st.st_size, st.st_mtime_ns):
            raise DiffersError("it changed while it was copied")

    def _move(self, reading: SideFile, writing: SideFile, *, is_large: bool) -> None:
        pieces = pieces_of(reading)
        if self.reader is not None and is_large:
            pieces = read_ahead(pieces, self.reader)
        with contextlib.closing(pieces):
            for offset, data in pieces:
                writing.write(offset, data)
                self.progress.add(size=len(data))
                if is_large:
                    self.progress.tell(self.progress)

    # ---- a large file, whose content comes from other processes

    def begin_large(self, item: Item[From, To]) -> tuple[SideFile, bytes] | None:
        """Make the part, for `copy_span`; None: it has holes, and is for one process.

        Returns: the part, and what `Side.reopen` needs.
        Raises:  OSError, CryptfsError.
        """
        size = item.st.st_size
        reading = self.source.open(item.source, item.name)
        try:
            if reading.data_from(0) != (0, size):
                return None
        finally:
            reading.close()
        part = self.parts.begin(item.path, item.target, item.new_name)
        try:
            writing = self.target.create(item.target, part, item.st.st_mode)
        except BaseException:
            self.parts.drop(item.path, item.target, part)
            raise
        try:
            return writing, writing.expect(size)
        except BaseException:
            self.abandon(item, writing)
            raise

    def copy_span(
        self, source: From, name: bytes, target: To, new_name: bytes, expected: bytes, start: int, stop: int
    ) -> None:
        """Copy some of a large file. start: a multiple of PIECE.   expected: as begin_large returned it.

        Raises: OSError, CryptfsError.   DiffersError: the file became shorter.
        """
        reading = self.source.open(source, name)
        try:
            writing = self.target.reopen(target, self.parts.name(new_name), expected)
            try:
                buffer = self._buffer = self._buffer or memoryview(bytearray(PIECE))
                while start < stop:
                    got = reading.read_into(start, buffer[: stop - start])
                    if got < min(len(buffer), stop - start):
                        raise DiffersError("it changed while it was copied")
                    writing.write(start, buffer[:got])
                    self.progress.add(size=got)
                    start += got
            finally:
                writing.close()
        finally:
            reading.close()

    def complete_large(self, item: Item[From, To], writing: SideFile) -> None:
        """All of it has come. Raises: as `copy` reports; then it is abandoned."""
        part = self.parts.name(item.new_name)
        try:
            try:
                writing.arrived(item.st.st_size)
            except BaseException:
                _close_quietly(writing)
                raise
            writing.close()
            self._require_unchanged(item)
            self.finish(item, part)
            self._name(item, part)
        except BaseException:
            self.parts.drop(item.path, item.target, part)
            raise
        self.parts.end(item.path)
        self.progress.add(entries=1)

    def abandon(self, item: Item[From, To], writing: SideFile) -> None:
        """Close and remove an unfinished file."""
        _close_quietly(writing)
        self.parts.drop(item.path, item.target, self.parts.name(item.new_name))

    # ---- the end of an entry

    def finish(self, item: Item[From, To], name: bytes) -> None:
        """Give an entry, or a directory, its attributes, owner, mode and times. name: that it has now."""
        cannot_read, cannot_keep = self._reporters(item)
        attributes = self.source.attributes(item.source, item.name, cannot_read)
        self.target.finish(item.target, name, item.st, attributes, cannot_keep)

    def _reporters(self, item: Item[From, To]) -> tuple[OnLost, OnLost]:
        """For attributes that cannot be read, and for those that cannot be kept."""
        is_link = stat.S_ISLNK(item.st.st_mode)

        def cannot_read(attribute: bytes, error: Exception) -> None:
            self.on_problem(item.path, error)

        def cannot_keep(attribute: bytes, error: Exception) -> None:
            if not (is_link and attribute == _LABEL):  # the system gives each new symlink a label
                self.progress.lose(attribute)

        return cannot_read, cannot_keep

    def compare(self, item: Item[From, To]) -> None:
        """Raises: DiffersError: the target, read again, is another file."""
        st = item.st
        there = self.target.stat(item.target, item.new_name)
        same = stat.S_IFMT(there.st_mode) == stat.S_IFMT(st.st_mode) and there.st_size == st.st_size
        if same and stat.S_ISREG(st.st_mode):
            same = self._same_content(item)
        elif same and stat.S_ISLNK(st.st_mode):
            same = self._same_link(item)
        if not same:
            raise DiffersError("the copy differs from what was copied")
        self.progress.add(verified=1)

    def _same_content(self, item: Item[From, To]) -> bool:
        one = self.source.open(item.source, item.name)
        try:
            two = self.target.open(item.target, item.new_name)
            try:
                size = min(PIECE, item.st.st_size + 1)  # one more, to meet the end
                buffers = memoryview(bytearray(size)), memoryview(bytearray(size))
                offset = 0
                while True:
                    got = one.read_into(offset, buffers[0])
                    if got != two.read_into(offset, buffers[1]) or buffers[0][:got] != buffers[1][:got]:
                        return False
                    if not got:
                        return True
                    offset += got
            finally:
                two.close()
        finally:
            one.close()


def _is_kept(wanted: int, there: int) -> bool:
    """Whether a time is the wanted one, or what a filesystem with coarser steps makes of it."""
    return any(there == wanted - wanted % step for step in _STEPS)


def _close_quietly(content: SideFile) -> None:
    with contextlib.suppress(OSError, CryptfsError):
        content.close()
