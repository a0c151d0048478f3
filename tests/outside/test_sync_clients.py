"""A sync client takes a file for unchanged whose length and time of change it has seen: then it has to be."""

from __future__ import annotations

import os

import pytest

from tests.outside.stage import Place, Stage, script, until

OLD = script("old", 40_000)
HEAD = b"#" * 5000
TAIL = b"# by the program\n"
WHEN_NS = 1_700_000_000_123_456_789

CHANGES = {"overwrite": (HEAD, 0), "append": (TAIL, len(OLD))}
"""What is written, and where."""


def _come_to_rest(place: Place, wanted: bytes, *, same_header: bool = True) -> None:
    """Look as often as a client may, until the file is at rest: it must not look finished before.

    rsync compares whole seconds, so within one there may be another header, but no other content.

    Args: same_header: to the nanosecond, the header must be the same, too.
    """
    path = place.cipher("doc")
    seen: list[tuple[os.stat_result, bytes]] = []

    def rests() -> bool:
        seen.append((path.stat(), path.read_bytes()))
        return place.content("doc") == wanted

    assert until(rests)
    st, raw = path.stat(), path.read_bytes()
    for earlier, other in seen:
        if earlier.st_size == st.st_size and earlier.st_mtime_ns == st.st_mtime_ns and same_header:
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
    _come_to_rest(place, OLD[:offset] + data + OLD[offset + len(data) :])
    assert (place.shown / "doc").stat().st_mtime_ns == shown_ns
    assert place.cipher("doc").stat().st_mtime_ns == shown_ns
    assert shown_ns == WHEN_NS or not times


@pytest.mark.parametrize("size", [21, 40_000])
@pytest.mark.parametrize("last", ["truncate", "allocate"])
def test_what_the_kernel_brings_late_does_not_look_finished(stage: Stage, last: str, size: int) -> None:
    """Pages may come after the length and the time that belong to them; room that is reserved moves the time.

    The fusepy engine hears of no close but the last, and that after close(2) has returned: until then what it
    wrote straight to its place has the header of a file in use under the time that stays.
    """
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
    _come_to_rest(place, content, same_header=stage.engine == "native")
    assert (place.shown / "doc").stat().st_mtime_ns == shown_ns
