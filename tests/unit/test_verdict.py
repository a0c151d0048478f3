"""What a header says of its file's length: every kind of header at every kind of length."""

from __future__ import annotations

import pytest

from cryptfs.core.format.header import NO_FLAGS, FileHeader, HeaderFlag
from cryptfs.core.format.verdict import Length, Verdict, verdict
from cryptfs.core.geometry import HEADER_SIZE, ChunkGeometry

CHUNK = 4096
OVERHEAD = 64
GEOMETRY = ChunkGeometry(CHUNK, OVERHEAD)
SIZE = 2 * CHUNK + 100
WHOLE = GEOMETRY.cipher_size(SIZE)
ONE = GEOMETRY.cipher_size(CHUNK)
OURS, OTHER = b"a crashed session", b"some other one   "
CRASHED = frozenset({OURS})
CLEAN, VOID, SPARSE = HeaderFlag.CLEAN, HeaderFlag.VOID, HeaderFlag.SPARSE


def header(flags: int, size: int = 0, size_min: int = 0, journal_id: bytes = OTHER) -> FileHeader:
    return FileHeader(1, 12, bytes(32), size=size, size_min=size_min, flags=flags, journal_id=journal_id)


def settled(size: int) -> Verdict:
    return Verdict(Length.SETTLED, size, GEOMETRY.cipher_size(size))


def surplus(size: int) -> Verdict:
    return Verdict(Length.SURPLUS, size, GEOMETRY.cipher_size(size))


def recover(least: int) -> Verdict:
    return Verdict(Length.RECOVER, least, GEOMETRY.cipher_size(least))


def cut(cipher_size: int, size: int, bound: str = "") -> Verdict:
    expected = GEOMETRY.cipher_size(size)
    return Verdict(Length.CUT, size, expected, f"{cipher_size} bytes instead of {bound}{expected}")


EMPTY = Verdict(Length.VOID, 0, HEADER_SIZE)
IMPOSSIBLE = (1, HEADER_SIZE - 1)  # lengths within a header
STUBS = (1, OVERHEAD)  # a last piece that holds no plaintext

TABLE = [
    # no header
    ("nothing", None, 0, Verdict(Length.SETTLED, 0, 0)),
    *(
        (
            f"no header, {length}",
            None,
            length,
            Verdict(Length.CUT, 0, 256, f"{length} bytes without a header"),
        )
        for length in (1, 255, 256, WHOLE)
    ),
    # VOID: overrides size, size_min and CLEAN
    ("void", header(VOID), HEADER_SIZE, EMPTY),
    ("void with leftovers", header(VOID), WHOLE, EMPTY),
    ("void with a stub", header(VOID), HEADER_SIZE + OVERHEAD, EMPTY),
    ("void of a crash", header(VOID, journal_id=OURS), WHOLE, EMPTY),
    ("void and clean", header(VOID | CLEAN, SIZE, SIZE), ONE, EMPTY),
    ("void with a size_min", header(VOID, SIZE, SIZE), ONE, EMPTY),
    *((f"void, {length}", header(VOID), length, cut(length, 0, "at least ")) for length in (0, *IMPOSSIBLE)),
    # CLEAN
    ("exact", header(CLEAN, SIZE, SIZE), WHOLE, settled(SIZE)),
    ("exact, whole chunks", header(CLEAN, CHUNK, CHUNK), ONE, settled(CHUNK)),
    ("exact and sparse", header(CLEAN | SPARSE, SIZE, SIZE), WHOLE, settled(SIZE)),
    ("exact, of a crash", header(CLEAN, SIZE, 0, OURS), WHOLE, settled(SIZE)),
    ("exact, empty", header(CLEAN), HEADER_SIZE, settled(0)),
    ("longer by a byte", header(CLEAN, SIZE, SIZE), WHOLE + 1, surplus(SIZE)),
    ("longer by a record", header(CLEAN, CHUNK, CHUNK), WHOLE, surplus(CHUNK)),
    ("longer, of a crash", header(CLEAN, CHUNK, 0, OURS), WHOLE, surplus(CHUNK)),
    *((f"longer by {stub}", header(CLEAN, CHUNK, CHUNK), ONE + stub, surplus(CHUNK)) for stub in STUBS),
    ("empty over content", header(CLEAN), WHOLE, surplus(0)),
    *(
        (f"clean, {length}", header(CLEAN, SIZE, SIZE), length, cut(length, SIZE))
        for length in (0, *IMPOSSIBLE, HEADER_SIZE, HEADER_SIZE + OVERHEAD, ONE, WHOLE - 1)
    ),
    *((f"empty, {length}", header(CLEAN), length, cut(length, 0)) for length in (0, *IMPOSSIBLE)),
    ("short, of another session", header(CLEAN, SIZE, CHUNK, OTHER), WHOLE - 1, cut(WHOLE - 1, SIZE)),
    ("short, of a crash", header(CLEAN, SIZE, CHUNK, OURS), WHOLE - 1, recover(CHUNK)),
    ("short, of a crash, at size_min", header(CLEAN, SIZE, CHUNK, OURS), ONE, recover(CHUNK)),
    ("short, of a crash, all lost", header(CLEAN, SIZE, 0, OURS), HEADER_SIZE, recover(0)),
    (
        "short, of a crash, below size_min",
        header(CLEAN, SIZE, CHUNK, OURS),
        ONE - 1,
        cut(ONE - 1, CHUNK, "at least "),
    ),
    ("short, of a crash, all synced", header(CLEAN, SIZE, SIZE, OURS), WHOLE - 1, cut(WHOLE - 1, SIZE)),
    *(
        (f"of a crash, {length}", header(CLEAN, SIZE, 0, OURS), length, cut(length, 0, "at least "))
        for length in (0, *IMPOSSIBLE)
    ),
    # not CLEAN
    ("open, at size_min", header(NO_FLAGS, CHUNK, CHUNK), ONE, recover(CHUNK)),
    ("open, above it", header(NO_FLAGS, CHUNK, CHUNK), WHOLE, recover(CHUNK)),
    *(
        (f"open, above it by {stub}", header(NO_FLAGS, CHUNK, CHUNK), ONE + stub, recover(CHUNK))
        for stub in STUBS
    ),
    ("open, below it", header(NO_FLAGS, CHUNK, CHUNK), ONE - 1, cut(ONE - 1, CHUNK, "at least ")),
    ("open, of a crash, below it", header(NO_FLAGS, 0, SIZE, OURS), ONE, cut(ONE, SIZE, "at least ")),
    ("open and sparse", header(SPARSE, CHUNK, CHUNK), WHOLE, recover(CHUNK)),
    ("open, no size_min", header(NO_FLAGS), HEADER_SIZE, recover(0)),
    ("open, `size` means nothing", header(NO_FLAGS, SIZE, 0), ONE, recover(0)),
    *(
        (f"open, {length}", header(NO_FLAGS), length, cut(length, 0, "at least "))
        for length in (0, *IMPOSSIBLE)
    ),
]


@pytest.mark.parametrize(
    ("of", "cipher_size", "expected"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE]
)
def test_table(of: FileHeader | None, cipher_size: int, expected: Verdict) -> None:
    assert verdict(of, cipher_size, GEOMETRY, CRASHED) == expected


def test_without_a_crash_no_file_may_be_short() -> None:
    of = header(CLEAN, SIZE, 0, OURS)
    assert verdict(of, ONE, GEOMETRY).kind is Length.CUT
    assert verdict(of, ONE, GEOMETRY, CRASHED).kind is Length.RECOVER


def test_one_length_only_is_settled() -> None:
    """Of a CLEAN header, whatever else the file is long."""
    of = header(CLEAN, SIZE, SIZE)
    kinds = [verdict(of, length, GEOMETRY, CRASHED).kind for length in range(WHOLE + 300)]
    assert kinds.count(Length.SETTLED) == 1
    assert kinds.index(Length.SETTLED) == WHOLE
    assert set(kinds[:WHOLE]) == {Length.CUT}
    assert set(kinds[WHOLE + 1 :]) == {Length.SURPLUS}
