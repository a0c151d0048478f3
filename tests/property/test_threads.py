"""Several threads on one file: no reader sees half a write, and no write is lost."""

from __future__ import annotations

import gc
import itertools
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from cryptfs.core.aead import SUITES
from cryptfs.vfs.content import filetable
from cryptfs.vfs.content.filestate import FileState
from cryptfs.vfs.content.others import is_overtaken
from tests.support import CIPHERS, KIB, BareVault

NAME = b"shared"
REGION = 6000  # no multiple of the chunk size: neighbours share chunks
REGIONS = 6
ROUNDS = 120
SMALL = 32 * KIB


@pytest.fixture(autouse=True)
def eager_switching() -> Iterator[None]:
    """Threads change places as often as the interpreter lets them, so that a race has its chance."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(usual)


@pytest.fixture(autouse=True)
def writes_in_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel stops each write after some bytes, and lets others run.

    So readers meet half-written records, and runs of which some records are new and others old.
    """
    whole = os.pwritev
    stops = itertools.cycle((3000, *(4 * KIB + suite.overhead for suite in SUITES.values())))

    def stopping_short(fd: int, pieces: Sequence[bytes], offset: int) -> int:
        done = whole(fd, (b"".join(pieces)[: next(stops)],), offset)
        time.sleep(0)
        return done

    monkeypatch.setattr(os, "pwritev", stopping_short)


def run_together(*jobs: Callable[[], None]) -> None:
    """Run the jobs in threads; the first failure is raised here."""
    failures: list[BaseException] = []

    def guarded(job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as error:  # noqa: BLE001 - handed to the test's own thread
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    if failures:
        raise failures[0]


@pytest.mark.parametrize("split", [False, True], ids=["inline", "split over the pool"])
@pytest.mark.parametrize("cipher", CIPHERS)
def test_readers_never_see_a_torn_write(cipher: str, split: bool, tmp_path: Path) -> None:
    vault = BareVault(tmp_path / "v", cipher=cipher)
    if split:
        vault.context.cipher.min_chunks = 2
    vault.put(NAME, b"\1" * (REGION * REGIONS))
    writing = threading.Event()
    writing.set()
    seen: set[int] = set()

    def write_region(index: int) -> Callable[[], None]:
        def work() -> None:
            with vault.opened(NAME) as file:
                for stamp in range(2, ROUNDS + 2):
                    file.write(index * REGION, bytes((stamp,)) * REGION)

        return work

    def read_regions() -> None:
        with vault.opened(NAME, os.O_RDONLY) as file:
            index = 0
            while writing.is_set():
                got = file.read(index * REGION, REGION)
                assert len(got) == REGION
                assert got == got[:1] * REGION, f"torn: {sorted(set(got))}"
                seen.add(got[0])
                index = (index + 1) % REGIONS

    def write_all() -> None:
        try:
            run_together(*(write_region(index) for index in range(REGIONS)))
        finally:
            writing.clear()

    run_together(write_all, read_regions, read_regions)
    assert len(seen) > 1  # the readers ran while the writers did
    assert vault.get(NAME) == bytes((ROUNDS + 1,)) * (REGION * REGIONS)
    assert vault.header(NAME).is_clean
    vault.close()


def test_readers_beside_truncates_see_one_content_or_the_other(tmp_path: Path) -> None:
    """A truncate to zero changes the key: a reader must not take old records for damage."""
    vault = BareVault(tmp_path / "v")
    size = 5 * 4 * KIB + 100
    vault.put(NAME, b"\1" * size)
    done = threading.Event()

    def change() -> None:
        try:
            with vault.opened(NAME) as file:
                for stamp in range(2, 80):
                    file.truncate(0)
                    file.write(0, bytes((stamp,)) * size)
                    file.truncate(size // 2)
        finally:
            done.set()

    def read() -> None:
        with vault.opened(NAME, os.O_RDONLY) as file:
            while not done.is_set():
                got = file.read(0, size)
                assert len(got) in (0, size // 2, size)
                assert got == got[:1] * len(got)

    run_together(change, read, read)
    assert vault.get(NAME) == b"\x4f" * (size // 2)
    vault.close()


def test_writers_that_append_and_extend_lose_nothing(tmp_path: Path) -> None:
    """Out of order and past the end, as the kernel's writeback does it."""
    vault = BareVault(tmp_path / "v")
    page = 4 * KIB
    pages = 64
    with vault.opened(NAME, os.O_RDWR | os.O_CREAT) as file:

        def write_every(start: int) -> Callable[[], None]:
            def work() -> None:
                for index in reversed(range(start, pages, 4)):
                    file.write(index * page, bytes((index + 1,)) * page)

            return work

        run_together(*(write_every(start) for start in range(4)))
    expected = b"".join(bytes((index + 1,)) * page for index in range(pages))
    assert vault.get(NAME) == expected
    vault.close()


def test_open_and_close_from_many_threads_leaves_the_file_clean(tmp_path: Path) -> None:
    vault = BareVault(tmp_path / "v")
    vault.put(NAME, bytes(SMALL))
    gc.collect()  # what other tests have left closes its descriptors now, not while this one counts
    before = len(os.listdir("/proc/self/fd"))

    def cycle(index: int) -> Callable[[], None]:
        def work() -> None:
            for turn in range(40):
                writable = (turn + index) % 2
                with vault.opened(NAME, os.O_RDWR if writable else os.O_RDONLY) as file:
                    if writable:
                        file.write(index, bytes((turn,)))
                    assert len(file.read(0, SMALL)) == SMALL

        return work

    run_together(*(cycle(index) for index in range(8)))
    assert vault.header(NAME).is_clean
    assert not vault.tree.files._states
    assert len(os.listdir("/proc/self/fd")) == before
    # Odd turns are the writing ones of even threads, and the other way round.
    assert vault.get(NAME)[:8] == bytes(39 if index % 2 == 0 else 38 for index in range(8))
    vault.close()


def test_a_file_is_looked_at_by_a_descriptor_that_nobody_closes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread gives the last handle back just when somebody who opens the file looks at its header."""
    vault = BareVault(tmp_path / "v")
    vault.put(NAME, bytes(SMALL))
    last = vault.tree.open(vault.root, NAME, os.O_RDONLY)
    looks: list[int] = []

    def look(state: FileState, st: os.stat_result) -> bool:
        if not looks:
            vault.tree.release(last)
        looks.append(os.fstat(state.fd).st_ino)
        return is_overtaken(state, st)

    monkeypatch.setattr(filetable, "is_overtaken", look)
    with vault.opened(NAME, os.O_RDONLY) as file:
        assert file.read(0, SMALL) == bytes(SMALL)
    assert looks == [vault.backing(NAME).stat().st_ino]
    assert not vault.tree.files._states
    vault.close()
