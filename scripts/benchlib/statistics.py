"""From the samples of several rounds to medians, spreads and ratios."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from benchlib.quantities import GIB, MB, MIB, Sample, Unit


def shown(unit: Unit, sample: Sample) -> float:
    """A sample as it is shown: MB/s, operations a second, seconds, MiB, or a factor."""
    if unit is Unit.BYTES:
        return sample.amount / MB / sample.seconds
    if unit is Unit.OPERATIONS:
        return sample.amount / sample.seconds
    if unit is Unit.FACTOR:
        return sample.amount
    return sample.seconds if unit is Unit.SECONDS else sample.amount / MIB


def speed(unit: Unit, sample: Sample) -> float:
    """The same as a number of which more is better."""
    value = shown(unit, sample)
    return value if unit in (Unit.BYTES, Unit.OPERATIONS) else 1 / value


def cpu_cost(unit: Unit, sample: Sample) -> float:
    """Processor time of the daemon: microseconds an operation, seconds a GiB, or seconds."""
    if unit is Unit.SECONDS:
        return sample.cpu
    return sample.cpu / sample.amount * (GIB if unit is Unit.BYTES else 1e6)


@dataclass(frozen=True)
class Figure:
    """One quantity of one subject: the values of the rounds, in their order; None for one that failed."""

    values: tuple[float | None, ...]
    speeds: tuple[float | None, ...]
    costs: tuple[float, ...]

    @property
    def median(self) -> float:
        """Of the rounds that there are."""
        return median(self._known)

    @property
    def spread(self) -> float:
        """Half the distance from the worst to the best round, as a part of the median."""
        return (max(self._known) - min(self._known)) / 2 / self.median if self.median else 0.0

    @property
    def cost(self) -> float:
        """The median of the processor's time."""
        return median(self.costs) if self.costs else 0.0

    @property
    def _known(self) -> list[float]:
        return [value for value in self.values if value is not None]


@dataclass(frozen=True)
class Ratio:
    """One subject against another, more than 1 is faster: of the medians, and of each round."""

    of_medians: float
    rounds: tuple[float, ...]

    @property
    def lowest(self) -> float:
        return min(self.rounds)

    @property
    def highest(self) -> float:
        return max(self.rounds)


def figure(unit: Unit, samples: Sequence[Sample | None]) -> Figure | None:
    """Sum up one quantity of one subject; None where no round has it."""
    there = [sample for sample in samples if sample is not None]
    if not there:
        return None
    return Figure(
        tuple(None if sample is None else shown(unit, sample) for sample in samples),
        tuple(None if sample is None else speed(unit, sample) for sample in samples),
        tuple(cpu_cost(unit, sample) for sample in there) if unit.is_timed else (),
    )


def ratio(ours: Figure, theirs: Figure) -> Ratio | None:
    """How many times as fast, by the rounds that both have; None where there is none."""
    pairs = [
        (mine, other)
        for mine, other in zip(ours.speeds, theirs.speeds, strict=True)
        if mine is not None and other is not None
    ]
    if not pairs:
        return None
    of_medians = median(mine for mine, _ in pairs) / median(other for _, other in pairs)
    return Ratio(of_medians, tuple(mine / other for mine, other in pairs))
