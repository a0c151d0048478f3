"""A file is replaced or deleted outside while a program writes to it: neither version is lost."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from soaklib.sealed import replace, rewrite
from tests.outside.stage import FORGED, IN_PLACE, KEPT, Place, Stage, script, until

ALLOWED = (
    *KEPT,
    *IN_PLACE,
    *FORGED,
)

OLD, NEW = script("old", 40_000), script("from outside", 70_000)
HEAD = b"#" * 5000
TAIL = b"# by the program\n"

Writer = Callable[[int], None]
WRITERS: dict[str, tuple[Writer, Callable[[bytes], bytes]]] = {
    # what a program does through its handle, and what it makes of a content
    "overwrite": (lambda fd: void(os.pwrite(fd, HEAD, 0)), lambda base: HEAD + base[5000:]),
    "append": (lambda fd: void(os.pwrite(fd, TAIL, os.fstat(fd).st_size)), lambda base: base + TAIL),
    "truncate": (lambda fd: os.ftruncate(fd, 700), lambda base: base[:700]),
    "rewrite": (lambda fd: _rewrite(fd), lambda base: HEAD),
    "mapping": (lambda fd: _map(fd), lambda base: HEAD[:4096] + base[4096:]),
}


def void(_: object) -> None:
    """Nothing."""


def _rewrite(fd: int) -> None:
    os.ftruncate(fd, 0)
    os.pwrite(fd, HEAD, 0)


def _map(fd: int) -> None:
    """In another process: what was changed in place under a mapping ends in SIGBUS."""
    words = [sys.executable, "-I", "-S", "-c", _MAP, str(fd)]
    if subprocess.run(words, pass_fds=[fd], capture_output=True, timeout=20, check=False).returncode:
        raise OSError(errno.EIO, "through a mapping")


_MAP = """
import mmap, sys
with mmap.mmap(int(sys.argv[1]), 40_000) as pages:
    pages[:4096] = b"#" * 4096
    pages.flush()
"""


def _replaced(place: Place) -> bytes | None:
    replace(place.cipher("doc"), place.sealer.seal(NEW, like=place.stage.sealer.seal(OLD)))
    return NEW


def _newer(place: Place) -> bytes | None:
    replace(place.cipher("doc"), place.newer("doc", NEW))
    return NEW


def _deleted(place: Place) -> bytes | None:
    place.cipher("doc").unlink()
    return None


def _in_place(place: Place) -> bytes | None:
    rewrite(place.cipher("doc"), place.newer("doc", NEW))
    return NEW


OUTSIDE = {"replaced": _replaced, "newer": _newer, "deleted": _deleted, "in_place": _in_place}


SIZE_OF_THE_OTHER = ("fusepy", "write, change, write", "append")
SHARED_INODE = "fstat(2) of a handle on a replaced file shows the new one's size: ENGINES, section 3"


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("outside", OUTSIDE)
@pytest.mark.parametrize("order", ["write, change", "change, write", "sync, change", "write, change, write"])
def test_both_versions_are_there(
    request: pytest.FixtureRequest, stage: Stage, order: str, outside: str, writer: str
) -> None:
    """What a program closed without an error is under the name or one that says conflict; so is the other."""
    if (stage.engine, order, writer) == SIZE_OF_THE_OTHER and outside in ("replaced", "newer"):
        request.applymarker(pytest.mark.xfail(strict=True, reason=SHARED_INODE))
    place = stage.place()
    place.plant("doc", OLD)
    place.plant("bystander", OLD)
    bystander = place.looks(but=("doc",))
    write, effect = WRITERS[writer]
    fd = os.open(place.shown / "doc", os.O_RDWR)
    came: bytes | None = None
    failed = False
    try:
        for step in order.split(", "):
            if step == "change":
                came = OUTSIDE[outside](place)
                continue
            write(fd)
            if step == "sync":
                os.fsync(fd)
    except (OSError, ValueError):
        failed = True
    try:
        os.close(fd)
    except OSError:
        failed = True
    after = (effect(OLD), effect(NEW), effect(effect(OLD)), effect(effect(NEW)))
    lost_outside = outside == "in_place" and order.endswith("change")  # its place was overwritten, not by us
    if (not failed or order == "sync, change") and not lost_outside:
        kept = until(lambda: any(place.keeps(content, ["doc"]) for content in after))
        assert kept, "what the program wrote is nowhere"
    if came is not None:
        later = [effect(came), effect(effect(came))]
        kept = until(lambda: any(place.keeps(content, ["doc"]) for content in [came, *later]))
        assert kept, "what came from outside is nowhere"
    with contextlib.suppress(FileNotFoundError):
        (place.shown / "doc").read_bytes()
    looks = place.looks()
    assert looks["bystander"] == bystander["bystander"]
