"""Trees into an encrypted directory and out of it: one large file, and many small ones."""

from __future__ import annotations

import filecmp
import os
import shutil
from pathlib import Path

from benchlib.machine import forget_file, sync_filesystem
from benchlib.quantities import MIB, Quantity, Unit, Workload
from benchlib.run import Run

FILE_BYTES = 4096
FILES_IN_DIRECTORY = 50
_PIECE = 8 * MIB
_LARGE, _SMALL = "a large file", "small files"
TITLES = {
    _LARGE: ("carry a large file in", "carry a large file out"),
    _SMALL: ("carry small files in", "carry small files out"),
}


def transfer(run: Run) -> None:
    """Each in and out; everything is on the disk when the clock stops, and the same as before."""
    source = _source(run)
    for kind, amount in ((_LARGE, run.sizes.transfer_bytes), (_SMALL, run.sizes.transfer_files)):
        into, out = TITLES[kind]
        with run.timed(into, amount):
            run.carrier.put(source / kind, kind)
            sync_filesystem(run.backing)
        _forget(run)
        target = run.backing / "carried out"
        with run.timed(out, amount):
            run.carrier.get(kind, target)
            sync_filesystem(run.backing)
        _require_same(source / kind, target)
        shutil.rmtree(target)
        run.carrier.remove(kind)


def _source(run: Run) -> Path:
    """Made once for all subjects, beside them."""
    place = run.backing.parent / "carried"
    if place.is_dir():
        return place
    making = place.with_suffix(".new")
    (making / _LARGE).mkdir(parents=True)
    with (making / _LARGE / "file").open("wb") as file:
        left = run.sizes.transfer_bytes
        while left:
            left -= file.write(os.urandom(min(_PIECE, left)))
    for number in range(run.sizes.transfer_files):
        folder = making / _SMALL / f"folder {number // FILES_IN_DIRECTORY}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"file number {number}").write_bytes(os.urandom(FILE_BYTES))
    sync_filesystem(making)
    return making.rename(place)


def _forget(run: Run) -> None:
    run.make_cold()
    stored = run.carrier.stored()
    if stored is not None:
        for path in stored.rglob("*"):
            if path.is_file() and not path.is_symlink():
                forget_file(path)


def _require_same(source: Path, target: Path) -> None:
    """Raises: AssertionError."""
    for path in source.rglob("*"):
        other = target / path.relative_to(source)
        if path.is_file() and not filecmp.cmp(path, other, shallow=False):
            raise AssertionError(f"{path.name} came out as another file")


_NOTE = "cp -a with a mount, cryptfs import and export, rclone copy; all on the disk"

WORKLOADS = (
    Workload(
        "transfer",
        "trees in and out",
        transfer,
        (
            Quantity(TITLES[_LARGE][0], Unit.BYTES, _NOTE),
            Quantity(TITLES[_LARGE][1], Unit.BYTES, "cold"),
            Quantity(TITLES[_SMALL][0], Unit.OPERATIONS, "files of 4 KiB"),
            Quantity(TITLES[_SMALL][1], Unit.OPERATIONS, "cold"),
        ),
    ),
)
