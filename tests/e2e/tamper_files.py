"""Ways to tamper with the backing file of one regular file, and what a mount must show of it afterwards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cryptfs.core.aead import AEGIS_256
from cryptfs.core.geometry import HEADER_SIZE, ChunkGeometry
from tests.support import KIB, pattern

CHUNK = 16 * KIB
SIZE = 3 * CHUNK + 1000
CHUNKS = 4
CONTENT = pattern(SIZE, 1)
EARLIER = pattern(SIZE, 4)
SHORTER = CONTENT[: 2 * CHUNK]
GEOMETRY = ChunkGeometry(CHUNK, AEGIS_256.overhead)
HOLE = 1
"""The chunk that is a hole in a victim with holes."""


def record(index: int) -> slice:
    """Where a chunk's record stands in a victim."""
    start = GEOMETRY.record_offset(index)
    return slice(start, min(start + GEOMETRY.record_size, GEOMETRY.cipher_size(SIZE)))


@dataclass(frozen=True)
class Evidence:
    """What an attacker has. All but the last four are backing files of one size.

    victim:  as it is.   other: another file.   old: the victim before it was emptied and written anew.
    earlier: a version of the victim since then, with the content EARLIER.
    foreign: the victim's content in another vault.
    shorter: a version of the victim since then, with the content SHORTER: as after a write, before the next.
    """

    victim: bytes
    other: bytes
    old: bytes
    earlier: bytes
    foreign: bytes
    shorter: bytes


Attack = Callable[[Evidence], bytes]


def replacing(index: int, taken: Callable[[Evidence], bytes]) -> Attack:
    """One record replaced by something of its length."""

    def attack(has: Evidence) -> bytes:
        changed = bytearray(has.victim)
        changed[record(index)] = taken(has)
        return bytes(changed)

    return attack


def flipping(place: int) -> Attack:
    def attack(has: Evidence) -> bytes:
        changed = bytearray(has.victim)
        changed[place] ^= 0x10
        return bytes(changed)

    return attack


def cutting(length: int) -> Attack:
    return lambda has: has.victim[:length]


def swapping(has: Evidence) -> bytes:
    first, second = record(1), record(2)
    changed = bytearray(has.victim)
    changed[first], changed[second] = has.victim[second], has.victim[first]
    return bytes(changed)


def moving_down(has: Evidence) -> bytes:
    gone = record(0)
    return has.victim[: gone.start] + has.victim[gone.stop :] + has.victim[gone]


def under_the_header_of(taken: Callable[[Evidence], bytes]) -> Attack:
    """Another file's header before the victim's records."""
    return lambda has: taken(has)[:HEADER_SIZE] + has.victim[HEADER_SIZE:]


def zeroing_but_a_byte(has: Evidence) -> bytes:
    changed = bytearray(has.victim)
    place = record(2)
    changed[place.start : place.stop - 1] = bytes(place.stop - place.start - 1)
    return bytes(changed)


def zeros(index: int) -> Callable[[Evidence], bytes]:
    return lambda _: bytes(record(index).stop - record(index).start)


WHOLE = None
ATTACKS: dict[str, tuple[Attack, tuple[int, ...] | None]] = {
    "header flipped": (flipping(40), WHOLE),
    "header of another file": (under_the_header_of(lambda has: has.other), (0, 1, 2, 3)),
    "header from before a truncate": (under_the_header_of(lambda has: has.old), (0, 1, 2, 3)),
    "header of another vault": (under_the_header_of(lambda has: has.foreign), WHOLE),
    "file of another vault": (lambda has: has.foreign, WHOLE),
    "nonce flipped": (flipping(record(1).start), (1,)),
    "ciphertext flipped": (flipping(record(1).start + 5000), (1,)),
    "tag flipped": (flipping(record(1).stop - 1), (1,)),
    "last chunk flipped": (flipping(record(3).start + 40), (3,)),
    "chunks swapped": (swapping, (1, 2)),
    "chunks moved": (moving_down, (0, 1, 2, 3)),
    "chunk repeated": (replacing(2, lambda has: has.victim[record(0)]), (2,)),
    "chunk of another file": (replacing(1, lambda has: has.other[record(1)]), (1,)),
    "chunk of another vault": (replacing(1, lambda has: has.foreign[record(1)]), (1,)),
    "chunk from before a truncate": (replacing(1, lambda has: has.old[record(1)]), (1,)),
    "chunk zeroed": (replacing(2, zeros(2)), (2,)),
    "chunk zeroed in part, beside a hole": (zeroing_but_a_byte, (2,)),
    "cut at a chunk": (cutting(record(2).start), WHOLE),
    "cut inside a chunk": (cutting(record(2).start + 700), WHOLE),
    "cut to the header": (cutting(HEADER_SIZE), WHOLE),
    "cut inside the header": (cutting(100), WHOLE),
    "bytes appended": (lambda has: has.victim + b"surplus", ()),
}
"""What is done to the backing file, and which chunks are lost by it."""


def with_chunk(index: int, other: bytes) -> bytes:
    """CONTENT but for one chunk, which is as in `other`."""
    start = index * CHUNK
    return CONTENT[:start] + other[start : start + CHUNK] + CONTENT[start + CHUNK :]


NOT_DETECTED: dict[str, tuple[Attack, bytes]] = {
    "older version": (lambda has: has.old, pattern(SIZE, 3)),
    "older version of this epoch": (lambda has: has.earlier, EARLIER),
    "older chunk": (replacing(2, lambda has: has.earlier[record(2)]), with_chunk(2, EARLIER)),
    "older header and cut to its length": (
        lambda has: has.shorter[:HEADER_SIZE] + has.victim[HEADER_SIZE : len(has.shorter)],
        SHORTER,
    ),
    "whole chunk zeroed, beside a hole": (replacing(0, zeros(0)), with_chunk(0, bytes(SIZE))),
    "copy of another file": (lambda has: has.other, pattern(SIZE, 2)),
    "emptied": (lambda has: b"", b""),
}
"""What is done to the backing file, and the authentic content that shows then."""


def has_hole(name: str) -> bool:
    """Whether a victim has a hole before it is attacked."""
    return name.endswith("beside a hole")


def content_of(name: str) -> bytes:
    """What a victim held before it was attacked."""
    return with_chunk(HOLE, bytes(SIZE)) if has_hole(name) else CONTENT


def shown_after(name: str) -> bytes:
    """What shows of a victim after an attack that is not detected."""
    shown = NOT_DETECTED[name][1]
    if not has_hole(name):
        return shown
    start = HOLE * CHUNK
    return shown[:start] + bytes(CHUNK) + shown[start + CHUNK :]
