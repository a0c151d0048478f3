"""What a program may see of a vault that changes outside: for each path, what it held and until when."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

GRACE = 2.5
"""Seconds in which what changed outside may be seen as it was."""

ON_ITS_WAY = 1.5
"""Seconds in which what a program closed has reached its place in the backing file."""

DIRECTORY = b"\0directory"
"""In place of a content: a directory stands there."""

Content = bytes | None  # None: nothing stands there


def files_of(contents: Iterable[Content]) -> set[bytes]:
    """Those that are contents of files."""
    return {content for content in contents if content is not None and content != DIRECTORY}


@dataclass
class State:
    """What a path held for a while.

    contents: what can be seen: one, or several where a program and the outside met.
    damaged:  whether an error is right.
    written:  whether a program wrote it, not the outside.
    ended:    when something else took its place; infinite for the last.
    outside:  whether that came from outside, so that this one may be seen for the grace.
    """

    contents: frozenset[Content]
    since: float
    damaged: bool = False
    written: bool = False
    ended: float = math.inf
    outside: bool = False


@dataclass
class Track:
    """The states of one path, newest last.

    claims:    sets of contents; of each, one must be under the path or under a name that says conflict.
    origins:   paths whose objects ever stood here: their attributes may.
    returning: what a program wrote just before the outside replaced it: it was on its way to its place, and a
               change wins over a deletion, so it may come back where nothing has the name.
    written_now: whether a program has it open for writing: where it is moved, what is written goes with it.
    placed:    ciphertext that the outside actor left, while no program wrote since.
    """

    path: str
    states: list[State] = field(default_factory=list)
    claims: list[frozenset[Content]] = field(default_factory=list)
    origins: set[str] = field(default_factory=set)
    returning: set[Content] = field(default_factory=set)
    written_now: bool = False
    placed: bytes | None = None

    def __post_init__(self) -> None:
        self.states.append(State(frozenset({None}), -math.inf))
        self.origins.add(self.path)

    @property
    def last(self) -> State:
        """What stands there now."""
        return self.states[-1]

    @property
    def certain(self) -> Content:
        """The content that stands there now, where `busy` is False; None where damage left nothing."""
        return next(iter(self.last.contents), None)

    @property
    def exists(self) -> bool:
        """Whether an intact file stands there for certain."""
        return (
            len(self.last.contents) == 1 and not self.last.damaged and self.certain not in (None, DIRECTORY)
        )

    def window(self, moment: float) -> list[State]:
        """What may be seen by somebody who began to look at a moment."""
        return [
            state
            for state in self.states
            if state.ended > moment or (state.outside and state.ended > moment - GRACE)
        ]

    def allowed(self, moment: float) -> frozenset[Content]:
        """The contents of the window."""
        found = frozenset().union(*(state.contents for state in self.window(moment)))
        return found | self.returning if None in found else found

    def may_fail(self, moment: float) -> bool:
        """Whether an error is explained: damage, or a change in the window."""
        window = self.window(moment)
        return len(window) > 1 or any(state.damaged for state in window)

    def ever(self, moment: float) -> frozenset[Content]:
        """All contents since a moment, those in its window included."""
        found = frozenset().union(*(each.contents for each in self.states if each.ended > moment - GRACE))
        return found | self.returning if None in found else found

    @property
    def busy(self) -> bool:
        """Whether it is not settled yet what stands there."""
        return bool(self.claims) or len(self.last.contents) > 1

    def ripe(self, moment: float) -> bool:
        """Whether what stands there must be settled by now."""
        return self.busy and moment - self.last.since > GRACE

    def change(self, *contents: Content, outside: bool, damaged: bool = False) -> None:
        """Something else stands there from now on."""
        now = time.monotonic()
        self.last.ended, self.last.outside = now, outside
        if not outside:
            self.returning.clear()
        elif self.last.written and now - self.last.since < ON_ITS_WAY:
            self.returning |= files_of(self.last.contents)
        self.states.append(State(frozenset(contents), now, damaged, not outside))
        self.placed = None
        if len(self.states) > 200:
            del self.states[:100]

    def settle(self, content: Content) -> None:
        """It has shown which of the contents it is."""
        self.last.contents = frozenset({content})
        self.claims.clear()
