"""Every target with what hypothesis thinks of: any bytes, and valid ones with a few places changed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.fuzz.all_targets import TARGETS
from tests.fuzz.targets import Target

pytestmark = pytest.mark.timeout(120)  # a hang is a finding


@st.composite
def changed(draw: st.DrawFn, samples: list[bytes]) -> bytes:
    """A sample that was flipped, cut, spliced, repeated in places."""
    data = bytearray(draw(st.sampled_from(samples)))
    for _ in range(draw(st.integers(0, 3))):
        place = draw(st.integers(0, len(data)))
        what = draw(st.sampled_from(("flip", "cut", "insert", "remove", "zero", "splice")))
        if what == "flip" and place < len(data):
            data[place] ^= draw(st.integers(1, 255))
        elif what == "cut":
            del data[place:]
        elif what == "insert":
            data[place:place] = draw(st.binary(max_size=40))
        elif what == "remove":
            del data[place : place + draw(st.integers(1, 5000))]
        elif what == "zero":
            length = min(draw(st.integers(1, 5000)), len(data) - place)
            data[place : place + length] = bytes(length)
        else:
            other = draw(st.sampled_from(samples))
            data[place:] = other[draw(st.integers(0, len(other))) :]
    return bytes(data)


@pytest.fixture(params=TARGETS)
def target(request: pytest.FixtureRequest) -> Iterator[Target]:
    made = TARGETS[request.param]()
    assert made.name == request.param
    yield made
    made.close()


def test_samples(target: Target) -> None:
    """What is valid passes, again and again."""
    for data in (*target.samples, *target.samples):
        target.run(data)


@pytest.mark.parametrize("examples", [150])
def test_anything(target: Target, examples: int) -> None:
    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.one_of(st.binary(max_size=600), changed(target.samples)))
    @example(b"")
    def run(data: bytes) -> None:
        target.run(data)

    run()
