"""Copy a tree from one side to the other: what export, import and cp do.

A file is written under a name of its own and gets its final name when it is whole, with owner, attributes and
times. So a file under its name is right, also after a kill, and the same copy run again goes on: it passes
over files that are there with the same type, size and time of change. It replaces no others, unless it may.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from cryptfs.errors import CryptfsError
from cryptfs.storage.libc import NO_ROOM
from cryptfs.transfer.pieces import PIECE, pieces_of, read_ahead
from cryptfs.transfer.sides import Side, SideFile
from cryptfs.transfer.waiting import DiskWaits
from cryptfs.transfer.walking import OnProblem, joined

From = TypeVar("From")
To = TypeVar("To")
_LABEL = b"security.selinux"
_LARGE = 1 << 20  # from this size on a file has the cores for itself
_ENTRY_WORK = 64 << 10  # bytes of content that take as long as an entry of any kind
PART_PREFIX = b".cryptfs-part-"
WORKERS = 4
"""Threads for small files, where one thread waits for the disk; see `waiting.py`."""


class ExistsError(Exception):
    """Something else has the name already. The copy leaves it alone."""


class DiffersError(Exception):
    """The copy is not what was to be copied."""


@dataclass(slots=True)
class Copied:
    """Counts the work of a copy. tell: called now and then by its thread."""

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
        return self.size + self.entries * _ENTRY_WORK

    def lose(self, attribute: bytes) -> None:
        """Count an attribute that the target cannot keep."""
        with self._lock:
            self.lost[attribute] = self.lost.get(attribute, 0) + 1


@dataclass(slots=True)
class _Level(Generic[From, To]):
    """A directory that is being copied, and what is left of it.

    parents: both places, for its attributes in the end; None for the root of a vault, which keeps its own.
    """

    path: bytes
    parents: tuple[From, bytes, To, bytes] | None
    st: os.stat_result
    source: From
    target: To
    names: Iterator[bytes]
    fresh: bool  # the target was made here: so nothing is in it
    working: list[Future[None]] = field(default_factory=list)


class TreeCopy(Generic[From, To]):
    """One copy.

    Args: source, target: the sides.   on_problem: gets each entry that could not be copied; the rest goes on.
          overwrite: replace files that differ.   verify: read again what was written, and compare.
          workers: threads for small files, at most.
    """

    def __init__(
        self,
        source: Side[From],
        target: Side[To],
        on_problem: OnProblem,
        progress: Copied,
        *,
        overwrite: bool = False,
        verify: bool = False,
        workers: int = WORKERS,
    ) -> None:
        self._source = source
        self._target = target
        self._on_problem = on_problem
        self._progress = progress
        self._overwrite = overwrite
        self._verify = verify
        self._workers = workers
        self._pool: ThreadPoolExecutor | None = None
        self._reader: ThreadPoolExecutor | None = None  # reads the next piece of a large file
        # A first copy, by device and inode, and how many names may still come: else it would keep its
        # directory open.
        self._links: dict[tuple[int, int], tuple[To, bytes, int]] = {}

    def run(self, source: From, name: bytes, target: To, new_name: bytes, path: bytes) -> None:
        """Copy one entry, and all that is below it, to a name that is free or has the same type.

        Args:   path: of the entry in the vault, for reports.
        Raises: OSError, CryptfsError: the entry itself cannot be looked at.   OSError: the disk is full.
        """
        st = self._source.stat(source, name)
        self._reader = ThreadPoolExecutor(1, "cryptfs-read")
        try:
            if self._workers > 1:
                self._pool = ThreadPoolExecutor(self._workers, "cryptfs-copy")
            if not stat.S_ISDIR(st.st_mode):
                self._entry(source, name, target, new_name, path, st, fresh=False)
            elif (top := self._enter(source, name, target, new_name, path, st)) is not None:
                self._below(top)
        finally:
            if self._pool is not None:
                self._pool.shutdown(wait=True, cancel_futures=True)
            self._reader.shutdown()
            self._pool = self._reader = None

    def _below(self, top: _Level[From, To]) -> None:
        levels, waits = [top], DiskWaits()

        def join() -> None:
            for each in levels:
                wait(each.working)

        while levels:
            level = levels[-1]
            self._progress.tell(self._progress)
            name = next(level.names, None)
            if name is None:
                self._leave(levels.pop())
                continue
            path = joined(level.path, name)
            try:
                st = self._source.stat(level.source, name)
            except FileNotFoundError:
                continue  # somebody removed it meanwhile
            except (OSError, CryptfsError) as error:
                self._on_problem(path, error)
                continue
            if stat.S_ISDIR(st.st_mode):
                found = self._enter(level.source, name, level.target, name, path, st)
                if found is not None:
                    levels.append(found)
            elif self._pool is None or st.st_nlink > 1 or st.st_size >= _LARGE or not waits.pays(join):
                self._entry(level.source, name, level.target, name, path, st, fresh=level.fresh)
            else:
                if len(level.working) >= 4 * self._workers:
                    level.working.pop(0).result()
                arguments = (level.source, name, level.target, name, path, st)
                level.working.append(self._pool.submit(self._entry, *arguments, fresh=level.fresh))

    # ---- directories

    def _enter(
        self, source: From, name: bytes, target: To, new_name: bytes, path: bytes, st: os.stat_result
    ) -> _Level[From, To] | None:
        try:
            opened = self._source.enter(source, name)
            names = self._source.names(opened, path)
            parents, fresh = None, False
            if new_name:
                parents = (source, name, target, new_name)
                try:
                    self._target.mkdir(target, new_name)
                    fresh = True
                except FileExistsError:
                    if not stat.S_ISDIR(self._target.stat(target, new_name).st_mode):
                        raise ExistsError("the target has something else of this name") from None
                    self._target.let_in(target, new_name)
                made = self._target.enter(target, new_name)
            else:
                made = target
        except (OSError, CryptfsError, ExistsError) as error:
            self._tell(path, error)
            return None
        return _Level(path, parents, st, opened, made, iter(names), fresh)

    def _leave(self, level: _Level[From, To]) -> None:
        """All entries are there: the directory gets its own attributes, its times last."""
        for each in level.working:
            each.result()
        if level.parents is not None:
            source, name, target, new_name = level.parents
            try:
                self._finish(source, name, target, new_name, level.path, level.st)
            except (OSError, CryptfsError) as error:
                self._tell(level.path, error)
                return
        self._progress.add(entries=1)

    # ---- everything else

    def _entry(
        self,
        source: From,
        name: bytes,
        target: To,
        new_name: bytes,
        path: bytes,
        st: os.stat_result,
        *,
        fresh: bool,
    ) -> None:
        """Anything but a directory. fresh: nothing is in the target."""
        try:
            if self._is_linked(target, new_name, st):
                self._progress.add(entries=1)
                return
            if not fresh and self._is_present(source, name, target, new_name, st):
                self._progress.add(entries=1, present=1)
            else:
                self._make(source, name, target, new_name, path, st)
                self._progress.add(entries=1)
            if self._verify:
                self._compare(source, name, target, new_name, st)
            if st.st_nlink > 1:
                self._links[st.st_dev, st.st_ino] = (target, new_name, st.st_nlink - 1)
        except (OSError, CryptfsError, ExistsError, DiffersError) as error:
            self._tell(path, error)

    def _tell(self, path: bytes, error: Exception) -> None:
        """Report an entry, and go on. Raises: OSError: the disk is full: so are all that follow."""
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            raise error
        self._on_problem(path, error)

    def _is_linked(self, target: To, new_name: bytes, st: os.stat_result) -> bool:
        """Whether it is a further name of a file that was copied; then it gets that name."""
        first = self._links.pop((st.st_dev, st.st_ino), None) if st.st_nlink > 1 else None
        if first is None:
            return False
        where, name, left = first
        if left > 1:
            self._links[st.st_dev, st.st_ino] = (where, name, left - 1)
        part = part_name(new_name)
        self._clear(target, part)
        self._target.link(where, name, target, part)
        try:
            self._name(target, part, new_name, st)
        finally:
            self._clear(target, part)  # of two names of one file, a rename leaves both
        return True

    def _is_present(self, source: From, name: bytes, target: To, new_name: bytes, st: os.stat_result) -> bool:
        """Whether it is there already. Raises: ExistsError: something else is, which must stay."""
        try:
            there = self._target.stat(target, new_name)
        except FileNotFoundError:
            return False
        if stat.S_ISDIR(there.st_mode):
            raise ExistsError("the target has a directory of this name")
        same = stat.S_IFMT(there.st_mode) == stat.S_IFMT(st.st_mode)
        if same and stat.S_ISLNK(st.st_mode):
            same = self._source.readlink(source, name) == self._target.readlink(target, new_name)
        elif same:
            same = (there.st_size, there.st_mtime_ns) == (st.st_size, st.st_mtime_ns)
        if same or self._overwrite:
            return same
        raise ExistsError("the target has another file of this name (--overwrite replaces it)")

    def _make(
        self, source: From, name: bytes, target: To, new_name: bytes, path: bytes, st: os.stat_result
    ) -> None:
        part = part_name(new_name)
        try:
            try:
                self._begin(source, name, target, part, st)
            except FileExistsError:  # an interrupted run left it
                self._clear(target, part)
                self._begin(source, name, target, part, st)
            self._finish(source, name, target, part, path, st)
            self._name(target, part, new_name, st)
        except BaseException:
            self._clear(target, part)
            raise

    def _begin(self, source: From, name: bytes, target: To, part: bytes, st: os.stat_result) -> None:
        """Make an entry, under the name that it has until it is whole."""
        if stat.S_ISREG(st.st_mode):
            self._content(source, name, target, part, st)
        elif stat.S_ISLNK(st.st_mode):
            self._target.symlink(target, part, self._source.readlink(source, name))
        else:
            self._target.mknod(target, part, st.st_mode, st.st_rdev)

    def _name(self, target: To, part: bytes, new_name: bytes, st: os.stat_result) -> None:
        try:
            self._target.rename(target, part, new_name, replace=self._overwrite)
        except FileExistsError:
            there = self._target.stat(target, new_name)
            linked = self._target.stat(target, part)
            if (there.st_dev, there.st_ino) != (linked.st_dev, linked.st_ino):
                raise ExistsError("the target has another file of this name") from None

    def _clear(self, target: To, part: bytes) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._target.unlink(target, part)

    def _content(self, source: From, name: bytes, target: To, part: bytes, st: os.stat_result) -> None:
        reading = self._source.open(source, name)
        try:
            writing = self._target.create(target, part, st.st_mode)
            try:
                self._move(reading, writing, is_large=st.st_size >= _LARGE)
                writing.set_size(st.st_size)
            except BaseException:
                _close_quietly(writing)
                raise
            writing.close()
        finally:
            reading.close()
        if not self._source.may_change:
            return
        after = self._source.stat(source, name)
        if (after.st_size, after.st_mtime_ns) != (st.st_size, st.st_mtime_ns):
            raise DiffersError("it changed while it was copied")

    def _move(self, reading: SideFile, writing: SideFile, *, is_large: bool) -> None:
        pieces = pieces_of(reading)
        if self._reader is not None and is_large:
            pieces = read_ahead(pieces, self._reader)
        with contextlib.closing(pieces):
            for offset, data in pieces:
                writing.write(offset, data)
                self._progress.add(size=len(data))
                if is_large:
                    self._progress.tell(self._progress)

    def _finish(
        self, source: From, name: bytes, target: To, new_name: bytes, path: bytes, st: os.stat_result
    ) -> None:
        def cannot_read(attribute: bytes, error: Exception) -> None:
            self._on_problem(path, error)

        def cannot_keep(attribute: bytes, error: Exception) -> None:
            if not (is_link and attribute == _LABEL):  # the system gives each new symlink a label
                self._progress.lose(attribute)

        is_link = stat.S_ISLNK(st.st_mode)

        attributes = self._source.attributes(source, name, cannot_read)
        self._target.finish(target, new_name, st, attributes, cannot_keep)

    def _compare(self, source: From, name: bytes, target: To, new_name: bytes, st: os.stat_result) -> None:
        """Raises: DiffersError: the target, read again, is another file."""
        there = self._target.stat(target, new_name)
        same = stat.S_IFMT(there.st_mode) == stat.S_IFMT(st.st_mode) and there.st_size == st.st_size
        if same and stat.S_ISREG(st.st_mode):
            same = self._same_content(source, name, target, new_name)
        elif same and stat.S_ISLNK(st.st_mode):
            same = self._source.readlink(source, name) == self._target.readlink(target, new_name)
        if not same:
            raise DiffersError("the copy differs from what was copied")
        self._progress.add(verified=1)

    def _same_content(self, source: From, name: bytes, target: To, new_name: bytes) -> bool:
        one = self._source.open(source, name)
        try:
            two = self._target.open(target, new_name)
            try:
                buffers = memoryview(bytearray(PIECE)), memoryview(bytearray(PIECE))
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


def work_of(side: Side[From], where: From, name: bytes) -> int:
    """About how much there is to copy: bytes, and something for each entry. Damage counts nothing."""
    total = 0
    waiting = [(where, name)]
    while waiting:
        here, each = waiting.pop()
        with contextlib.suppress(OSError, CryptfsError):
            st = side.stat(here, each)
            total += _ENTRY_WORK + (st.st_size if stat.S_ISREG(st.st_mode) else 0)
            if stat.S_ISDIR(st.st_mode):
                below = side.enter(here, each)
                waiting += [(below, name) for name in side.names(below, b"")]
    return total


def part_name(name: bytes) -> bytes:
    """The name under which a file is written until it is whole: always the same one, so that none is left."""
    return PART_PREFIX + hashlib.blake2b(name, digest_size=12).hexdigest().encode()


def _close_quietly(content: SideFile) -> None:
    with contextlib.suppress(OSError, CryptfsError):
        content.close()
