"""The shares of a copy, the work on them and its results; and the order of reports.

A worker finds directories by their way from the top of the copy, name by name, never through a symlink.
"""

from __future__ import annotations

import contextlib
import heapq
import os
import stat
import threading
from collections.abc import Iterator
from typing import Generic, NamedTuple

from cryptfs.errors import CryptfsError
from cryptfs.storage.libc import NO_ROOM
from cryptfs.transfer.entrycopy import Copied, CopiedCounts, EntryCopy, Item
from cryptfs.transfer.sides import DiffersError, From, To
from cryptfs.transfer.walking import OnProblem, joined

Way = tuple[bytes, ...]
"""The names from the top of a copy to a directory in it."""
_OPEN = 64  # directories that a worker keeps open


class Base(NamedTuple, Generic[From, To]):
    """The top of a copy, as `TreeCopy.run` gets it. path: in the vault, for reports."""

    source: From
    name: bytes
    target: To
    new_name: bytes
    path: bytes


class Files(NamedTuple):
    """Small files, by their directories: way, whether nothing is in the target, names."""

    groups: list[tuple[Way, bool, list[bytes]]]


class Span(NamedTuple):
    """Some of a large file, from start to stop. expected: as `EntryCopy.begin_large` returned it."""

    way: Way
    path: bytes
    name: bytes
    new_name: bytes
    expected: bytes
    start: int
    stop: int


class Comparison(NamedTuple):
    """A large file that is there, to be read on both sides."""

    way: Way
    path: bytes
    name: bytes
    new_name: bytes


class Done(NamedTuple):
    """The result of a share.

    problems: the place in the share, the path, and why.   full: the disk is: the rest of it is not done.
    """

    counts: CopiedCounts
    problems: list[tuple[int, bytes, Exception]]
    full: OSError | None


class ShareWork(Generic[From, To]):
    """Does shares, in a worker.

    Args: entries: as in the parent; this worker's own from now on.   base: the top of the copy.
          parent: its process id.
    """

    def __init__(self, entries: EntryCopy[From, To], base: Base[From, To], parent: int) -> None:
        self._entries = entries
        self._base = base
        self._parent = parent
        self._open: dict[Way, tuple[From, To]] = {}
        self._problems: list[tuple[int, bytes, Exception]] = []
        self._place = 0
        entries.on_problem = self._note

    def _note(self, path: bytes, error: Exception) -> None:
        if isinstance(error.__cause__, CryptfsError):
            error = error.__cause__  # it says more, and would be lost on the way
        self._problems.append((self._place, path, error))

    def __call__(self, share: Files | Span | Comparison) -> Done:
        """Do one share."""
        self._problems, self._place, full = [], 0, None
        counted = self._entries.progress = Copied()
        try:
            if isinstance(share, Files):
                self._files(share)
            elif isinstance(share, Span):
                self._span(share)
            else:
                self._compare(share)
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            full = error
        return Done(counted.counts(), self._problems, full)

    def _files(self, share: Files) -> None:
        for way, fresh, names in share.groups:
            for name in names:
                path = joined(self._path(way), name)
                try:
                    source, target = self._folders(way)
                    st = self._entries.source.stat(source, name)
                    if not stat.S_ISREG(st.st_mode):
                        raise DiffersError("it changed while it was copied")
                except FileNotFoundError:
                    pass  # somebody removed it meanwhile
                except (OSError, CryptfsError, DiffersError) as error:
                    self._entries.tell(path, error)
                else:
                    item = Item(source, name, target, name, path, st)
                    self._entries.copy(item, fresh=fresh)
                self._place += 1

    def _span(self, share: Span) -> None:
        try:
            source, target = self._folders(share.way)
            try:
                self._entries.copy_span(
                    source, share.name, target, share.new_name, share.expected, share.start, share.stop
                )
            except BaseException:
                if os.getppid() != self._parent:  # it was killed: else it removes the part itself
                    parts = self._entries.parts
                    parts.remove(target, parts.name(share.new_name))
                raise
        except (OSError, CryptfsError, DiffersError) as error:
            self._entries.tell(share.path, error)

    def _compare(self, share: Comparison) -> None:
        try:
            source, target = self._folders(share.way)
            st = self._entries.source.stat(source, share.name)
            item = Item(source, share.name, target, share.new_name, share.path, st)
            self._entries.compare(item)
        except (OSError, CryptfsError, DiffersError) as error:
            self._entries.tell(share.path, error)

    def _path(self, way: Way) -> bytes:
        path = self._base.path
        for name in way:
            path = joined(path, name)
        return path

    def _folders(self, way: Way) -> tuple[From, To]:
        """Both directories of a way. Raises: OSError, CryptfsError."""
        known = len(way)
        while known and way[:known] not in self._open:
            known -= 1
        found = self._open.get(way[:known]) or self._top()
        for depth in range(known, len(way)):
            name = way[depth]
            found = self._entries.source.enter(found[0], name), self._entries.target.enter(found[1], name)
        if known < len(way) or not way:
            while len(self._open) >= _OPEN:
                self._open.pop(next(iter(self._open)))
            self._open[way] = found
        return found

    def _top(self) -> tuple[From, To]:
        source, name, target, new_name, _ = self._base
        sides = self._entries
        if not stat.S_ISDIR(sides.source.stat(source, name).st_mode):
            return source, target
        return sides.source.enter(source, name), sides.target.enter(target, new_name) if new_name else target


class Turns:
    """Tells problems in the order of the walk, not in that of the work.

    Each entry has a turn, a number. A problem waits while entries of earlier turns are at work.

    Args: on_problem: gets them.
    """

    def __init__(self, on_problem: OnProblem) -> None:
        self._on_problem = on_problem
        self._now = 0
        self._count = 0
        self._at_work: set[int] = set()
        self._waiting: list[tuple[int, int, bytes, Exception]] = []
        self._told = 0
        self._lock = threading.RLock()  # threads may meet problems

    def next(self) -> int:
        """The walk comes to the next entry; its turn."""
        self._count += 1
        self._now = self._count
        return self._count

    def begin(self) -> int:
        """Work on the present entry goes on after the walk has left it, until `end`; its turn."""
        self._at_work.add(self._now)
        return self._now

    def end(self, turn: int) -> None:
        """The work on an entry is done."""
        self._at_work.discard(turn)
        if self._waiting:
            self._tell_those_due()

    @contextlib.contextmanager
    def at(self, turn: int) -> Iterator[None]:
        """Meanwhile problems are those of an entry from before."""
        before, self._now = self._now, turn
        try:
            yield
        finally:
            self._now = before

    def tell(self, path: bytes, error: Exception) -> None:
        """A problem of the present entry; as OnProblem."""
        self.tell_at(self._now, path, error)

    def tell_at(self, turn: int, path: bytes, error: Exception) -> None:
        """A problem of any entry."""
        with self._lock:
            self._told += 1
            heapq.heappush(self._waiting, (turn, self._told, path, error))
            self._tell_those_due()

    def _tell_those_due(self) -> None:
        until = min(self._at_work, default=None)
        while self._waiting and (until is None or self._waiting[0][0] <= until):
            _, _, path, error = heapq.heappop(self._waiting)
            self._on_problem(path, error)

    def tell_all(self) -> None:
        """The copy is over, for better or worse."""
        self._at_work.clear()
        self._tell_those_due()
