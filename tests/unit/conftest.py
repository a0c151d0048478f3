"""A test in this room that touches the disk, or starts a program, fails."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.unit.purity import DISK_FIXTURES, watching


@pytest.fixture(autouse=True)
def _touches_no_disk(request: pytest.FixtureRequest) -> Iterator[None]:
    asked = sorted(DISK_FIXTURES.intersection(request.fixturenames))
    assert not asked, f"{', '.join(asked)}: a test that needs a directory belongs into another room"
    with watching() as seen:
        yield
    assert not seen, f"a test in tests/unit touches the disk: {', '.join(seen[:5])}"
