"""Copy a tree from one side to the other: what export, import and cp do.

The same copy run again goes on: it passes over files that are there with the same type, size and time of
change. It replaces no others, unless it may.

With a crew (`TreeCopy.hire`), this process walks, makes and finishes directories, and copies whatever is no
plain file of one name. Workers get the files: many small ones at once, and large ones in spans.
"""

from __future__ import annotations

import contextlib
import functools
import os
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic

from cryptfs.errors import CryptfsError
from cryptfs.transfer.entrycopy import (
    ENTRY_WORK,
    LARGE,
    Copied,
    EntryCopy,
    ExistsError,
    Item,
)
from cryptfs.transfer.shares import Base, Comparison, Done, Files, ShareWork, Span, Turns, Way
from cryptfs.transfer.sides import DiffersError, From, Side, SideFile, To
from cryptfs.transfer.waiting import DiskWaits
from cryptfs.transfer.walking import OnProblem, joined

if TYPE_CHECKING:
    from cryptfs.transfer.crew import Crew

WORKERS = 4
"""Threads for small files, where one thread waits for the disk; see `waiting.py`."""
SHARE_FILES, SHARE_LEVELS, SHARE_BYTES = 32, 8, 4 << 20  # one worker gets at once, at most
SPAN = 8 << 20
"""Bytes of a large file that one worker gets at once; a multiple of `PIECE`."""


@dataclass(slots=True)
class _Level(Generic[From, To]):
    """A directory that is being copied, and what is left of it.

    parents: both places, for its attributes in the end; None for the root of a vault, which keeps its own.
    way: to it from the top.   above: the level that it is in.
    left: the walk of it, directories in it, and shares at work on it: it gets its attributes after them.
    """

    path: bytes
    parents: tuple[From, bytes, To, bytes] | None
    st: os.stat_result
    source: From
    target: To
    names: Iterator[bytes]
    fresh: bool  # the target was made here: so nothing is in it
    way: Way
    above: _Level[From, To] | None
    left: int = 1
    turn: int = 0
    working: list[Future[None]] = field(default_factory=list)


@dataclass(slots=True)
class _Large(Generic[From, To]):
    """A large file whose spans are with the workers. left: spans, and 1 until all are given."""

    item: Item[From, To]
    level: _Level[From, To] | None
    way: Way
    turn: int
    writing: SideFile
    left: int = 1
    failures: list[tuple[int, bytes, Exception]] = field(default_factory=list)


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
        self._turns = Turns(on_problem)
        self._progress = progress
        self._entries = EntryCopy(
            source, target, self._turns.tell, progress, overwrite=overwrite, verify=verify
        )
        self._workers = workers
        self._pool: ThreadPoolExecutor | None = None
        self._crew: Crew | None = None
        self._share: list[tuple[_Level[From, To], bytes, int]] = []  # files for the next share, with turns
        self._share_bytes = 0
        self._given: dict[int, list[tuple[_Level[From, To], bytes, int]]] = {}  # shares at work
        self._larges: dict[int, _Large[From, To]] = {}

    def hire(
        self, count: int, base: Base[From, To], member: Callable[[], AbstractContextManager[object]]
    ) -> None:
        """Fork workers for `run`, before any thread starts.

        Args: base: what will be run.   member: entered in each worker, for as long as it works.
        """

        parent = os.getpid()

        @contextlib.contextmanager
        def at_work() -> Iterator[ShareWork[From, To]]:
            with member():
                try:
                    yield ShareWork(self._entries, base, parent)
                finally:
                    self._entries.parts.drop_all()

        from cryptfs.transfer.crew import Crew  # its modules take some milliseconds

        self._crew = Crew(count, at_work) or None

    def close(self) -> None:
        """Let the workers go. Idempotent."""
        if self._crew is not None:
            self._crew.stop()
            self._crew = None

    def run(self, source: From, name: bytes, target: To, new_name: bytes, path: bytes) -> None:
        """Copy one entry, and all that is below it, to a name that is free or has the same type.

        Args:   path: of the entry in the vault, for reports.
        Raises: OSError, CryptfsError: the entry itself cannot be looked at.   OSError: the disk is full.
                WorkerDiedError.
        """
        st = self._source.stat(source, name)
        self._entries.reader = ThreadPoolExecutor(1, "cryptfs-read")
        item = Item(source, name, target, new_name, path, st)
        try:
            if self._workers > 1 and self._crew is None:
                self._pool = ThreadPoolExecutor(self._workers, "cryptfs-copy")
            if stat.S_ISDIR(st.st_mode):
                top = self._enter(item, None)
                if top is not None:
                    self._below(top)
            else:
                self._entries.parts.tidy(target)
                if not self._is_spread(item, None):
                    self._entries.copy(item, fresh=False)
            if self._crew is not None:
                self._give_share()
                self._crew.finish()
                self._crew.close()
                self._crew = None
        except BaseException:
            self._clear_away()
            raise
        finally:
            if self._pool is not None:
                self._pool.shutdown(wait=True, cancel_futures=True)
            self._entries.reader.shutdown()
            self._entries.parts.drop_all()
            self._pool = self._entries.reader = None
            self._turns.tell_all()

    def _below(self, top: _Level[From, To]) -> None:
        levels, waits = [top], DiskWaits()

        def join() -> None:
            for each in levels:
                wait(each.working)

        while levels:
            level = levels[-1]
            self._progress.tell(self._progress)
            turn = self._turns.next()
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
                self._turns.tell(path, error)
                continue
            item = Item(level.source, name, level.target, name, path, st)
            if stat.S_ISDIR(st.st_mode):
                found = self._enter(item, level)
                if found is not None:
                    levels.append(found)
            elif self._crew is not None:
                self._hand_out(item, level, turn)
            elif self._pool is None or st.st_nlink > 1 or st.st_size >= LARGE or not waits.pays(join):
                self._entries.copy(item, fresh=level.fresh)
            else:
                if len(level.working) >= 4 * self._workers:
                    level.working.pop(0).result()
                level.working.append(self._pool.submit(self._entries.copy, item, fresh=level.fresh))

    # ---- directories

    def _enter(self, item: Item[From, To], above: _Level[From, To] | None) -> _Level[From, To] | None:
        source, name, target, new_name, path, st = item
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
            self._entries.parts.tidy(made, names, fresh=fresh)
        except (OSError, CryptfsError, ExistsError) as error:
            self._entries.tell(path, error)
            return None
        way: Way = ()
        if above is not None:
            above.left += 1
            way = (*above.way, name)
        return _Level(path, parents, st, opened, made, iter(names), fresh, way, above)

    def _leave(self, level: _Level[From, To]) -> None:
        """The walk has left a directory."""
        for each in level.working:
            each.result()
        level.turn = self._turns.begin()
        self._done_in(level)

    def _done_in(self, level: _Level[From, To]) -> None:
        """Something in a directory is done. After the last one it gets its own attributes, its times last."""
        here: _Level[From, To] | None = level
        while here is not None:
            here.left -= 1
            if here.left:
                return
            with self._turns.at(here.turn):
                self._finish(here)
            self._turns.end(here.turn)
            here = here.above

    def _finish(self, level: _Level[From, To]) -> None:
        if level.parents is not None:
            source, name, target, new_name = level.parents
            item = Item(source, name, target, new_name, level.path, level.st)
            try:
                self._entries.finish(item, new_name)
            except (OSError, CryptfsError) as error:
                self._entries.tell(level.path, error)
                return
        self._progress.add(entries=1)

    # ---- shares for workers

    def _hand_out(self, item: Item[From, To], level: _Level[From, To], turn: int) -> None:
        """Have an entry copied, here or by a worker."""
        st = item.st
        if not stat.S_ISREG(st.st_mode) or st.st_nlink > 1:
            self._entries.copy(item, fresh=level.fresh)
            return
        if st.st_size >= LARGE:
            if not self._is_spread(item, level):
                self._entries.copy(item, fresh=level.fresh)
            return
        if len({id(each) for each, *_ in self._share} | {id(level)}) > SHARE_LEVELS:
            self._give_share()
        self._turns.begin()
        level.left += 1
        self._share.append((level, item.name, turn))
        self._share_bytes += st.st_size
        if len(self._share) >= SHARE_FILES or self._share_bytes >= SHARE_BYTES:
            self._give_share()

    def _give_share(self) -> None:
        share, self._share, self._share_bytes = self._share, [], 0
        if not share or self._crew is None:
            return
        groups: list[tuple[Way, bool, list[bytes]]] = []
        last = None
        for level, name, _ in share:
            if level is not last:
                groups.append((level.way, level.fresh, []))
                last = level
            groups[-1][2].append(name)
        self._given[id(share)] = share

        def done(result: Done) -> None:
            self._take(result, [turn for *_, turn in share])
            self._given.pop(id(share))
            for level, *_ in share:
                self._done_in(level)

        self._crew.give(Files(groups), done)

    def _take(self, done: Done, turns: list[int]) -> None:
        """Raises: OSError: the disk is full."""
        self._progress.take(done.counts)
        for place, path, error in done.problems:
            self._turns.tell_at(turns[place], path, error)
        for turn in turns:
            self._turns.end(turn)
        self._progress.tell(self._progress)
        if done.full is not None:
            raise done.full

    def _is_spread(self, item: Item[From, To], level: _Level[From, To] | None) -> bool:
        """Have a large file copied in spans; False: it is not for the workers."""
        crew, entries, size = self._crew, self._entries, item.st.st_size
        if crew is None or not stat.S_ISREG(item.st.st_mode) or size < LARGE or item.st.st_nlink > 1:
            return False
        try:
            present = entries.is_passed_over(item, fresh=level is not None and level.fresh)
            if present and not entries.verify:
                return True
            begun = None if present else entries.begin_large(item)
            if begun is None and not present:
                return False
        except (OSError, CryptfsError, ExistsError, DiffersError) as error:
            entries.tell(item.path, error)
            return True
        way = () if level is None else level.way
        if level is not None:
            level.left += 1
        turn = self._turns.begin()
        if begun is None:
            self._compare(item, level, way, turn)
            return True
        writing, expected = begun
        large = _Large(item, level, way, turn, writing)
        self._larges[id(large)] = large
        for start in range(0, size, SPAN):
            if large.failures:
                break
            large.left += 1
            stop = min(start + SPAN, size)
            span = Span(way, item.path, item.name, item.new_name, expected, start, stop)
            crew.give(span, functools.partial(self._span_done, large, start))
        self._span_given_or_done(large)
        return True

    def _span_done(self, large: _Large[From, To], start: int, done: Done) -> None:
        self._progress.take(done.counts)
        self._progress.tell(self._progress)
        if done.full is not None:
            raise done.full
        large.failures += [(start, path, error) for _, path, error in done.problems[:1]]
        self._span_given_or_done(large)

    def _span_given_or_done(self, large: _Large[From, To]) -> None:
        large.left -= 1
        if large.left:
            return
        self._larges.pop(id(large))
        item, entries = large.item, self._entries
        with self._turns.at(large.turn):
            if large.failures:
                entries.abandon(item, large.writing)
                _, path, error = min(large.failures, key=lambda each: each[0])
                entries.tell(path, error)
            else:
                try:
                    entries.complete_large(item, large.writing)
                    if entries.verify:
                        self._compare(item, large.level, large.way, large.turn)
                        return
                except (OSError, CryptfsError, ExistsError, DiffersError) as error:
                    entries.tell(item.path, error)
        self._ended(large.level, large.turn)

    def _compare(self, item: Item[From, To], level: _Level[From, To] | None, way: Way, turn: int) -> None:
        assert self._crew is not None  # it had the spans

        def done(result: Done) -> None:
            self._take(result, [turn])
            if level is not None:
                self._done_in(level)

        self._crew.give(Comparison(way, item.path, item.name, item.new_name), done)

    def _ended(self, level: _Level[From, To] | None, turn: int) -> None:
        self._turns.end(turn)
        if level is not None:
            self._done_in(level)

    def _clear_away(self) -> None:
        """The copy ends early: end the workers, and remove the unfinished files of those that were killed."""
        if self._crew is None:
            return
        self.close()
        parts = self._entries.parts
        for large in self._larges.values():
            with contextlib.suppress(OSError, CryptfsError):
                self._entries.abandon(large.item, large.writing)
        for share in self._given.values():
            for level, name, _ in share:
                with contextlib.suppress(OSError, CryptfsError):
                    parts.remove(level.target, parts.name(name))
        self._larges.clear()
        self._given.clear()


def work_of(side: Side[From], where: From, name: bytes, enough: int | None = None) -> int:
    """About how much there is to copy: bytes, and something for each entry. Damage counts nothing.

    Args: enough: stop at this much.
    """
    total = 0
    waiting = [(where, name)]
    while waiting and (enough is None or total < enough):
        here, each = waiting.pop()
        with contextlib.suppress(OSError, CryptfsError):
            st = side.stat(here, each)
            total += ENTRY_WORK + (st.st_size if stat.S_ISREG(st.st_mode) else 0)
            if stat.S_ISDIR(st.st_mode):
                below = side.enter(here, each)
                waiting += [(below, name) for name in side.names(below, b"")]
    return total
