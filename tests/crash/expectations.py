"""What the code under test promises, by its level of durability. Tests take their rules from here."""

from __future__ import annotations

from cryptfs.vfs.content.redo import Durability
from tests.crash.history import Rules


def after_a_kill(chunk_size: int, durability: Durability, *, writeback: bool) -> Rules:
    """The process dies; whatever it had handed to the kernel is there."""
    gap = durability is Durability.OFF
    return Rules(chunk_size, in_place_tears=gap, holes_in_new=writeback, exact_lengths=not gap)


def after_a_power_cut(chunk_size: int, durability: Durability) -> Rules:
    """The machine dies."""
    gap = durability is not Durability.POWER
    return Rules(chunk_size, in_place_tears=gap, order_is_open=gap, holes_in_new=True, new_may_fail=True)
