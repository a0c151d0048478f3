"""Which pages the native engine has dropped for direct writes, and when it knows that there are none."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from cryptfs.mount.native import directio, structs
from cryptfs.mount.native.directio import QUIET_WRITES, PageDropper, PageTracker
from cryptfs.mount.native.request import Work
from cryptfs.mount.native.structs import Notification
from cryptfs.mount.opcodes import Op
from tests.mount.native_kernel import kernel_for
from tests.support import BareVault

NODE = 42


class Kernel:
    """What it is told."""

    def __init__(self) -> None:
        self.dropped: list[tuple[int, int, int]] = []
        self.meanwhile: Callable[[], None] = lambda: None  # what happens while pages are dropped

    def notify(self, code: int, payload: bytes) -> None:
        assert code == Notification.INVAL_INODE
        self.dropped.append(structs.INVAL_INODE_OUT.unpack(payload))
        self.meanwhile()


def write(tracker: PageTracker, kernel: Kernel, offset: int = 0, size: int = 10, node: int = NODE) -> None:
    """One direct write, as FileHandlers.write and PageDropper have it."""
    if not tracker.has_none(node):
        assert structs.WRITE_OUT.unpack(tracker.dropping(node, offset, size, kernel.notify)()) == (
            size,
            0,
        )


def test_a_write_has_the_pages_of_its_range_dropped() -> None:
    tracker, kernel = PageTracker(), Kernel()
    write(tracker, kernel, 4096, 8192)
    assert kernel.dropped == [(NODE, 4096, 8192)]


def test_after_some_writes_all_go_and_nothing_more_is_dropped_until_there_is_a_page() -> None:
    tracker, kernel = PageTracker(), Kernel()
    for number in range(QUIET_WRITES + 50):
        write(tracker, kernel, number * 4096, 4096)
    assert len(kernel.dropped) == QUIET_WRITES
    assert kernel.dropped[-1] == (NODE, 0, 0)
    write(tracker, kernel, node=NODE + 1)
    assert len(kernel.dropped) == QUIET_WRITES + 1  # another file is another
    tracker.cached(NODE)
    write(tracker, kernel, 4096, 4096)
    assert kernel.dropped[-1] == (NODE, 4096, 4096)


def test_a_reader_now_and_then_has_only_the_written_ranges_dropped() -> None:
    tracker, kernel = PageTracker(), Kernel()
    for number in range(10 * QUIET_WRITES):
        if number % (QUIET_WRITES - 1) == 0:
            tracker.cached(NODE)
        write(tracker, kernel, number * 4096, 4096)
    assert len(kernel.dropped) == 10 * QUIET_WRITES
    assert (NODE, 0, 0) not in kernel.dropped


def test_a_page_that_comes_while_all_are_dropped_counts() -> None:
    tracker, kernel = PageTracker(), Kernel()
    for _ in range(QUIET_WRITES - 1):
        write(tracker, kernel)
    kernel.meanwhile = lambda: tracker.cached(NODE)
    write(tracker, kernel)
    assert kernel.dropped[-1] == (NODE, 0, 0)
    assert not tracker.has_none(NODE)


def test_many_writes_after_such_a_page_do_not_hide_it() -> None:
    """The one that began to drop everything before must not conclude from writes that came after."""
    tracker, kernel, inner = PageTracker(), Kernel(), Kernel()

    def read_and_write_on() -> None:
        kernel.meanwhile = lambda: None
        tracker.cached(NODE)
        for _ in range(QUIET_WRITES - 1):
            write(tracker, inner)

    for _ in range(QUIET_WRITES - 1):
        write(tracker, kernel)
    kernel.meanwhile = read_and_write_on
    write(tracker, kernel)
    assert not tracker.has_none(NODE)


def test_an_inode_that_the_kernel_has_dropped_has_no_pages() -> None:
    def gone(code: int, payload: bytes) -> None:
        raise FileNotFoundError

    tracker = PageTracker()
    assert tracker.dropping(NODE, 0, 10, gone)()


def test_it_does_not_grow_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directio, "_MAX_FILES", 10)
    tracker, kernel = PageTracker(), Kernel()
    for node in range(100):
        for _ in range(QUIET_WRITES):
            write(tracker, kernel, node=node)
        assert len(tracker._quiet) <= 10
        assert len(tracker._without) <= 10


def test_the_dropper_answers_in_a_thread_of_its_own() -> None:
    answered: list[tuple[int, bytes, str]] = []

    def answer(unique: int, work: Work) -> None:
        answered.append((unique, work(), threading.current_thread().name))

    dropper, tracker, kernel = PageDropper(answer), PageTracker(), Kernel()
    dropper.start()
    dropper.put(7, tracker.dropping(NODE, 0, 10, kernel.notify))
    dropper.stop()
    assert answered == [(7, structs.WRITE_OUT.pack(10, 0), "cryptfs-pages")]


def test_only_what_goes_past_the_page_cache_drops_anything(vault: BareVault) -> None:
    """The flags by which the kernel says so are its lock owner's, which no request of the page cache has."""
    with kernel_for(vault) as kernel:
        entry, fh = kernel.create(b"file")

        def write_with(flags: int) -> None:
            body = structs.WRITE_IN.pack(fh, 4096, 5, flags, 0, 0, 0) + b"hello"
            assert kernel.good(Op.WRITE, entry.nodeid, body) == structs.WRITE_OUT.pack(5, 0)

        def read_with(flags: int) -> None:
            body = structs.READ_IN.pack(fh, 0, 100, flags, 0, 0, 0)
            assert len(kernel.good(Op.READ, entry.nodeid, body)) == 100

        write_with(0)
        write_with(structs.WRITE_CACHE)
        assert kernel.notifications == []
        write_with(structs.WRITE_LOCKOWNER)
        dropped = (Notification.INVAL_INODE, structs.INVAL_INODE_OUT.pack(entry.nodeid, 4096, 5))
        assert kernel.notifications == [dropped]
        for _ in range(2 * QUIET_WRITES):
            write_with(structs.WRITE_LOCKOWNER)
            read_with(structs.READ_LOCKOWNER)
        assert len(kernel.notifications) == QUIET_WRITES
        for cached, flags in ((read_with, 0), (write_with, 0), (write_with, structs.WRITE_CACHE)):
            cached(flags)
            write_with(structs.WRITE_LOCKOWNER)
            assert kernel.notifications[QUIET_WRITES:] == [dropped]
            for _ in range(2 * QUIET_WRITES):
                write_with(structs.WRITE_LOCKOWNER)
            del kernel.notifications[QUIET_WRITES:]
