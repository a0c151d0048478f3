"""What the code under test promises today. Tests take their rules from here, and from nowhere else."""

from __future__ import annotations

from tests.crash.history import Rules

JOURNAL = False
"""Whether overwrites go through a journal. Until they do, a chunk that is overwritten in place may be lost:
the known gap. Set this when the journal is there, and nothing else."""


def after_a_kill(chunk_size: int, *, writeback: bool) -> Rules:
    """The process dies; whatever it had handed to the kernel is there."""
    return Rules(chunk_size, in_place_tears=not JOURNAL, holes_in_new=writeback, exact_lengths=JOURNAL)


def after_a_power_cut(chunk_size: int) -> Rules:
    """The machine dies."""
    gap = not JOURNAL
    return Rules(chunk_size, in_place_tears=gap, order_is_open=gap, holes_in_new=True, new_may_fail=True)
