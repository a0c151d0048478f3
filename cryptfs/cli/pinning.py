"""The options about the identity of a vault. Every command that unlocks a vault has them.

A person types them, or `mount -o` has them; the environment can turn the pins of this machine off.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from cryptfs.cli.exit_codes import UsageProblem

if TYPE_CHECKING:
    from cryptfs.storage.pins import Pin

PIN_VALUES = ("expect_identity",)
PIN_FLAGS = ("accept", "no_pin")
PIN_OPTIONS = (*PIN_VALUES, *PIN_FLAGS)
NO_PIN_VARIABLE = "CRYPTFS_NO_PIN"

PIN_ADDERS: tuple[Callable[[Callable[..., Any]], Callable[..., Any]], ...] = (
    click.option(
        "--expect-identity",
        metavar="CODE",
        help="Refuse every vault except the one with this identity code; `cryptfs key test` shows the code.",
    ),
    click.option(
        "--accept",
        is_flag=True,
        help="Accept the vault, even if this machine has seen another vault or a newer config at this path.",
    ),
    click.option(
        "--no-pin",
        is_flag=True,
        help="Neither use nor change what this machine remembers about the vault: see --accept.",
    ),
)


@dataclass(frozen=True, slots=True)
class PinChoice:
    """What a person says about the identity. expected: a code, '' is any."""

    accept: bool = False
    is_off: bool = False
    expected: str = ""

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> PinChoice:
        """From options by their names in PIN_OPTIONS; a flag of `mount -o` has the value ''.

        Raises: UsageProblem: the code is not one, or the flags contradict each other.
        """
        accept, no_pin = (given.get(name) not in (None, False) for name in PIN_FLAGS)
        if accept and no_pin:
            raise UsageProblem("--accept pins the vault and --no-pin does not; choose one of them")
        code = given.get("expect_identity") or ""
        if code:
            from cryptfs.core.slots.identity import read_code

            try:
                read_code(code)
            except ValueError as error:
                raise UsageProblem(f"--expect-identity: {error}") from None
        return cls(accept, no_pin, code)

    def over(self, weaker: PinChoice) -> PinChoice:
        """This, and what `weaker` says besides. Raises: UsageProblem: the codes differ."""
        from cryptfs.core.slots.identity import read_code

        if self.expected and weaker.expected and read_code(self.expected) != read_code(weaker.expected):
            raise UsageProblem("you gave two different identity codes")
        is_off = (self.is_off or weaker.is_off) and not self.accept
        return PinChoice(self.accept or weaker.accept, is_off, self.expected or weaker.expected)

    def pin(self) -> Pin:
        """What checks the vault."""
        from cryptfs.storage.pins import Pin

        is_off = self.is_off or os.environ.get(NO_PIN_VARIABLE, "0") not in ("", "0")
        return Pin(accept=self.accept, is_off=is_off, expected=self.expected)
