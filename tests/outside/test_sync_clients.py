"""A sync client takes a file for unchanged whose length and time of change it has seen: then it has to be."""

from __future__ import annotations

import os
import time

import pytest

from tests.outside.stage import GRACE, Place, Stage, script, until

OLD = script("old", 40_000)
HEAD = b"#" * 5000
TAIL = b"# by the program\n"
WHEN_NS = 1_700_000_000_123_456_789

CHANGES = {"overwrite": (HEAD, 0), "append": (TAIL, len(OLD))}
"""What is written, and where."""


Seen = list[tuple[os.stat_result, bytes]]


def _look(place: Place, seen: Seen) -> None:
    """As a client that begins to read a file at this moment."""
    path = place.cipher("doc")
    seen.append((path.stat(), path.read_bytes()))


def _come_to_rest(place: Place, wanted: bytes, seen: Seen) -> None:
    """Look as often as a client may, until the file is at rest: it must not look finished before.

    rsync compares whole seconds, so within one there may be another header, but no other content.

    Args: seen: what clients have read before.
    """
    path = place.cipher("doc")

    def rests() -> bool:
        _look(place, seen)
        return place.content("doc") == wanted

    assert until(rests)
    st, raw = path.stat(), path.read_bytes()
    for earlier, other in seen:
        if earlier.st_size == st.st_size and earlier.st_mtime_ns == st.st_mtime_ns:
            assert other == raw
        elif earlier.st_size == st.st_size and int(earlier.st_mtime) == int(st.st_mtime):
            assert place.sealer.content(other) == wanted


@pytest.mark.parametrize("times", [False, True], ids=["as it is", "set"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_file_does_not_look_finished_before_it_is(stage: Stage, change: str, *, times: bool) -> None:
    """Written in place and closed; the program has set the time before that, as cp -p does, or has not."""
    place = stage.place()
    place.plant("doc", OLD)
    data, offset = CHANGES[change]
    fd = os.open(place.shown / "doc", os.O_RDWR)
    os.pwrite(fd, data, offset)
    os.fsync(fd)
    if times:
        os.utime(fd, ns=(WHEN_NS, WHEN_NS))
    os.close(fd)
    shown_ns = (place.shown / "doc").stat().st_mtime_ns
    _come_to_rest(place, OLD[:offset] + data + OLD[offset + len(data) :], [])
    assert (place.shown / "doc").stat().st_mtime_ns == shown_ns
    assert place.cipher("doc").stat().st_mtime_ns == shown_ns
    assert shown_ns == WHEN_NS or not times


def test_no_second_has_both_contents(stage: Stage) -> None:
    """While content comes to its place the backing file has the time of now: not in the file's own second.

    A client that compares whole seconds and has read the file then would never read it again.
    """
    place = stage.place()
    old, new = script("old", 6_000_000), script("new", 6_000_000)
    place.plant("doc", old)
    path = place.cipher("doc")
    time.sleep(1.1 - time.time() % 1)  # what is due half a second after the close is due in the same second
    with (place.shown / "doc").open("r+b") as file:
        file.write(new)
        file.flush()
        os.fsync(file.fileno())
    wanted_ns, end = (place.shown / "doc").stat().st_mtime_ns, path.stat().st_size - 64
    seen: set[tuple[int, bytes]] = set()
    deadline = time.monotonic() + GRACE
    with path.open("rb", buffering=0) as backing:
        while True:
            time_ns = os.fstat(backing.fileno()).st_mtime_ns
            seen.add((time_ns // 10**9, os.pread(backing.fileno(), 64, end)))
            if time_ns == wanted_ns and place.sealer.header(os.pread(backing.fileno(), 4096, 0)).is_clean:
                break
            assert time.monotonic() < deadline
    assert place.content("doc") == new
    assert {last for second, last in seen if second == wanted_ns // 10**9} == {path.read_bytes()[-64:]}


@pytest.mark.parametrize("size", [21, 40_000])
@pytest.mark.parametrize("last", ["truncate", "allocate"])
def test_what_the_kernel_brings_late_does_not_look_finished(stage: Stage, last: str, size: int) -> None:
    """Pages may come after the length and the time that belong to them; reserved room moves the time."""
    place = stage.place()
    content = script("new", size)
    fd = os.open(place.shown / "doc", os.O_RDWR | os.O_CREAT)
    for offset in (0, size // 2):
        os.pwrite(fd, content[offset:], offset)
    if last == "truncate":
        os.ftruncate(fd, size)
    else:
        os.posix_fallocate(fd, 0, size)
    os.close(fd)
    shown_ns = (place.shown / "doc").stat().st_mtime_ns
    _come_to_rest(place, content, [])
    assert (place.shown / "doc").stat().st_mtime_ns == shown_ns


@pytest.mark.parametrize("way", ["new", "longer", "emptied", "shorter", "allocated"])
def test_a_file_that_stays_open_does_not_look_finished(stage: Stage, way: str) -> None:
    """What goes straight to its place has its length there; the header comes with the last close.

    Without the writeback cache, as the fusepy engine has none, nothing else tells of the close.
    """
    place, seen = stage.place(), Seen()
    if way != "new":
        place.plant("doc", OLD)
    wanted = {
        "new": HEAD * 20,
        "longer": OLD + HEAD * 20,
        "emptied": b"",
        "shorter": OLD[:100],
        "allocated": OLD + bytes(60_000),
    }[way]
    fd = os.open(place.shown / "doc", os.O_RDWR | os.O_CREAT)
    if way in ("emptied", "shorter"):
        os.ftruncate(fd, len(wanted))
    elif way == "allocated":
        os.posix_fallocate(fd, 0, len(wanted))
    else:
        os.pwrite(fd, HEAD * 20, len(OLD) if way == "longer" else 0)
    os.fsync(fd)
    shown_ns = os.fstat(fd).st_mtime_ns
    for _ in range(5):
        _look(place, seen)
        time.sleep(0.05)
    assert (place.shown / "doc").stat().st_mtime_ns == shown_ns
    os.close(fd)
    _come_to_rest(place, wanted, seen)
    assert (place.shown / "doc").stat().st_mtime_ns == shown_ns
