"""Makes findings: looks twice if the vault is in use, and calls the repair if there is one."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace

from cryptfs.errors import CryptfsError, IntegrityError
from cryptfs.fsck.findings import Finding, FindingKind, State
from cryptfs.fsck.repair import Repairer
from cryptfs.vfs.scan.walk import WalkedDirectory, WalkedEntry

PAUSE = 0.05  # seconds between two looks at an entry that may be changing
LOOKS = 4  # how often

Mend = Callable[[Repairer], str]
"""Repairs a finding; returns its action in words."""


class Reporter:
    """Makes the findings of one check.

    Args: repairer: None only reports.   is_mounted: whether the vault is mounted now.
    """

    def __init__(self, repairer: Repairer | None, is_mounted: Callable[[], bool]) -> None:
        self._repairer = repairer
        self._is_mounted = is_mounted
        self.was_mounted = is_mounted()

    def is_mounted(self) -> bool:
        """Whether the vault is mounted now. Not for each file: the question touches the vault's lock.

        was_mounted has the last answer.
        """
        self.was_mounted = self._is_mounted()
        return self.was_mounted

    @property
    def repairs(self) -> bool:
        """Whether findings are repaired."""
        return self._repairer is not None

    def is_open_here(self, st: os.stat_result) -> bool:
        """Whether the repair itself is writing this file."""
        return self._repairer is not None and self._repairer.has_open(st)

    def found(
        self,
        kind: FindingKind,
        where: WalkedEntry | WalkedDirectory,
        detail: str = "",
        mend: Mend | None = None,
    ) -> Finding:
        """A finding, repaired if there is a repairer and a remedy."""
        return self.treated(Finding(kind, where.cipher_path or ".", where.plain_path, detail), mend)

    def treated(self, finding: Finding, mend: Mend | None) -> Finding:
        """The finding with its new state."""
        if self._repairer is None or mend is None:
            return finding
        try:
            treated = replace(finding, state=State.REPAIRED, done=mend(self._repairer))
            self._repairer.note(treated)
            return treated
        except (OSError, CryptfsError) as error:
            return replace(finding, state=State.FAILED, done=f"could not be repaired: {reason_of(error)}")

    def seems(self, wrong: Callable[[], bool]) -> bool:
        """Whether something is wrong; on a mounted vault, whether it stays wrong for a while."""
        for look in range(LOOKS):
            if look:
                time.sleep(PAUSE)
            if not wrong():
                return False
            if not self.is_mounted():
                return True
        return True


def reason_of(error: OSError | CryptfsError) -> str:
    """Why, without a place."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return error.reason if isinstance(error, IntegrityError) else str(error)
