"""The names of conflict copies, as other programs make them, and their readable names on a mount.

A sync client that finds two versions of an entry keeps one of them under the entry's name with a suffix. It
knows no plaintext, so it puts the suffix after a cipher name:

    <cipher name of report.odt>.sync-conflict-20261129-131011-ABCDEFG
    shown as  report.sync-conflict-20261129-131011-ABCDEFG.odt

Both directions follow from the names alone. Suffixes are printable ASCII. If a suffix does not mention a
conflict, a mount shows other words, so that it need not check a common name twice. Source: docs/FORMAT.md,
section 5.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from cryptfs.core.names.dirrecord import RECORD_NAME
from cryptfs.core.names.names import (
    INTERNAL_PREFIX,
    INTERNAL_STEM,
    LONG_ENTRY_SIZE,
    LONG_PREFIX,
    LONG_STEM,
    MAX_NAME_SIZE,
    MAX_PADDED_SIZE,
    PAD_STEP,
    SIDECAR_SUFFIX,
    SIV_SIZE,
)

CONFLICT_WORD = b"onflict"
"""Every shown name of a conflict copy has it."""

_CIPHER_LENGTHS = tuple(
    length
    for padded in range(PAD_STEP, MAX_PADDED_SIZE + 1, PAD_STEP)
    if (length := -(-(SIV_SIZE + padded) * 4 // 3)) < MAX_NAME_SIZE
)

_SHORTEST_CUT = MAX_NAME_SIZE - 4  # drop all of a letter that the cut splits
_DATE = r"[0-9]{4}-[0-9]{2}-[0-9]{2}"
_STAMP = r"[0-9]{8}-[0-9]{6}"
_WHO = r"[ !#-'*-.0-~]{1,64}?"  # printable, but for '"', '(', ')' and '/'
_AS_IT_IS = (
    rf"\.sync-conflict-{_STAMP}(?:-[A-Z2-7]{{7}})?",  # Syncthing
    rf" \({_WHO}'s conflicted copy(?: {_DATE})?(?: \([0-9]{{1,3}}\))?\)",  # Dropbox
    rf" \(conflicted copy (?:{_WHO} )?{_DATE}(?: [0-9]{{6}})?\)",  # Nextcloud
    rf"_conflict-(?:[A-Za-z0-9.@]{{1,64}}-)?{_STAMP}",  # ownCloud
    r"\.conflict[0-9]{1,3}",  # rclone bisync, from 1.66
    rf" \(SFConflict (?:{_WHO} )?{_DATE}-[0-9]{{2}}-[0-9]{{2}}-[0-9]{{2}}\)",  # Seafile
)


class _Words(NamedTuple):
    """A suffix on disk and as shown: the words before and after their common part."""

    before: str
    part: str
    after: str
    shown_before: str
    shown_after: str = ")"


_IN_OTHER_WORDS = (
    _Words("-", r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?", "", " (conflict copy of "),  # OneDrive
    _Words(" (", r"[0-9]{1,3}", ")", " (conflict copy "),  # Google Drive and many others
    _Words("..path", r"[12]", "", " (conflict copy from path"),  # rclone bisync, before 1.66
    _Words(" (", rf"{_WHO} {_DATE}", ")", " (conflict copy: "),  # Dropbox in other languages
    _Words(" ", r"[2-9]|[1-9][0-9]{1,2}", "", " (conflict copy number "),  # iCloud
)

_SUFFIX = re.compile("|".join(_AS_IT_IS))
_SHOWN_SUFFIX = [re.compile(f"(?:{pattern})\\Z") for pattern in _AS_IT_IS]
_WORDS = [(words, re.compile(words.part)) for words in _IN_OTHER_WORDS]
_SHOWN_WORDS = [
    (
        words,
        re.compile(re.escape(words.shown_before) + f"({words.part})" + re.escape(words.shown_after) + "\\Z"),
    )
    for words in _IN_OTHER_WORDS
]
_LONG_SPLIT = re.compile(re.escape(LONG_STEM) + r"(.+)(\.[A-Za-z0-9_-]{43})", re.DOTALL)


class Copy(NamedTuple):
    """A conflict copy: its original's entry or plain name, and its suffix on disk."""

    original: str
    suffix: str


class ShownCopy(NamedTuple):
    """The same, from a plain name."""

    original: bytes
    suffix: str


def copies_of_entry(entry_name: str) -> list[Copy]:
    """The possible originals of a backing entry as a conflict copy, by its name alone.

    The caller must check that the original is an authentic name of the directory.
    """
    found = []
    if entry_name.startswith(INTERNAL_PREFIX):
        split = _LONG_SPLIT.fullmatch(entry_name)
        if split is not None and _shown(split[1]) is not None:
            found.append(Copy(LONG_STEM + split[2], split[1]))
        elif entry_name.startswith(LONG_PREFIX) and _shown(entry_name[LONG_ENTRY_SIZE:]) is not None:
            found.append(Copy(entry_name[:LONG_ENTRY_SIZE], entry_name[LONG_ENTRY_SIZE:]))
        return found
    for length in _CIPHER_LENGTHS:
        if length < len(entry_name) and _shown(entry_name[length:]) is not None:
            found.append(Copy(entry_name[:length], entry_name[length:]))
    return found


def entries_of_copy(entry_name: str, suffix: str) -> list[str]:
    """The possible names of an entry's conflict copy in the backing directory."""
    found = [entry_name + suffix]
    if entry_name.startswith(LONG_PREFIX):
        found.append(LONG_STEM + suffix + "." + entry_name.removeprefix(LONG_PREFIX))
    return [each for each in found if len(each) <= MAX_NAME_SIZE]


def is_copy_of_internal(entry_name: str) -> bool:
    """Whether an entry is a conflict copy of an internal file, such as a directory record."""
    if not entry_name.startswith(INTERNAL_STEM):
        return False
    stem, dot, extension = entry_name.rpartition(".")
    if dot and extension.isalnum() and _shown(stem.removeprefix(INTERNAL_STEM)) is not None:
        return True
    for own in (RECORD_NAME, entry_name[:LONG_ENTRY_SIZE] + SIDECAR_SUFFIX):
        stem, _, extension = own.rpartition(".")
        for start, ending in ((stem, "." + extension), (own, "")):
            middle = entry_name.removeprefix(start).removesuffix(ending)
            if start + middle + ending == entry_name and _shown(middle) is not None:
                return True
    return False


def long_original(entry_name: str) -> str:
    """The long entry behind an entry: itself, or the original of a conflict copy."""
    copies = copies_of_entry(entry_name)
    return copies[0].original if copies else entry_name


def shown_name(original: bytes, suffix: str) -> bytes | None:
    """The shown name of a conflict copy, cut if it is too long; None for no suffix."""
    shown = _shown(suffix)
    return None if shown is None else _marked(original, shown)


def _marked(name: bytes, mark: bytes) -> bytes:
    """A name with a text before its extension, cut to the limit of names."""
    stem, extension = _split_extension(name)
    room = MAX_NAME_SIZE - len(mark)
    if len(extension) > room // 2 and len(name) > room:
        stem, extension = name, b""
    if len(stem) + len(extension) > room:
        stem = _without_half_a_letter(stem[: room - len(extension)])
    return stem + mark + extension


def _without_half_a_letter(stem: bytes) -> bytes:
    """Cut UTF-8 back to a whole letter; other bytes stay as they are."""
    for missing in range(4):
        whole = stem[: len(stem) - missing]
        try:
            whole.decode("utf-8")
        except UnicodeDecodeError:
            continue
        return whole
    return stem


def may_be_cut(name: bytes) -> bool:
    """Whether a plain name may be the cut name of a conflict copy, which does not show its original."""
    return len(name) > _SHORTEST_CUT and any(
        _shown_suffixes(head.decode("latin-1")) for head, _ in _readings(name)
    )


def copies_of_name(name: bytes) -> list[ShownCopy]:
    """The possible originals of a plain name as a conflict copy; empty for nearly all names."""
    found: list[ShownCopy] = []
    for head, extension in _readings(name):
        for start, suffix in _shown_suffixes(head.decode("latin-1")):
            original = head[:start] + extension
            if start and shown_name(original, suffix) == name:
                found.append(ShownCopy(original, suffix))
    return sorted(set(found))


def _readings(name: bytes) -> list[tuple[bytes, bytes]]:
    """The possible splits of a conflict copy's name before an extension; none without the word in it."""
    if CONFLICT_WORD not in name:
        return []
    return [(name[:end], name[end:]) for end in {len(name), name.rfind(b".")} - {-1, 0}]


def _shown_suffixes(text: str) -> list[tuple[int, str]]:
    """Suffixes at the end of a text: where each begins, and its form on disk."""
    found = []
    for pattern in _SHOWN_SUFFIX:
        match = pattern.search(text)
        if match is not None:
            found.append((match.start(), match[0]))
    for words, pattern in _SHOWN_WORDS:
        match = pattern.search(text)
        if match is not None:
            found.append((match.start(), words.before + match[1] + words.after))
    return found


def _shown(suffix: str) -> bytes | None:
    """The shown form of a suffix; None if it is not a suffix."""
    if _SUFFIX.fullmatch(suffix) is not None:
        return suffix.encode("ascii")
    for words, part in _WORDS:
        middle = suffix[len(words.before) : len(suffix) - len(words.after)]
        if words.before + middle + words.after == suffix and part.fullmatch(middle) is not None:
            return (words.shown_before + middle + words.shown_after).encode("ascii")
    return None


def _split_extension(name: bytes) -> tuple[bytes, bytes]:
    """Split a name in two; the second part is empty, or begins at the last dot after the first byte."""
    dot = name.rfind(b".")
    return (name, b"") if dot <= 0 else (name[:dot], name[dot:])


def kept_name(name: bytes, stamp: str, number: int) -> bytes:
    """A second name, for a version that would be lost: `report (conflict 2026-11-29 13.10.11).odt`.

    Args: stamp: date and time.   number: from 1; distinguishes several.
    """
    mark = f" (conflict {stamp})" if number == 1 else f" (conflict {stamp} {number})"
    return _marked(name, mark.encode("ascii"))
