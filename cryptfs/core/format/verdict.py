"""The verdict on a file's length, from its header and the length of its backing file.

The data path, recovery, fsck and the witness all use this one rule. It is pure: it reads no record.
vfs/content/foundlength.py adds the evidence of the records: the size for RECOVER, and whether bytes after a
header that says "empty" belong to it.

Source: docs/FORMAT.md, section 4 ("Flags and authentic length").
"""

from __future__ import annotations

from collections.abc import Set
from enum import Enum
from typing import NamedTuple

from cryptfs.core.format.header import FileHeader, HeaderFlag
from cryptfs.core.geometry import HEADER_SIZE, ChunkGeometry


class Length(Enum):
    """The kinds of verdict.

    SETTLED: the file is exactly as long as its header says, or empty without one.
    VOID:    it is empty after a truncate to zero; bytes after the header count only if they authenticate.
    RECOVER: its writer has not closed it; its last records show its end.
    CUT:     it is shorter than its header vouches for.
    SURPLUS: it is as long as its header says, and more bytes follow.
    """

    SETTLED = "settled"
    VOID = "void"
    RECOVER = "recover"
    CUT = "cut"
    SURPLUS = "surplus"


SETTLED = Length.SETTLED  # every open needs it, and looking up a member of an enum is slow


class Verdict(NamedTuple):
    """A verdict on the length of a file.

    size:     plaintext bytes of the file; with RECOVER at least so many; with CUT the size before the cut, or
              at least so many.
    expected: length in bytes of a backing file with that size.
    reason:   of CUT, in words; else "".
    """

    kind: Length
    size: int
    expected: int
    reason: str = ""


def verdict(
    header: FileHeader | None, cipher_size: int, geometry: ChunkGeometry, crashed: Set[bytes] = frozenset()
) -> Verdict:
    """Judge a file by its header and the length of its backing file.

    Args: header: None if there is none, as in an empty backing file.
          cipher_size: length of the backing file.
          crashed: journal_ids of this vault's sessions that ended without an unmount: a file closed in one of
                   them may have lost its end with the power.
    """
    if header is None:
        if not cipher_size:
            return Verdict(Length.SETTLED, 0, 0)
        return Verdict(Length.CUT, 0, HEADER_SIZE, f"{cipher_size} bytes without a header")
    flags = header.flags
    void = flags & HeaderFlag.VOID
    exact = flags & HeaderFlag.CLEAN and not void
    size = 0 if void else header.size if exact else header.size_min
    expected = geometry.cipher_size(size)
    if exact and cipher_size == expected:  # the usual case
        return Verdict(SETTLED, size, expected)
    least, shortest = size, expected
    if exact and header.journal_id in crashed:
        least = min(size, header.size_min)
        shortest = geometry.cipher_size(least)
    if cipher_size < shortest:
        bound = "" if exact and least == size else "at least "
        return Verdict(Length.CUT, least, shortest, f"{cipher_size} bytes instead of {bound}{shortest}")
    if void:
        return Verdict(Length.VOID, size, expected)
    if not exact or cipher_size < expected:
        return Verdict(Length.RECOVER, least, shortest)
    return Verdict(Length.SURPLUS, size, expected)
