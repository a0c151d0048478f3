"""Command lines as programs in Go take them: -flag and --flag, flags after arguments, durations.

Source: the man page of gocryptfs 2.3, and trials of that version.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PIECE = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)")
_TRUE = frozenset({"1", "t", "T", "true", "TRUE", "True"})
_FALSE = frozenset({"0", "f", "F", "false", "FALSE", "False"})


class FlagError(ValueError):
    """A command line that cannot be understood; the text says why."""


@dataclass(slots=True)
class GoFlags:
    """A command line, taken apart.

    Args: switches: flags without a value that are on.
          values: of each flag with a value all that were given, in order.
          places: all other words.
    """

    switches: set[str] = field(default_factory=set)
    values: dict[str, list[str]] = field(default_factory=dict)
    places: list[str] = field(default_factory=list)

    def last(self, name: str) -> str | None:
        """The value that counts of a flag which is given once."""
        return self.values.get(name, [None])[-1]


def parse_flags(
    words: Sequence[str], switches: Collection[str], valued: Collection[str], aliases: dict[str, str]
) -> GoFlags:
    """Take a command line apart; a word `--` ends the flags.

    Args:   switches, valued: the flags that there are, without and with a value, without dashes.
            aliases: other names of flags.
    Raises: FlagError: an unknown flag, a missing value, or a value that is neither true nor false.
    """
    found = GoFlags()
    left = list(words)
    while left:
        word = left.pop(0)
        if word == "--":
            found.places += left
            break
        if not word.startswith("-") or word == "-":
            found.places.append(word)
            continue
        name, equals, value = word.removeprefix("-").removeprefix("-").partition("=")
        name = aliases.get(name, name)
        if name in valued:
            if not equals and not left:
                raise FlagError(f"the option -{name} needs a value")
            found.values.setdefault(name, []).append(value if equals else left.pop(0))
        elif name in switches:
            set_switch(found, name, value if equals else None)
        else:
            raise FlagError(f"unknown option: {word.partition('=')[0]}")
    return found


def set_switch(flags: GoFlags, name: str, value: str | None) -> None:
    """Turn a flag without a value on, or off by `-name=false`.

    Raises: FlagError: the value is neither true nor false.
    """
    if value is None or value in _TRUE:
        flags.switches.add(name)
    elif value in _FALSE:
        flags.switches.discard(name)
    else:
        raise FlagError(f"the option -{name} is true or false, not {value!r}")


def duration_seconds(text: str) -> float:
    """The seconds of a duration: 500s, 2h45m, 1.5h; 0 needs no unit.

    Raises: FlagError: the text has another form, or is negative.
    """
    if text in ("0", "+0", "-0"):
        return 0.0
    unsigned = text.removeprefix("+")
    pieces = _PIECE.findall(unsigned)
    if not pieces or "".join(number + unit for number, unit in pieces) != unsigned:
        raise FlagError(f"a time is written as 500s, 10m or 2h45m, not {text!r}")
    return float(sum(float(number) * _UNITS[unit] for number, unit in pieces))
