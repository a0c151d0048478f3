"""Whether a vault has counted fewer sessions than this machine has seen: then an older copy was put back.

A warning only: somebody may have restored the copy on purpose.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from cryptfs.core.format.journal import Sessions
from cryptfs.storage.pins import Pin, SeenSessions
from cryptfs.vfs.content.context import FileContext
from cryptfs.vfs.recovery.replay import read_sessions


class CountOfSessions:
    """Compares this machine's list of sessions with the last one that it saw, and remembers it.

    Args: vault_fd: the vault directory, at vault_dir.   pin: remembers the number outside of the vault.
    """

    def __init__(self, context: FileContext, vault_fd: int, vault_dir: Path, pin: Pin) -> None:
        self._context = context
        self._vault_fd = vault_fd
        self._vault_dir = vault_dir
        self._pin = pin

    def notices(self, now: Sessions) -> list[str]:
        """A warning for the person who opens the vault, if there is one. Raises: OSError.

        A vault directory that somebody copied is another one, whose machines have other names; so the
        list that this machine had in the former directory counts.

        Args: now: this machine's sessions, after a replay.
        """
        seen = self._pin.seen_sessions(self._vault_dir)
        last = now.last
        if seen is not None and seen.owner.host not in ("", self._context.owner.host):
            last = read_sessions(self._context, self._vault_fd, seen.owner).last
        self._keep(now.last)
        if seen is None or last >= seen.last:
            return []
        return [
            "the vault has counted fewer sessions than this machine has seen: an older copy of it was put "
            "back, or its list of sessions is gone. If that was not you, compare the vault with a manifest: "
            "cryptfs verify VAULT MANIFEST"
        ]

    def end(self) -> None:
        """Remember the number after the last change of the list by this process; never an error."""
        with contextlib.suppress(OSError):
            self._keep(read_sessions(self._context, self._vault_fd).last)

    def _keep(self, last: int) -> None:
        self._pin.keep_sessions(self._vault_dir, SeenSessions(self._context.owner, last))
