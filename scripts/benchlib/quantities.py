"""What can be measured: units, quantities, and one measurement."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchlib.run import Run

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB
MB = 10**6


class Unit(Enum):
    """What a figure is shown in. Ratios are always of speeds, so that more than 1 is better."""

    OPERATIONS = "1/s"
    BYTES = "MB/s"
    SECONDS = "s"
    MEMORY = "MiB"
    FACTOR = "x"

    @property
    def is_timed(self) -> bool:
        """Whether the daemon's processor time belongs to it."""
        return self not in (Unit.MEMORY, Unit.FACTOR)


CPU_UNITS = {
    Unit.OPERATIONS: "us/op",
    Unit.BYTES: "s/GiB",
    Unit.SECONDS: "s",
    Unit.MEMORY: "",
    Unit.FACTOR: "",
}


@dataclass(frozen=True)
class Quantity:
    """One line of the tables: named by what a person does; the note says how it is done here."""

    title: str
    unit: Unit
    note: str = ""


@dataclass(frozen=True)
class Sample:
    """One measurement. amount: operations, bytes (of memory, too) or a factor; cpu: seconds of the daemon."""

    amount: float
    seconds: float
    cpu: float


@dataclass(frozen=True)
class Workload:
    """What is done in one turn of one subject.

    Args: name: on the command line.   title: heading of its figures.
          run: does it, in an empty directory.   prepare: once for a subject; what it makes stays.
          whole_mount: it takes the mount away and back, so it is run by the process that owns the daemons.
    """

    name: str
    title: str
    run: Callable[[Run], None]
    quantities: tuple[Quantity, ...]
    prepare: Callable[[Run], None] | None = None
    whole_mount: bool = False

    def quantity(self, title: str) -> Quantity:
        """By its title. Raises: KeyError: the workload measures something that it does not announce."""
        found = next((each for each in self.quantities if each.title == title), None)
        if found is None:
            raise KeyError(f"{self.name} does not announce {title!r}")
        return found
