"""A fork of a process that has a vault open works beside it: makes new files in it, and reads.

Lock, journal and syncs belong to the other process, which ends later. If that one is killed, the vault stays
locked until its forks have ended as well.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from cryptfs.vfs.vault import Vault


def prepare(vault: Vault) -> bool:
    """Before the forks, and before the vault's threads start: begin the session, which forks name.

    Returns: False if there must be no forks: a crash has left files whose size is in doubt.
    Raises:  OSError: there is no room for a journal.
    """
    if vault.workers.unsettled is not None:
        return False
    if vault.context.redo is not None:
        vault.context.redo.naming()
    return True


@contextlib.contextmanager
def beside(vault: Vault) -> Iterator[None]:
    """In the fork, for as long as it works. Close all files before the end, which wipes the fork's keys."""
    if vault.context.redo is not None:
        vault.context.redo.follow()
    try:
        yield
    finally:
        vault.hand_over()
