"""No byte is given out that a header does not vouch for, zeros included; looking cuts nothing from the disk.

The mount has not seen these files before, or holds them open: in both it tells the kernel a size.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from cryptfs.core.format.header import NO_FLAGS, HeaderFlag
from soaklib.ground import mounted_on
from soaklib.sealed import rewrite
from tests.e2e.conftest import ENGINES
from tests.e2e.mounting import MountSpec
from tests.outside.operations import OPERATIONS, Operation, handle_of, open_handle, read_all
from tests.outside.stage import CUT, IN_PLACE, SETTLED, Place, Stage, script, until

ALLOWED = (
    *SETTLED,
    *CUT,
    *IN_PLACE,
)

CONTENT = script("content", 40_000)
SMALL = script("small", 100)
HEADER, CHUNK = 256, 16 * 1024
UP, DOWN = 90_000, 21
TAIL = b"# appended\n"


@dataclass(frozen=True)
class Damage:
    """make: ciphertext of content, as it was found.   vouched: what may be read of it, whole."""

    name: str
    content: bytes
    make: Callable[[Place, bytes], bytes]
    vouched: tuple[bytes, ...]


def _reheaded(place: Place, raw: bytes, size: int, flags: int, *, epoch: int = 0) -> bytes:
    header = place.sealer.header(raw)
    changed = header.changed(epoch=header.epoch + epoch, size=size, size_min=size, flags=flags)
    return place.sealer.pack(changed) + raw[HEADER:]


def _torn(place: Place, raw: bytes) -> bytes:
    """Copied while it grew, or its writer was killed: not CLEAN, its last record is a piece."""
    return _reheaded(place, raw, 0, NO_FLAGS)[:-3_000]


def _grown_by_zeros(place: Place, raw: bytes) -> bytes:
    """As a file looks whose length came to the disk before its content."""
    return _reheaded(place, raw, 0, NO_FLAGS) + bytes(30_000)


DAMAGES = (
    Damage("appended", SMALL, lambda place, raw: raw + os.urandom(49_152), (SMALL,)),
    Damage("appended_zeros", SMALL, lambda place, raw: raw + bytes(49_152), (SMALL,)),
    Damage("appended_to_whole_chunks", script("whole", 2 * CHUNK), lambda place, raw: raw + raw[HEADER:],
           (script("whole", 2 * CHUNK),)),
    Damage("torn", CONTENT, _torn, (CONTENT[: 2 * CHUNK],)),
    Damage("grown_by_zeros", CONTENT, _grown_by_zeros, (CONTENT, CONTENT[: 2 * CHUNK])),
    Damage("cut_to_chunk", CONTENT, lambda place, raw: raw[: HEADER + place.sealer.geometry.record_size], ()),
    Damage("cut_to_header", CONTENT, lambda place, raw: raw[:HEADER], ()),
    Damage("cut_oddly", CONTENT, lambda place, raw: raw[:30_001], ()),
    Damage("void_over_content", CONTENT,
           lambda place, raw: _reheaded(place, raw, 0, HeaderFlag.VOID, epoch=1), (b"",)),
    Damage("empty_over_content", CONTENT,
           lambda place, raw: _reheaded(place, raw, 0, HeaderFlag.CLEAN, epoch=1), (b"",)),
)  # fmt: skip


def _truncate_up(path: Path) -> None:
    os.truncate(path, UP)


def _nothing(path: Path) -> None:
    os.close(os.open(path, os.O_RDWR))


CHOSEN = ("read", "mmap", "exec", "append", "pwrite", "truncate", "o_trunc", "copy_file_range")
WAYS = (
    *(operation for operation in OPERATIONS if operation.name in CHOSEN),
    Operation("open", _nothing),
    Operation("truncate_up", _truncate_up, lambda content: content[:UP] + bytes(UP - len(content[:UP]))),
)
LOOKING = ("read", "mmap", "exec", "open", "copy_file_range")


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.name)
@pytest.mark.parametrize("state", ["unseen", "listed", "held"])
def test_only_what_a_header_vouches_for(stage: Stage, state: str, damage: Damage, way: Operation) -> None:
    """Each way to reach a damaged file gives what its header vouches for, or an error; and so it stays."""
    place = stage.place()
    target = place.plant("doc", damage.content)
    path = place.shown / "doc"
    held = [os.open(path, os.O_RDONLY)] if state == "held" else []
    raw = damage.make(place, target.read_bytes())
    rewrite(target, raw)
    if state == "listed":
        assert [entry.stat().st_size >= 0 for entry in os.scandir(place.shown)] == [True]
    try:
        try:
            seen = way.act(path)
        except OSError:
            kept = target.read_bytes()
            assert len(kept) >= HEADER or len(raw) < HEADER, "it failed, and cut the file"
            assert kept[HEADER:] in raw, "it failed, and changed the file"
            return
    finally:
        for fd in held:  # a file comes to rest with its last handle
            with contextlib.suppress(OSError):
                os.close(fd)
    check_way(place, damage, way, raw, seen, held=bool(held))


def check_way(
    place: Place, damage: Damage, way: Operation, raw: bytes, seen: bytes | None, *, held: bool
) -> None:
    """Compare what a way gave and what it left with what was vouched for, or known to who had it open."""
    vouched = damage.vouched
    before = (damage.content,) if held else ()
    if seen is not None:
        shown = [way.shows(content) for content in (*vouched, *before)]
        assert seen in shown, f"it gave {len(seen)} bytes, {seen[:30]!r} ... {seen[-20:]!r}"
    if way.name in LOOKING:
        length = place.cipher("doc").stat().st_size
        whole = [place.sealer.geometry.cipher_size(len(content)) for content in vouched if content]
        assert length in (len(raw), *whole), f"looking cut the file from {len(raw)} to {length} bytes"
    elif way.effect is not None:
        results = [way.effect(content) for content in (*vouched, *before)]
        results += [way.effect(b"")] if way.name == "o_trunc" else []
        right = until(lambda: place.content("doc") in results)
        assert right, f"{way.name} left what nobody wrote: {_describe(place.content('doc'))}"


def _describe(content: bytes | None) -> str:
    return (
        "nothing whole"
        if content is None
        else f"{len(content)} bytes, {content[:30]!r} ... {content[-20:]!r}"
    )


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.name)
def test_by_a_handle(stage: Stage, damage: Damage) -> None:
    """open_by_handle_at, of a handle that was made before the damage."""
    place = stage.place()
    target = place.plant("doc", damage.content)
    handle = handle_of(place.shown / "doc")
    raw = damage.make(place, target.read_bytes())
    rewrite(target, raw)
    with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
        fd = open_handle(handle, stage.mount.mountpoint, os.O_RDONLY)
        stack.callback(os.close, fd)
        seen = read_all(fd)
        assert seen in damage.vouched, f"it gave {len(seen)} bytes, {seen[:30]!r} ... {seen[-20:]!r}"
    length = target.stat().st_size
    whole = [place.sealer.geometry.cipher_size(len(content)) for content in damage.vouched if content]
    assert length in (len(raw), *whole), "looking cut the file"


_WRITER = """
import os, sys
data = bytes(range(1, 251)) * 60
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT, 0o600)
os.write(1, b"go")
while True:
    os.write(fd, data)
    os.fsync(fd)
"""


@pytest.mark.parametrize("engine", ENGINES)
def test_a_writer_was_killed_without_durability(ground: Path, engine: str) -> None:
    """What is left of its file is a prefix of what it wrote, in every way to read it, or an error."""
    with mounted_on(ground, MountSpec(engine, options="durability=off")) as mount:
        mount.allow_log(*SETTLED)
        for number in range(3):
            path = mount.mountpoint / f"log{number}"
            words = [sys.executable, "-I", "-S", "-c", _WRITER, str(path)]
            with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as writer:
                assert writer.stdout is not None and writer.stdout.read(2) == b"go"
                time.sleep(0.1 + number * 0.037)
                mount.kill()
                writer.send_signal(signal.SIGKILL)
            mount.start()
            size = path.stat().st_size
            wanted = (bytes(range(1, 251)) * 60) * (size // 15_000 + 2)
            with contextlib.suppress(OSError):
                seen = path.read_bytes()
                assert seen == wanted[: len(seen)], "bytes that nobody wrote"
                assert len(seen) <= path.stat().st_size


@pytest.mark.parametrize("by", ["a program", "another machine"])
@pytest.mark.parametrize("way", ["read", "append"])
@pytest.mark.parametrize("ask", ["setxattr", "getxattr", "chmod", "utime", "open"])
def test_a_look_by_another_way_does_not_make_a_stale_size_count(
    stage: Stage, ask: str, way: str, by: str
) -> None:
    """A file changes in place, and a request that is not about its size meets it first.

    The kernel keeps the size that it has. It would read as much of the new content, or append there.
    """
    place = stage.place()
    path = place.shown / "doc"
    (place.write if by == "a program" else place.plant)("doc", SMALL)
    os.stat(path)
    rewrite(place.cipher("doc"), place.newer("doc", CONTENT))
    with contextlib.suppress(OSError):
        if ask == "setxattr":
            os.setxattr(path, "user.a", b"value")
        elif ask == "getxattr":
            os.getxattr(path, "user.a")
        elif ask == "chmod":
            path.chmod(0o700)
        elif ask == "utime":
            os.utime(path)
        else:
            os.close(os.open(path, os.O_RDWR))
    if way == "read":
        assert path.read_bytes() == CONTENT
    else:
        with path.open("ab") as file:
            file.write(TAIL)
        assert until(lambda: place.content("doc") == CONTENT + TAIL), place.content("doc")


def test_stat_of_a_file_that_is_open_and_was_changed_in_place(stage: Stage) -> None:
    """Nobody reads through the handle, so nothing else notices it."""
    place = stage.place()
    path = place.shown / "doc"
    place.plant("doc", SMALL)
    fd = os.open(path, os.O_RDONLY)
    try:
        rewrite(place.cipher("doc"), place.newer("doc", CONTENT))
        assert until(lambda: path.stat().st_size == len(CONTENT)), path.stat().st_size
    finally:
        os.close(fd)
