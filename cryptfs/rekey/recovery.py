"""Where a change of the masterkey meets the recovery record.

A recovery secret is as good as the masterkey that it was kept with. So all of them end with the old one, and
a person makes new words and shares afterwards. Source: docs/FORMAT.md, section 14.7.
"""

from __future__ import annotations

from cryptfs.core.names.host import StateNames
from cryptfs.core.slots.checks import NEXT_RECOVERY_NAME, RECOVERY_NAME
from cryptfs.storage.recovery import remove_record


def drop_record(vault_fd: int, owner: StateNames) -> None:
    """Step 4: the new config lists no recovery secret, and the record has the old masterkey.

    Args:   owner: this machine's names.
    Raises: OSError.
    """
    for name in (RECOVERY_NAME, NEXT_RECOVERY_NAME):
        remove_record(vault_fd, name, owner)
