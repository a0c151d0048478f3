"""The entries that a listing leaves out because they do not verify, in a few lines of the log.

An attacker who can write to the vault can plant as many names as fit. With a line for each of them at each
listing, the log would fill its disk.
"""

from __future__ import annotations

import logging

log = logging.getLogger(__name__)

EXAMPLES = 3


class LeftOut:
    """Collects the entries that one listing leaves out.

    Args: where: cipher path of the listed directory; '' is the vault itself.   what: the listing and its
                entries, as in `the listing`, `names`.
    """

    __slots__ = ("_count", "_examples", "_what", "_where")

    def __init__(self, where: str, what: tuple[str, str] = ("the listing", "names")) -> None:
        self._where = where
        self._what = what
        self._count = 0
        self._examples: list[tuple[str, str]] = []

    def add(self, path: str, reason: str) -> None:
        """One entry. path: fit for a log."""
        self._count += 1
        if len(self._examples) < EXAMPLES:
            self._examples.append((path, reason))

    def tell(self) -> None:
        """At the end of the listing: log the entries, and start over."""
        count, examples = self._count, self._examples
        if not count:
            return
        self._count, self._examples = 0, []
        listing, entries = self._what
        if count <= EXAMPLES:
            for path, reason in examples:
                log.warning("%s: left out of %s: %s", path, listing, reason)
            return
        first = ", ".join(f"{path} ({reason})" for path, reason in examples)
        log.warning(
            "%s: %d %s do not verify and are left out of %s; the first: %s",
            self._where or ".",
            count,
            entries,
            listing,
            first,
        )
