"""The operations that are interrupted, each as it is done to a file and to a bytearray."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cryptfs.storage.libc import FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, FALLOC_ZERO_RANGE
from cryptfs.vfs.content import ranges
from cryptfs.vfs.content.openfile import OpenFile
from cryptfs.vfs.content.redo import Durability
from tests.support import GAP, KIB, MIB, pattern

CHUNK = 4 * KIB
SIZE = 4 * CHUNK + 1000
OLD = pattern(SIZE, 1)


@dataclass(frozen=True)
class Operation:
    """What is done to an open file, and the content that it leads to from OLD."""

    name: str
    run: Callable[[OpenFile], object]
    result: bytes
    old: bytes = OLD
    covered: range = range(0)  # the bytes that a write replaces

    def replaces(self, chunk_index: int) -> bool:
        """Whether all that a chunk held is written over, so that nothing of it has to be read before."""
        start = chunk_index * CHUNK
        end = min(start + CHUNK, len(self.old))
        return start in self.covered and end - 1 in self.covered


def written(offset: int, length: int, old: bytes = OLD) -> Operation:
    content = pattern(length, 2)
    result = bytearray(old.ljust(offset + length, b"\0"))
    result[offset : offset + length] = content
    return Operation(
        f"write {length} at {offset} of {len(old)}",
        lambda file: file.write(offset, content),
        bytes(result),
        old,
        range(offset, offset + length),
    )


def changed_again(offset: int, length: int, times: int = 1) -> Operation:
    """A write into a chunk whose record is in the journal: with delta-journal a delta, or several."""
    first = min(offset, SIZE - 1)
    before = OLD[first : first + length]
    once = written(offset, length)

    def run(file: OpenFile) -> None:
        for _ in range(times):
            file.write(first, before)  # what is there already: so content is the old one or the new one
        once.run(file)

    return Operation(f"{once.name} after {times}", run, once.result, covered=once.covered)


def truncated(size: int) -> Operation:
    return Operation(f"truncate to {size}", lambda file: file.truncate(size), OLD[:size].ljust(size, b"\0"))


def zeroed(offset: int, length: int, mode: int) -> Operation:
    end = offset + length if not mode & FALLOC_KEEP_SIZE else min(offset + length, SIZE)
    result = bytearray(OLD.ljust(end, b"\0"))
    end = min(offset + length, len(result))
    result[offset:end] = bytes(end - offset)
    return Operation(
        f"fallocate {mode} of {length} at {offset}",
        lambda file: ranges.allocate(file, mode, offset, length),
        bytes(result),
    )


WRITES = [
    written(0, CHUNK),
    written(CHUNK, 2 * CHUNK),
    written(100, 50),
    written(CHUNK - 10, 20),
    written(10, 3 * CHUNK),
    written(SIZE, 10),
    written(SIZE, 3 * CHUNK),
    written(SIZE - 500, 2 * CHUNK),
    written(SIZE + 5 * CHUNK, 10),
    written(SIZE + GAP + 10, 10),
    written(SIZE + 2 * MIB + MIB // 2, 10),
    written(0, SIZE + CHUNK),
    written(10, SIZE + CHUNK),
    written(0, 100, old=b""),
    written(0, 3 * CHUNK, old=b""),
    written(CHUNK + 7, 10, old=b""),
    changed_again(100, 50),
    changed_again(CHUNK + 1000, 100, times=2),
    changed_again(SIZE, 10, times=3),
]
GROWTHS = [
    truncated(SIZE + 1),
    truncated(SIZE + 10 * CHUNK),
    Operation(
        "reserve and grow",
        lambda file: ranges.allocate(file, 0, SIZE - 10, 2 * CHUNK),
        OLD.ljust(SIZE - 10 + 2 * CHUNK, b"\0"),
    ),
]
SHRINKS = [truncated(1), truncated(CHUNK), truncated(2 * CHUNK + 50), truncated(SIZE - 1), truncated(0)]
ZEROINGS = [
    zeroed(10, 50, FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE),
    zeroed(100, 3 * CHUNK, FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE),
    zeroed(CHUNK, CHUNK, FALLOC_ZERO_RANGE),
    zeroed(3 * CHUNK + 1, 4 * CHUNK, FALLOC_ZERO_RANGE),
]
OPERATIONS = WRITES + GROWTHS + SHRINKS + ZEROINGS


def chunks_of(content: bytes) -> list[bytes]:
    return [content[start : start + CHUNK] for start in range(0, len(content), CHUNK)]


def assert_old_or_new(
    found: list[bytes | None], operation: Operation, durability: Durability = Durability.OFF
) -> None:
    """Each chunk is what it was or what it should become, as far as the file goes, or says it is lost."""
    old, new = chunks_of(operation.old), chunks_of(operation.result)
    for index, (before, after) in enumerate(zip(old, new, strict=False)):
        if before == after:
            assert found[index] == before
    for index, chunk in enumerate(found):
        if chunk is None:
            assert durability is Durability.OFF, "the redo log keeps every chunk"
            assert index < len(old), "a torn extension must be trimmed"
            continue
        expected = [content[index] for content in (old, new) if index < len(content)]
        assert any(content.startswith(chunk) for content in expected)
