"""What desktops and disks leave in the directories of a vault: it is no content, and does not hold them."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

import pytest

from tests.e2e.outside import Outside

LITTER = (".DS_Store", "._cryptfs.dir", "Thumbs.db", "desktop.ini", "Desktop.ini", ".directory", "._")


def test_litter_goes_with_its_directory(outside: Outside) -> None:
    """The log stays silent: the fixture insists on that."""
    for remove in (os.rmdir, _rename_another_over):
        for names in (*((each,) for each in LITTER), LITTER):
            place = outside.shown / "d"
            place.mkdir()
            backing = outside.backing("d")
            for name in names:
                (backing / name).write_bytes(b"litter")
            assert os.listdir(place) == []
            remove(place)
            assert not backing.exists() or not set(LITTER) & set(os.listdir(backing))
            if place.exists():
                place.rmdir()


def _rename_another_over(place: Path) -> None:
    (place.parent / "e").mkdir()
    (place.parent / "e").rename(place)


@pytest.mark.parametrize(
    ("name", "shown"),
    [("notes.txt", "notes.txt"), ("\x1b[31mred", r"\\x1b\[31mred"), (".DS_Store/inside", ".DS_Store")],
)
def test_anything_else_stays_and_the_log_names_it(outside: Outside, name: str, shown: str) -> None:
    place = outside.shown / "kept"
    place.mkdir()
    backing = outside.backing("kept")
    foreign = backing / name
    foreign.parent.mkdir(exist_ok=True)
    foreign.write_bytes(b"precious")
    (backing / "Thumbs.db").write_bytes(b"litter")
    words = rf"{backing.name}: not removed: this directory of the vault also holds {shown}, which cryptfs"
    outside.mount.allow_log(words, "left out of the listing")
    with pytest.raises(OSError) as raised:
        place.rmdir()
    assert raised.value.errno == errno.ENOTEMPTY
    assert foreign.read_bytes() == b"precious"
    assert (backing / "Thumbs.db").exists()
    assert any(re.search(words, line) for line in outside.mount.new_log_lines())


def test_a_directory_with_content_says_nothing(outside: Outside) -> None:
    place = outside.shown / "full"
    place.mkdir()
    (place / "file").touch()
    (place / ("long" * 60)).touch()
    with pytest.raises(OSError) as raised:
        place.rmdir()
    assert raised.value.errno == errno.ENOTEMPTY
