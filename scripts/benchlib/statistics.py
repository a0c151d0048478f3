"""From the samples of several rounds to medians, spreads and ratios."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from benchlib.workloads import IN_BYTES, Sample

MB = 10**6
GIB = 2**30


@dataclass(frozen=True)
class Figure:
    """One quantity of one subject. rates: one a round; MB/s for bytes, operations a second otherwise."""

    rates: tuple[float, ...]
    cpu_cost: float  # daemon: seconds for a GiB, or microseconds for an operation; the median

    @property
    def rate(self) -> float:
        """The median."""
        return median(self.rates)

    @property
    def spread(self) -> float:
        """Half the distance from the worst to the best round, as a part of the median."""
        return (max(self.rates) - min(self.rates)) / 2 / self.rate


@dataclass(frozen=True)
class Ratio:
    """One subject against another. of_medians, and the lowest and highest ratio within a round."""

    of_medians: float
    lowest: float
    highest: float


def figure(quantity: str, samples: Sequence[Sample]) -> Figure:
    """Sum up one quantity of one subject; the samples are in the order of the rounds."""
    in_bytes = quantity in IN_BYTES
    unit = MB if in_bytes else 1
    costs = [sample.cpu / sample.amount * (GIB if in_bytes else 1e6) for sample in samples]
    return Figure(tuple(sample.amount / unit / sample.seconds for sample in samples), median(costs))


def ratio(ours: Figure, theirs: Figure) -> Ratio:
    """How many times as fast; both had the same rounds."""
    rounds = [mine / other for mine, other in zip(ours.rates, theirs.rates, strict=True)]
    return Ratio(ours.rate / theirs.rate, min(rounds), max(rounds))
