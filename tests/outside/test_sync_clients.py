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


def _come_to_rest(place: Place, wanted: bytes) -> None:
    """Look as often as a client may, until the file is at rest: it must not look finished before.

    rsync compares whole seconds, so within one there may be another header, but no other content.
    """
    path = place.cipher("doc")
    seen: list[tuple[os.stat_result, bytes]] = []

    def rests() -> bool:
        seen.append((path.stat(), path.read_bytes()))
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
    _come_to_rest(place, OLD[:offset] + data + OLD[offset + len(data) :])
    assert (place.shown / "doc").stat().st_mtime_ns == shown_ns
    assert place.cipher("doc").stat().st_mtime_ns == shown_ns
    assert shown_ns == WHEN_NS or not times
