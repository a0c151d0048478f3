"""Compares the records of a manifest with the records of now, side by side.

Both come in ascending order, so records with one key meet. For the reasoning see
docs/decisions/0011-what-a-witness-shows.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import StrEnum
from itertools import groupby
from typing import NamedTuple

from cryptfs.core.format.manifest import NO_PLACE, Object, Record
from cryptfs.witness.observation import Seen


class Change(StrEnum):
    """The change of an entry, the worst first. No honest change causes one of the first three."""

    ROLLED_BACK = "rolled-back"  # replaced by an older version
    REPLACED = "replaced"  # claims to be a known version, with other content
    COPIED = "copied"  # one file or directory is in the vault more than once
    DAMAGED = "damaged"  # does not authenticate; fsck says more
    DELETED = "deleted"
    ADDED = "added"
    RENEWED = "renewed"  # another file under the same name: some programs save by renaming
    MOVED = "moved"
    LINKED = "linked"  # has one more name
    UNLINKED = "unlinked"  # has one name less
    CHANGED = "changed"

    @property
    def alarms(self) -> bool:
        """Whether only somebody without the keys can have caused it."""
        return self in (Change.ROLLED_BACK, Change.REPLACED, Change.COPIED)


WAS_EMPTY = "it was an empty file"
IS_EMPTY = "it is an empty file now"


class Compared(NamedTuple):
    """One difference, with sealed names. place: its present place, or its last one; empty if unknown."""

    change: Change
    place: bytes
    name: bytes
    detail: str = ""
    cipher_path: str = ""
    old_place: bytes = b""
    old_name: bytes = b""


def compare(old: Iterable[Record], new: Iterable[Seen]) -> Iterator[Compared]:
    """All differences, in the order of keys."""
    olds = groupby(old, lambda record: record.key)
    news = groupby(new, lambda seen: seen.record.key)
    then, now = next(olds, None), next(news, None)
    while then is not None or now is not None:
        if now is None or (then is not None and then[0] < now[0]):
            assert then is not None
            yield from _gone(list(then[1]))
            then = next(olds, None)
        elif then is None or now[0] < then[0]:
            yield from _come(list(now[1]))
            now = next(news, None)
        else:
            yield from _both(list(then[1]), list(now[1]))
            then, now = next(olds, None), next(news, None)


def _gone(old: list[Record]) -> Iterator[Compared]:
    for record in old:
        if record.place != NO_PLACE:
            detail = WAS_EMPTY if record.kind == Object.EMPTY else ""
            yield Compared(Change.DELETED, record.place, record.name, detail)


def _come(new: list[Seen]) -> Iterator[Compared]:
    yield from _damaged(new)
    intact = _intact(new)
    yield from _copied(intact, set())
    for seen in intact:
        detail = IS_EMPTY if seen.record.kind == Object.EMPTY else ""
        yield Compared(Change.ADDED, seen.record.place, seen.record.name, detail)


def _both(old: list[Record], new: list[Seen]) -> Iterator[Compared]:
    yield from _damaged(new)
    intact = _intact(new)
    if not intact:
        return
    known = [record for record in old if record.kind != Object.DAMAGED]
    if known:
        newest = max(known, key=lambda record: (record.generation, record.settled))
        looked_at = set()
        for seen in intact:
            if seen.identity not in looked_at:
                looked_at.add(seen.identity)
                yield from _state(newest, seen)
    copies = list(_copied(intact, {record.place for record in old}))
    yield from copies
    copied = {each.place for each in copies}
    yield from _places(old, [seen for seen in intact if seen.record.place not in copied])


def _intact(new: list[Seen]) -> list[Seen]:
    return [seen for seen in new if seen.record.kind != Object.DAMAGED]


def _damaged(new: list[Seen]) -> Iterator[Compared]:
    for seen in new:
        if seen.record.kind == Object.DAMAGED:
            path, _, reason = seen.remark.partition("\0")
            place = b"" if seen.record.place == NO_PLACE else seen.record.place
            yield Compared(Change.DAMAGED, place, seen.record.name, reason, path)


def _copied(intact: list[Seen], before: set[bytes]) -> Iterator[Compared]:
    """One file_id or dir_id in several backing files: cryptfs never causes that."""
    first = intact[0] if intact else None
    if first is None or first.record.kind not in (Object.FILE, Object.DIRECTORY):
        return
    if len({seen.identity for seen in intact}) == 1:
        return
    for seen in intact:
        if seen.record.place not in before:
            yield Compared(
                Change.COPIED, seen.record.place, seen.record.name, "the same one is also at another place"
            )


def _state(old: Record, seen: Seen) -> Iterator[Compared]:
    """The evidence of the content, for one backing file."""
    new = seen.record
    change, detail = Change.CHANGED, ""
    if old.kind != new.kind or old.kind != Object.FILE:
        same = (old.kind, old.digest, old.xattrs) == (new.kind, new.digest, new.xattrs)
    elif new.generation < old.generation:
        same, change = False, Change.ROLLED_BACK
        detail = f"generation {new.generation}; the manifest knows {old.generation}"
    elif new.generation == old.generation and old.settled and not new.settled and not seen.changing:
        same, change = False, Change.ROLLED_BACK
        detail = f"generation {new.generation} before it was closed; the manifest knows it closed"
    elif new.generation == old.generation and _contradict(old, new):
        same, change = False, Change.REPLACED
        detail = f"generation {new.generation}, but with other content"
    elif new.epoch < old.epoch:
        same, change = False, Change.REPLACED
        detail = f"epoch {new.epoch} in generation {new.generation}; the manifest knows epoch {old.epoch}"
    else:
        same = (old.generation, old.settled, old.xattrs) == (new.generation, new.settled, new.xattrs)
    if not same:
        yield Compared(change, new.place, new.name, detail)


def _contradict(old: Record, new: Record) -> bool:
    """Whether two versions of one generation cannot both have been."""
    if old.epoch != new.epoch:
        return True
    return old.settled and new.settled and (old.digest, old.size) != (new.digest, new.size)


def _places(old: list[Record], intact: list[Seen]) -> Iterator[Compared]:
    """Names that went and came: pairs are moves."""
    before = {record.place: record.name for record in old if record.place != NO_PLACE}
    after = {seen.record.place: seen.record.name for seen in intact}
    gone = sorted(before.keys() - after.keys())
    come = sorted(after.keys() - before.keys())
    for old_place, place in zip(gone, come, strict=False):
        yield Compared(Change.MOVED, place, after[place], old_place=old_place, old_name=before[old_place])
    for place in come[len(gone) :]:
        yield Compared(Change.LINKED, place, after[place])
    for place in gone[len(come) :]:
        yield Compared(Change.UNLINKED, place, before[place])
