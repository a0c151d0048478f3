"""What one vector file holds."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

OK = "ok"


@dataclass(frozen=True)
class Vector:
    """One scenario.

    about:     what it shows, in a sentence.
    operation: what a reader is asked to do; test_vectors.py has one function for each.
    inputs:    bytes as hex, names and sizes as they are.
    expect:    `outcome` is "ok", with the results beside it, or the error class, with a word of `why`.
    """

    about: str
    operation: str
    inputs: dict[str, Any]
    expect: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        """What is written to the file."""
        return asdict(self)


Scenarios = dict[str, Vector]


def plain_json(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields with bytes as hex."""
    return {name: value.hex() if isinstance(value, bytes) else value for name, value in fields.items()}


def good(about: str, operation: str, inputs: dict[str, Any], **results: Any) -> Vector:
    """A scenario that must succeed with these results."""
    return Vector(about, operation, plain_json(inputs), plain_json({"outcome": OK, **results}))


def bad(about: str, operation: str, inputs: dict[str, Any], outcome: str, why: str, **more: Any) -> Vector:
    """A scenario that must be refused with this error class, for this reason."""
    return Vector(about, operation, plain_json(inputs), plain_json({"outcome": outcome, "why": why, **more}))
