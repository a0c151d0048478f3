"""Directory records and sidecars that others replace, change in place or delete, while a mount uses them."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest

from cryptfs.core.names.dirrecord import RECORD_NAME
from cryptfs.core.names.names import SIDECAR_SUFFIX
from soaklib.sealed import replace
from tests.outside.stage import LEFT_OUT, Place, Stage, until

NO_RECORD = r"ERROR cryptfs\.mount\.errno_map: .*: the directory has no directory record"
NO_SIDECAR = r"WARNING .*: left out of the listing: the long name has lost its sidecar"
ALLOWED = (*LEFT_OUT, NO_RECORD, NO_SIDECAR)
LONG = "l" * 180
BACK_SECONDS = 8.0
AWAY_SECONDS = 5.0
SUFFIX = ".sync-conflict-20261129-131011-ABCDEFG"


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("by_path", [False, True])
def test_names_follow_the_record(stage: Stage, by_path: bool, in_place: bool) -> None:
    """As when two machines made one directory, and the client kept the other's record."""
    place = stage.place()
    (place.shown / "before").write_bytes(b"under the old record")
    held = os.open(place.shown, os.O_RDONLY | os.O_DIRECTORY)
    try:
        record = place.backing / RECORD_NAME
        fresh = stage.sealer.record(place.backing)
        if in_place:
            record.write_bytes(fresh)
        else:
            replace(record, fresh)

        def made() -> bool:
            name = f"made{os.urandom(4).hex()}"
            where = os.fspath(place.shown / name) if by_path else name
            flags = os.O_CREAT | os.O_WRONLY | os.O_EXCL
            os.close(os.open(where, flags, 0o600, dir_fd=None if by_path else held))
            return name in place.names()  # by the record that is there now

        assert until(made), "what is made in the directory goes on to be sealed under the old record"
        assert until(lambda: "before" not in os.listdir(place.shown))
    finally:
        os.close(held)


def comes_back(place: Place, path: Path, shown: set[str]) -> bool:
    """Whether a file of the vault is there again in time. Meanwhile the directory shows these names."""

    def back() -> bool:
        assert set(os.listdir(place.shown)) == shown
        return path.exists()

    return until(back, BACK_SECONDS)


def test_a_record_comes_back_while_a_name_needs_it(stage: Stage) -> None:
    """One machine has removed the directory, and the client keeps what was changed in it here."""
    place = stage.place()
    place.write("changed", b"here")
    record = place.backing / RECORD_NAME
    before = record.read_bytes()
    record.unlink()
    assert comes_back(place, record, {"changed"})
    assert record.read_bytes() == before
    assert (place.shown / "changed").read_bytes() == b"here"
    stage.mount.remount()
    assert (place.shown / "changed").read_bytes() == b"here"


def test_a_record_stays_away_where_nothing_is_left(stage: Stage) -> None:
    """Else a client could never remove a directory under a mount."""
    place = stage.place()
    path = place.write("removed", b"x")
    backing = place.backing
    path.unlink()
    (backing / RECORD_NAME).unlink()
    assert not until(lambda: _look(place.shown) and (backing / RECORD_NAME).exists(), AWAY_SECONDS)
    backing.rmdir()
    assert until(lambda: not place.shown.exists())


def _look(shown: Path) -> bool:
    """A program looks; it may get an error."""
    with contextlib.suppress(OSError):
        os.listdir(shown)
    return True


@pytest.mark.parametrize("copied", [False, True], ids=["itself", "its copy"])
def test_a_sidecar_comes_back_while_its_entry_is_there(stage: Stage, copied: bool) -> None:
    """One machine has removed the file, and the client keeps the version from here, or a copy of it."""
    place = stage.place()
    entry = place.write(LONG, b"here")
    assert set(os.listdir(place.shown)) == {LONG}
    shown = LONG
    if copied:
        entry.rename(f"{entry}{SUFFIX}")
        shown = LONG + SUFFIX
        assert until(lambda: set(os.listdir(place.shown)) == {shown})
    sidecar = Path(f"{entry}{SIDECAR_SUFFIX}")
    sidecar.unlink()

    def back() -> bool:
        found = set(os.listdir(place.shown))
        assert copied or found == {shown}
        return sidecar.exists() and set(os.listdir(place.shown)) == {shown}

    assert until(back, BACK_SECONDS)
    assert (place.shown / shown).read_bytes() == b"here"
    stage.mount.remount()
    assert set(os.listdir(place.shown)) == {shown}


def test_a_sidecar_stays_away_without_its_entry(stage: Stage) -> None:
    place = stage.place()
    entry = place.write(LONG, b"here")
    assert set(os.listdir(place.shown)) == {LONG}
    sidecar = Path(f"{entry}{SIDECAR_SUFFIX}")
    entry.unlink()
    sidecar.unlink()
    assert not until(lambda: _look(place.shown) and sidecar.exists(), AWAY_SECONDS)
    assert os.listdir(place.shown) == []
