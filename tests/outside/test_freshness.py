"""What changed outside shows within the grace: whole, under its name, never longer or shorter than it is."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import ENGINES
from tests.outside.conftest import staged
from tests.outside.kinds import KINDS, Kind
from tests.outside.stage import CUT, GRACE, SETTLED, Place

ALLOWED = (
    *SETTLED,
    *CUT,
)


@pytest.fixture(scope="module", params=[(engine, way) for engine in ENGINES for way in ("", "ro")], ids=str)
def disturbed(request: pytest.FixtureRequest, ground: Path) -> Iterator[dict[str, Place]]:
    """Every kind happened, each in a directory of its own, and the grace is over: one wait for all."""
    engine, options = request.param
    with staged(ground, engine, options, ALLOWED) as stage:
        places = {kind.name: stage.place() for kind in KINDS}
        for kind in KINDS:
            kind.before(places[kind.name])
        for kind in KINDS:
            kind.disturb(places[kind.name])
        time.sleep(GRACE)
        yield places


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_what_changed_outside_shows(disturbed: dict[str, Place], kind: Kind) -> None:
    """After the grace the mount shows what is in the vault, or an error where it is damaged."""
    kind.verify(disturbed[kind.name])
