"""Checks the content of entries: files with their chunks, in several threads, and extended attributes."""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field

from cryptfs.core.aead import Kind
from cryptfs.core.names.names import DirectoryNames
from cryptfs.errors import IntegrityError, NameError_
from cryptfs.fsck.files import (
    NOBODY_WAITS,
    ChunkCheck,
    ChunkRange,
    DeepPool,
    FileReport,
    ShareResult,
    check_length,
    describe_ranges,
    joined,
)
from cryptfs.fsck.findings import Counts, Finding, FindingKind
from cryptfs.fsck.lost_found import LOST_FOUND
from cryptfs.fsck.reporter import LOOKS, PAUSE, Mend, Reporter, reason_of
from cryptfs.fsck.small import BadXattr, Owner, backing_xattrs, check_xattrs
from cryptfs.storage.backing import HELD_FILE_FLAGS, O_NOATIME, open_backing
from cryptfs.vfs.content.context import FileContext
from cryptfs.vfs.recovery.replay import Waiting
from cryptfs.vfs.scan.walk import WalkedDirectory, WalkedEntry

KNOWN_INODES = 200_000  # files with several names to remember; the check does not count the names of more
_SHARES_AHEAD = 4  # shares of files under way, for each thread


@dataclass(slots=True)
class _OpenFile:
    """A file under check; its descriptor is closed at the end.

    seen_before: the check has seen it under another name, and reported everything but a lost header.
    shares: under way, in order.   handed_out: whether no more are to come.
    """

    entry: WalkedEntry
    fd: int
    report: FileReport
    seen_before: bool
    shares: deque[Future[ShareResult]] = field(default_factory=deque)
    handed_out: bool = False
    error: OSError | None = None


class ContentCheck:
    """Checks files and extended attributes.

    Args: names: NameCipher.of_xattrs.   deep: open every chunk.   workers: threads; None: one for each core.
          on_progress: called whenever counts have changed.
          waiting: journals that wait for their replay; empty if the vault is mounted.
    """

    def __init__(
        self,
        context: FileContext,
        names: DirectoryNames,
        reporter: Reporter,
        counts: Counts,
        *,
        waiting: Callable[[], Waiting],
        deep: bool,
        workers: int | None,
        on_progress: Callable[[Counts], None],
    ) -> None:
        self._context = context
        self._names = names
        self._reporter = reporter
        self._counts = counts
        self._waiting_now = waiting
        self._waiting = waiting()
        self._deep = deep
        self._on_progress = on_progress
        self._pool = DeepPool(workers)
        self._ahead = self._pool.workers * _SHARES_AHEAD
        self._pending: deque[_OpenFile] = deque()
        self._under_way = 0
        self._inodes: dict[tuple[int, int], list[int]] = {}

    def close(self) -> None:
        """End the threads, even with work under way."""
        self._pool.close()
        while self._pending:
            os.close(self._pending.popleft().fd)

    # ---- files

    def file(self, entry: WalkedEntry) -> Iterator[Finding]:
        """Check a file. The findings of a deep check may come later, with those of other files."""
        self._counts.files += 1
        try:
            fd, st = _open_for_check(entry)
        except FileNotFoundError:
            return
        except (OSError, IntegrityError) as error:
            if self._reporter.seems(lambda: entry.directory.holds(entry.entry_name)):
                yield self._reporter.found(FindingKind.UNREADABLE, entry, reason_of(error))
            return
        if self._reporter.is_open_here(st):
            os.close(fd)
            return
        file = _OpenFile(entry, fd, self._settled_report(fd), self._count_name(st))
        self._counts.size += file.report.size
        self._pending.append(file)
        if self._opens_chunks(file):
            check = ChunkCheck(self._context, fd, file.report)
            for share in check.shares():
                file.shares.append(self._pool.submit(check, share))
                self._under_way += 1
                yield from self.conclude_files(self._ahead)
        file.handed_out = True
        yield from self.conclude_files(self._ahead)

    def _opens_chunks(self, file: _OpenFile) -> bool:
        """A cut file will get holes, so find out first whether its zeroed chunks are damage."""
        report = file.report
        if report.header is None or not report.size or file.seen_before or report.awaits_replay:
            return False
        return self._deep or (self._reporter.repairs and report.has(FindingKind.FILE_CUT))

    def _settled_report(self, fd: int) -> FileReport:
        """Header and length; on a mounted vault, once they have settled or no longer change."""
        report = FileReport(0)

        def is_bad() -> bool:
            nonlocal report
            mounted = self._reporter.was_mounted  # `seems` asks again if there is something to report
            waiting = NOBODY_WAITS if mounted else self._waiting
            report = check_length(self._context, fd, open_files=mounted, waiting=waiting)
            if report.awaits_replay or report.has(FindingKind.MISSING_JOURNAL):
                now = self._waiting_now()
                if now != self._waiting:  # the vault was unmounted meanwhile, or mounted
                    self._waiting = now
                    report = check_length(self._context, fd, open_files=mounted, waiting=now)
            return bool(report.problems)

        self._reporter.seems(is_bad)
        return report

    def conclude_files(self, limit: int) -> Iterator[Finding]:
        """Conclude files, the oldest first, until at most `limit` shares are under way."""
        while self._pending:
            file = self._pending[0]
            if file.shares:
                if self._under_way <= limit:
                    return
                self._collect(file)
            elif file.handed_out:
                self._pending.popleft()
                try:
                    yield from self._conclude(file)
                finally:
                    os.close(file.fd)
            else:
                return

    def _collect(self, file: _OpenFile) -> None:
        """Wait for a file's oldest share."""
        share = file.shares.popleft()
        self._under_way -= 1
        try:
            found, size = share.result()
        except OSError as error:
            file.error = error
            return
        file.report.damaged = joined([file.report.damaged, found])
        self._counts.size_checked += size
        self._on_progress(self._counts)

    def _conclude(self, file: _OpenFile) -> Iterator[Finding]:
        entry, report = file.entry, file.report
        if file.error is not None:
            yield self._reporter.found(FindingKind.UNREADABLE, entry, reason_of(file.error))
            return
        if report.damaged and self._reporter.is_mounted():
            report.damaged = self._damaged_still(file)
        if report.damaged:
            report.add(FindingKind.CHUNKS, describe_ranges(self._context, report.size, report.damaged))
        st = os.fstat(file.fd)
        # Not a file that was removed meanwhile, nor the report, which may be open now.
        if st.st_nlink and not self._reporter.is_open_here(st):
            if not file.seen_before:
                yield from self._findings(entry, file.fd, report)
            elif report.has(FindingKind.HEADER):
                yield self._bad_header(entry, file.fd, report)

    def _damaged_still(self, file: _OpenFile) -> list[ChunkRange]:
        """The chunks that stay damaged: the others were being written."""
        damaged = file.report.damaged
        for _ in range(LOOKS - 1):
            time.sleep(PAUSE)
            report = check_length(self._context, file.fd, open_files=True)
            if report.header is None or not report.size:
                return []
            check = ChunkCheck(self._context, file.fd, report)
            there = [each for each in damaged if each.first < check.chunks]
            damaged = joined(
                check.damaged(ChunkRange(each.first, min(each.last, check.chunks - 1))).damaged
                for each in there
            )
            if not damaged:
                break
        return damaged

    def _findings(self, entry: WalkedEntry, fd: int, report: FileReport) -> Iterator[Finding]:
        if report.has(FindingKind.HEADER):
            yield self._bad_header(entry, fd, report)
        for problem in report.in_order():
            if problem.kind is FindingKind.HEADER:
                continue
            mend = None if report.awaits_replay else _mending_file(entry, fd, report, problem.kind)
            yield self._reporter.found(problem.kind, entry, problem.detail, mend)
        if report.header is not None:
            owner = Owner(Kind.XATTR_OF_FILE, report.header.file_id)
            yield from self.xattrs(entry, fd, owner)
        elif not report.problems and self._reporter.seems(lambda: _was_emptied(fd)):
            yield self._reporter.found(
                FindingKind.FILE_EMPTIED, entry, "", lambda repairer: repairer.drop_all_xattrs(entry, fd)
            )

    def _bad_header(self, entry: WalkedEntry, fd: int, report: FileReport) -> Finding:
        (detail,) = (problem.detail for problem in report.problems if problem.kind is FindingKind.HEADER)
        if in_lost_found(entry):
            return self._reporter.found(FindingKind.SET_ASIDE, entry, detail)
        return self._reporter.found(
            FindingKind.HEADER, entry, detail, _mending_file(entry, fd, report, FindingKind.HEADER)
        )

    # ---- extended attributes

    def xattrs(self, where: WalkedEntry | WalkedDirectory, fd: int, owner: Owner) -> Iterator[Finding]:
        """Check the attributes of a file or directory. fd: any descriptor of it."""
        found: list[BadXattr] = []

        def is_bad() -> bool:
            nonlocal found
            found = check_xattrs(self._context, self._names, fd, owner, os.fstat(fd).st_mode)
            return bool(found)

        try:
            self._reporter.seems(is_bad)
        except OSError as error:
            yield self._reporter.found(
                FindingKind.UNREADABLE, where, f"extended attributes: {reason_of(error)}"
            )
            return
        for bad in found:
            yield self._reporter.found(
                bad.problem.kind, where, bad.problem.detail, _mending_xattr(where, fd, owner, bad)
            )

    def xattrs_of_link(self, entry: WalkedEntry, owner_of: Callable[[int], Owner]) -> Iterator[Finding]:
        """Check the attributes of a symlink, if this process may see them."""
        with contextlib.ExitStack() as stack:
            try:
                fd = os.open(entry.entry_name, HELD_FILE_FLAGS, dir_fd=entry.directory.fd)
                stack.callback(os.close, fd)
                owner = owner_of(fd)
            except (OSError, NameError_):
                return  # another one by now, or none
            yield from self.xattrs(entry, fd, owner)

    # ---- names of one file

    def _count_name(self, st: os.stat_result) -> bool:
        """Count the names of a file with several; returns whether it has come before under another name."""
        if st.st_nlink == 1:
            return False
        key = (st.st_dev, st.st_ino)
        known = self._inodes.get(key)
        if known is None:
            if len(self._inodes) < KNOWN_INODES:
                self._inodes[key] = [1, st.st_nlink]
            return False
        known[0] += 1
        return True

    def outside_links(self) -> Iterator[Finding]:
        """At the end: files with names that the walk did not find. Nothing if it could not count them."""
        outside = sum(1 for found, nlink in self._inodes.values() if found < nlink)
        if outside and len(self._inodes) < KNOWN_INODES and not self._reporter.is_mounted():
            word = "file has" if outside == 1 else "files have"
            yield Finding(FindingKind.OUTSIDE_LINK, ".", b"", f"{outside} {word} more names than were found")


def in_lost_found(entry: WalkedEntry) -> bool:
    """Whether a repair has set an entry aside."""
    path = entry.plain_path
    return entry.directory.verified and path is not None and path.startswith(LOST_FOUND + b"/")


def _mending_file(entry: WalkedEntry, fd: int, report: FileReport, kind: FindingKind) -> Mend:
    return lambda repairer: repairer.mend_file(entry, fd, report, kind)


def _mending_xattr(where: WalkedEntry | WalkedDirectory, fd: int, owner: Owner, bad: BadXattr) -> Mend:
    return lambda repairer: repairer.mend_xattr(where, fd, owner, bad)


def _was_emptied(fd: int) -> bool:
    """A file gets its header before its attributes. So an empty file with attributes had a header."""
    return not os.fstat(fd).st_size and any(True for _ in backing_xattrs(fd))


def _open_for_check(entry: WalkedEntry) -> tuple[int, os.stat_result]:
    with contextlib.suppress(PermissionError):  # the file belongs to another user
        return open_backing(entry.directory.fd, entry.entry_name, os.O_RDONLY | O_NOATIME)
    return open_backing(entry.directory.fd, entry.entry_name, os.O_RDONLY)
