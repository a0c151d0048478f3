"""What was promised of files and names: the states since the last promise, and whether what is found is one.

A history begins with the state that is certain, its floor; every change adds a state. A promise kept (an
acknowledged write after a kill, an fsync before a power cut) makes the newest state the floor. What is found
after a crash may hold, at each byte, what any of the states has there.
"""

from __future__ import annotations

from dataclasses import dataclass, field

BLOCK = 512


@dataclass(frozen=True)
class Rules:
    """How much of what is not promised may be lost, and how.

    chunk_size:     of the vault, bytes.
    in_place_tears: without the redo log. A chunk that changed since the floor may be
                    lost (EIO), with what else it held, or cut off with all behind it where it was last.
    order_is_open:  without a synced redo log, at a power cut. Header and length may disagree: a file that
                    changed since the floor may be EIO altogether.
    holes_in_new:   pages behind the old end may reach the disk out of order (the writeback cache, a power
                    cut): zeros where others are missing.
    new_may_fail:   chunks that lie whole behind the old end may be EIO, and so may a directory that is new
                    (a power cut).
    exact_lengths:  a cut is done or not: no length between.
    """

    chunk_size: int
    in_place_tears: bool = False
    order_is_open: bool = False
    holes_in_new: bool = False
    new_may_fail: bool = False
    exact_lengths: bool = False


@dataclass(eq=False)
class FileHistory:
    """The content of a file. states: the floor first.   cuts: which states came by a cut."""

    states: list[bytes] = field(default_factory=lambda: [b""])
    cuts: list[bool] = field(default_factory=lambda: [False])

    @property
    def now(self) -> bytes:
        """The content when everything has been done."""
        return self.states[-1]

    def change(self, content: bytes, *, cut: bool = False) -> None:
        """A change that has been asked for."""
        self.states.append(content)
        self.cuts.append(cut)

    def keep(self) -> None:
        """The newest state is certain."""
        del self.states[:-1], self.cuts[:-1]

    def findings(self, chunks: list[bytes | None], rules: Rules) -> list[str]:
        """What is wrong with a content that was found, chunk by chunk; None for one that cannot be read."""
        if rules.order_is_open and len(self.states) > 1 and chunks and None in chunks:
            return []
        size = sum(rules.chunk_size if chunk is None else len(chunk) for chunk in chunks)
        if chunks and chunks[-1] is None:
            size = max((len(state) for state in self.states), default=size)  # its length cannot be told
        return [*self._wrong_length(size, rules), *self._wrong_chunks(chunks, rules)]

    def _wrong_length(self, size: int, rules: Rules) -> list[str]:
        lengths = [len(state) for state in self.states]
        if min(lengths) <= size <= max(lengths):
            between = any(
                size in (before, after) or (not cut and min(before, after) <= size <= max(before, after))
                for before, after, cut in zip(
                    lengths, [*lengths[1:], lengths[-1]], [*self.cuts[1:], True], strict=True
                )
            )
            if between or not rules.exact_lengths:
                return []
        if rules.order_is_open and len(lengths) > 1 and size < min(lengths):
            return []  # chunks that were sealed anew with the content that they had can be torn, too
        if rules.in_place_tears and size < min(lengths):
            lost = range(size // rules.chunk_size, -(-min(lengths) // rules.chunk_size))
            if size % rules.chunk_size == 0 and all(self._changed(chunk, rules) for chunk in lost):
                return []
        return [f"{size} bytes long instead of {lengths[0]}" + (f" to {lengths[1:]}" if lengths[1:] else "")]

    def _changed(self, chunk_index: int, rules: Rules) -> bool:
        """Whether a chunk, or its length, is not the same in all states."""
        start = chunk_index * rules.chunk_size
        return len({state[start : start + rules.chunk_size] for state in self.states}) > 1

    def _wrong_chunks(self, chunks: list[bytes | None], rules: Rules) -> list[str]:
        found = []
        for index, chunk in enumerate(chunks):
            start = index * rules.chunk_size
            if chunk is None:
                is_new = rules.new_may_fail and start >= min(len(state) for state in self.states)
                if not is_new and not (rules.in_place_tears and self._changed(index, rules)):
                    found.append(f"chunk {index} cannot be read")
                continue
            wrong = self._wrong_bytes(start, chunk, rules)
            if wrong is not None:
                found.append(
                    f"chunk {index} is wrong from byte {wrong} on: {self._explain(wrong, chunk, start)}"
                )
        return found

    def _wrong_bytes(self, start: int, chunk: bytes, rules: Rules) -> int | None:
        """Offset of the first byte that is in none of the states."""
        for offset in range(0, len(chunk), BLOCK):
            block = chunk[offset : offset + BLOCK]
            at = start + offset
            if any(state[at : at + len(block)] == block for state in self.states):
                continue
            for place, byte in enumerate(block, at):
                allowed = {state[place] for state in self.states if place < len(state)}
                if rules.holes_in_new and any(place >= len(state) for state in self.states):
                    allowed.add(0)
                if byte not in allowed:
                    return place
        return None

    def _explain(self, place: int, chunk: bytes, start: int) -> str:
        got = chunk[place - start :][:16]
        wanted = [state[place : place + 16].hex() for state in self.states[-3:]]
        return f"{got.hex()} instead of {' or '.join(wanted)}"


@dataclass(frozen=True)
class Link:
    """A symlink."""

    target: bytes


@dataclass(frozen=True)
class Folder:
    """A directory; it is empty."""


@dataclass(frozen=True)
class Damaged:
    """Something that cannot be read at all: a directory whose record does not verify."""


Thing = FileHistory | Link | Folder | None
Found = list[bytes | None] | Link | Folder | Damaged
"""What stands under a name: the chunks of a file, a link, a directory, or something damaged."""


@dataclass
class NameHistory:
    """The names of one directory, and what they stood for since the floor."""

    bindings: dict[bytes, list[Thing]] = field(default_factory=dict)
    _given_up: set[int] = field(default_factory=set)  # files that lost a name, and not by a rename

    def now(self) -> dict[bytes, Thing]:
        """What each name stands for when everything has been done."""
        return {name: things[-1] for name, things in self.bindings.items() if things[-1] is not None}

    def bind(self, changes: dict[bytes, Thing]) -> None:
        """A change of some names that has been asked for."""
        for name, thing in changes.items():
            things = self.bindings.setdefault(name, [None])
            if not any(things[-1] is moved for moved in changes.values()):
                self._given_up.add(id(things[-1]))
            things.append(thing)

    def keep(self) -> None:
        """The newest state is certain."""
        self._given_up.clear()
        self.bindings = {
            name: things[-1:] for name, things in self.bindings.items() if things[-1] is not None
        }

    def findings(self, found: dict[bytes, Found], rules: Rules) -> list[str]:
        """What is wrong with a directory that was found."""
        wrong = [f"{name!r} was never made" for name in found if name not in self.bindings]
        seen: set[int] = set()
        for name, things in self.bindings.items():
            if name in found:
                wrong += self._wrong_thing(name, things, found[name], rules, seen)
            elif None not in things:
                wrong.append(f"{name!r} is gone")
        for name, things in self.bindings.items():
            thing = things[0]
            if isinstance(thing, FileHistory) and id(thing) not in seen and id(thing) not in self._given_up:
                wrong.append(f"the file that was {name!r} is gone under all of its names")
        return wrong

    @staticmethod
    def _wrong_thing(
        name: bytes, things: list[Thing], found: Found, rules: Rules, seen: set[int]
    ) -> list[str]:
        reasons: list[str] = []
        fits = False
        for thing in reversed(things):
            if isinstance(thing, FileHistory) and isinstance(found, list):
                because = thing.findings(found, rules)
                if not because:
                    fits = True
                    seen.add(id(thing))  # two files may look the same: each may be this one
                reasons += because
            elif isinstance(thing, Link | Folder) and thing == found:
                fits = True
            elif isinstance(thing, Folder) and isinstance(found, Damaged):
                fits = fits or (rules.new_may_fail and None in things)
                reasons.append("its directory record is damaged")
        if fits:
            return []
        what = "; or ".join(dict.fromkeys(reasons)) or f"a {type(found).__name__} instead of one of {things}"
        return [f"{name!r}: {what}"]
