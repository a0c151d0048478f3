"""A file changes while a program has it open or mapped: its object of before, the new one, or an error."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from soaklib.sealed import replace, rewrite
from tests.e2e.conftest import ENGINES
from tests.outside.conftest import staged
from tests.outside.operations import read_all
from tests.outside.stage import CUT, FORGED, GRACE, IN_PLACE, Place, script

ALLOWED = (
    *IN_PLACE,
    *FORGED,
    *CUT,
)

OLD, NEW, SAME = script("old", 40_000), script("new", 70_000), script("same", 40_000)

_MAPPER = """
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
pages = mmap.mmap(fd, 0, prot=mmap.PROT_READ)
def show():
    content = pages[:]
    sys.stdout.buffer.write(len(content).to_bytes(8, "little") + content)
    sys.stdout.flush()
show()
for _ in sys.stdin:
    show()
"""


class Mapper:
    """A program that has a file mapped and shows all of it when asked; None once SIGBUS ended it."""

    def __init__(self, path: Path) -> None:
        words = [sys.executable, "-I", "-S", "-c", _MAPPER, str(path)]
        self._process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        self.first = self._answer()

    def _answer(self) -> bytes | None:
        assert self._process.stdout is not None
        size = self._process.stdout.read(8)
        return self._process.stdout.read(int.from_bytes(size, "little")) if len(size) == 8 else None

    def show(self) -> bytes | None:
        """What is mapped now."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            return None
        return self._answer()

    def close(self) -> None:
        """End it."""
        self._process.kill()
        for stream in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(BrokenPipeError):
                if stream is not None:
                    stream.close()
        self._process.wait()


NAMES = ("doc", "part")

Change = Callable[[Place, str], object]
CHANGES: dict[str, tuple[Change, tuple[bytes, ...]]] = {
    # what the outside actor does, and the contents that may show then besides the old one
    "replaced": (lambda p, n: replace(p.cipher(n), p.newer(n, NEW)), (NEW,)),
    "deleted": (lambda p, n: p.cipher(n).unlink(), ()),
    "renamed_over": (lambda p, n: p.cipher("other " + n).rename(p.cipher(n)), (SAME,)),
    "in_place_longer": (lambda p, n: rewrite(p.cipher(n), p.newer(n, NEW, new_epoch=False)), (NEW,)),
    "in_place_blocks": (
        lambda p, n: rewrite(p.cipher(n), p.newer(n, SAME, new_epoch=False), block=700),
        (SAME,),
    ),
    "in_place_new_epoch": (lambda p, n: rewrite(p.cipher(n), p.newer(n, SAME)), (SAME,)),
    "cut": (lambda p, n: os.truncate(p.cipher(n), 256 + p.sealer.geometry.record_size), ()),
    "cut_within_a_chunk": (
        lambda p, n: os.truncate(p.cipher(n), 256 + p.sealer.geometry.record_size + 700),
        (),
    ),
    "cut_to_its_header": (lambda p, n: os.truncate(p.cipher(n), 256), ()),
    "cut_within_its_header": (lambda p, n: os.truncate(p.cipher(n), 147), ()),
    "in_place_then_cut": (lambda p, n: _cut(p, n, "in_place_blocks"), (SAME,)),
    "replaced_then_cut": (lambda p, n: _cut(p, n, "replaced"), (NEW,)),
    "emptied": (lambda p, n: os.truncate(p.cipher(n), 0), (b"",)),
}


def _cut(place: Place, name: str, first: str) -> None:
    """Another change, and then only the header of what came is left."""
    CHANGES[first][0](place, name)
    os.truncate(place.cipher(name), 256)


CURRENT = {"replaced": NEW, "renamed_over": SAME, "in_place_longer": NEW,
           "in_place_blocks": SAME,
           "in_place_new_epoch": SAME}  # fmt: skip
"""Where the new version is intact: a program that opens the name anew gets it, whoever has the old one."""
CUTS = [name for name in CHANGES if "cut" in name]


@dataclass
class Opened:
    """Files with programs on them: one is mapped, and all its pages are known; of the other only some are.

    handles: on the other, by whether they read before the change.
    """

    place: Place
    handles: dict[str, int]
    mapper: Mapper
    at_once: dict[str, bytes | None] = field(default_factory=dict)

    def look(self) -> dict[str, bytes | None]:
        """What each handle gives now; None: an error."""
        seen: dict[str, bytes | None] = {"mapping": self.mapper.show()}
        for name, fd in self.handles.items():
            try:
                seen[name] = read_all(fd)
            except OSError:
                seen[name] = None
        return seen

    def close(self) -> None:
        """Give everything back."""
        self.mapper.close()
        for fd in self.handles.values():
            with contextlib.suppress(OSError):
                os.close(fd)


def _open(place: Place) -> Opened:
    for name in NAMES:
        place.plant(name, OLD)
        place.plant("other " + name, SAME)
    path = place.shown / "part"
    handles = {"read before": os.open(path, os.O_RDONLY), "not read": os.open(path, os.O_RDONLY)}
    for fd in handles.values():
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)  # the kernel reads no page that nobody asked for
    assert os.pread(handles["read before"], 4096, 20_480) == OLD[20_480:24_576]
    return Opened(place, handles, Mapper(place.shown / "doc"))


@pytest.fixture(scope="module", params=[(engine, way) for engine in ENGINES for way in ("", "ro")], ids=str)
def changed(request: pytest.FixtureRequest, ground: Path) -> Iterator[dict[str, Opened]]:
    """Each change under open handles, looked at at once; then the grace for all of them."""
    engine, options = request.param
    with staged(ground, engine, options, ALLOWED) as stage, contextlib.ExitStack() as stack:
        opened = {}
        for name in CHANGES:
            opened[name] = _open(stage.place())
            stack.callback(opened[name].close)
        for name, (change, _) in CHANGES.items():
            for file in NAMES:
                change(opened[name].place, file)
            opened[name].at_once = opened[name].look()
        time.sleep(GRACE)
        for each in opened.values():  # the kernel asks anew what there is, and keeps the answer
            for file in NAMES:
                with contextlib.suppress(OSError):
                    os.stat(each.place.shown / file)
        yield opened


def _describe(seen: bytes | None) -> str:
    return "an error" if seen is None else f"{len(seen)} bytes, {seen[:30]!r} ... {seen[-20:]!r}"


@pytest.mark.parametrize("moment", ["at once", "later"])
@pytest.mark.parametrize("name", CHANGES)
def test_through_a_handle_from_before(changed: dict[str, Opened], name: str, moment: str) -> None:
    """A handle and a mapping give one whole version, never a mixture, a cut piece or zeros."""
    opened = changed[name]
    assert opened.mapper.first == OLD
    allowed = (None, OLD, *CHANGES[name][1])
    for handle, seen in (opened.at_once if moment == "at once" else opened.look()).items():
        assert seen in allowed, f"{handle}: {_describe(seen)}"


@pytest.mark.parametrize("file", NAMES)
@pytest.mark.parametrize("name", CURRENT)
def test_opened_anew(changed: dict[str, Opened], name: str, file: str) -> None:
    """After the grace the name gives the new version, although the old one is open and mapped."""
    seen = (changed[name].place.shown / file).read_bytes()
    assert seen == CURRENT[name], _describe(seen)


@pytest.mark.parametrize("file", NAMES)
@pytest.mark.parametrize("name", CUTS)
def test_a_cut_file_opened_anew(changed: dict[str, Opened], name: str, file: str) -> None:
    """After the grace no byte comes, although an older handle has the pages of the whole file."""
    with pytest.raises(OSError) as raised:
        (changed[name].place.shown / file).read_bytes()
    assert raised.value.errno == errno.EIO
