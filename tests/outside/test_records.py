"""A directory record that others replace, or change in place, while the directory is in use."""

from __future__ import annotations

import os

import pytest

from cryptfs.core.names.dirrecord import RECORD_NAME
from soaklib.sealed import replace
from tests.outside.stage import LEFT_OUT, Stage, until

ALLOWED = (*LEFT_OUT,)


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
