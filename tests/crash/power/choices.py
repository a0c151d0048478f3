"""Ways to go through decisions: all of them in turn, random ones, those of before."""

from __future__ import annotations

import random


class Odometer:
    """Runs through all sequences of choices, as they turn out to be needed."""

    def __init__(self) -> None:
        self.digits: list[int] = []
        self._limits: list[int] = []
        self._place = 0

    def __call__(self, limit: int) -> int:
        if self._place == len(self.digits):
            self.digits.append(0)
            self._limits.append(limit)
        self._place += 1
        return self.digits[self._place - 1]

    def advance(self) -> bool:
        """Go to the next sequence; False after the last."""
        self._place = 0
        while self.digits:
            self.digits[-1] += 1
            if self.digits[-1] < self._limits[-1]:
                return True
            self.digits.pop()
            self._limits.pop()
        return False


class Dice:
    """Random choices: mostly the newest or the oldest state, so that mixtures of both come up."""

    def __init__(self, dice: random.Random) -> None:
        self._dice = dice
        self._mood = dice.random()
        self.digits: list[int] = []

    def __call__(self, limit: int) -> int:
        if self._dice.random() < 0.2:
            digit = self._dice.randrange(limit)
        else:
            digit = limit - 1 if self._dice.random() < self._mood else 0
        self.digits.append(digit)
        return digit


class Replayed:
    """Choices that were made before."""

    def __init__(self, choices: tuple[int, ...]) -> None:
        self.digits = list(choices)
        self._rest = iter(choices)

    def __call__(self, limit: int) -> int:
        return min(next(self._rest, 0), limit - 1)
