"""A directory that was listed before shows what others have changed, though its names are in memory."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from tests.outside.stage import Place, Stage, script, until

ALLOWED = (r"WARNING .*: left out of the listing: the cipher name does not belong to this directory",)
LONG = "l" * 180
MANY = [f"file {number}" for number in range(200)]


def _shown(place: Place) -> dict[str, tuple[int, bool]]:
    """Names, inode numbers and kinds, as a listing has them."""
    with os.scandir(place.shown) as entries:
        return {entry.name: (entry.inode(), entry.is_dir()) for entry in entries}


def _as_stat_shows(place: Place, names: set[str]) -> dict[str, tuple[int, bool]]:
    return {name: ((place.shown / name).stat().st_ino, (place.shown / name).is_dir()) for name in names}


def _remove(place: Place) -> set[str]:
    place.cipher(MANY[0]).unlink()
    return {*MANY[1:], LONG}


def _add(place: Place) -> set[str]:
    place.plant("new", script("new"))
    return {*MANY, LONG, "new"}


def _rename(place: Place) -> set[str]:
    place.cipher(MANY[0]).rename(place.cipher("renamed"))
    return {*MANY[1:], LONG, "renamed"}


def _exchange_kinds(place: Place) -> set[str]:
    place.cipher(MANY[0]).unlink()
    place.sealer.new_directory(place.cipher(MANY[0]))
    return {*MANY, LONG}


def _replace(place: Place) -> set[str]:
    place.plant(MANY[0], script("another"))
    return {*MANY, LONG}


def _exchange_two(place: Place) -> set[str]:
    one, other = place.cipher(MANY[0]), place.cipher(MANY[1])
    middle = one.with_name("middle")
    one.rename(middle)
    other.rename(one)
    middle.rename(other)
    return {*MANY, LONG}


def _plant_a_forgery(place: Place) -> set[str]:
    (place.backing / ("A" * 43)).write_bytes(b"forged")
    return {*MANY, LONG}


CHANGES: dict[str, Callable[[Place], set[str]]] = {
    "remove": _remove,
    "add": _add,
    "rename": _rename,
    "another kind": _exchange_kinds,
    "another file": _replace,
    "two names exchanged": _exchange_two,
    "a forged name": _plant_a_forgery,
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_next_listing_shows_it(stage: Stage, change: str) -> None:
    place = stage.place()
    for name in MANY:
        place.plant(name, b"content")
    place.write(LONG, b"content")
    assert until(lambda: set(_shown(place)) == {*MANY, LONG})
    assert set(_shown(place)) == {*MANY, LONG}
    wanted = CHANGES[change](place)
    assert until(lambda: set(_shown(place)) == wanted)
    assert until(lambda: _shown(place) == _as_stat_shows(place, wanted))
    if stage.engine == "native":
        backing = {name: place.cipher(name).stat().st_ino for name in wanted - {LONG}}
        assert {name: inode for name, (inode, _) in _shown(place).items() if name != LONG} == backing
